"""mean, var, std, standardize: offsets, extreme sizes, empty rows, options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from jaxsafe import ops

FAMILY = (ops.mean, ops.var, ops.std, ops.standardize)
EXACT = jax.jit(functools.partial(ops.standardize, epsilon=0.0))


def each(x, **options):
    """Values and gradients of the sum of squares, of all four, along the last axis."""

    def values(x):
        return [f(x, axis=-1, **options) for f in FAMILY]

    out, pull = jax.vjp(values, x)
    seeds = [
        jnp.zeros((len(out), *v.shape), v.dtype).at[i].set(2 * v)
        for i, v in enumerate(out)
    ]
    return out, jax.vmap(pull)(seeds)[0]


EACH = jax.jit(each)


@pytest.mark.several_devices
def test_sharded_rows():
    x = np.random.default_rng(0).standard_normal((8, 1000)).astype(np.float32) + 100
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    got = EACH(jax.device_put(x, NamedSharding(mesh, PartitionSpec(None, "d"))))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-4),
        got,
        EACH(x),
    )


def test_offsets_do_not_cost_digits():
    x = np.float32([[1e4, 1e4 + 1, 1e4 + 2, 1e4 + 3], [1e6, 1e6 + 1, 1e6, 1e6 + 1]])
    got = EXACT(x)
    rest = x - x.astype(np.float64).mean(1, keepdims=True)
    want = rest / np.sqrt((rest**2).mean(1, keepdims=True))
    np.testing.assert_allclose(got, want, rtol=3e-7)


def test_extreme_sizes():
    sizes = np.float32([[1e-37], [1e-25], [1e25], [5e37]])
    x = jnp.asarray(sizes * np.float32([3, -1, 3, -1]))
    (mean, _, std, _), (_, _, slope, _) = EACH(x)
    np.testing.assert_allclose(mean, sizes[:, 0], rtol=1e-6)
    np.testing.assert_allclose(std, 2 * sizes[:, 0], rtol=1e-6)
    # Of the square: 2 std sign / 4.
    want = np.outer(sizes[:, 0], [1, -1, 1, -1])
    np.testing.assert_allclose(slope, want, rtol=1e-6)
    np.testing.assert_allclose(EXACT(x), [[1, -1, 1, -1]] * 4, rtol=1e-6)


def test_an_overflow_is_only_that_of_the_result():
    x = jnp.asarray([[6e4, 6e4, -6e4]], jnp.float16)
    mean, var, std, standard = (np.float32(v) for v in EACH(x)[0])
    np.testing.assert_allclose(mean, [2e4], rtol=1e-3)
    np.testing.assert_allclose(std, [56570.0], rtol=1e-3)
    np.testing.assert_allclose(standard[0, 2], -2 / np.sqrt(2), rtol=1e-3)
    assert var == np.inf
    long = jax.jit(ops.mean)
    assert long(jnp.full(100_000, 6e4, jnp.float16)) == jnp.float16(6e4)
    assert long(jnp.full(1000, 3e38)) == jnp.float32(3e38)


def test_constant_rows_and_single_entries_are_flat():
    for x in (jnp.full((2, 7), 0.1), jnp.asarray([[0.1], [-3e38]])):
        values, slopes = EACH(x)
        np.testing.assert_array_equal(values[0], x[:, 0])
        for value, slope in zip(values[1:], slopes[1:], strict=True):
            np.testing.assert_array_equal(value, jnp.zeros_like(value))
            np.testing.assert_array_equal(slope, jnp.zeros_like(x))


def test_second_derivatives_of_a_constant_row_are_finite():
    def total(x):
        return sum(jnp.sum(f(x)) for f in FAMILY)

    assert np.isfinite(jax.jit(jax.hessian(total))(jnp.full(3, 0.1))).all()


def test_empty_rows_give_zero_with_zero_gradient():
    x = jnp.asarray([[jnp.nan, jnp.inf, 1.0], [2.0, 0.0, jnp.nan]])
    mask = jnp.asarray([[False, False, False], [True, True, False]])
    values, slopes = jax.jit(lambda x: each(x, where=mask))(x)
    short, _ = EACH(x[:, :2])
    for value, slope, want in zip(values, slopes, short, strict=True):
        np.testing.assert_array_equal(value[0], jnp.zeros_like(value[0]))
        np.testing.assert_allclose(value[1].ravel()[:2], want[1].ravel(), rtol=1e-6)
        np.testing.assert_array_equal(slope[0], [0, 0, 0])
        assert np.isfinite(slope).all()


def test_axes():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4)), jnp.float32)
    axes = (0, -1, (0, 2))
    got = jax.jit(lambda x: [[f(x, axis=a) for a in axes] for f in FAMILY])(x)
    for function, results in zip(FAMILY, got, strict=True):
        twin = getattr(jnp, function.__name__, jax.nn.standardize)
        for axis, result in zip(axes, results, strict=True):
            want = twin(x, axis=axis)
            np.testing.assert_allclose(result, want, rtol=1e-4, atol=1e-5)


def test_options_of_the_spread():
    x = jnp.asarray([[1.0, 2.0, 4.0], [3.0, 3.0, 5.0]])
    for ours, twin in ((ops.var, jnp.var), (ops.std, jnp.std)):
        program = jax.jit(functools.partial(ours, axis=1, ddof=1, keepdims=True))
        got = program(x)
        np.testing.assert_allclose(got, twin(x, 1, ddof=1, keepdims=True), rtol=1e-6)
        assert program(x[:, :1]).tolist() == [[0], [0]]
        other = jax.jit(functools.partial(ours, axis=1, correction=1, keepdims=True))
        np.testing.assert_array_equal(other(x), got)
        with pytest.raises(ValueError, match="ddof and correction mean the same"):
            ours(x, ddof=1, correction=1)


def test_mean_and_variance_from_elsewhere():
    x = jnp.asarray([[1.0, 2.0, 4.0], [3.0, 3.0, 5.0]])

    @jax.jit
    def program(x):
        mean = ops.mean(x, -1, keepdims=True)
        variance = ops.var(x, -1, keepdims=True)
        return (
            ops.standardize(x),
            ops.standardize(x, mean=mean),
            ops.standardize(x, variance=variance),
            ops.standardize(x, mean=1.0, variance=4.0, epsilon=0.0),
        )

    want, by_mean, by_variance, half = program(x)
    np.testing.assert_allclose(by_mean, want, rtol=1e-6)
    np.testing.assert_allclose(by_variance, want, rtol=1e-6)
    np.testing.assert_allclose(half, (x - 1) / 2, rtol=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(-60, 60))
def test_standardize_does_not_see_offset_and_size(seed, power):
    x = np.random.default_rng(seed).integers(-100, 100, 8).astype(np.float32)
    size = np.float32(2.0**power)
    np.testing.assert_allclose(EXACT((x + 4096) * size), EXACT(x), atol=1e-6)


@pytest.mark.parametrize("function", FAMILY, ids=lambda f: f.__name__)
def test_integers_are_refused(function):
    with pytest.raises(TypeError, match=r"must be a floating array \(got int32\)"):
        function(jnp.arange(3))
