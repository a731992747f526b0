"""Activations where today's fail, and gradients in their parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsafe import ops

INF = np.inf


@pytest.mark.parametrize(
    ("function", "x", "slope"),
    [
        (ops.tanh, 10.0, 8.2446145e-09),
        (ops.elu, -20.0, 2.0611537e-09),
        (ops.log_ndtr, -1e38, 1e38),
        (ops.log_ndtr, -1000.0, 1000.001),
        (ops.squareplus, -1e4, 1e-8),
        (ops.mish, 1e38, 1.0),
    ],
)
def test_slope_where_the_usual_one_is_lost(function, x, slope):
    got = jax.grad(function)(jnp.float32(x))
    np.testing.assert_allclose(got, slope, rtol=1e-6)


def test_values_where_the_usual_ones_are_lost():
    assert ops.silu(jnp.float16(-11.5)) == jnp.float16(-1.1647e-4)
    assert ops.log_cosh(jnp.float16(0.01)) == jnp.float16(5.0e-5)
    assert ops.squareplus(jnp.float16(300.0)) == 300
    np.testing.assert_allclose(ops.log_ndtr(jnp.float32(4.94)), -3.906e-7, rtol=2e-3)


@pytest.mark.parametrize("function", [ops.elu, ops.celu, ops.squareplus])
def test_gradient_in_the_parameter(function):
    with jax.enable_x64(True):
        x = jnp.asarray([-30.0, -3.0, -1e-3, 0.7, 4.0])
        p, step = jnp.full(5, 0.7), 1e-6

        def summed(p):
            return function(x, p).sum()

        got = jax.jit(jax.grad(summed))(p)
        want = (function(x, p + step) - function(x, p - step)) / (2 * step)
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("function", [ops.silu, ops.squareplus, ops.log_ndtr])
def test_bad_input_is_named(function):
    with pytest.raises(TypeError, match="x must be a floating array"):
        function(jnp.arange(3))
