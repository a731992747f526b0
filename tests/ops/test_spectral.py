"""eigh and svd: gradients where values coincide, at any scale, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsafe import ops

APART = np.float32([[2.0, 0.3, -0.1], [0.3, -1.0, 0.5], [-0.1, 0.5, 0.5]])
DEGENERATE = [jnp.zeros((3, 3)), jnp.eye(3), jnp.diag(jnp.asarray([2.0, 2.0, 1.0]))]


@pytest.mark.parametrize("x", DEGENERATE, ids=["zero", "identity", "pair"])
def test_functions_of_the_spectrum_where_values_meet(x):
    """The gradient of trace(exp(x)) is exp(x); of the nuclear norm, u @ vh."""

    def trace(x):
        return jnp.sum(jnp.exp(ops.eigh(x).eigenvalues))

    def rebuilt(x):
        u, s, vh = ops.svd(x)
        w, v = ops.eigh(x)
        return jnp.sum((u * s[None]) @ vh) + jnp.sum((v * w[None]) @ v.T)

    slope = jax.grad(trace)
    second = jax.grad(lambda x: jnp.sum(slope(x)))
    out = jax.jit(lambda x: (slope(x), second(x), jax.grad(rebuilt)(x)))(x)
    np.testing.assert_allclose(out[0], np.diag(np.exp(np.diag(x))), atol=2e-6)
    assert all(np.isfinite(g).all() for g in out)


@pytest.mark.parametrize("scale", [2.0**83, 2.0**-83])
def test_gradients_of_vectors_where_values_are_apart(scale):
    weights = np.random.default_rng(0).standard_normal((3, 3))
    x = jnp.asarray(APART * np.float32(scale))

    def loss(x, linalg_eigh, linalg_svd):
        v, (u, _, vh) = linalg_eigh(x)[1], linalg_svd(x)
        return jnp.sum(weights.astype(x.dtype) * v * v * (u * vh.mT))

    got = jax.jit(jax.grad(lambda x: loss(x, ops.eigh, ops.svd)))(x)
    with jax.enable_x64(True):
        want = jax.grad(lambda x: loss(x, jnp.linalg.eigh, jnp.linalg.svd))(
            jnp.asarray(APART, jnp.float64)
        )
    np.testing.assert_allclose(got * np.float32(scale), want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("scale", [1e25, 1e-25])
def test_values_at_any_scale(scale):
    x = jnp.asarray(APART * np.float32(scale))
    want = np.linalg.eigvalsh(np.float64(x))
    np.testing.assert_allclose(ops.eigh(x).eigenvalues, want, rtol=2e-6)
    want = np.sort(np.abs(want))[::-1]
    np.testing.assert_allclose(ops.svd(x).s, want, rtol=2e-6)


def test_svd_of_a_batch_of_thin_matrices():
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 4, 2)), jnp.float32)

    def plain(x):
        return jnp.linalg.svd(x, full_matrices=False)

    def polar(svd, x):
        u, _, vh = svd(x)
        return jnp.sum(u @ vh * jnp.sin(x))

    def both(x):
        return [jax.grad(polar, 1)(f, x) for f in (ops.svd, plain)]

    got, want = jax.jit(both)(x)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_a_nan_comes_out():
    x = jnp.asarray(APART).at[1, 0].set(jnp.nan)
    assert np.isnan(ops.eigh(x).eigenvalues).all()
    assert np.isnan(ops.svd(x).s).all()
    big = jnp.eye(80).at[50, 3].set(jnp.nan)
    assert np.isnan(ops.eigh(big).eigenvalues).all()


def test_bad_input():
    with pytest.raises(ValueError, match=r"^ops.eigh: x must have the shape"):
        ops.eigh(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"^ops.svd: x must have the shape"):
        ops.svd(jnp.ones(3))
