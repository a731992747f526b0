"""Divergences: probability 0 on either side, masks, nearly equal distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsafe import losses


def test_a_target_of_zero_costs_nothing():
    log_p, q = jnp.asarray([-jnp.inf, 0.0, -0.5]), jnp.asarray([0.0, 1.0, 0.0])

    def both(log_p, q):
        plain = losses.kl_divergence(log_p, q)
        with_log = losses.kl_divergence_with_log_targets(log_p, jnp.log(q))
        return plain + with_log, (plain, with_log)

    gradients, out = jax.jit(jax.grad(both, (0,), has_aux=True))(log_p, q)
    np.testing.assert_array_equal(out, [0, 0])
    np.testing.assert_array_equal(gradients[0], [0, -2, 0])
    slope = jax.grad(losses.kl_divergence, 1)(log_p, q)
    assert np.isfinite(slope).all()


def test_generalised_divergence_of_an_overflowing_prediction():
    log_p, q = jnp.asarray([100.0, -jnp.inf]), jnp.asarray([1.0, 0.0])
    value, slope = jax.value_and_grad(losses.generalized_kl_divergence)(log_p, q)
    assert value == np.inf
    assert np.isfinite(slope).all()


ANY = jax.jit(losses.generalized_kl_divergence)


@given(st.integers(0, 2**32 - 1))
def test_generalised_divergence_is_never_negative(seed):
    rng = np.random.default_rng(seed)
    q = rng.dirichlet(np.ones(5), 8).astype(np.float32)
    near = np.log(q) + np.float32(10.0 ** rng.uniform(-7, 0)) * rng.normal(size=q.shape)
    assert (ANY(near.astype(np.float32), q) >= 0).all()


@pytest.mark.parametrize("name", ["kl_divergence", "generalized_kl_divergence"])
def test_twins_masks_and_shapes(name):
    ours, theirs = getattr(losses, name), getattr(optax.losses, name)
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.dirichlet(np.ones(4), 3), jnp.float32)
    log_p = jax.nn.log_softmax(jnp.asarray(rng.normal(size=(3, 4)), jnp.float32))
    mask = jnp.asarray(rng.random((3, 4)) < 0.5)
    np.testing.assert_allclose(ours(log_p, q), theirs(log_p, q), rtol=1e-5)
    got = ours(log_p, q, 0, mask)
    np.testing.assert_allclose(got, theirs(log_p, q, 0, mask), rtol=1e-5, atol=1e-6)
    assert ours(log_p[0], q[0], where=False) == 0
    with pytest.raises(ValueError, match=r"targets must have shape \(3, 4\)"):
        ours(log_p, q[:, :1])
