"""The transaction for flax.nnx: every Variable rolls back, the Control does not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxsafe import guard, transforms
from jaxsafe.guard import nnx as guard_nnx

X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
BAD = X.at[2, 1].set(jnp.nan)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.last = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(self.norm(self.first(x))))


def train_step(model, optimizer, x):
    loss, grads = nnx.value_and_grad(lambda m: jnp.mean(m(x) ** 2))(model)
    optimizer.update(model, grads)
    return {"loss": loss}


def make(tx):
    model = Net(nnx.Rngs(0))
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


def values(*modules):
    def data(x):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        return np.array(x)

    return jax.tree.map(data, nnx.to_pure_dict(nnx.state(modules)))


def assert_bitwise(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_all_variables_roll_back_together():
    model, optimizer = make(optax.adam(0.1))
    control = guard_nnx.Control()
    step = nnx.jit(guard_nnx.transaction(train_step))
    step(control, model, optimizer, X)
    before = values(model, optimizer)
    aux = step(control, model, optimizer, BAD)
    assert np.isnan(aux["loss"])
    # BatchNorm statistics, dropout's count and the step included
    assert_bitwise(values(model, optimizer), before)
    assert int(control.state.rejected) == 1
    step(control, model, optimizer, X)
    assert int(optimizer.step[...]) == 2


def test_donation_is_kept():
    model, optimizer = make(optax.adam(0.1))
    control = guard_nnx.Control()
    step = nnx.jit(guard_nnx.transaction(train_step), donate_argnums=(0, 1, 2))
    old = model.first.kernel.get_value()
    step(control, model, optimizer, X)
    assert old.is_deleted()
    before = values(model, optimizer)
    step(control, model, optimizer, BAD)
    assert_bitwise(values(model, optimizer), before)
    assert int(control.state.rejected) == 1


def test_without_the_guard_the_statistics_are_lost():
    model, optimizer = make(optax.apply_if_finite(optax.adam(0.1), 5))
    nnx.jit(train_step)(model, optimizer, BAD)
    assert np.isnan(model.norm.mean[...]).any()


def test_equal_to_the_run_without_the_bad_batches():
    step = nnx.jit(guard_nnx.transaction(train_step))

    def train(batches):
        model, optimizer = make(optax.adam(0.1))
        control = guard_nnx.Control()
        for x in batches:
            step(control, model, optimizer, x)
        return values(model, optimizer)

    assert_bitwise(train([X, BAD, X, BAD]), train([X, X]))


def test_control_state_in_the_optimizer_advances():
    tx = optax.chain(optax.adam(0.1), transforms.adapt_learning_rate())
    model, optimizer = make(tx)
    control = guard_nnx.Control(telemetry=2)
    step = nnx.jit(guard_nnx.transaction(train_step))
    step(control, model, optimizer, BAD)
    inner = optimizer.opt_state[1].control
    assert float(inner.rate_factor[...]) == 0.5
    assert int(optimizer.opt_state[0][0].count[...]) == 0
    np.testing.assert_array_equal(control.state.history.ok, [False, False])


def test_it_halts():
    policy = guard.Policy(give_up_after=2)
    model, optimizer = make(optax.sgd(0.1))
    control = guard_nnx.Control()
    step = nnx.jit(guard_nnx.transaction(train_step, policy=policy))
    before = values(model, optimizer)
    for x in (BAD, BAD, X):
        step(control, model, optimizer, x)
    assert_bitwise(values(model, optimizer), before)
    with pytest.raises(FloatingPointError, match="given up"):
        transforms.raise_if_halted(control.state)


def test_the_control_comes_first():
    model, optimizer = make(optax.sgd(0.1))
    with pytest.raises(TypeError, match="the first argument must be a Control"):
        guard_nnx.transaction(train_step)(model, optimizer, X)
    with pytest.raises(TypeError, match="train_step must be a function"):
        guard_nnx.transaction(None)


@pytest.mark.several_devices
def test_all_devices_of_a_shard_map_take_one_decision():
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:4]), ("data",))
    everywhere, rows = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("data")
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)

    def own_loss_only(model, optimizer, x, extra):
        def mean_over_devices(model):
            return jax.lax.pmean(jnp.mean(model(x) ** 2), "data")

        loss, grads = nnx.value_and_grad(mean_over_devices)(model)
        optimizer.update(model, grads)
        return loss + extra  # not averaged: only one device sees the NaN

    step = guard_nnx.transaction(own_loss_only, axis_name="data")
    modules, state = nnx.split((guard_nnx.Control(), model, optimizer))

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(everywhere, rows, rows),
        out_specs=(everywhere, rows),
    )
    def train(state, x, extra):
        control, *rest = nnx.merge(modules, state)
        step(control, *rest, x, extra)
        return nnx.state((control, *rest)), control.state.ok[None]

    _, *before = nnx.merge(modules, state)
    none = jnp.zeros(8)
    bad = none.at[5].set(jnp.nan)
    for extra, ok in ((none, True), (bad, False), (none, True)):
        state, oks = train(state, X, extra)
        assert oks.tolist() == [ok] * 4
        _, *after = nnx.merge(modules, state)
        same = jax.tree.map(np.array_equal, values(*before), values(*after))
        assert all(jax.tree.leaves(same)) == (not ok)
        before = after
    assert int(before[1].step[...]) == 2
