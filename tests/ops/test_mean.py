"""mean, var, std, standardize: offsets, extreme sizes, empty rows, options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from jaxsafe import ops
from jaxsafe.ops._exact import total
from jaxsafe.ops._moments import centered
from tests import oracles

FAMILY = [ops.mean, ops.var, ops.std, ops.standardize]
family = pytest.mark.parametrize("function", FAMILY, ids=lambda f: f.__name__)
SUM = jax.jit(total, static_argnums=1)
STANDARDIZE = jax.jit(ops.standardize)


@pytest.mark.parametrize("shape", [(3, 0), (4, 1), (64, 60), (64, 1000), (4, 99_991)])
def test_long_sums_are_good_to_two_ulp(shape):
    x = np.random.default_rng(0).exponential(size=shape).astype(np.float32)
    true = oracles.exact(x.astype(np.float64).sum(1, keepdims=True))
    assert oracles.ulps(SUM(x, (1,)), true, np.float32).max() <= 2
    both = SUM(x, (0, 1))
    assert both.shape == (1, 1)
    np.testing.assert_allclose(both, x.astype(np.float64).sum(), rtol=3e-7)


def test_a_sum_is_linear_and_sees_every_nan():
    x = jnp.arange(10_000.0).reshape(2, 5000)
    slope = jax.jit(jax.grad(lambda x: (total(x, (1,)) * jnp.float32(3)).sum()))(x)
    np.testing.assert_array_equal(slope, np.full(x.shape, 3.0))
    assert np.isnan(SUM(x.at[0, 4000].set(jnp.nan), (1,))).tolist() == [[True], [False]]


@family
def test_sharded_rows(function):
    x = np.random.default_rng(0).standard_normal((8, 1000)).astype(np.float32) + 100
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    program = jax.jit(
        lambda x: (
            function(x, axis=-1),
            jax.grad(lambda x: (function(x, axis=-1) ** 2).sum())(x),
        )
    )
    want = program(x)
    for spec in (PartitionSpec("d"), PartitionSpec(None, "d")):
        got = program(jax.device_put(x, NamedSharding(mesh, spec)))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-4),
            got,
            want,
        )


def test_offsets_do_not_cost_digits():
    x = np.float32([[1e4, 1e4 + 1, 1e4 + 2, 1e4 + 3], [1e6, 1e6 + 1, 1e6, 1e6 + 1]])
    got = STANDARDIZE(x)
    rest = x - x.astype(np.float64).mean(1, keepdims=True)
    want = rest / np.sqrt((rest**2).mean(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(got, want, rtol=3e-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [1e-37, 1e-25, 1e25, 1e38])
def test_extreme_sizes(size, dtype):
    x = jnp.asarray([size, -size, size, -size], dtype)
    unit = float(x[0])
    np.testing.assert_allclose(np.float64(ops.std(x)), unit, rtol=1e-6)
    np.testing.assert_allclose(ops.mean(x + x[0] / 2), np.float32(x[0] / 2), rtol=1e-2)
    np.testing.assert_allclose(ops.standardize(x, epsilon=0.0), [1, -1, 1, -1])
    np.testing.assert_allclose(jax.grad(ops.std)(x), np.sign(x) / 4, rtol=1e-6)


def test_an_overflow_is_only_that_of_the_result():
    x = jnp.asarray([6e4, 6e4, -6e4], jnp.float16)
    np.testing.assert_allclose(np.float32(ops.mean(x)), 2e4, rtol=1e-3)
    np.testing.assert_allclose(np.float32(ops.std(x)), 56570.0, rtol=1e-3)
    assert ops.var(x) == jnp.inf
    assert ops.mean(jnp.full(100_000, 6e4, jnp.float16)) == jnp.float16(6e4)
    assert ops.mean(jnp.full(1000, 3e38)) == jnp.float32(3e38)


@family
def test_constant_rows_are_flat_and_finite(function):
    x = jnp.full((2, 7), 0.1)
    values = function(x, axis=-1)
    if function is not ops.mean:
        np.testing.assert_array_equal(values, jnp.zeros_like(values))
    slope = jax.jit(jax.grad(lambda x: function(x, axis=-1)[0].sum()))(x)
    want = 1 / 7 if function is ops.mean else 0.0
    np.testing.assert_allclose(slope[0], np.full(7, want), rtol=1e-6, atol=2e-5)
    assert np.isfinite(jax.hessian(lambda x: function(x).sum())(x[0])).all()


@family
def test_empty_rows_give_zero_with_zero_gradient(function):
    x = jnp.asarray([[jnp.nan, jnp.inf], [2.0, 0.0]])
    mask = jnp.asarray([[False, False], [True, True]])

    def of(x):
        return function(x, axis=-1, where=mask)

    np.testing.assert_array_equal(of(x)[0], jnp.zeros_like(of(x)[0]))
    np.testing.assert_array_equal(of(x)[1], function(x[1], axis=-1))
    slope = jax.jit(jax.grad(lambda x: (of(x) ** 2).sum()))(x)
    np.testing.assert_array_equal(slope[0], [0, 0])
    assert np.isfinite(slope).all()


@family
@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2), (-1, 0)])
def test_axes(function, axis):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4)), jnp.float32)
    twin = getattr(jax.nn if function is ops.standardize else jnp, function.__name__)
    np.testing.assert_allclose(
        function(x, axis=axis), twin(x, axis=axis), rtol=1e-4, atol=1e-5
    )


def test_options_of_the_spread():
    x = jnp.asarray([[1.0, 2.0, 4.0], [3.0, 3.0, 5.0]])
    for ours, twin in ((ops.var, jnp.var), (ops.std, jnp.std)):
        got = ours(x, 1, ddof=1, keepdims=True)
        np.testing.assert_allclose(got, twin(x, 1, ddof=1, keepdims=True), rtol=1e-6)
        np.testing.assert_array_equal(ours(x, 1, correction=1, keepdims=True), got)
        with pytest.raises(ValueError, match="ddof and correction mean the same"):
            ours(x, ddof=1, correction=1)
        assert ours(x[:, :1], 1, ddof=1).tolist() == [0, 0]
        assert jax.grad(lambda x, f=ours: f(x, ddof=1))(x[0, :1]) == 0


def test_mean_and_variance_from_elsewhere():
    x = jnp.asarray([[1.0, 2.0, 4.0], [3.0, 3.0, 5.0]])
    mean, rest, variance = centered(x, (1,))
    np.testing.assert_allclose(rest, x - mean, rtol=1e-6)
    want = ops.standardize(x)
    for one in ({"mean": mean}, {"variance": variance}):
        np.testing.assert_allclose(ops.standardize(x, **one), want, rtol=1e-6)
    half = ops.standardize(x, mean=1.0, variance=4.0, epsilon=0.0)
    np.testing.assert_allclose(half, (x - 1) / 2, rtol=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(-60, 60))
def test_standardize_does_not_see_offset_and_size(seed, power):
    x = np.random.default_rng(seed).integers(-100, 100, 8).astype(np.float32)
    size = np.float32(2.0**power)
    plain = jax.jit(lambda x: ops.standardize(x, epsilon=0.0))
    np.testing.assert_allclose(plain((x + 4096) * size), plain(x), atol=1e-6)


@family
def test_integers_are_refused(function):
    with pytest.raises(TypeError, match=r"must be a floating array \(got int32\)"):
        function(jnp.arange(3))
