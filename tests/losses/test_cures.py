"""Public bug reports that a loss of ours cures: the naive program fails, ours is right.

Each case is a small program rewritten from the report it names.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsafe import losses


def test_clipped_probabilities_stop_learning():
    """The usual cure, clip(p, 1e-7, 1 - 1e-7), has no gradient when badly wrong."""

    def naive(z):
        p = jnp.clip(jax.nn.sigmoid(z), 1e-7, 1 - 1e-7)
        return -jnp.log(1 - p)

    assert jax.grad(naive)(20.0) == 0
    slope = jax.grad(losses.sigmoid_binary_cross_entropy)(20.0, jnp.zeros(()))
    np.testing.assert_allclose(slope, 1.0, rtol=1e-6)


def test_masked_class_of_the_naive_cross_entropy():
    """A class masked by -inf, and a row that is padding."""
    logits = jnp.asarray([[-jnp.inf, 0.0, 1.0], [-jnp.inf] * 3])
    labels = jnp.asarray([1, 0])
    one_hot = jax.nn.one_hot(labels, 3)
    assert np.isnan(optax.softmax_cross_entropy(logits, one_hot)).all()

    def total(x):
        mask = x > -jnp.inf
        return losses.softmax_cross_entropy_with_integer_labels(
            x, labels, where=mask
        ).sum()

    value, gradient = jax.value_and_grad(total)(logits)
    np.testing.assert_allclose(value, np.log1p(np.e), rtol=1e-6)
    np.testing.assert_allclose(
        gradient, [[0.0, -0.731059, 0.731059], [0.0] * 3], rtol=1e-6
    )


def test_label_minus_one_is_not_the_last_class():
    """A padding label of -1 read the last class without a word."""
    logits, label = jnp.asarray([1.0, 2.0, 3.0]), jnp.asarray(-1)
    theirs = jax.jit(optax.softmax_cross_entropy_with_integer_labels)(logits, label)
    ours = jax.jit(losses.softmax_cross_entropy_with_integer_labels)(logits, label)
    assert np.isfinite(theirs)
    assert np.isnan(ours)


def test_a_sentinel_in_a_regression_target():
    """input4MIPs 373: the netCDF fill value 9.97e36 overflows the squared error."""
    x = jnp.asarray([4.5e-07, 5.6e-07, 9.96921e36])
    y = jnp.full(3, 5e-7)
    assert np.isinf(jnp.mean((x - y) ** 2))

    def total(x):
        return losses.huber_loss(x, y).mean()

    value, gradient = jax.value_and_grad(total)(x)
    assert np.isfinite(value)
    assert (np.abs(gradient) <= 1 / 3 + 1e-6).all()
