"""Long sums: error, NaN, slope, and rows that lie on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxsafe.ops._exact import total
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
def test_rows_on_several_devices(spec):
    x = np.random.default_rng(2).exponential(size=(8, 5000)).astype(np.float32)
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    got = SUM(jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec))), (1,))
    true = oracles.exact(x.astype(np.float64).sum(1, keepdims=True))
    assert oracles.ulps(got, true, np.float32).max() <= 2
