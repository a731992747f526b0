"""Fitted statistics against scikit-learn, and against exact arithmetic beyond it."""

import pickle
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import StandardScaler

from jaxsafe import clean
from jaxsafe.clean import _moments

_ROUNDING = 2e-6  # a few float32 ulp of values around 10


def _holes(seed=0, rows=500, columns=7, mean=3.0):
    rng = np.random.default_rng(seed)
    x = (mean + 2 * rng.standard_normal((rows, columns))).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    return x


@pytest.mark.parametrize("impute", ["mean", "median", "constant", "zero"])
def test_imputes_and_scales_as_scikit_learn(impute):
    x = _holes()
    strategy = "constant" if impute == "zero" else impute
    fill = 0.0 if impute == "zero" else 1.5
    filled = SimpleImputer(strategy=strategy, fill_value=fill).fit_transform(
        x.astype(np.float64)
    )
    scaler = StandardScaler().fit(x.astype(np.float64))

    cleaner = clean.fit(x, impute=impute, fill_value=1.5)
    unscaled = clean.fit(x, impute=impute, fill_value=1.5, scale=None)

    np.testing.assert_allclose(clean.apply(unscaled, x), filled, rtol=1e-7, atol=0)
    np.testing.assert_allclose(
        clean.apply(cleaner, x), scaler.transform(filled), rtol=0, atol=_ROUNDING
    )


def _exact_moments(column):
    """Mean and population variance of a float column in exact arithmetic."""
    values = [Fraction(float(v)) for v in column if np.isfinite(v)]
    mean = sum(values, Fraction(0)) / len(values)
    variance = sum(((v - mean) ** 2 for v in values), Fraction(0)) / len(values)
    return mean, variance


_RNG = np.random.default_rng(1)
_NORMAL = _RNG.standard_normal(999)
_HARD = {
    "mean 1e6, deviation 1": (1e6 + _NORMAL).astype(np.float32),
    "mean 1e4, deviation 0.01": (1e4 + 0.01 * _NORMAL).astype(np.float32),
    "near the end of float32": np.asarray([3e38, -3e38, 3.4e38, 1e38], np.float32),
    "all of 3e38": np.asarray([3e38, 3.1e38, np.nan, 3.2e38], np.float32),
    "float16 around 6e4": (6e4 + 1e3 * _NORMAL).astype(np.float16),
    "tiny": (1e-30 * _NORMAL).astype(np.float32),
    "huge": (1e25 * _NORMAL).astype(np.float32),
}


@pytest.mark.parametrize("name", _HARD)
@pytest.mark.parametrize("jitted", [False, True])
def test_hard_columns_are_right(name, jitted):
    column = _HARD[name]
    cleaner = clean.fit(column[:, None])
    mean, variance = _exact_moments(column)
    deviation = float(variance) ** 0.5 if variance < 1e300 else None
    assert deviation is not None
    assert float(cleaner.mean[0]) == np.float32(float(mean))
    assert float(cleaner.std[0]) == pytest.approx(deviation, rel=1e-7)

    # Closed over, so that XLA sees the statistics as constants it may fold.
    def run(x):
        return clean.apply(cleaner, x)

    z = (jax.jit(run) if jitted else run)(column.astype(np.float32)[:, None])[:, 0]
    expected = [
        float((Fraction(float(v)) - mean) / Fraction(deviation))
        if np.isfinite(v)
        else 0.0
        for v in column
    ]
    np.testing.assert_allclose(z, expected, rtol=3e-7, atol=6e-7)


def _uneven(rows=20_000):
    """Columns whose first rows say little about the others, or that few rows decide."""
    rng = np.random.default_rng(2)
    normal = rng.standard_normal(rows)
    columns = {
        "sorted labels": np.sort(rng.random(rows) < 0.3),
        "ramp": np.linspace(-3, 5, rows),
        "two values in turn": np.where(np.arange(rows) % 3 == 0, 0.1, 0.7),
        "small, then large": normal * np.where(np.arange(rows) < 9000, 1e-3, 1.0),
        "large, then small": normal * np.where(np.arange(rows) < 9000, 1.0, 1e-3),
        "lognormal": np.exp(2 * normal),
        "Cauchy": rng.standard_cauchy(rows),
        "one outlier": np.where(np.arange(rows) == 17_000, 1e30, normal),
    }
    return np.stack(list(columns.values()), axis=1).astype(np.float32)


def test_uneven_columns_are_right_on_the_device(monkeypatch):
    monkeypatch.setattr(_moments, "LARGE", 1)
    x = _uneven()
    cleaner = clean.fit(x)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(cleaner.std, wide.std(axis=0), rtol=1.2e-7)
    mean = wide.mean(axis=0)
    assert (np.abs(cleaner.mean - mean) <= np.spacing(np.float32(np.abs(mean)))).all()


@pytest.mark.parametrize("value", [0.0, 7.3, -3e38, 1e-40])
def test_constant_column_is_divided_by_one_and_comes_out_as_zero(value):
    x = np.full((1000, 1), value, np.float32)
    cleaner = clean.fit(x)
    assert float(cleaner.std[0]) == 0
    np.testing.assert_array_equal(clean.apply(cleaner, x), np.zeros_like(x))


def test_a_spread_that_devices_flush_to_zero_is_zero_from_the_start():
    x = np.asarray([[1e-40], [-1e-40], [np.nan]], np.float32)
    cleaner = clean.fit(x)
    assert np.asarray(cleaner.std).tolist() == [0.0]
    np.testing.assert_allclose(clean.apply(cleaner, x), np.zeros((3, 1)), atol=1e-38)


