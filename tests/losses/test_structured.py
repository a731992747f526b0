"""CTC, ranking, dice, smoothing and Fenchel-Young losses where today's give NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsafe import losses, ops

INF = jnp.inf


def test_ctc_with_a_class_of_minus_infinity_and_garbage_in_the_padding():
    x = jnp.asarray([[[0.0, 1.0, -INF], [1.0, 0.0, -INF], [jnp.nan, INF, 0.0]]])
    paddings = jnp.asarray([[0.0, 0.0, 1.0]]), jnp.zeros((1, 1))

    def total(x, labels):
        return losses.ctc_loss(x, paddings[0], labels, paddings[1]).sum()

    program = jax.jit(jax.value_and_grad(total))
    loss, gradient = program(x, jnp.asarray([[1]]))
    p = np.exp([1.0, 0.0]) / (1 + np.e)
    np.testing.assert_allclose(loss, -np.log(1 - p[1] * p[0]), rtol=1e-5)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[:, 2], 0)
    loss, gradient = program(x, jnp.asarray([[2]]))  # has no alignment
    assert 5e4 < loss < INF
    np.testing.assert_array_equal(gradient, 0)
    loss, gradient = program(x, jnp.asarray([[3]]))
    assert np.isnan(loss)
    np.testing.assert_array_equal(gradient, 0)


def test_nothing_predicted_and_nothing_there_is_no_loss():
    x = jnp.full((1, 4, 1), -INF)
    loss = losses.dice_loss(x, jnp.zeros((1, 4, 1)), smooth=0.0)
    np.testing.assert_array_equal(loss, [0])
    right = jnp.asarray([[INF, -INF, INF]])
    gradient = jax.grad(lambda x: losses.binary_dice_loss(x, right > 0).sum())(right)
    np.testing.assert_array_equal(gradient, 0)
    with pytest.raises(ValueError, match="must be valid probability distributions"):
        losses.dice_loss(jnp.ones((1, 4, 3)), jnp.ones((1, 4, 3)), apply_softmax=False)


def test_an_item_without_relevance_may_have_any_score():
    x, q = jnp.asarray([[0.0, -INF], [1.0, 2.0]]), jnp.asarray([[1.0, 0.0], [0.0, 1.0]])
    keep = jnp.zeros((2, 2), bool)
    for loss in (losses.ranking_softmax_loss, ranking_of_nobody(keep), young):
        value, gradient = jax.jit(jax.value_and_grad(loss))(x, q)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
    assert float(jax.jit(ranking_of_nobody(keep))(x, q)) == 0


def ranking_of_nobody(keep):
    return lambda x, q: losses.ranking_softmax_loss(x, q, where=keep)


def young(x, q):
    loss = losses.make_fenchel_young_loss(lambda row: ops.logsumexp(row, axis=-1))
    return loss(x, q).sum()


def test_labels_count_along_several_axes_in_the_given_order():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4)), jnp.float32)
    loss = losses.softmax_cross_entropy_with_integer_labels
    label = jnp.asarray([5, 7])
    keep = jnp.asarray([True, False])
    for axis, flat in (
        ((1, 2), x.reshape(2, 12)),
        ((-1, 1), x.transpose(0, 2, 1).reshape(2, 12)),
    ):
        want = loss(flat, label)
        np.testing.assert_allclose(loss(x, label, axis), want, rtol=1e-6)
        masked = loss(x, label, axis, keep)
        np.testing.assert_allclose(masked, jnp.where(keep, want, 0), rtol=1e-6)
