"""What an audit counts, and that it can be read."""

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
