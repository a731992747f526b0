"""Contrastive losses beside what the catalog contract checks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsafe import losses

X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
LABELS = np.asarray([0, 0, 1, 1], np.int32)


def test_ntxent_against_optax_where_that_one_is_right():
    ours = jax.jit(losses.ntxent)(X, LABELS, 0.5)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs = jax.jit(optax.losses.ntxent)(X, LABELS, 0.5)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_a_cold_temperature_leaves_a_finite_loss_and_gradient():
    value, gradient = jax.jit(
        jax.value_and_grad(lambda x: losses.ntxent(x, LABELS, 0.001))
    )(X)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert value > 0
    assert np.abs(gradient).max() > 0


def test_excluded_embeddings_do_not_count():
    keep = np.asarray([True, True, True, False])
    x = np.where(keep[:, None], X, np.nan)
    value, gradient = jax.jit(
        jax.value_and_grad(lambda x: losses.ntxent(x, LABELS, 0.5, where=keep))
    )(x)
    alone = jax.jit(losses.ntxent)(X[:3], LABELS[:3], 0.5)
    np.testing.assert_allclose(value, alone, rtol=1e-6)
    assert np.isfinite(gradient).all()
    assert not gradient[3].any()


def test_info_nce_is_the_cross_entropy_of_the_cosines():
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    other = unit[::-1]
    expected = optax.losses.softmax_cross_entropy_with_integer_labels(
        jnp.asarray(2 * unit @ other.T), np.arange(4)
    )
    ours = jax.jit(losses.info_nce)(X, X[::-1], temperature=0.5)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="labels must have shape"):
        losses.ntxent(X, LABELS[:2])
    with pytest.raises(ValueError, match="temperature"):
        losses.info_nce(X, X, temperature=0.0)
