"""Triplet loss: degrees, far and infinite triplets, eps, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from jaxsafe import losses

X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def test_the_distance_of_a_triplet_by_degree():
    degrees = (0.5, 1, 1.5, 2, 3, 200)
    step = np.asarray([[0.3, 0.0, -0.4]], np.float32)

    @jax.jit
    def program(x):
        known = [
            losses.triplet_margin_loss(x, x, x + step, norm_degree=d, eps=0.0)
            for d in degrees
        ]
        return known, jax.vmap(
            lambda d: losses.triplet_margin_loss(x, x, x + step, -1, d, 1.0, 0.0)
        )(jnp.asarray(degrees, jnp.float32))

    far = [np.sum(np.abs(step.astype(float)) ** d) ** (1 / d) for d in degrees]
    want = np.maximum(1 - np.asarray(far), 0)[:, None] + np.zeros(4)
    for ours in program(X):
        np.testing.assert_allclose(ours, want, rtol=1e-5)


def test_slopes_of_any_degree_are_finite_at_a_distance_of_0_and_of_infinity():
    def total(x, degree):
        positive, negative = jnp.zeros_like(x), lax.stop_gradient(x)
        return losses.triplet_margin_loss(
            x, positive, negative, -1, degree, 1.0, 0.0
        ).sum()

    slopes = jax.vmap(jax.grad(total), (None, 0))
    x = np.asarray([[0.0, 0.0], [0.0, 2.0], [1e30, -1e30]], np.float32)
    degrees = jnp.asarray([0.5, 1.0, 1.5, 2.0, 3.0, 50.0])
    first, second = jax.jit(
        lambda x: (slopes(x, degrees), jax.grad(lambda x: slopes(x, degrees).sum())(x))
    )(x)
    np.testing.assert_array_equal(first[:, 0], 0)
    np.testing.assert_array_equal(first[:, 1], [[0, 1]] * 6)
    equal = np.exp2(1 / degrees - 1)[:, None] * [1, -1]
    np.testing.assert_allclose(first[:, 2], equal, rtol=1e-5)
    assert np.isfinite(second).all()


def test_a_positive_infinitely_far_costs_infinitely_much():
    far = np.asarray([np.inf, 1.0], np.float32)
    near = np.ones(2, np.float32)

    @jax.jit
    def program(far, degree):
        return jax.value_and_grad(losses.triplet_margin_loss, argnums=1)(
            near, far, near, -1, degree
        )

    value, slope = program(far, 3.0)
    assert value == np.inf
    np.testing.assert_array_equal(slope, [1, 0])


def test_triplets_as_far_as_1e20_still_differ():
    a, p, n = (np.asarray([v, 0.0], np.float32) for v in (0.0, 2e20, 1e20))
    np.testing.assert_allclose(
        jax.jit(losses.triplet_margin_loss)(a, p, n), 1e20, rtol=1e-6
    )


def test_optax_where_that_one_is_right():
    args = (X, X[::-1], X + 1)
    chosen = ({}, {"eps": 0.5}, {"norm_degree": 4}, {"margin": 3.0, "axis": 0})

    @jax.jit
    def program(args):
        return [
            [loss(*args, **options) for options in chosen]
            for loss in (losses.triplet_margin_loss, optax.losses.triplet_margin_loss)
        ]

    ours, theirs = program(tuple(map(jnp.asarray, args)))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="norm_degree must be a finite number above 0"):
        losses.triplet_margin_loss(X, X, X, norm_degree=0)
