"""global_norm: trees of any dtypes and magnitudes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsafe import ops


def test_many_half_precision_leaves_are_summed_in_float32():
    tree = [jnp.full(4, 1e-3, jnp.bfloat16)] * 300
    got = ops.global_norm(tree)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, float(tree[0][0]) * 1200**0.5, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-37, 1e-20, 1e20, 2e38])
def test_slopes_at_any_magnitude(scale):
    tree = {"a": jnp.full(3, scale), "b": jnp.full((), -scale), "c": None}
    value, slopes = jax.jit(jax.value_and_grad(ops.global_norm))(tree)
    true = 2 * np.float64(np.float32(scale))
    np.testing.assert_allclose(value, true if true < 3.4e38 else np.inf, rtol=2e-7)
    np.testing.assert_allclose(slopes["a"], 0.5, rtol=2e-7)
    np.testing.assert_allclose(slopes["b"], -0.5, rtol=2e-7)


def test_mixed_dtypes_keep_theirs_and_integers_do_not_count():
    tree = (jnp.asarray([3.0], jnp.float16), jnp.asarray([4.0]), jnp.arange(9))
    value, slopes = jax.value_and_grad(ops.global_norm, allow_int=True)(tree)
    assert float(value) == 5.0
    assert [s.dtype for s in slopes[:2]] == [jnp.float16, jnp.float32]
    np.testing.assert_allclose(float(slopes[0][0]), 0.6, rtol=1e-3)


@pytest.mark.parametrize("tree", [{}, [None], jnp.arange(3), jnp.zeros(0)])
def test_nothing_has_length_zero(tree):
    assert float(ops.global_norm(tree)) == 0.0


def test_complex_leaves():
    value, slope = jax.value_and_grad(ops.global_norm)(jnp.asarray([3 + 4j]))
    assert float(value) == 5.0
    np.testing.assert_allclose(slope, jnp.asarray([0.6 - 0.8j]), rtol=2e-7)
