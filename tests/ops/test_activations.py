"""Activations where today's fail, and gradients in their parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsafe import ops

INF = np.inf


def gelu_erf(x):
    return ops.gelu(x, approximate=False)


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


@pytest.mark.parametrize(
    ("function", "x", "value", "slope"),
    [
        (ops.gelu, jnp.bfloat16(-3.0625), -2.9727e-3, -9.7308e-3),
        (ops.gelu, jnp.float16(-4.0), -7.0246e-5, -3.3512e-4),
        (ops.gelu, jnp.float32(-10.0), -1.20409235e-37, -2.75763806e-36),
        (gelu_erf, jnp.float32(-13.0), -7.95231372e-38, -1.03373044e-36),
        (ops.gelu, jnp.float16(150.0), 150.0, 1.0),
        (ops.gelu, jnp.float32(-3e38), 0.0, 0.0),
        (gelu_erf, jnp.float16(-60000.0), 0.0, 0.0),
    ],
)
def test_gelu_keeps_both_tails(function, x, value, slope):
    got = jax.value_and_grad(function)(x)
    rtol = 1e-6 if x.dtype == jnp.float32 else float(jnp.finfo(x.dtype).eps)
    np.testing.assert_allclose(np.asarray(got, float), (value, slope), rtol=rtol)


@jax.jit
def halves(x):
    """Pairs that are equal in exact arithmetic."""
    return {
        "sigmoid": (ops.sigmoid(x) + ops.sigmoid(-x), jnp.ones_like(x)),
        "softplus": (ops.softplus(x) - ops.softplus(-x), x),
        "gelu[tanh]": (ops.gelu(x) - ops.gelu(-x), x),
        "gelu[erf]": (gelu_erf(x) - gelu_erf(-x), x),
        "tanh": (ops.tanh(x), -ops.tanh(-x)),
        "log_cosh": (ops.log_cosh(x), ops.log_cosh(-x)),
        "softsign": (ops.softsign(x), -ops.softsign(-x)),
    }


@settings(max_examples=25)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=16, max_size=16))
def test_symmetries(x):
    x = np.asarray(x, np.float32)
    small = 4 * np.finfo(np.float32).eps * np.maximum(np.abs(x), 1)
    for name, (left, right) in halves(x).items():
        assert (np.abs(left - right) <= small).all(), (name, x)


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


@pytest.mark.parametrize("function", [ops.silu, ops.gelu, ops.squareplus])
def test_bad_input_is_named(function):
    with pytest.raises(TypeError, match="x must be a floating array"):
        function(jnp.arange(3))


def test_gelu_takes_the_form_by_position_as_jax_does():
    x = jnp.float32(1.0)
    np.testing.assert_allclose(ops.gelu(x, False), jax.nn.gelu(x, False), rtol=1e-6)
    assert ops.gelu(x) == ops.gelu(x, True) != ops.gelu(x, False)
