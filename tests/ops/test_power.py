"""Powers, reciprocals and roots where today's lose the value or the slope."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsafe import ops
from tests import oracles

NORMAL = st.floats(2.0**-60, 2.0**60, width=32)


@pytest.mark.parametrize("dtype", oracles.DEFAULT)
@pytest.mark.parametrize("function", [ops.rsqrt, ops.reciprocal])
def test_a_pole_is_the_largest_number(function, dtype):
    x = jnp.zeros((), dtype)
    value, slope = jax.jit(jax.value_and_grad(function))(x)
    assert value == jnp.finfo(dtype).max
    assert slope == 0
    assert jax.grad(jax.grad(function))(x) == 0


@pytest.mark.parametrize("compiled", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_the_sign_of_a_pole(compiled):
    top = float(jnp.finfo(jnp.float32).max)
    assert compiled(ops.reciprocal)(jnp.float32(-0.0)) == -top
    assert compiled(ops.rsqrt)(jnp.float32(-0.0)) == top
    x = jnp.asarray([0.0, -0.0, 0.0, -0.0])
    y = jnp.asarray([-1.0, -1.0, -2.0, -2.0])
    np.testing.assert_array_equal(
        np.asarray(compiled(ops.power)(x, y)), np.float32([top, -top, top, top])
    )


@pytest.mark.parametrize("dtype", oracles.DEFAULT)
def test_zero_to_a_negative_power_fits_the_dtype(dtype):
    value = ops.power(jnp.zeros((), dtype), -2)
    assert value.dtype == dtype
    assert value == jnp.finfo(dtype).max


def test_slopes_of_a_power_that_leaves_the_range():
    # (x, y): x**y underflows or overflows, or x**(y - 1) does, and the slope does not.
    x = jnp.asarray([6.7e-38, 1e-30, 1e20, 1e-25])
    y = jnp.asarray([-0.048, 1.4, 2.0, 2.0])
    slope = jax.jit(jax.vmap(jax.grad(ops.power)))(x, y)
    want = np.float64(y) * np.float64(x) ** (np.float64(y) - 1)
    np.testing.assert_allclose(slope, want, rtol=1e-6)


def test_derivatives_of_a_whole_power_at_zero():
    slope = jax.grad(lambda x, y: jnp.sum(ops.power(x, y)))
    second = jax.grad(lambda x, y: jnp.sum(slope(x, y)))
    x, y = jnp.zeros(4), jnp.asarray([0.0, 1.0, 2.0, 3.0])
    got = jax.jit(lambda x, y: (slope(x, y), second(x, y)))(x, y)
    np.testing.assert_array_equal(got, [[0, 1, 0, 0], [0, 0, 2, 0]])


def test_whole_powers_of_negative_numbers():
    x = jnp.asarray([-3.0, -2.0, -0.5, -1.5, -7.0, -0.25])
    n = jnp.asarray([-3.0, -2.0, 0.0, 1.0, 2.0, 5.0])
    slopes = jax.grad(lambda x, n: jnp.sum(ops.power(x, n)), (0, 1))
    value, slope = jax.jit(lambda x, n: (ops.power(x, n), slopes(x, n)))(x, n)
    a, b = np.float64(x), np.float64(n)
    np.testing.assert_allclose(value, a**b, rtol=1e-6)
    np.testing.assert_allclose(slope, (b * a ** (b - 1), 0 * b), rtol=1e-6)
    np.testing.assert_array_equal(ops.power(x, 3), ops.power(x, jnp.full(6, 3.0)))
    assert np.isnan(ops.power(x, 0.5)).all()


@given(NORMAL, NORMAL)
def test_roots_and_reciprocals_undo_each_other(x, y):
    x, y = jnp.float32(x), jnp.float32(y)
    np.testing.assert_allclose(ops.reciprocal(ops.reciprocal(x)), x, rtol=3e-7)
    np.testing.assert_allclose(ops.rsqrt(x) * ops.sqrt(x), 1, rtol=3e-7)
    np.testing.assert_array_equal(ops.power(y, 2), y * y)


@pytest.mark.parametrize("function", [ops.sqrt, ops.rsqrt, ops.reciprocal])
def test_integers_are_refused(function):
    message = rf"^ops.{function.__name__}: x must be a floating array \(got int32\)"
    with pytest.raises(TypeError, match=message):
        function(jnp.arange(3))
    with pytest.raises(TypeError, match=r"^ops.power: x2 must be a floating array"):
        ops.power(jnp.ones(3), jnp.arange(3))
