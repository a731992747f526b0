"""Sparsemax losses: infinities, a met margin, bad labels."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsafe import losses


def test_sparsemax_losses():
    x, y = jnp.asarray([-jnp.inf, -0.5, 0.5, jnp.inf]), jnp.asarray([1, 1, 0, 0])
    slope = jax.vmap(jax.grad(losses.sparsemax_loss))(x, y)
    np.testing.assert_array_equal(slope, [-1, -0.75, 0.75, 1])
    scores = jnp.asarray([[0.3, 0.1, -0.2], [5.0, 1.0, 0.0], [0.0, 9.0, 1.0]])
    labels = jnp.asarray([0, 0, 2])
    got = losses.multiclass_sparsemax_loss(scores, labels)
    np.testing.assert_allclose(got, [0.16333333, 0, 8], rtol=1e-6)
    bad = jax.jit(
        jax.value_and_grad(lambda x, y: losses.multiclass_sparsemax_loss(x, y))
    )
    value, slope = bad(scores[0], jnp.asarray(3))
    assert np.isnan(value)
    np.testing.assert_array_equal(slope, 0)
