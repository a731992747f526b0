"""Hinge and perceptron losses: infinities, bad labels, masks, today's twins."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsafe import losses

SIGNED = [losses.hinge_loss, losses.perceptron_loss]
MULTICLASS = [losses.multiclass_hinge_loss, losses.multiclass_perceptron_loss]


@pytest.mark.parametrize("loss", SIGNED)
def test_signed_losses_agree_with_their_twins(loss):
    x, y = jnp.asarray([0.3, -2.0, 1.0, 0.0]), jnp.asarray([1.0, 1.0, -1.0, 1.0])
    twin = getattr(optax.losses, loss.__name__)
    both = [jax.value_and_grad(lambda x, f=f: f(x, y).sum())(x) for f in (loss, twin)]
    np.testing.assert_allclose(both[0][0], both[1][0], rtol=1e-6)
    np.testing.assert_array_equal(both[0][1], both[1][1])
    kept = loss(jnp.asarray([jnp.nan, 2.0]), -1, where=jnp.asarray([False, True]))
    np.testing.assert_array_equal(kept, loss(jnp.asarray([0.0, 2.0]), -1).at[0].set(0))
    with pytest.raises(ValueError, match=r"targets must have shape \(4,\)"):
        loss(x, y[:, None])


def test_nothing_of_an_infinite_score():
    assert losses.hinge_loss(jnp.inf, 0) == 1


@pytest.mark.parametrize("loss", MULTICLASS)
def test_multiclass_losses(loss):
    x = jnp.asarray([[1.0, 0.5, -jnp.inf], [1e4, 1e4 + 0.25, 0.0], [2.0, 2.0, 0.0]])
    labels = jnp.asarray([1, 0, 0])
    twin = getattr(optax.losses, loss.__name__)
    with pytest.raises(ValueError, match=r"not one of the 3 classes"):
        loss(x, jnp.asarray([0, 1, 3]))
    loss = jax.jit(loss, static_argnames="axis")
    np.testing.assert_allclose(loss(x[1:], labels[1:]), twin(x[1:], labels[1:]))
    hinge = loss.__name__ == "multiclass_hinge_loss"
    want = [1.5, 1.25, 1.0] if hinge else [0.5, 0.25, 0]
    value, gradient = jax.jit(jax.value_and_grad(lambda x: loss(x, labels).sum()))(x)
    np.testing.assert_allclose(value, sum(want))
    np.testing.assert_array_equal(gradient[:2], [[1, -1, 0], [-1, 1, 0]])
    assert loss(x[0], jnp.asarray(1)) == want[0]  # without a batch
    np.testing.assert_allclose(loss(x.T, labels, axis=0), want)
    bad = jax.jit(jax.value_and_grad(lambda x, y: loss(x, y).sum()))
    value, gradient = bad(x[:1], jnp.asarray([-1]))
    assert np.isnan(value)
    np.testing.assert_array_equal(gradient, 0)
    rows = loss(x, labels, where=jnp.asarray([[True], [True], [False]]))
    np.testing.assert_allclose(rows, [*want[:2], 0])
