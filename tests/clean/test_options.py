"""Every option against scikit-learn, on the host and on the device."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler

from jaxsafe import clean
from jaxsafe.clean import _moments

_SCALERS = {"standard": StandardScaler, "minmax": MinMaxScaler, "robust": RobustScaler}


@pytest.fixture(
    params=["host", pytest.param("device", marks=pytest.mark.slow)], autouse=True
)
def _side(request, monkeypatch):
    monkeypatch.setattr(_moments, "LARGE", 1 if request.param == "device" else 2**62)


def _data(seed=0, rows=1203):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((rows, 6))
    x = z * [1, 2, 1e3, 1e-4, 1, 0] + [0, 3, 1e5, 0, 1e6, 7]
    x[:, 4] = np.round(x[:, 4])
    x = x.astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    return x


@pytest.mark.parametrize("scale", _SCALERS)
@pytest.mark.parametrize("impute", ["mean", "median", "most_frequent"])
def test_two_ulp_of_scikit_learn(scale, impute):
    _compare(scale, impute)


def test_two_ulp_of_scikit_learn_on_the_device(monkeypatch):
    monkeypatch.setattr(_moments, "LARGE", 1)
    _compare("robust", "mean")


def _compare(scale, impute):
    x = _data()
    imputer = SimpleImputer(strategy=impute)
    filled = imputer.fit_transform(x.astype(np.float64))
    scaler = _SCALERS[scale]().fit(x.astype(np.float64))
    expected = scaler.transform(filled)
    cleaner = clean.fit(x, impute=impute, scale=scale)
    ours = np.asarray(clean.apply(cleaner, x), np.float64)
    center = scaler.mean_ if scale == "standard" else getattr(scaler, "center_", None)
    center = scaler.data_min_ if center is None else center
    spread = scaler.data_range_ if scale == "minmax" else scaler.scale_
    size = np.maximum(np.abs(filled), np.abs(center)).astype(np.float32)
    bound = 2 * np.spacing(size) / np.where(spread > 0, spread, 1)
    ratio = np.abs(ours - expected) / bound
    assert ratio.max() <= 1, ratio.max(axis=0)


@pytest.mark.parametrize(
    "rule", ["std", "iqr", "mad", "quantile", ("iqr", 3.0), ("quantile", 0.05)]
)
@pytest.mark.parametrize("scale", [None, "robust"])
def test_outliers_are_cut_where_the_rule_says(rule, scale):
    x = _data()[:, :4]
    x[5], x[6] = 1e7, -1e7
    name, limit = rule if isinstance(rule, tuple) else (rule, None)
    wide = x.astype(np.float64)
    q = np.nanquantile(wide, [0.25, 0.5, 0.75], axis=0)
    if name == "std":
        middle, reach = np.nanmean(wide, axis=0), 3 * np.nanstd(wide, axis=0)
    elif name == "mad":
        middle = q[1]
        reach = 3.5 * 1.4826022 * np.nanmedian(np.abs(wide - middle), axis=0)
    elif name == "iqr":
        middle = (q[0] + q[2]) / 2
        reach = (0.5 + (limit or 1.5)) * (q[2] - q[0])
    else:
        ends = np.nanquantile(wide, [limit or 0.01, 1 - (limit or 0.01)], axis=0)
        middle, reach = ends.mean(axis=0), np.diff(ends, axis=0)[0] / 2
    low, high = middle - reach, middle + reach
    beyond = (wide < low) | (wide > high)
    assert beyond.any()

    def raw(action):
        cleaner = clean.fit(x, outliers=rule, outlier_action=action, scale=scale)
        y = np.asarray(clean.apply(cleaner, x), np.float64)
        spread = np.asarray(cleaner.divisor / cleaner.unit, np.float64)
        return y * spread + np.asarray(cleaner.center), cleaner

    clipped, cleaner = raw("clip")
    slack = 1e-6 * (np.abs(low) + np.abs(high))
    expected = np.clip(wide, low, high)
    seen = np.isfinite(x)
    error = np.abs(np.where(seen, clipped - expected, 0))
    assert (error <= slack + 1e-6 * np.abs(np.nan_to_num(expected))).all(), error.max(
        axis=0
    )
    masked, cleaner = raw("mask")
    fill = np.broadcast_to(np.asarray(cleaner.fill), x.shape)
    np.testing.assert_allclose(masked[beyond], fill[beyond], rtol=2e-6, atol=1e-2)


@pytest.mark.parametrize("action", ["mask", "clip"])
def test_ranges_hold_before_any_statistic(action):
    x = _data()
    ranges = {"x0": (-1.0, None), "x2": (None, 1e5)}
    cleaner = clean.fit(x, ranges=ranges, range_action=action, scale=None)
    low = np.asarray([-1, -3e38, -3e38, -3e38, -3e38, -3e38], np.float32)
    high = np.asarray([3e38, 3e38, 1e5, 3e38, 3e38, 3e38], np.float32)
    kept = np.clip(x, low, high)
    if action == "mask":
        kept = np.where((x < low) | (x > high), np.nan, x)
    mean = np.nanmean(kept.astype(np.float64), axis=0)
    np.testing.assert_allclose(cleaner.mean, mean, rtol=1e-6)
    expected = np.where(np.isnan(kept), mean, kept)
    np.testing.assert_allclose(clean.apply(cleaner, x), expected, rtol=1e-6)


@pytest.mark.parametrize("large", [1, _moments.LARGE], ids=["device", "host"])
def test_only_what_is_allowed_counts(large, monkeypatch):
    monkeypatch.setattr(_moments, "LARGE", large)
    rng = np.random.default_rng(3)
    x = np.stack([rng.integers(0, 6, 200), rng.normal(size=200)], axis=1)
    x = x.astype(np.float32)
    x[:9, 0], x[3, 1] = [0.1] * 5 + [np.nan, np.inf, 1e30, -0.0], np.nan
    allowed = (0.1, 2, -0.0, 4)
    cleaner = clean.fit(x, allowed={"x0": allowed}, scale=None)
    kept = x.copy()
    kept[~np.isin(x[:, 0], np.asarray(allowed, np.float32)), 0] = np.nan
    mean = np.nanmean(kept.astype(np.float64), axis=0)
    np.testing.assert_array_equal(cleaner.count, np.isfinite(kept).sum(axis=0))
    np.testing.assert_allclose(cleaner.mean, mean, rtol=1e-6)
    expected = np.where(np.isnan(kept), cleaner.fill, kept)
    np.testing.assert_array_equal(clean.apply(cleaner, x), expected)
    np.testing.assert_array_equal(cleaner.as_map()(x), expected)
    good = np.isfinite(kept).all(axis=1)
    np.testing.assert_array_equal(clean.gate(x, cleaner).weight, good)
    found = clean.audit(x, cleaner).columns
    wrong = int((np.isnan(kept[:, 0]) & np.isfinite(x[:, 0])).sum())
    assert [column.forbidden for column in found] == [wrong, 0]


def test_allowed_numbers_are_compared_after_rounding():
    x = np.asarray([[0.1], [0.3], [0.1]], np.float16)
    cleaner = clean.fit(x, allowed={"x0": (0.1,)}, scale=None)
    np.testing.assert_array_equal(clean.apply(cleaner, x), np.full((3, 1), x[0]))
    assert clean.audit(x, cleaner).columns[0].forbidden == 1


def test_each_column_has_its_own_rule_and_its_indicator():
    x = _data()
    x[:, 5] = 7
    cleaner = clean.fit(
        x,
        impute={"x0": "median", "x1": "constant", "x2": "zero", "x4": "most_frequent"},
        fill_value={"x1": -5.0},
        scale=None,
        indicator=True,
    )
    wide = x.astype(np.float64)
    values, counts = np.unique(x[:, 4][np.isfinite(x[:, 4])], return_counts=True)
    mode = values[counts.argmax()]
    fills = [np.nanmedian(wide[:, 0]), -5, 0, np.nanmean(wide[:, 3]), mode, 7]
    out = np.asarray(clean.apply(cleaner, x))
    expected = np.where(np.isnan(x), fills, x)
    np.testing.assert_allclose(out[:, :6], expected, rtol=1e-6)
    flags = MissingIndicator().fit_transform(x)
    np.testing.assert_array_equal(out[:, 6:], flags)
    assert cleaner.output_features[6:] == tuple(f"x{i} (missing)" for i in range(5))


_HARD = np.random.default_rng(1).standard_normal(2500)
_COLUMNS = {
    "mean 1e6": 1e6 + _HARD,
    "sorted": np.sort(1e6 + _HARD),
    "late": np.where(np.arange(2500) < 1500, np.nan, 1e6 + _HARD),
    "one outlier": np.where(np.arange(2500) == 2000, 3e38, _HARD),
    "ends of float32": np.where(_HARD > 0, 3.4e38, -3.4e38),
    "tiny": 1e-30 * _HARD,
    "constant": np.full(2500, 0.1),
    "empty": np.full(2500, np.nan),
    "zeros, then small": np.where(np.arange(2500) < 1500, 0, 1e-8 * _HARD),
}


@pytest.mark.parametrize("streamed", [False, True])
def test_hard_columns_on_the_device(streamed, monkeypatch):
    monkeypatch.setattr(_moments, "LARGE", 1)
    x = np.stack(list(_COLUMNS.values()), axis=1).astype(np.float32)
    if streamed:
        step = jax.jit(clean.update)
        state = clean.start(x.shape[1])
        for chunk in np.split(x, 5):
            state = step(state, chunk)
        cleaner = clean.finish(state)
    else:
        cleaner = clean.fit(x)
    wide = x.astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mean of nothing
        mean = np.nan_to_num(np.nanmean(wide, axis=0))
        std = np.nan_to_num(np.nanstd(wide, axis=0))
    std[6] = 0
    found = np.asarray(cleaner.mean, np.float64) + np.asarray(cleaner.mean_low)
    np.testing.assert_allclose(found, mean, rtol=1e-6, atol=0)
    assert (np.abs(found - mean) <= 1e-7 * std).all()
    # One entry of 3e38 among ones: what the others add is at the end of the digits.
    limit = np.where(np.arange(len(std)) == 3, 4e-6, 2e-7)
    assert (np.abs(np.asarray(cleaner.std, np.float64) - std) <= limit * std).all()
    assert bool(jnp.isfinite(clean.apply(cleaner, x)).all())
    np.testing.assert_array_equal(cleaner.count, np.isfinite(x).sum(axis=0))


def test_sketched_quantiles_are_within_the_stated_error():
    x = _data()
    exact = clean.fit(x, scale="robust", impute="median")
    rough = clean.fit(x, scale="robust", impute="median", quantiles="sketch")
    pivot = np.asarray(rough.sketch.pivot)
    bound = np.abs(np.asarray(exact.fill) - pivot) / 64 + 1e-9
    # a bucket may end between two entries: then up to the next entry as well
    spread = np.asarray(exact.divisor / exact.unit)
    assert (np.abs(rough.fill - exact.fill) <= bound + 2e-3 * spread).all()
    np.testing.assert_allclose(rough.divisor, exact.divisor, rtol=1 / 32)
