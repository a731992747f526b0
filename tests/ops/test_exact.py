"""Products without rounding; long sums: error, NaN, slope, rows on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxsafe.ops._exact import dot, remainder, total
from tests import oracles

SUM = jax.jit(total, static_argnums=1)


@pytest.mark.parametrize("shape", [(3, 0), (64, 60), (4, 99_991)])
def test_long_sums_are_good_to_two_ulp(shape):
    x = np.random.default_rng(0).exponential(size=shape).astype(np.float32)
    true = oracles.exact(x.astype(np.float64).sum(1, keepdims=True))
    assert oracles.ulps(SUM(x, (1,)), true, np.float32).max() <= 2


def test_a_sum_over_two_axes():
    x = np.random.default_rng(1).exponential(size=(7, 300)).astype(np.float32)
    want = x.astype(np.float64).sum(keepdims=True)
    np.testing.assert_allclose(SUM(x, (0, 1)), want, rtol=3e-7)


def test_a_sum_is_linear_and_sees_every_nan():
    x = jnp.arange(10_000.0).reshape(2, 5000)
    slope = jax.jit(jax.grad(lambda x: (total(x, (1,)) * jnp.float32(3)).sum()))(x)
    np.testing.assert_array_equal(slope, np.full(x.shape, 3.0))
    assert np.isnan(SUM(x.at[0, 4000].set(jnp.nan), (1,))).tolist() == [[True], [False]]


@pytest.mark.parametrize("spec", [("d",), (None, "d")], ids=["rows", "entries"])
@pytest.mark.several_devices
def test_rows_on_several_devices(spec):
    x = np.random.default_rng(2).exponential(size=(8, 5000)).astype(np.float32)
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    got = SUM(jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec))), (1,))
    true = oracles.exact(x.astype(np.float64).sum(1, keepdims=True))
    assert oracles.ulps(got, true, np.float32).max() <= 2


@pytest.mark.parametrize("n", [1, 2, 60, 1000])
def test_a_dot_product_has_half_as_many_digits_again(n):
    x, y = np.random.default_rng(n).uniform(-1, 1, (2, 50, n)).astype(np.float32)
    head, rest = jax.jit(dot, static_argnums=2)(x, y, (1,))
    wide = x.astype(np.float64), y.astype(np.float64)
    want = np.sum(wide[0] * wide[1], 1, keepdims=True)
    size = np.prod([np.linalg.norm(a, axis=1, keepdims=True) for a in wide], axis=0)
    off = (np.asarray(head, np.float64) - want) + np.asarray(rest)
    assert (np.abs(off) / size).max() <= 2.0**-29


def test_no_product_of_a_remainder_is_rounded():
    x, y = np.random.default_rng(0).uniform(0.5, 2, (2, 1000)).astype(np.float32)
    got = jax.jit(remainder)(x * y, x, y)
    want = (x * y).astype(np.float64) - x.astype(np.float64) * y
    assert np.abs(got - want).max() <= 2.0**-34
    assert np.abs(want).max() >= 2.0**-25
