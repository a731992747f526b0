"""What an audit counts, and that it can be read."""

import dataclasses
import json

import numpy as np
import pytest
from palmerpenguins import load_penguins

from jaxsafe import clean


def _by_name(audit):
    return {column.name: column for column in audit.columns}


def test_counts_each_kind_of_damage_apart():
    found = _by_name(
        clean.audit(
            {
                "a": [1.0, np.nan, np.inf, -np.inf, 1e300, -np.inf],
                "b": [7, 7, 7, 7, 7, 7],
                "c": ["x", None, "y", "x", "x", np.nan],
                "d": ["x", "x", None, None, None, None],
            }
        )
    )
    a, b, c, d = (found[name] for name in "abcd")
    assert (a.missing, a.positive_infinite, a.negative_infinite) == (1, 2, 2)
    assert (a.constant, b.constant, c.constant, d.constant) == (0, 1, 0, 1)
    assert (b.missing, c.missing, d.missing) == (0, 2, 4)
    assert [column.is_clean for column in (a, b, c, d)] == [False, True, False, False]


def test_counts_what_a_cleaner_has_never_met():
    cleaner = clean.fit(
        {"city": ["London", "Venice"], "rain": [2.0, 4.0], "gone": [np.nan, np.nan]},
        missing=(-999.0, "?"),
    )
    batch = {
        "gone": [1.0, 2.0, np.nan, 3.0, -999.0],
        "rain": [-999.0, 1.9, 4.1, 3.0, np.inf],
        "city": ["?", "Prague", None, "London", "Rome"],
    }
    audit = clean.audit(batch, cleaner)
    found = _by_name(audit)
    assert [column.name for column in audit.columns] == ["city", "rain", "gone"]
    city, rain, gone = found["city"], found["rain"], found["gone"]
    assert (city.unseen, city.sentinel, city.missing) == (2, 1, 1)
    assert (rain.out_of_range, rain.sentinel, rain.positive_infinite) == (2, 1, 1)
    assert (gone.out_of_range, gone.sentinel, gone.missing) == (0, 1, 1)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ({"city": ["London"], "rain": [3.0]}, True),
        ({"city": ["London"], "rain": [9.0]}, True),
        ({"city": ["Prague"], "rain": [3.0]}, False),
        ({"city": ["London"], "rain": [-999.0]}, False),
        ({"city": ["London"], "rain": [None]}, False),
        ({"city": ["London"], "rain": [np.inf]}, False),
        ({"city": ["London"], "rain": [-np.inf]}, False),
    ],
)
def test_is_clean(batch, expected):
    table = {"city": ["London", "Venice"], "rain": [2.0, 4.0]}
    audit = clean.audit(batch, clean.fit(table, missing=(-999.0,)))
    assert audit.is_clean is expected
    assert repr(audit).endswith("2 columns, clean)") is expected


def test_cleaned_data_is_clean():
    penguins = load_penguins()
    assert not clean.audit(penguins).is_clean
    cleaner = clean.fit(penguins)
    batch = clean.apply(cleaner, clean.encode(cleaner, penguins))
    assert clean.audit(batch).is_clean


def test_penguins_summary_can_be_read_at_80_columns():
    audit = clean.audit(load_penguins())
    assert repr(audit) == "Audit(344 rows, 8 columns, 5 to clean)"
    lines = audit.summary().splitlines()
    assert max(map(len, lines)) <= 80
    (sex,) = (line for line in lines if line.startswith("sex"))
    assert sex.split() == ["sex", "11", ".", ".", ".", ".", ".", "."]


def test_a_long_name_gives_way_to_the_figures():
    lines = clean.audit({"x" * 200: [1.0, np.nan]}).summary().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1].split()[0].endswith("...")


def test_json_holds_every_count():
    audit = clean.audit({"a": [1.0, np.nan, np.inf]})
    record = json.loads(audit.to_json())
    assert record["rows"] == 3
    assert record["is_clean"] is False
    (column,) = record["columns"]
    assert column["name"] == "a"
    assert (column["missing"], column["positive_infinite"]) == (1, 1)


def test_running_audit_is_the_audit_of_all_rows():
    rng = np.random.default_rng(0)
    table = {"x": rng.normal(5, 2, 300), "c": np.asarray(list("aab") * 100)}
    cleaner = clean.fit(table, ranges={"x": (0, 9)})
    later = {"x": rng.normal(9, 4, 300), "c": np.asarray(list("abb") * 99 + [*"dbb"])}
    later["x"][:3] = [np.nan, np.inf, 50.0]
    for against in (None, cleaner):
        parts = [
            clean.audit({k: v[i : i + 50] for k, v in later.items()}, against)
            for i in range(0, 300, 50)
        ]
        running = parts[0]
        for part in parts[1:]:
            running = running + part
        whole = clean.audit(later, against)
        assert running.rows == whole.rows
        for one, two in zip(running.columns, whole.columns, strict=True):
            a, b = dataclasses.asdict(one), dataclasses.asdict(two)
            for name in ("mean", "std", "shift", "spread"):
                assert a.pop(name) == pytest.approx(b.pop(name), rel=1e-9, abs=1e-12)
            if against is None:  # bins of their own, joined to the nearest
                assert sum(a.pop("histogram")) == sum(b.pop("histogram"))
            assert a == b


def test_shift_is_measured_in_fitted_deviations():
    rng = np.random.default_rng(0)
    x = rng.normal(5, 2, 3000)
    table = {"x": x, "c": np.asarray(list("aab") * 1000)}
    cleaner = clean.fit(table, ranges={"x": (-5, 12)})
    moved = {"x": 3 * x, "c": np.asarray(list("abb") * 1000)}
    number, category = clean.audit(moved, cleaner).columns
    assert number.shift == pytest.approx(2 * x.mean() / x.std(), rel=1e-5)
    assert number.spread == pytest.approx(3, rel=1e-5)
    assert number.forbidden == int((3 * x > 12).sum() + (3 * x < -5).sum())
    assert category.shift == pytest.approx(1 / 3)
    assert sum(number.histogram) == 3000
    assert len(number.sparkline) == 16
    assert clean.audit(table, cleaner).columns[0].shift == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match=r"^clean.Audit: the two audits"):
        clean.audit(table) + clean.audit(table, cleaner)


def test_the_table_of_a_comparison_shows_the_shift_within_80_columns():
    table = {
        "rain": [1.0, 2.0, 3.0, 2.0],
        "a rather long name of a column": list("aabb"),
        "still": [4.0, 4.0, 4.0, 4.0],
    }
    cleaner = clean.fit(table, ranges={"rain": (0, 90)}, missing=(-999.0, "?"))
    lines = clean.audit(table, cleaner).summary().splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["shift", ".", ".", "."]
    later = {
        "rain": [-999.0, float("inf"), None, 7e7],
        "a rather long name of a column": list("bbc?"),
        "still": [4.0, 5.0, 5.0, 4.0],
    }
    found = clean.audit(later, cleaner)
    for _ in range(18):  # a million rows
        found = found + found
    lines = found.summary().splitlines()
    assert max(map(len, lines)) <= 80
    titles = "column missing Inf sentinel unseen forbidden outside const shift"
    assert lines[1].split() == titles.split()
    rain, text, still = (line.split() for line in lines[2:])
    some = "262144"
    assert rain == ["rain", *[some] * 3, ".", some, some, "yes", "9.9e+07"]
    assert text[-8:] == [".", ".", some, some, ".", ".", ".", "0.5"]
    assert still == ["still", *".....", "524288", ".", "0.5"]
