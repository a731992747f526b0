"""saturate_cast: the right rounding, no infinity, and a count."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxsafe import ops

TARGETS = [jnp.float16, jnp.bfloat16, jnp.float8_e4m3fn, jnp.float8_e5m2]


def numbers():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2**32, 20_000, dtype=np.uint64).astype(np.uint32)
    x = x.view(np.float32)
    x = x[np.isfinite(x) & (np.abs(x) >= np.finfo(np.float32).tiny)]
    return np.concatenate([x, rng.normal(size=5000).astype(np.float32) * 500])


@pytest.mark.parametrize("dtype", TARGETS, ids=lambda d: np.dtype(d).name)
def test_it_rounds_once_and_saturates(dtype):
    x, top = numbers(), float(ml_dtypes.finfo(dtype).max)
    cast = functools.partial(ops.saturate_cast, dtype=dtype, count=True)
    got, count = jax.jit(cast)(x)
    want = np.clip(x.astype(np.float64), -top, top).astype(dtype)
    assert got.dtype == dtype
    np.testing.assert_array_equal(np.float32(got), np.float32(want))
    assert count.dtype == jnp.int32
    assert count == np.sum(np.abs(x) > top)


@pytest.mark.parametrize("dtype", TARGETS, ids=lambda d: np.dtype(d).name)
def test_what_is_not_finite(dtype):
    x = jnp.asarray([jnp.nan, jnp.inf, -jnp.inf, 1.0])
    got, count = ops.saturate_cast(x, dtype, count=True)
    top = float(jnp.finfo(dtype).max)
    np.testing.assert_array_equal(np.float32(got), [np.nan, top, -top, 1])
    assert count == 2


@pytest.mark.parametrize("dtype", TARGETS, ids=lambda d: np.dtype(d).name)
def test_the_gradient_passes_within_the_range(dtype):
    x = jnp.asarray([0.3, -2.0, jnp.inf, -jnp.inf])

    def total(x):
        return jnp.sum(ops.saturate_cast(x, dtype).astype(jnp.float32))

    np.testing.assert_array_equal(jax.jit(jax.grad(total))(x), [1, 1, 0, 0])


def test_the_limit_is_one_that_both_dtypes_hold():
    top = jnp.finfo(jnp.bfloat16).max
    assert ops.saturate_cast(top, jnp.float16) == 65504
    assert ops.saturate_cast(jnp.float32(jnp.inf), jnp.float32) == jnp.finfo("f4").max


def test_bad_input():
    with pytest.raises(TypeError, match=r"^ops.saturate_cast: dtype must be floating"):
        ops.saturate_cast(jnp.ones(2), jnp.int8)
    with pytest.raises(TypeError, match=r"^ops.saturate_cast: x must be a floating"):
        ops.saturate_cast(jnp.arange(2), jnp.float16)
