"""cholesky and solve: singular matrices, any scale, batches, and a status."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsafe import ops


def test_cholesky_of_a_batch_of_semi_definite_matrices():
    rng = np.random.default_rng(0)
    thin = rng.standard_normal((5, 2)).astype(np.float32)
    gram = thin @ thin.T
    a = jnp.stack([jnp.eye(5), jnp.ones((5, 5)), jnp.zeros((5, 5)), jnp.asarray(gram)])
    a = jnp.concatenate([a, a[3:] * 1e25, a[3:] * 1e-25])

    def both(a):
        factor, info = ops.cholesky(a)
        return factor, info, jax.grad(lambda a: jnp.sum(ops.cholesky(a)[0]))(a)

    factor, info, gradient = jax.jit(both)(a)
    assert info.ok.all()
    assert info.jitter[0] == 0
    assert np.isfinite(factor).all()
    assert np.isfinite(gradient).all()
    scale = np.float64([1, 1, 1, 1, 1e25, 1e-25])[:, None, None]
    rebuilt = np.float64(factor) @ np.swapaxes(np.float64(factor), 1, 2) / scale
    np.testing.assert_allclose(rebuilt, np.float64(a) / scale, atol=1e-3)


def test_cholesky_far_from_definite_is_loud():
    bad = jnp.stack([jnp.diag(jnp.asarray([1.0, -1.0])), jnp.full((2, 2), jnp.nan)])
    factor, info = jax.jit(ops.cholesky)(bad)
    assert not info.ok.any()
    assert np.isnan(factor).any((1, 2)).all()
    assert ops.cholesky(bad[0], jitter=3.0)[1].ok


@pytest.mark.parametrize("scale", [1.0, 2.0**80, 2.0**-80])
def test_solve(scale):
    rng = np.random.default_rng(2)
    a = rng.standard_normal((2, 4, 4)).astype(np.float32)
    a[1, :, 3] = a[1, :, 2]  # singular
    b = rng.standard_normal((2, 4, 3)).astype(np.float32)
    x, info = jax.jit(ops.solve)(a * np.float32(scale), b)
    want = np.linalg.pinv(np.float64(a), rcond=1e-5) @ np.float64(b)
    np.testing.assert_allclose(x * np.float32(scale), want, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(info.ok, [True, False])
    np.testing.assert_array_equal(info.rank, [4, 3])


def test_gradient_of_solve_at_equal_and_at_no_singular_values():
    b = jnp.asarray([1.0, 2.0])
    gradient = jax.jit(jax.grad(lambda a: jnp.sum(ops.solve(a, b)[0])))
    np.testing.assert_allclose(gradient(jnp.eye(2)), [[-1, -2], [-1, -2]], rtol=1e-6)
    assert np.isfinite(gradient(jnp.ones((2, 2)))).all()
    x, info = ops.solve(jnp.eye(2).at[0, 1].set(jnp.nan), b)
    assert np.isnan(x).all()
    assert not info.ok


def test_bad_input():
    with pytest.raises(ValueError, match=r"^ops.cholesky: a must have the shape"):
        ops.cholesky(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"^ops.cholesky: jitter must be a finite"):
        ops.cholesky(jnp.eye(2), jitter=0.0)
    with pytest.raises(ValueError, match=r"^ops.solve: b must be a vector \[2\]"):
        ops.solve(jnp.eye(2), jnp.ones(3))
