"""cholesky and solve: singular matrices, any scale, batches, and a status."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsafe import ops


def test_cholesky_of_a_batch():
    rng = np.random.default_rng(0)
    thin = rng.standard_normal((5, 2)).astype(np.float32)
    gram = (thin @ thin.T)[None]
    good = np.stack([np.eye(5), np.ones((5, 5)), np.zeros((5, 5))])
    good = np.concatenate([good, gram, gram * 1e25, gram * 1e-25]).astype(np.float32)
    # Far from definite, and not a number: loud, and the rest of the batch unharmed.
    bad = np.stack([np.diag([1.0, 1, 1, 1, -1]), np.full((5, 5), np.nan)])

    @jax.jit
    def both(a):
        factor, pull, info = jax.vjp(ops.cholesky, a, has_aux=True)
        return factor, info, pull(jnp.ones_like(factor))[0]

    factor, info, gradient = both(jnp.concatenate([good, bad.astype(np.float32)]))
    np.testing.assert_array_equal(info.ok, [True] * 6 + [False] * 2)
    assert info.jitter[0] == 0
    assert np.isnan(factor[6:]).any((1, 2)).all()
    assert np.isfinite(factor[:6]).all()
    assert np.isfinite(gradient[:6]).all()
    scale = np.float64([1, 1, 1, 1, 1e25, 1e-25])[:, None, None]
    factor = np.float64(factor[:6])
    rebuilt = factor @ np.swapaxes(factor, 1, 2) / scale
    np.testing.assert_allclose(rebuilt, np.float64(good) / scale, atol=1e-3)


def test_cholesky_with_a_jitter_of_ones_own():
    indefinite = jnp.diag(jnp.asarray([1.0, -1.0]))
    _, info = jax.jit(lambda a: ops.cholesky(a, jitter=3.0))(indefinite)
    assert info.ok
    assert info.jitter == 3


def test_solve_at_any_scale():
    rng = np.random.default_rng(2)
    a = rng.standard_normal((2, 4, 4)).astype(np.float32)
    a[1, :, 3] = a[1, :, 2]  # singular
    b = rng.standard_normal((2, 4, 3)).astype(np.float32)
    scale = np.float32([1, 2.0**80, 2.0**-80])[:, None, None, None]
    x, info = jax.jit(ops.solve)(a * scale, b)
    want = np.linalg.pinv(np.float64(a), rcond=1e-5) @ np.float64(b)
    want = np.broadcast_to(want, x.shape)
    np.testing.assert_allclose(x * scale, want, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(info.ok, [[True, False]] * 3)
    np.testing.assert_array_equal(info.rank, [[4, 3]] * 3)


def test_gradient_of_solve_at_equal_and_at_no_singular_values():
    b = jnp.asarray([1.0, 2.0])
    a = jnp.stack([jnp.eye(2), jnp.ones((2, 2)), jnp.eye(2).at[0, 1].set(jnp.nan)])

    @jax.jit
    def both(a):
        x, pull, info = jax.vjp(lambda a: ops.solve(a, b), a, has_aux=True)
        return x, info, pull(jnp.ones_like(x))[0]

    x, info, gradient = both(a)
    np.testing.assert_allclose(gradient[0], [[-1, -2], [-1, -2]], rtol=1e-6)
    assert np.isfinite(gradient[1]).all()
    assert np.isnan(x[2]).all()
    np.testing.assert_array_equal(info.ok, [True, False, False])


def test_bad_input():
    with pytest.raises(ValueError, match=r"^ops.cholesky: a must have the shape"):
        ops.cholesky(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"^ops.cholesky: jitter must be a finite"):
        ops.cholesky(jnp.eye(2), jitter=0.0)
    with pytest.raises(ValueError, match=r"^ops.solve: b must be a vector \[2\]"):
        ops.solve(jnp.eye(2), jnp.ones(3))
