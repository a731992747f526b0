"""Squared error and log-cosh: overflow, cancellation, options, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsafe import losses
from tests import oracles

ALL = [losses.squared_error, losses.l2_loss, losses.log_cosh]
every = pytest.mark.parametrize("loss", ALL, ids=lambda f: f.__name__)
LOG_COSH = jax.jit(jax.vmap(jax.value_and_grad(losses.log_cosh)))


@every
def test_against_optax(loss):
    x, y = jnp.asarray([0.2, -3.0, 5.0]), jnp.asarray([0.1, 1.0, 4.5])
    theirs = getattr(optax, loss.__name__)
    # log(cosh) of a small difference is what theirs cancels.
    rtol = 1e-4 if loss is losses.log_cosh else 1e-5
    np.testing.assert_allclose(loss(x, y), theirs(x, y), rtol=rtol)
    np.testing.assert_allclose(loss(x), theirs(x), rtol=rtol)


def test_the_gradient_outlives_the_overflow_of_the_square():
    x = jnp.asarray([1e30, -2e38])
    for loss, factor in ((losses.squared_error, 2), (losses.l2_loss, 1)):
        value, slope = jax.jit(jax.vmap(jax.value_and_grad(loss)))(x * 0.5)
        assert np.isinf(value).all()
        np.testing.assert_allclose(slope, factor * 0.5 * np.float64(x), rtol=1e-6)


def test_half_precision_is_squared_in_float32():
    x = jnp.asarray([300.0], jnp.float16)
    got = losses.squared_error(x, jnp.asarray([-300.0], jnp.float16))
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, 360_000)


def test_log_cosh_near_zero_is_a_parabola():
    x = np.float32([1e-12, 1.5e-7, 1e-4, 5e-3])
    value, slope = LOG_COSH(x)
    x = x.astype(np.float64)
    np.testing.assert_allclose(value, x**2 / 2 * (1 - x**2 / 6), rtol=1e-6)
    np.testing.assert_allclose(slope, np.tanh(x), rtol=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_log_cosh_is_never_negative_and_its_slope_never_above_one(seed):
    x = oracles.random_bits(np.random.default_rng(seed), 16, np.float32)[:8]
    value, slope = LOG_COSH(np.resize(x, 8))
    assert np.isfinite(value).all()
    assert (value >= 0).all()
    assert (np.abs(slope) <= 1).all()


@every
def test_everything_masked(loss):
    def total(x):
        return loss(x, x, where=jnp.zeros(3, bool)).sum()

    value, gradient = jax.value_and_grad(total)(jnp.full(3, jnp.nan))
    assert value == 0
    np.testing.assert_array_equal(gradient, [0, 0, 0])


@every
def test_bad_input(loss):
    with pytest.raises(ValueError, match=r"targets must have shape \(3,\).*\(3, 1\)"):
        loss(jnp.zeros(3), jnp.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"predictions must not be empty"):
        loss(jnp.zeros((0, 4)))
    with pytest.raises(TypeError, match=r"predictions must be a floating array"):
        loss(jnp.arange(3))
