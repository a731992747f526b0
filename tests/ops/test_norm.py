"""norm: no overflow, no underflow, no direction at 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsafe import ops
from tests import oracles


@pytest.mark.parametrize("exponent", range(-120, 125, 4))
def test_scaling_by_a_power_of_two_scales_the_norm_exactly(exponent):
    x = jnp.asarray([0.3, -0.4, 1.7, 0.9])
    scaled = jnp.ldexp(x, exponent)
    assert float(ops.norm(scaled)) == float(ops.norm(x)) * 2.0**exponent
    np.testing.assert_array_equal(jax.grad(ops.norm)(scaled), jax.grad(ops.norm)(x))


@given(st.integers(0, 2**32 - 1), st.sampled_from(oracles.DEFAULT))
def test_any_bit_patterns(seed, dtype):
    x = oracles.random_bits(np.random.default_rng(seed), 7, oracles.DTYPES[dtype])
    wide = oracles.wide(oracles.flush(x))
    true = np.asarray(np.sqrt(np.sum(wide**2)))
    got = oracles.ulps(ops.norm(jnp.asarray(x)), oracles.exact(true), x.dtype)
    assert got <= (3 if dtype == "float32" else 0.51)
    unit = np.asarray(jax.grad(ops.norm)(jnp.asarray(x)), np.float64)
    assert (np.abs(unit) <= 1 + 1e-6).all()


def test_a_long_vector():
    x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32) * 1e25
    true = np.sqrt(np.sum(x.astype(np.float64) ** 2))
    got = jax.jit(ops.norm)(jnp.asarray(x))
    assert oracles.ulps(got, oracles.exact(true), np.float32) <= 3


def test_axes_keepdims_and_where():
    x = jnp.arange(24.0).reshape(2, 3, 4)
    for axis in (None, 1, -1, (0, 2), (0, 1, 2)):
        for keepdims in (False, True):
            got = ops.norm(x, axis=axis, keepdims=keepdims)
            want = np.sqrt(np.sum(np.square(x), axis=axis, keepdims=keepdims))
            assert got.shape == want.shape
            np.testing.assert_allclose(got, want, rtol=1e-6)
    mask = jnp.asarray([True, False, True, True])
    got = ops.norm(x, axis=-1, where=mask)
    np.testing.assert_allclose(got, ops.norm(x[..., jnp.asarray([0, 2, 3])], axis=-1))


@pytest.mark.parametrize("shape", [(0,), (3, 0)])
def test_nothing_has_length_zero(shape):
    assert not ops.norm(jnp.zeros(shape), axis=-1).any()


def test_fully_masked_row():
    x = jnp.asarray([[jnp.nan, jnp.inf], [3.0, 4.0]])
    mask = jnp.asarray([[False, False], [True, True]])

    def total(x):
        return ops.norm(x, axis=-1, where=mask).sum()

    np.testing.assert_allclose(ops.norm(x, axis=-1, where=mask), [0.0, 5.0])
    np.testing.assert_allclose(jax.grad(total)(x), [[0, 0], [0.6, 0.8]], rtol=1e-6)


def test_curvature():
    hessian = jax.hessian(ops.norm)
    x = np.float64([3.0, 4.0])
    want = (np.eye(2) - np.outer(x, x) / 25) / 5
    np.testing.assert_allclose(hessian(jnp.float32(x)), want, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(hessian(jnp.zeros(2)), np.zeros((2, 2)))
    small = hessian(jnp.float32(x * 1e-30))
    np.testing.assert_allclose(small, want * 1e30, rtol=1e-5, atol=1e22)


def test_integers_are_refused():
    with pytest.raises(TypeError, match=r"ops.norm: x must be a floating array"):
        ops.norm(jnp.arange(3))
