"""arccos, arcsin: the ends of the domain and just beyond."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsafe import ops
from tests import oracles

FUNCTIONS = {"arccos": ops.arccos, "arcsin": ops.arcsin}


@pytest.mark.parametrize("dtype", oracles.DEFAULT)
def test_what_rounding_pushed_out_comes_back_with_slope_zero(dtype):
    kind = oracles.DTYPES[dtype]
    eps = float(jnp.finfo(kind).eps)
    x = jnp.asarray(np.asarray([1, 1 + eps, 1 + 4 * eps, 1 + 5 * eps]).astype(kind))

    def everything(x):
        slope = jax.grad(lambda x: ops.arccos(x).astype(jnp.float32).sum())
        curvature = jax.grad(lambda x: slope(x).astype(jnp.float32).sum())
        return ops.arccos(x), slope(x), curvature(x)

    for sign, end in ((1, 0.0), (-1, np.pi)):
        value, slope, curvature = map(oracles.wide, jax.jit(everything)(sign * x))
        np.testing.assert_allclose(value[:3], end, rtol=eps)
        np.testing.assert_array_equal(slope[:3], 0)
        np.testing.assert_array_equal(curvature[:3], 0)
        assert np.isnan([value[3], slope[3]]).all()


def test_slopes_next_to_the_end():
    x = np.nextafter(np.float32(1), np.float32(0))
    true = 1 / np.sqrt((1 - np.float64(x)) * (1 + np.float64(x)))
    np.testing.assert_allclose(jax.grad(ops.arccos)(x), -true, rtol=3e-7)
    np.testing.assert_allclose(jax.grad(ops.arcsin)(-x), true, rtol=3e-7)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_integers_are_refused(name):
    with pytest.raises(TypeError, match=rf"^ops.{name}: x must be a floating array"):
        FUNCTIONS[name](jnp.arange(2))
