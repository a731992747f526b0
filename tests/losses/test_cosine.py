"""Cosine similarity and distance: any length, nearly equal vectors, epsilon."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsafe import losses
from tests import oracles

similarity, distance = losses.cosine_similarity, losses.cosine_distance
SIMILARITY = jax.jit(jax.vmap(jax.value_and_grad(similarity, argnums=(0, 1))))
DISTANCE = jax.jit(jax.vmap(jax.value_and_grad(distance)))


@pytest.mark.parametrize(
    ("dtype", "scales"),
    [("float32", [1e-37, 1e-25, 1e20, 1e37]), ("float16", [1e-4, 300.0, 6e4])],
)
def test_any_scale(dtype, scales):
    x = jnp.asarray([[3.0 * s / 4, 1.0 * s] for s in scales], dtype)
    y = jnp.asarray([[1.0, 1.0]] * len(scales), dtype)
    value, gradients = SIMILARITY(x, y)
    np.testing.assert_allclose(value, 1.75 / 1.25 / 2**0.5, rtol=2e-3)
    assert all(np.isfinite(g.astype(jnp.float32)).all() for g in gradients)


def test_a_small_angle_has_a_distance_and_a_gradient():
    angle = np.float32([1e-3, 1e-5, 1e-10])
    x = np.stack([np.ones(3, np.float32), angle], -1)
    value, slope = DISTANCE(x, np.float32([[1, 0]] * 3))
    np.testing.assert_allclose(value, angle.astype(np.float64) ** 2 / 2, rtol=1e-5)
    np.testing.assert_allclose(slope[:, 1], angle, rtol=1e-5)


def test_a_zero_vector_and_an_empty_row():
    x = jnp.asarray([[0.0, 0.0], [jnp.nan, 1.0]])
    mask = jnp.asarray([[True, True], [False, False]])

    def total(x, loss):
        value = loss(x, jnp.ones((2, 2)), where=mask)
        return value.sum(), value

    for loss, want in ((similarity, [0, 0]), (distance, [1, 0])):
        gradient, value = jax.grad(total, has_aux=True)(x, loss)
        np.testing.assert_array_equal(value, want)
        np.testing.assert_array_equal(gradient, np.zeros((2, 2)))


@pytest.mark.parametrize("name", ["cosine_similarity", "cosine_distance"])
def test_epsilon_and_axes_as_in_optax(name):
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(2, 3, 4)) * [[[0.1]], [[3.0]]], jnp.float32)
    ours, theirs = getattr(losses, name), getattr(optax, name)
    choices = ({"epsilon": 0.1}, {"axis": 0}, {"axis": None}, {"axis": (0, 1)})

    @jax.jit
    def both(x):
        def of(function, options):
            return jax.value_and_grad(lambda x: function(x, y, **options).sum())(x)

        return [(of(ours, options), of(theirs, options)) for options in choices]

    for got, want in both(x):
        np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got[1], want[1], rtol=1e-5, atol=1e-5)


@given(st.integers(0, 2**32 - 1))
def test_finite_vectors_give_a_cosine_between_minus_one_and_one(seed):
    bits = oracles.random_bits(np.random.default_rng(seed), 64, np.float32)
    x, y = np.resize(bits, (2, 8, 4))
    value, _ = SIMILARITY(x, y)
    assert (np.abs(value) <= 1 + 1e-6).all()


def test_an_infinite_entry_is_not_hidden():
    x = jnp.asarray([[jnp.inf, 1.0], [1.0, 2.0]])
    for loss in (similarity, distance):
        assert np.isnan(loss(x, jnp.ones((2, 2)))).tolist() == [True, False]
    assert np.isnan(losses.ntxent(x, jnp.asarray([0, 0])))


def test_bad_input():
    with pytest.raises(ValueError, match=r"targets must have shape \(3, 2\)"):
        similarity(jnp.ones((3, 2)), jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"cosine_distance: predictions must not be"):
        distance(jnp.ones((0, 2)), jnp.ones((0, 2)))
