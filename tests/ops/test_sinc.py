"""sinc: next to 0, far away, at the integers."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsafe import ops

SLOPE = jax.grad(ops.sinc)
CURVATURE = jax.grad(SLOPE)


@jax.jit
def _jet(x):
    return ops.sinc(x), jax.vmap(SLOPE)(x), jax.vmap(CURVATURE)(x)


def test_next_to_zero_the_slope_is_that_of_the_parabola():
    x = np.float32([1e-4, -1e-10, 1e-19, 1e-20, 1e-37])
    value, slope, curvature = _jet(x)
    np.testing.assert_allclose(value, 1, rtol=1e-7)
    np.testing.assert_allclose(slope, -(np.pi**2) * x / 3, rtol=5e-7)
    np.testing.assert_allclose(curvature, -(np.pi**2) / 3, rtol=5e-7)


def test_far_away_everything_decays():
    x = np.float32([3.4e38, 2e38, 1.5 * 2**22, 2**24])
    value, slope, curvature = _jet(x)
    assert np.isfinite([value, slope, curvature]).all()
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_allclose(slope[2:], 1 / x[2:], rtol=1e-6)


def test_integers_are_exact_zeros():
    x = np.arange(1, 9, dtype=np.float32)
    value, slope, _ = _jet(x)
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_allclose(slope, (-1) ** x / x, rtol=1e-6)


def test_float16_beyond_a_third_of_its_range():
    x = jnp.asarray([3e4, 1e-3], jnp.float16)
    value, slope = ops.sinc(x), jax.vmap(SLOPE)(x)
    np.testing.assert_array_equal(np.asarray(value, float), [0, 1])
    np.testing.assert_allclose(np.asarray(slope, float), [1 / 3e4, -3.29e-3], rtol=2e-3)


def test_three_derivatives_are_even_and_odd():
    x = np.linspace(0.1, 4, 40, dtype=np.float32)
    third = jax.jit(jax.vmap(jax.grad(CURVATURE)))
    np.testing.assert_allclose(third(-x), -third(x), rtol=1e-6, atol=1e-6)
    assert np.isfinite(third(np.float32([0, 1e-20, 1e30]))).all()
