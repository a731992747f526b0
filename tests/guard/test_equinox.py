"""Modules of equinox, which hold functions and settings, through all of the guard."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsafe import guard
from tests.guard.test_resume import assert_bitwise

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
BAD = X.at[2, 1].set(jnp.nan)
TX = optax.adam(0.1)


class Net(eqx.Module):
    first: eqx.nn.Linear
    activation: object  # a function
    dropout: eqx.nn.Dropout  # holds a number and a bool
    last: eqx.nn.Linear

    def __init__(self, key):
        first, last = jax.random.split(key)
        self.first = eqx.nn.Linear(3, 4, key=first)
        self.activation = jax.nn.gelu
        self.dropout = eqx.nn.Dropout(0.25)
        self.last = eqx.nn.Linear(4, 1, key=last)

    def __call__(self, x, key):
        hidden = self.dropout(self.activation(self.first(x)), key=key)
        return self.last(hidden)


def train_step(state, x):
    key, sub = jax.random.split(state["key"])
    keys = jax.random.split(sub, len(x))

    def loss_fn(net):
        return jnp.mean(jax.vmap(net)(x, keys) ** 2)

    loss, grads = eqx.filter_value_and_grad(loss_fn)(state["net"])
    updates, opt = TX.update(grads, state["opt"])
    return {"net": eqx.apply_updates(state["net"], updates), "opt": opt, "key": key}, (
        loss
    )


STEP = guard.transaction(train_step)


def start(seed):
    net = Net(jax.random.key(seed))
    opt = TX.init(eqx.filter(net, eqx.is_inexact_array))
    return STEP.init({"net": net, "opt": opt, "key": jax.random.key(7)})


@pytest.fixture(scope="module")
def jitted():
    return eqx.filter_jit(STEP)


def arrays(tree):
    return jax.tree.leaves(eqx.filter(tree, eqx.is_array))


def settings(tree):
    return [x for x in jax.tree.leaves(tree) if not eqx.is_array(x)]


def test_a_bad_step_leaves_everything_as_it_was(jitted):
    carry, _ = jitted(start(0), X)
    after, loss = jitted(carry, BAD)
    assert np.isnan(loss)
    assert int(after.control.rejected) == 1
    assert_bitwise(arrays(after.state), arrays(carry.state))
    assert settings(after.state) == settings(carry.state) == settings(start(0).state)
    assert len(settings(carry.state)) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "snapshots", ["device", pytest.param("host", marks=pytest.mark.slow)]
)
def test_a_run_rolls_back_saves_and_is_resumed(jitted, tmp_path, snapshots):
    policy = guard.Policy(snapshot_every=1, roll_back_after=2)
    batches, events = [X, X, X, X, BAD, BAD, X, X], []

    def train(directory, batches):
        with guard.Checkpoints(directory) as checkpoints:
            return guard.run(
                jitted,
                start(0),
                batches,
                policy=policy,
                checkpoints=checkpoints,
                snapshots=snapshots,
                on_event=events.append,
            )

    whole = train(tmp_path / "whole", batches)
    kinds = [event.kind for event in events]
    assert (kinds.count("rejected"), kinds.count("rolled_back")) == (2, 1)
    assert events[4].finding.primitive == "(input)"

    train(tmp_path / "parts", batches[:4])
    resumed = train(tmp_path / "parts", batches)
    assert jax.tree.structure(resumed) == jax.tree.structure(whole)
    assert_bitwise(arrays(resumed), arrays(whole))
    assert settings(resumed) == settings(whole)


def test_another_model_is_an_error_that_names_the_leaf(tmp_path):
    with guard.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(start(0), 1)
        carry = start(0)
        net = eqx.tree_at(lambda n: n.first.bias, carry.state["net"], jnp.zeros(5))
        other = carry._replace(state={**carry.state, "net": net})
        with pytest.raises(ValueError, match=r"first\.bias: float32\[4\], .*\[5\]"):
            checkpoints.restore(other)