@pytest.mark.parametrize("impute", ["mean", "median", "constant", "zero"])
def test_column_without_observations_is_kept(impute):
    x = np.asarray([[1, np.nan], [3, np.inf], [2, -np.inf]], np.float32)
    unscaled = clean.fit(x, impute=impute, fill_value=4.0, scale=None)
    fill = 0.0 if impute == "zero" else 4.0
    np.testing.assert_array_equal(clean.apply(unscaled, x)[:, 1], np.full(3, fill))
    assert unscaled.count.tolist() == [3, 0]

    scaled = clean.fit(x, impute=impute, fill_value=4.0)
    expected = np.full(3, fill - 4.0)
    np.testing.assert_array_equal(clean.apply(scaled, x)[:, 1], expected)


def test_infinities_and_sentinels_do_not_enter_the_statistics():
    column = [1.0, 2.0, 6.0, np.inf, -np.inf, np.nan, -999.0, 1e300]
    cleaner = clean.fit({"a": column}, missing=(-999.0, np.nan))
    assert cleaner.count.tolist() == [3]
    assert cleaner.mean.tolist() == [3.0]
    assert (cleaner.minimum.tolist(), cleaner.maximum.tolist()) == ([1.0], [6.0])


def test_sentinel_is_compared_after_rounding_to_the_dtype():
    x = jnp.asarray([[1.0], [-999.9], [3.0]], jnp.float16)
    cleaner = clean.fit(x, scale=None, missing=(-999.9,))
    np.testing.assert_array_equal(clean.apply(cleaner, x), [[1], [2], [3]])


def test_outliers_are_clipped_in_deviations_and_in_raw_units():
    x = np.asarray([[0.0]] * 99 + [[100.0]], np.float32)
    z = clean.apply(clean.fit(x, outliers=3.0), x)
    assert float(z.max()) == 3
    raw = clean.apply(clean.fit(x, outliers=3.0, scale=None), x)
    assert float(raw.max()) == pytest.approx(1 + 3 * x.std(), rel=1e-6)


@pytest.mark.parametrize(
    "x",
    [
        np.asarray([[1, 5], [2, 7]], np.int64),
        jnp.asarray([[1, 5], [2, 7]], jnp.bfloat16),
        np.asarray([[1, 5], [2, 7]], np.float16),
        np.asarray([[1, 5], [2, 7]], object),
        {"x0": [1, 2], "x1": (5, 7)},
        {"x0": jnp.asarray([1, 2]), "x1": np.asarray([5.0, 7.0])},
        pd.DataFrame({"x0": [1, 2], "x1": [5.0, 7.0]}),
        pd.DataFrame({0: [1, 2], 1: [5, 7]}, dtype="Int64"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_every_container_gives_the_same_fit(x):
    cleaner = clean.fit(x)
    assert [c.kind for c in cleaner.columns] == ["number", "number"]
    assert cleaner.mean.tolist() == [1.5, 6.0]
    assert cleaner.std.tolist() == [0.5, 1.0]


@pytest.mark.parametrize("impute", ["mean", "constant", "zero"])
@pytest.mark.parametrize("cut", [1, 250, 499])
def test_merged_chunks_equal_one_fit(impute, cut):
    x = 1e4 + _holes(mean=0.0) * np.float32(0.1)
    x[:cut, 3] = np.nan
    merged = clean.merge(
        clean.fit(x[:cut], impute=impute), clean.fit(x[cut:], impute=impute)
    )
    whole = clean.fit(x, impute=impute)
    assert jax.tree.structure(merged) == jax.tree.structure(whole)
    for name in ("count", "mean", "minimum", "maximum", "fill"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name), name)
    np.testing.assert_allclose(merged.std, whole.std, rtol=1e-7)
    np.testing.assert_allclose(
        clean.apply(merged, x), clean.apply(whole, x), rtol=0, atol=1e-6
    )


def test_merging_a_hundred_chunks_loses_nothing():
    x = (1e6 + np.random.default_rng(2).standard_normal((10_000, 1))).astype(np.float32)
    first, *rest = (clean.fit(chunk) for chunk in np.split(x, 100))
    for chunk in rest:
        first = clean.merge(first, chunk)
    wide = x.astype(np.float64)
    high_and_low = float(first.mean[0]) + float(first.mean_low[0])
    assert high_and_low == pytest.approx(wide.mean(), rel=1e-13)
    assert float(first.std[0]) == pytest.approx(wide.std(), rel=1e-7)


def test_merge_unites_categories():
    a = clean.fit({"city": ["Venice", "London"], "x": [1.0, 2.0]})
    b = clean.fit({"city": ["Prague", None], "x": [3.0, 4.0]})
    both = {"city": ["Venice", "London", "Prague", None], "x": [1.0, 2.0, 3.0, 4.0]}
    merged, whole = clean.merge(a, b), clean.fit(both)
    assert merged.features == whole.features
    assert merged.features == (
        "city=London",
        "city=Prague",
        "city=Venice",
        "city=(missing)",
        "x",
    )
    for got, expected in zip(*map(jax.tree.leaves, (merged, whole)), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_statistics_are_float32_arrays_per_feature():
    cleaner = clean.fit(_holes())
    leaves = jax.tree.leaves(cleaner)
    assert all(leaf.shape == (7,) for leaf in leaves)
    assert {str(leaf.dtype) for leaf in leaves} == {"float32", "int32"}
    back = pickle.loads(pickle.dumps(cleaner))
    assert jax.tree.structure(back) == jax.tree.structure(cleaner)
