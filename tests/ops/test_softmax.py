"""softmax, log_softmax, logsumexp: confident rows, extreme rows, long rows, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxsafe import losses, ops
from jaxsafe._pin import pinned
from jaxsafe.ops._exact import difference
from tests import oracles

FAMILY = [ops.softmax, ops.log_softmax, ops.logsumexp]
family = pytest.mark.parametrize("function", FAMILY, ids=lambda f: f.__name__)
COMPILED = {f: jax.jit(f) for f in FAMILY}
GRADIENTS = {f: jax.jit(jax.grad(lambda x, f=f: f(x).ravel()[0])) for f in FAMILY}


def in_float64(x):
    """(softmax, log of the sum) of a float64 row, without jax."""
    weights = np.exp(x - x.max())
    return weights / weights.sum(), x.max() + np.log(weights.sum())


@pytest.mark.parametrize("n", [1_000, 100_000])
@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_long_rows(n, scale):
    x = (np.random.default_rng(n).standard_normal(n) * scale).astype(np.float32)
    p, total = in_float64(x.astype(np.float64))
    got = np.asarray(COMPILED[ops.softmax](x))
    assert oracles.ulps(got, oracles.Exact(p, 0 * p), np.float32, terms=1).max() <= 7
    assert abs(got.astype(np.float64).sum() - 1) <= 1e-6
    got = COMPILED[ops.logsumexp](x)
    assert oracles.ulps(got, oracles.exact(np.asarray(total)), np.float32) <= 3
    got = COMPILED[ops.log_softmax](x)
    want = x.astype(np.float64) - total
    assert oracles.ulps(got, oracles.Exact(want, 0 * want), np.float32).max() <= 3


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_values_and_gradients_of_100_000_entries(scale, dtype):
    x = (np.random.default_rng(3).standard_normal(100_000) * scale).astype(dtype)
    p, total = in_float64(x.astype(np.float64))
    others = np.delete(p, 0).sum()
    slopes = {ops.softmax: -p[0] * p, ops.log_softmax: -p, ops.logsumexp: p}
    slopes[ops.softmax][0], slopes[ops.log_softmax][0] = p[0] * others, others
    values = (p, x.astype(np.float64) - total, np.asarray(total))
    bars = (7, 3, 2) if dtype == np.float32 else (0.51,) * 3
    steep = 7 if dtype == np.float32 else 0.51
    for function, want, bar in zip(FAMILY, values, bars, strict=True):
        got, slope = COMPILED[function](x), GRADIENTS[function](x)
        exact = oracles.Exact(want, 0 * want)
        assert oracles.ulps(got, exact, dtype, terms=1).max() <= bar
        want = slopes[function]
        exact = oracles.Exact(want, 0 * want)
        assert oracles.ulps(slope, exact, dtype, terms=1).max() <= steep


@pytest.mark.parametrize("compile_", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_the_rounding_error_of_the_subtraction_survives_compilation(compile_):
    rng = np.random.default_rng(1)
    x = (rng.standard_normal(1000) * 30).astype(np.float32)
    peak = np.float32(91.7)
    rounded, lost = compile_(difference)(jnp.asarray(x), jnp.full(1000, peak))
    true = x.astype(np.float64) - np.float64(peak)
    assert (np.asarray(lost) != 0).mean() > 0.5
    np.testing.assert_array_equal(
        np.asarray(rounded, np.float64) + np.asarray(lost, np.float64), true
    )


def test_pinned_halves_do_not_overflow_when_added():
    def middle(x, y):
        return pinned(0.5 * x) + pinned(0.5 * y)

    x = jnp.full(3, 2e38)
    np.testing.assert_array_equal(jax.jit(middle)(x, x), x)


def test_naive_softmax_loses_digits_with_distance_and_ours_does_not():
    x = np.float32([[91.7, 20.3, 19.11, 1.7]])
    p, _ = in_float64(x[0].astype(np.float64))
    exact = oracles.Exact(p[None], 0 * p[None])
    naive = oracles.ulps(jax.nn.softmax(jnp.asarray(x)), exact, np.float32).max()
    ours = oracles.ulps(ops.softmax(jnp.asarray(x)), exact, np.float32).max()
    assert naive > 7 >= ours


@pytest.mark.parametrize("gap", [1.0, 12.0, 18.0, 40.0, 80.0])
def test_confident_rows_keep_value_and_gradient(gap):
    x = jnp.asarray([gap, 0.0, 0.0])
    rest = 2 * np.exp(-np.float64(gap))
    np.testing.assert_allclose(ops.log_softmax(x)[0], -np.log1p(rest), rtol=4e-7)
    own = jax.grad(lambda x: ops.log_softmax(x)[0])(x)
    want = np.float64([rest, -rest / 2, -rest / 2]) / (1 + rest)
    np.testing.assert_allclose(own, want, rtol=8e-7)
    own = jax.grad(lambda x: ops.softmax(x)[0])(x)
    np.testing.assert_allclose(own, want / (1 + rest), rtol=8e-7)


reals = st.floats(-80, 80, width=16)
rows = hnp.arrays(np.float32, 8, elements=reals)


def _cross_entropy(x):
    labels = jnp.eye(1, x.shape[1])[jnp.zeros(x.shape[0], int)]
    return -losses.softmax_cross_entropy(x, labels)


@pytest.mark.parametrize(("rows", "n"), [(64, 60), (4, 128), (4, 1000), (1, 4096)])
@pytest.mark.parametrize(
    ("function", "slope"),
    [
        (lambda x: ops.softmax(x)[:, 0], lambda p, rest: p * rest),
        (lambda x: ops.log_softmax(x)[:, 0], lambda p, rest: rest),
        (_cross_entropy, lambda p, rest: rest),
    ],
    ids=["softmax", "log_softmax", "cross-entropy"],
)
def test_many_equal_entries(function, slope, n, rows):
    """Sums of equal terms: their errors do not average out."""
    gradient = jax.jit(jax.grad(lambda x: function(x).sum()))
    for top in np.linspace(2.1, 11.3, 12):
        x = np.full((rows, n), 0.3, np.float32)
        x[:, 0] = top
        power = (n - 1) * np.exp(np.float64(x[0, 1]) - np.float64(x[0, 0]))
        want = slope(1 / (1 + power), power / (1 + power))
        np.testing.assert_allclose(gradient(x)[:, 0], want, rtol=5 * 2.0**-24)


@given(rows, st.integers(-100, 100))
def test_shift_invariance(x, shift):
    # Only shifts that are exact: the rounding of x + shift is not softmax's doing.
    moved = x + np.float32(shift)
    if not np.array_equal(moved.astype(np.float64), x.astype(np.float64) + shift):
        return
    softmax = COMPILED[ops.softmax]
    np.testing.assert_allclose(softmax(moved), softmax(x), rtol=2e-6)


@given(rows)
def test_probabilities_sum_to_one_and_keep_the_order(x):
    p = np.asarray(COMPILED[ops.softmax](x), np.float64)
    assert abs(p.sum() - 1) <= 1e-6
    order = np.argsort(x, kind="stable")
    assert (np.diff(p[order]) >= 0).all()


@given(st.integers(0, 2**32 - 1))
def test_any_finite_bit_patterns(seed):
    x = oracles.random_bits(np.random.default_rng(seed), 6, np.float32)
    for function in FAMILY:
        value, gradient = COMPILED[function](x), GRADIENTS[function](x)
        assert not np.isnan(value).any()
        assert np.isfinite(gradient).all()
        assert np.isfinite(value).all() or function is ops.log_softmax
    p, _ = in_float64(np.asarray(x, np.float64))
    np.testing.assert_allclose(COMPILED[ops.softmax](x), p, rtol=1e-6, atol=1e-37)


def test_several_infinite_logits_share_the_mass():
    x = jnp.asarray([jnp.inf, 0.0, jnp.inf])
    np.testing.assert_array_equal(ops.softmax(x), [0.5, 0.0, 0.5])
    assert ops.logsumexp(x) == jnp.inf


@family
def test_fully_masked_row_among_others(function):
    x = jnp.asarray([[jnp.nan, 1.0], [2.0, 0.0], [-jnp.inf, -jnp.inf]])
    mask = jnp.asarray([[False, False], [True, True], [True, True]])
    got = function(x, axis=-1, where=mask)
    empty = 0.0 if function is ops.softmax else -np.inf
    np.testing.assert_array_equal(got[0], np.full(got[0].shape, empty))
    np.testing.assert_array_equal(got[2], np.full(got[2].shape, empty))
    np.testing.assert_array_equal(got[1], function(x[1], axis=-1))

    def total(x):
        out = function(x, axis=-1, where=mask)
        return jnp.where(jnp.isfinite(out), out, 0).sum()

    for mode in (jax.grad, jax.jacfwd):
        gradient = jax.jit(mode(total))(x)
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(gradient[0], [0, 0])
        np.testing.assert_array_equal(gradient[2], [0, 0])
    tangent = jax.jvp(lambda x: function(x, axis=-1, where=mask), (x,), (x * 0 + 1,))[1]
    np.testing.assert_array_equal(tangent[0], np.zeros(tangent[0].shape))


@family
@pytest.mark.parametrize("axis", [0, 1, -1, (0, 1), (0, -1)])
def test_axes(function, axis):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4)), jnp.float32)
    twin = getattr(jax.nn, function.__name__)
    got = jax.jit(lambda x: function(x, axis=axis))(x)
    np.testing.assert_allclose(got, twin(x, axis=axis), rtol=1e-5, atol=1e-6)


def test_logsumexp_signature():
    x = jnp.ones((2, 3))
    assert ops.logsumexp(x).shape == ()
    assert ops.logsumexp(x, 0).shape == (3,)
    assert ops.logsumexp(x, axis=0, keepdims=True).shape == (1, 3)


def test_float16_with_more_classes_than_its_largest_number():
    x = jnp.zeros(100_000, jnp.float16)
    np.testing.assert_allclose(np.float32(ops.softmax(x)[0]), 1e-5, rtol=1e-2)
    np.testing.assert_allclose(np.float32(ops.logsumexp(x)), 11.51, rtol=1e-3)


@family
def test_integers_are_refused(function):
    with pytest.raises(TypeError, match=r"must be a floating array \(got int32\)"):
        function(jnp.arange(3))


def test_logsumexp_weights_of_either_sign():
    x, b = jnp.asarray([[1.0, 2.0], [2.0, 1.0]]), jnp.asarray([1.0, -1.0])
    size, sign = ops.logsumexp(x, axis=1, b=b, return_sign=True)
    np.testing.assert_allclose(size, np.log(np.e**2 - np.e), rtol=3e-7)
    np.testing.assert_array_equal(sign, [-1, 1])
    np.testing.assert_array_equal(
        np.isnan(ops.logsumexp(x, axis=1, b=b)), [True, False]
    )


@pytest.mark.parametrize("b", [None, jnp.ones(3)])
def test_logsumexp_signs(b):
    rows = jnp.asarray([[0.0, 1, 2], [-jnp.inf] * 3, [0, jnp.nan, 0], [jnp.inf, 0, 0]])
    value, sign = ops.logsumexp(rows, 1, b, keepdims=True, return_sign=True)
    assert value.shape == sign.shape == (4, 1)
    np.testing.assert_array_equal(np.ravel(sign), [1, 0, np.nan, 1])


def test_logsumexp_of_terms_that_cancel():
    x, b = jnp.asarray([3.0, 3.0]), jnp.asarray([2.0, -2.0])
    value, sign = ops.logsumexp(x, b=b, return_sign=True)
    assert value == -jnp.inf
    assert sign == 0


def test_logsumexp_weight_of_nothing_shields():
    x, b = jnp.asarray([1.0, jnp.nan, jnp.inf]), jnp.asarray([1.0, 0.0, 0.0])
    assert ops.logsumexp(x, b=b) == 1
    np.testing.assert_array_equal(
        jax.grad(lambda x: ops.logsumexp(x, b=b))(x), [1, 0, 0]
    )
