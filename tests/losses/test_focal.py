"""Focal and poly losses: extreme logits, options, today's twins."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsafe import losses


def test_focal_loss_of_a_confident_half_precision_logit():
    x = jnp.asarray([9.0, 15.0], jnp.float16)
    got = losses.sigmoid_focal_loss(x, jnp.asarray([1, 1]))
    p = 1 / (1 + np.exp(np.float64([9, 15])))
    np.testing.assert_allclose(got, -(p**2) * np.log1p(-p), rtol=2e-6)


def test_focal_loss_has_finite_derivatives_of_any_logit():
    x = jnp.asarray([-np.inf, -1e37, -100.0, 0.0, 88.0, 1e37, np.inf])

    def focal(x, y):
        return losses.sigmoid_focal_loss(x, y, gamma=0.5, alpha=0.25)

    slope = jax.grad(focal)
    functions = slope, jax.grad(slope), jax.grad(focal, 1)
    y = jnp.repeat(jnp.asarray([0.0, 1.0]), x.size)
    both = jax.jit(lambda x: [jax.vmap(f)(x, y) for f in functions])
    assert all(np.isfinite(out).all() for out in both(jnp.tile(x, 2)))
    tame = jnp.asarray([-2.0, 0.5, 3.0])
    twin = optax.sigmoid_focal_loss(tame, jnp.ones(3), alpha=0.25, gamma=0.5)
    np.testing.assert_allclose(focal(tame, jnp.ones(3)), twin, rtol=1e-5)


def test_poly_loss_skips_a_class_of_minus_infinity():
    x, q = jnp.asarray([[-jnp.inf, 0.0, 1.0]]), jnp.asarray([[0.0, 1.0, 0.0]])
    value, slope = jax.jit(
        jax.value_and_grad(
            lambda x: losses.poly_loss_cross_entropy(x, q, epsilon=-1.0).sum()
        )
    )(x)
    twin = optax.losses.poly_loss_cross_entropy(x[:, 1:], q[:, 1:], epsilon=-1.0)
    np.testing.assert_allclose(value, twin[0], rtol=1e-6)
    assert np.isfinite(slope).all()
