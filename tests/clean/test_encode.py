"""Text to numbers on the host, against scikit-learn's encoders and two real tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from palmerpenguins import load_penguins
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from jaxsafe import clean

_CITIES = {
    "city": ["London", "Venice", "Prague"],
    "rain": [2.5, np.nan, 4.6],
    "wind": [7.9, 8.9, None],
}


def test_small_table_with_holes_becomes_finite():
    assert not np.isfinite(np.asarray(_CITIES["rain"]).sum())
    raw = clean.fit(_CITIES, scale=None)
    expected = [
        [1, 0, 0, 2.5, 7.9],
        [0, 0, 1, 3.55, 8.9],
        [0, 1, 0, 4.6, 8.4],
    ]
    encoded = clean.encode(raw, _CITIES)
    assert encoded.dtype == np.float32
    np.testing.assert_allclose(clean.apply(raw, encoded), expected, rtol=1e-7)

    scaled = clean.fit(_CITIES)
    out = jax.jit(clean.apply)(scaled, clean.encode(scaled, _CITIES))
    expected = [[1, 0, 0, -1, -1], [0, 0, 1, 0, 1], [0, 1, 0, 1, 0]]
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["str", "object", "category"])
def test_one_hot_is_that_of_scikit_learn(dtype):
    penguins = load_penguins()[["species", "island"]].astype(dtype)
    ours = clean.encode(clean.fit(penguins), penguins)
    encoder = OneHotEncoder(sparse_output=False, handle_unknown="ignore")
    theirs = encoder.fit_transform(penguins.astype(object))
    np.testing.assert_array_equal(ours, theirs)


def test_ordinal_is_that_of_scikit_learn_with_codes_for_missing_and_unknown():
    table = {"a": ["x", "z", None, "y"], "b": [True, False, True, True]}
    cleaner = clean.fit(table, categories="ordinal")
    new = {"a": ["y", None, "?", "x"], "b": [False, None, True, True]}
    ours = clean.encode(cleaner, new)
    encoder = OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=4, encoded_missing_value=3
    )
    theirs = encoder.fit(np.asarray([table["a"]], object).T).transform(
        np.asarray([new["a"]], object).T
    )
    np.testing.assert_array_equal(ours[:, :1], theirs)
    np.testing.assert_array_equal(ours[:, 1], [0, 2, 1, 1])
    np.testing.assert_array_equal(clean.apply(cleaner, ours), ours)


def test_unknown_is_a_row_of_zeros_and_missing_has_its_own_feature():
    cleaner = clean.fit({"city": ["London", None, "Venice"]})
    assert cleaner.features == ("city=London", "city=Venice", "city=(missing)")
    out = clean.encode(cleaner, {"city": ["Prague", None, "Venice"]})
    np.testing.assert_array_equal(out, [[0, 0, 0], [0, 0, 1], [0, 1, 0]])
    # Never missing in training: no feature whose weight was never trained.
    whole = clean.fit({"city": ["London", "Venice"]})
    np.testing.assert_array_equal(clean.encode(whole, {"city": [None]}), [[0, 0]])


@pytest.mark.parametrize("categories", ["onehot", "ordinal"])
@pytest.mark.parametrize("scale", ["standard", None])
def test_categories_know_no_sentinel_and_no_outlier(categories, scale):
    table = {"c": list("abcdefgh"), "x": [0.0] * 7 + [8.0]}
    cleaner = clean.fit(
        table, categories=categories, scale=scale, outliers=0.5, missing=(1.0,)
    )
    encoded = clean.encode(cleaner, table)
    out = clean.apply(cleaner, encoded)
    np.testing.assert_array_equal(out[:, :-1], encoded[:, :-1])


_COLOURS = {
    "colour": ["red", None, "blue", "?", "blue", "red", "green"],
    "x": [1.0, None, 2.0, 3.0, 4.0, 5.0, 6.0],
}
_MODE = {"impute": {"colour": "most_frequent"}, "missing": ("?",)}


@pytest.mark.parametrize("categories", ["onehot", "ordinal"])
def test_a_missing_category_becomes_the_most_frequent(categories):
    imputer = SimpleImputer(strategy="most_frequent", missing_values=None)
    known = [None if c == "?" else c for c in _COLOURS["colour"]]
    filled = imputer.fit_transform(np.asarray([known], object).T)
    encoder = {
        "onehot": OneHotEncoder(sparse_output=False),
        "ordinal": OrdinalEncoder(),
    }[categories]
    expected = encoder.fit_transform(filled)
    cleaner = clean.fit(_COLOURS, categories=categories, **_MODE)
    assert "colour=(missing)" not in cleaner.features
    assert cleaner.columns[0].fill == "blue"
    loaded = clean.from_json(cleaner.to_json())
    assert loaded.columns == cleaner.columns
    np.testing.assert_array_equal(clean.encode(loaded, _COLOURS)[:, :-1], expected)
    np.testing.assert_array_equal(cleaner.as_map()(_COLOURS)[:, :-1], expected)
    # What is unknown is not what is missing; an audit counts the holes as they are.
    new = clean.encode(cleaner, {"colour": ["mauve", None], "x": [0, 0]})
    assert new[0, :-1].tolist() == ([0, 0, 0] if categories == "onehot" else [4])
    np.testing.assert_array_equal(new[1, :-1], expected[1])
    audited = clean.audit(_COLOURS, cleaner).columns[0]
    assert (audited.missing, audited.sentinel, audited.shares) == (1, 1, (2, 1, 2))


def test_most_frequent_categories_are_merged():
    halves = [
        {k: v[:3] for k, v in _COLOURS.items()},
        {k: v[3:] for k, v in _COLOURS.items()},
    ]
    halves[0]["colour"] = ["red", None, "red"]
    a, b = (clean.fit(half, **_MODE) for half in halves)
    whole = clean.fit(halves, **_MODE)
    assert (a.columns[0].fill, b.columns[0].fill) == ("red", "blue")
    merged = clean.merge(a, b)
    assert merged.columns == whole.columns
    assert merged.columns[0].fill == "red"
    np.testing.assert_array_equal(merged.count, whole.count)
    a, b = (clean.fit(half, categories="ordinal", **_MODE) for half in halves)
    assert clean.merge(a, a).columns[0].fill == "red"
    with pytest.raises(ValueError, match=r"^clean.merge: the most frequent category"):
        clean.merge(a, b)


def test_categories_have_no_mean():
    with pytest.raises(ValueError, match=r"^clean.fit: column 'colour' holds categ"):
        clean.fit(_COLOURS, impute={"colour": "mean"})


def test_text_sentinel_is_missing():
    cleaner = clean.fit({"city": ["London", "?", "Venice"]}, missing=("?", -1.0))
    assert cleaner.features == ("city=London", "city=Venice", "city=(missing)")
    assert clean.encode(cleaner, {"city": ["?"]}).tolist() == [[0, 0, 1]]


def test_numeric_sentinel_becomes_a_hole():
    cleaner = clean.fit({"a": [1.0, -999.0, 3.0]}, missing=(-999.0,))
    out = clean.encode(cleaner, {"a": [-999.0, 1.0, np.inf]})
    np.testing.assert_array_equal(out[:, 0], [np.nan, 1.0, np.inf])


@pytest.mark.parametrize(
    "values",
    [
        ["a", None, "b"],
        ["a", np.nan, "b"],
        np.asarray(["a", np.nan, "b"], object),
        pd.Series(["a", pd.NA, "b"], dtype="string"),
        pd.Series(["a", None, "b"], dtype="category"),
        pd.Series(["a", pd.NaT, "b"], dtype="object"),
    ],
    ids=lambda v: f"{type(v).__name__}-{getattr(v, 'dtype', '')}",
)
def test_every_spelling_of_a_missing_category(values):
    cleaner = clean.fit({"c": values})
    assert cleaner.features == ("c=a", "c=b", "c=(missing)")
    assert clean.encode(cleaner, {"c": values}).argmax(axis=1).tolist() == [0, 2, 1]


def test_whole_numbers_name_the_same_category_with_and_without_holes():
    cleaner = clean.fit({"c": pd.Series([1, 2, 1], dtype="category")})
    assert cleaner.features == ("c=1", "c=2")
    holed = pd.Series([2, None, 1], dtype="category")
    assert clean.encode(cleaner, {"c": holed}).tolist() == [[0, 1], [0, 0], [1, 0]]


def test_array_of_text_has_columns_by_position():
    table = np.asarray([["London", 2.5], ["Venice", np.nan]], object)
    cleaner = clean.fit(table)
    assert cleaner.features == ("x0=London", "x0=Venice", "x1")
    np.testing.assert_array_equal(
        clean.encode(cleaner, table), [[1, 0, 2.5], [0, 1, np.nan]]
    )


def test_named_columns_are_found_in_any_order():
    cleaner = clean.fit(_CITIES)
    turned = pd.DataFrame(_CITIES)[["wind", "city", "rain"]]
    np.testing.assert_array_equal(
        clean.encode(cleaner, turned), clean.encode(cleaner, _CITIES)
    )


def test_penguins_from_frame_to_finite_batch():
    penguins = load_penguins()
    cleaner = clean.fit(penguins)
    out = jax.jit(clean.apply)(cleaner, clean.encode(cleaner, penguins))
    assert out.shape == (344, 14)
    assert bool(jnp.isfinite(out).all())

    numeric = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]
    values = penguins[numeric].to_numpy().astype(np.float32).astype(np.float64)
    expected = np.nan_to_num(StandardScaler().fit_transform(values), nan=0.0)
    ours = out[:, [cleaner.features.index(name) for name in numeric]]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6)

    sex = out[:, [i for i, n in enumerate(cleaner.features) if n.startswith("sex=")]]
    np.testing.assert_array_equal(sex.sum(axis=0), [165, 168, 11])
    assert "bill_length_mm" in cleaner.summary()
    assert max(map(len, cleaner.summary().splitlines())) <= 80
    assert repr(cleaner) == (
        "Cleaner(8 columns -> 14 features, impute='mean', scale='standard')"
    )
    assert "outliers=3.0" in repr(clean.fit(penguins, outliers=3))


def test_numbers_as_categories_are_sorted_as_numbers():
    sizes = pd.DataFrame({"size": pd.Categorical([10, 9, None, 2])})
    cleaner = clean.fit(sizes, categories="ordinal")
    assert cleaner.columns[0].categories == ("2", "9", "10")
    assert clean.encode(cleaner, sizes).ravel().tolist() == [2, 1, 3, 0]
    texts = clean.fit({"size": pd.Categorical(["10", "9", None])})
    assert texts.columns[0].categories == ("10", "9")
    # Chunks and merges keep the order; so does what is saved.
    parts = [sizes.iloc[:1], sizes.iloc[2:3], sizes.iloc[3:], sizes.iloc[1:2]]
    merged = clean.fit(iter(parts), categories="ordinal")
    kept = clean.fit(iter(parts), categories="ordinal", scale="robust")
    loaded = clean.from_json(merged.to_json())
    for other in (merged, kept, loaded):
        assert other.columns == cleaner.columns


def test_a_categorical_without_an_entry_is_a_category():
    table = pd.DataFrame({"c": pd.Categorical([None, None])})
    assert clean.fit(table).features == ("c=(missing)",)
    assert clean.audit(table).columns[0].kind == "category"


@pytest.mark.parametrize("grade", [list, pd.Categorical], ids=["text", "categorical"])
def test_a_category_that_is_not_allowed_is_missing(grade):
    table = {"grade": grade(["b", "a", "?", "x", None, "b"]), "ok": [True, False] * 3}
    options = {"missing": ("?",), "allowed": {"grade": ("a", "b", "c"), "ok": (True,)}}
    cleaner = clean.fit(table, **options)
    assert cleaner.features[:3] == ("grade=a", "grade=b", "grade=(missing)")
    assert cleaner.features[3:] == ("ok=True", "ok=(missing)")
    np.testing.assert_array_equal(cleaner.count, [1, 2, 3, 3, 3])
    new = {"grade": ["x", "c", "a"], "ok": [True, None, False]}
    encoded = clean.encode(clean.from_json(cleaner.to_json()), new)
    expected = [[0, 0, 1, 1, 0], [0, 0, 0, 0, 1], [1, 0, 0, 0, 1]]
    np.testing.assert_array_equal(encoded, expected)
    found = clean.audit(table, cleaner).columns
    assert [(c.forbidden, c.sentinel, c.unseen) for c in found] == [
        (1, 1, 0),
        (3, 0, 0),
    ]
    named = clean.fit(table, impute={"grade": "most_frequent"}, **options)
    assert clean.encode(named, table)[3, :2].tolist() == [0, 1]


def test_numbers_as_categories_are_allowed_by_their_value():
    table = {"stars": pd.Categorical([1, 2, 9, None])}
    cleaner = clean.fit(table, allowed={"stars": (1, 2.0)}, categories="ordinal")
    assert clean.encode(cleaner, table).ravel().tolist() == [0, 1, 2, 2]
