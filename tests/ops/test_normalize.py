"""normalize, cosine_similarity, global_norm: any magnitude, nothing at 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsafe import ops
from jaxsafe._catalog import CATALOG
from tests import oracles

SCALES = np.float32([1e-37, 1e-25, 1.0, 1e20, 1e37])


def test_any_scale_has_the_same_direction():
    x = np.float32([[1.0, 2.0, -2.0]]) * SCALES[:, None]

    @jax.jit
    def both(x):
        slope = jax.vmap(jax.grad(lambda x: ops.normalize(x)[0]))(x)
        return ops.normalize(x), slope, ops.cosine_similarity(x, x[::-1])

    unit, slope, cosine = both(x)
    np.testing.assert_allclose(unit, [[1 / 3, 2 / 3, -2 / 3]] * 5, rtol=4e-7)
    want = np.float64([8, -2, 2]) / 27 / SCALES[:, None]
    np.testing.assert_allclose(slope, want, rtol=1e-6, atol=1.2e-38)
    np.testing.assert_allclose(cosine, 1, rtol=4e-7)


@pytest.mark.parametrize("entries", [[300, 300], [1e-4, 1e-4]])
def test_float16_squares_neither_overflow_nor_vanish(entries):
    x = jnp.asarray(entries, jnp.float16)
    assert float(ops.cosine_similarity(x, x)) == 1.0


def test_a_zero_vector_has_no_direction_and_no_derivatives():
    zero, x = jnp.zeros(3), jnp.asarray([1.0, -2.0, 2.0])
    jet = jax.jit(
        lambda zero, x: (
            ops.normalize(zero),
            jax.jacrev(ops.normalize)(zero),
            jax.hessian(lambda x: ops.normalize(x)[0])(zero),
            ops.cosine_similarity(zero, x),
            jax.grad(ops.cosine_similarity, (0, 1))(zero, x),
            jax.hessian(ops.cosine_similarity)(zero, x),
        )
    )
    assert not any(np.any(part) for part in jax.tree.leaves(jet(zero, x)))


def test_the_slope_of_an_entry_far_above_the_others():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((10_000, 2)).astype(np.float32)
    x[:, 1] *= 2.0 ** -rng.uniform(0, 12, 10_000).astype(np.float32)
    slope = jax.jit(jax.vmap(jax.grad(lambda x: ops.normalize(x)[0])))(x)
    wide = x.astype(np.float64)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    want = wide[:, 1:] * np.stack([wide[:, 1], -wide[:, 0]], 1) / length**3
    unit = oracles.ulp(np.maximum(np.abs(want), 1 / (16 * length)), np.float32)
    _, bound = CATALOG["ops.normalize"].ulp["float32"]
    assert (np.abs(slope - want) / unit).max() <= bound


def test_axes_broadcast_and_masks():
    x = jnp.asarray([[3.0, jnp.nan, 4.0], [1.0, jnp.inf, 0.0]])
    seen = jnp.asarray([[True, False, True]])
    got = ops.normalize(x, where=seen)
    np.testing.assert_allclose(got, [[0.6, 0, 0.8], [1, 0, 0]], rtol=4e-7)
    got = ops.cosine_similarity(x, jnp.asarray([[1.0, 5.0, 0.0]]), where=seen)
    np.testing.assert_allclose(got, [0.6, 1], rtol=4e-7)
    whole = ops.normalize(jnp.ones((2, 2)), axis=(0, 1))
    np.testing.assert_allclose(whole, 0.5, rtol=4e-7)
    with pytest.raises(ValueError, match=r"^ops.cosine_similarity: axis must lie in"):
        ops.cosine_similarity(jnp.ones(2), jnp.ones(2), axis=1)
