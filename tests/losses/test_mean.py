"""masked_mean: nothing included, sums that overflow, axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsafe import losses


def test_nothing_included():
    def mean(x):
        return losses.masked_mean(x, jnp.zeros(3, bool))

    value, gradient = jax.jit(jax.value_and_grad(mean))(jnp.full(3, jnp.nan))
    assert value == 0
    np.testing.assert_array_equal(gradient, [0, 0, 0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_sum_does_not_overflow(dtype):
    top = jnp.full((1000,), jnp.finfo(dtype).max, dtype)
    got = jax.jit(losses.masked_mean)(top)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, float(jnp.finfo(dtype).max), rtol=1e-5)


def test_axis_and_a_mask_that_broadcasts():
    x = jnp.arange(24.0).reshape(2, 3, 4)
    mask = jnp.asarray([True, False, True, False])
    got = losses.masked_mean(x, mask[None, None], axis=(0, -1))
    np.testing.assert_allclose(got, np.asarray(x)[..., ::2].mean((0, 2)), rtol=1e-6)


def test_a_nan_that_is_included_comes_out_of_a_long_row():
    x = jnp.ones(10_000).at[7777].set(jnp.nan)
    assert np.isnan(jax.jit(losses.masked_mean)(x))


def test_bad_input():
    with pytest.raises(ValueError, match=r"masked_mean: loss must not be empty"):
        losses.masked_mean(jnp.zeros((0, 3)))
    with pytest.raises(ValueError, match=r"axis must lie in \[-1, 1\).*\(got 1\)"):
        losses.masked_mean(jnp.zeros(3), axis=1)
