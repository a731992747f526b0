"""eigh and svd: gradients where values coincide, at any scale, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsafe import ops

APART = np.float32([[2.0, 0.3, -0.1], [0.3, -1.0, 0.5], [-0.1, 0.5, 0.5]])
DEGENERATE = np.float32([np.zeros((3, 3)), np.eye(3), np.diag([2, 2, 1])])


def test_functions_of_the_spectrum_where_values_meet():
    """The gradient of trace(exp(x)) is exp(x); of the nuclear norm, u @ vh."""

    def trace(x):
        return jnp.sum(jnp.exp(ops.eigh(x).eigenvalues))

    def rebuilt(x):
        u, s, vh = ops.svd(x)
        w, v = ops.eigh(x)
        return jnp.sum((u * s[None]) @ vh) + jnp.sum((v * w[None]) @ v.T)

    def slopes(x):
        slope, pull = jax.vjp(jax.grad(trace), x)
        return slope, pull(jnp.ones_like(slope))[0], jax.grad(rebuilt)(x)

    out = jax.jit(jax.vmap(slopes))(DEGENERATE)
    want = [np.diag(np.exp(np.diag(x))) for x in DEGENERATE]
    np.testing.assert_allclose(out[0], want, atol=2e-6)
    assert all(np.isfinite(g).all() for g in out)


def test_gradients_of_vectors_where_values_are_apart():
    weights = np.random.default_rng(0).standard_normal((3, 3))
    scale = np.float32([2.0**83, 2.0**-83])[:, None, None]

    def loss(x, linalg_eigh, linalg_svd):
        v, (u, _, vh) = linalg_eigh(x)[1], linalg_svd(x)
        return jnp.sum(weights.astype(x.dtype) * v * v * (u * vh.mT))

    ours = jax.grad(lambda x: loss(x, ops.eigh, ops.svd))
    theirs = jax.grad(
        lambda x: loss(
            x, jnp.linalg.eigh, lambda x: jnp.linalg.svd(x, full_matrices=False)
        )
    )
    got = jax.jit(jax.vmap(ours))(APART * scale) * scale
    with jax.enable_x64(True):
        want = jax.jit(theirs)(jnp.asarray(APART, jnp.float64))
    want = np.stack([want, want])
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_values_at_any_scale_and_beside_a_nan():
    x = np.stack([APART * np.float32(1e25), APART * np.float32(1e-25), APART])
    x[2, 1, 0] = np.nan

    @jax.jit
    def values(x):
        return ops.eigh(x).eigenvalues, ops.svd(x, compute_uv=False)

    eigenvalues, singular = values(x)
    want = np.linalg.eigvalsh(np.float64(x[:2]))
    np.testing.assert_allclose(eigenvalues[:2], want, rtol=2e-6)
    want = np.sort(np.abs(want))[:, ::-1]
    np.testing.assert_allclose(singular[:2], want, rtol=2e-6)
    assert np.isnan(eigenvalues[2]).all()
    assert np.isnan(singular[2]).all()


def test_a_nan_in_a_large_matrix_comes_out():
    big = jnp.eye(80).at[50, 3].set(jnp.nan)
    assert np.isnan(jax.jit(ops.eigh)(big).eigenvalues).all()


@pytest.mark.parametrize("shape", [(2, 4, 2), (2, 2, 4)], ids=["tall", "wide"])
def test_svd_completes_a_basis(shape):
    x = jnp.asarray(np.random.default_rng(2).standard_normal(shape), jnp.float32)

    def beside(x, complete):
        """Projection onto what the larger of u and v has besides the thin factor."""
        u, s, vh = ops.svd(x, full_matrices=complete)
        q = u if shape[1] > shape[2] else vh.mT
        rest = q[..., s.shape[-1] :]
        left = rest @ rest.mT if complete else jnp.eye(4)[None] - q @ q.mT
        return jnp.sum(left * jnp.sin(jnp.arange(16.0)).reshape(1, 4, 4))

    def every(x):
        full, plain = ops.svd(x), jnp.linalg.svd(x)
        values = jax.value_and_grad(lambda x: ops.svd(x, compute_uv=False).sum())(x)
        slopes = [jax.value_and_grad(beside)(x, complete) for complete in (True, False)]
        return full, plain, values, slopes

    full, plain, (total, slope), (ours, want) = jax.jit(every)(x)
    for a, b in zip(full, plain, strict=True):
        np.testing.assert_allclose(np.abs(a), np.abs(b), atol=1e-5)
    np.testing.assert_allclose(total, np.sum(full.s), rtol=1e-5)
    k = full.s.shape[-1]
    thin = full.u[..., :k] @ full.vh[:, :k]
    np.testing.assert_allclose(slope, thin, atol=1e-5)
    for a, b in zip(ours, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_svd_of_a_batch_of_thin_matrices():
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 4, 2)), jnp.float32)

    def polar(svd, x):
        u, _, vh = svd(x, full_matrices=False)
        return jnp.sum(u @ vh * jnp.sin(x))

    def both(x):
        return [jax.grad(polar, 1)(f, x) for f in (ops.svd, jnp.linalg.svd)]

    got, want = jax.jit(both)(x)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_bad_input():
    with pytest.raises(ValueError, match=r"^ops.eigh: a must have the shape"):
        ops.eigh(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"^ops.svd: a must have the shape"):
        ops.svd(jnp.ones(3))
