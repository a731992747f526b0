"""Likelihoods: the constants, extreme spreads, outliers, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxsafe import losses

gaussian, student = losses.gaussian_nll_loss, losses.student_t_nll_loss
poisson = losses.poisson_nll_loss
SPREAD = [gaussian, student]


def test_with_the_constants_they_are_the_logarithms_of_densities():
    x, y, s = np.float32([[0.5, 2.0], [1.5, -4.0], [0.3, -0.7]])
    got = [
        gaussian(x, y, s, full=True),
        student(x, y, s, df=3.0, full=True),
        poisson(x, np.float32([3, 0]), full=True),
    ]
    want = [
        -stats.norm.logpdf(x, y, np.exp(s / 2)),
        -stats.t.logpdf(x, 3.0, y, np.exp(s)),
        -stats.poisson.logpmf([3, 0], np.exp(x)),
    ]
    np.testing.assert_allclose(got, want, rtol=2e-6)


def test_any_spread_is_finite_where_the_mean_is_right():
    s = jnp.asarray([-1e4, -400.0, -80.0, 80.0, 1e4])
    for loss in SPREAD:
        slopes = jax.vmap(jax.value_and_grad(loss, argnums=(0, 2)), (None, None, 0))
        value, (to_mean, to_spread) = jax.jit(slopes)(1.0, 1.0, s)
        np.testing.assert_allclose(value, s * (0.5 if loss is gaussian else 1))
        np.testing.assert_array_equal(to_mean, np.zeros(5))
        np.testing.assert_array_equal(to_spread, 0.5 if loss is gaussian else 1)


def test_an_outlier_pulls_little_and_no_square_overflows():
    x = jnp.asarray([1e2, 1e10, 1e30])
    s = jnp.asarray([0.0, 0.0, -60.0])
    slopes = jax.vmap(jax.value_and_grad(student, argnums=(0, 2)), (0, None, 0))
    value, (to_mean, to_scale) = jax.jit(slopes)(x, 0.0, s)
    wide = np.float64(x) * np.exp(-np.float64(s))
    np.testing.assert_allclose(value, s + 2.5 * np.log1p(wide**2 / 4), rtol=1e-6)
    np.testing.assert_allclose(to_mean, 5 / np.float64(x), rtol=1e-3)
    np.testing.assert_allclose(to_scale, [-4, -4, -4], rtol=1e-3)


def test_the_gaussian_gradient_outlives_its_value():
    value, slope = jax.value_and_grad(gaussian)(1e30, 0.0, 0.0)
    assert np.isinf(value)
    np.testing.assert_allclose(slope, 1e30, rtol=1e-6)


def test_a_rate_of_zero_and_no_event():
    x, y = jnp.asarray([-jnp.inf, -jnp.inf]), jnp.asarray([0.0, 1.0])
    np.testing.assert_array_equal(poisson(x, y), [0, np.inf])


@pytest.mark.parametrize("loss", [gaussian, student, poisson])
def test_bad_input_and_everything_masked(loss):
    rest = () if loss is poisson else (0.0,)
    with pytest.raises(ValueError, match=r"targets must have shape \(3,\).*\(3, 1\)"):
        loss(jnp.zeros(3), jnp.zeros((3, 1)), *rest)
    with pytest.raises(ValueError, match=r"must not be empty"):
        loss(jnp.zeros((0, 4)), 0.0, *rest)

    def total(x):
        return loss(x, x, *rest, where=jnp.zeros(2, bool)).sum()

    value, gradient = jax.value_and_grad(total)(jnp.full(2, jnp.nan))
    assert value == 0
    np.testing.assert_array_equal(gradient, [0, 0])


def test_degrees_of_freedom_must_be_positive():
    with pytest.raises(ValueError, match=r"student_t_nll_loss: df must be a finite"):
        student(jnp.zeros(3), 0.0, 0.0, df=0.0)
