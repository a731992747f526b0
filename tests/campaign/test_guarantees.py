"""What the campaign rests on: exact loss curves, oracles, and what it made us mend."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from jaxsafe import guard, testing, transforms
from tests.campaign import _harness, _models, _workloads


def curve(step, carry, batches):
    losses, oks = [], []
    for batch in batches:
        carry, loss = step(carry, batch)
        losses.append(np.asarray(loss))
        oks.append(bool(_harness.controls_of(carry)[-1].ok))
    return np.stack(losses), np.array(oks)


def mlp_step():
    tx = transforms.guarded(optax.adamw(1e-2), backoff=1.0, give_up_after=99)
    return tx, _models.mlp_params(), _models.mlp_loss, _models.mlp_batches()


def float16_step():
    tx = _workloads.scaled(fixed=True, backoff=1.0)
    params = _models.transformer_params(jnp.float16)
    batches = _models.transformer_batches(jnp.float16)
    return tx, params, _models.transformer_loss, batches


@pytest.mark.parametrize(
    "make", [mlp_step, pytest.param(float16_step, marks=pytest.mark.slow)]
)
def test_the_loss_curve_is_that_of_a_run_without_the_bad_batches(make):
    tx, params, loss_fn, pool = make()
    scaled = make is float16_step

    def train_step(state, batch):
        value_and_grad = (
            transforms.value_and_grad(loss_fn, state["opt"])
            if scaled
            else jax.value_and_grad(loss_fn)
        )
        loss, grads = value_and_grad(state["params"], batch)
        updates, opt = tx.update(grads, state["opt"], state["params"], value=loss)
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, (
            loss
        )

    policy = guard.Policy(give_up_after=99, backoff=1.0)
    guarded = guard.transaction(train_step, policy=policy)
    step = jax.jit(guarded)
    keys = jax.random.split(jax.random.key(0), 60)
    faults = jax.vmap(
        lambda key: testing.random_fault(key, kinds=["nan", "inf", "-inf"])
    )(keys)
    strikes = np.random.default_rng(0).random(60) < 0.4
    inject = jax.jit(testing.inject)
    batches = []
    for i in range(60):
        batch = jax.tree.map(lambda b, i=i: b[i % 16], pool)
        fault = jax.tree.map(lambda f, i=i: f[i], faults)
        batches.append(inject(fault, batch) if strikes[i] else batch)

    start = guarded.init({"params": params, "opt": tx.init(params)})
    losses, oks = curve(step, start, batches)
    np.testing.assert_array_equal(oks, ~strikes)
    kept = [b for b, bad in zip(batches, strikes, strict=True) if not bad]
    clean, _ = curve(step, start, kept)
    bits = f"uint{8 * clean.dtype.itemsize}"
    np.testing.assert_array_equal(losses[~strikes].view(bits), clean.view(bits))
    assert clean[-8:].mean() < clean[:8].mean()


def test_accumulate_agrees_with_its_oracle():
    every, steps = 4, 400
    tx = transforms.accumulate(optax.sgd(1.0), every)
    rng = np.random.default_rng(3)
    grads = rng.normal(size=(steps, 5)).astype(np.float32)
    keys = jax.random.split(jax.random.key(3), steps)
    faults = jax.vmap(testing.random_fault)(keys)
    strikes = rng.random(steps) < 0.4
    strikes[8:12] = True  # a step without any good micro-batch
    faults = faults._replace(kind=faults.kind.at[8:12].set(0))
    struck = jax.vmap(testing.inject)(faults, jnp.asarray(grads))
    struck = jnp.where(strikes[:, None], struck, grads)
    _, updates = jax.lax.scan(
        lambda state, g: tx.update(g, state)[::-1], tx.init(jnp.zeros(5)), struck
    )
    # XLA on CPU flushes denormals.
    gone = np.abs(np.asarray(struck)) < np.finfo(np.float32).tiny
    struck = np.where(gone, 0, np.asarray(struck))
    for start in range(0, steps, every):
        rows = struck[start : start + every]
        good = rows[np.isfinite(rows).all(1)].astype(np.float64)
        want = np.zeros((every, 5))
        if len(good):
            want[-1] = -good.mean(0)
        np.testing.assert_allclose(
            updates[start : start + every], want, rtol=1e-5, atol=1e-6
        )
    assert 20 < (~np.isfinite(struck).all(1)).sum() < 160


def test_a_struck_rate_factor_does_not_reject_for_ever():
    tx = transforms.guarded(optax.sgd(0.5))
    state = tx.init(jnp.ones(2))
    for bad in (jnp.nan, jnp.inf, 0.0, -1.0, 1e30):
        control = state.control._replace(rate_factor=jnp.asarray(bad))
        updates, after = tx.update(jnp.full(2, 0.1), state._replace(control=control))
        np.testing.assert_array_equal(updates, np.float32([-0.05, -0.05]))
        assert float(after.control.rate_factor) == 1.0
        assert bool(after.control.ok)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -8.0, 2.0**40, 2.0**-40])
def test_a_struck_loss_scale_starts_again(bad):
    tx = transforms.dynamic_loss_scale(optax.sgd(0.5), initial_scale=64.0)
    params = jnp.ones(2, jnp.float16)
    state = tx.init(params)
    scale = jnp.asarray(bad, jnp.float32)
    state = state._replace(control=state.control._replace(loss_scale=scale))

    def step(state):
        grad = transforms.value_and_grad(lambda p: (p**2).sum(), state)
        value, grads = grad(params)
        return tx.update(grads, state, params, value=value)

    updates, state = step(state)
    assert np.isfinite(np.asarray(updates)).all()
    assert float(state.control.loss_scale) == 64.0
    updates, state = step(state)
    np.testing.assert_array_equal(updates, np.float16([-1.0, -1.0]))


@pytest.mark.parametrize(
    "tx",
    [
        optax.adam(0.1),
        optax.masked(optax.adam(0.1), {"w": True, "b": False}),
        contrib.muon(0.1),
    ],
    ids=["adam", "masked", "muon"],
)
def test_all_moments_of_a_poisoned_entry_are_reset_in_masked_states_too(tx):
    # A second moment of 0 beside a first one that stayed: an update of endless size.
    params = {"w": jnp.ones(3), "b": jnp.ones((2, 2))}
    grads = jax.tree.map(jnp.ones_like, params)
    _, state = tx.update(grads, tx.init(params), params)
    second_moment = "nu['w']"
    leaves = [
        leaf.at[1].set(jnp.nan)
        if jax.tree_util.keystr(path).endswith(second_moment)
        else leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    ]
    struck = jax.tree.unflatten(jax.tree.structure(state), leaves)
    healed, count = transforms.heal_state(tx, struck, params)
    assert int(count) == 1
    moments = 0
    for (path, old), (_, new) in zip(
        jax.tree_util.tree_leaves_with_path(state),
        jax.tree_util.tree_leaves_with_path(healed),
        strict=True,
    ):
        name = jax.tree_util.keystr(path)
        if name.endswith("['w']"):
            moments += 1
            np.testing.assert_array_equal(new, old.at[1].set(0), name)
        else:
            np.testing.assert_array_equal(new, old, name)
    assert moments == 2
