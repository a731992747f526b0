"""The cause of a divergence, decided by replaying it with one thing changed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsafe import diagnose, transforms

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(6, 8, 3)), jnp.float32)
Y = jnp.asarray(RNG.integers(0, 2, (6, 8)))
BATCHES = list(zip(X, Y, strict=True))


def softmax(x):
    power = jnp.exp(x)
    return power / power.sum(-1, keepdims=True)


def make(*, rate=0.1, activation=jnp.tanh, loss=None, scale=1.0, guarded=True):
    """A small network; (train_step, state)."""
    tx = optax.sgd(rate)
    tx = transforms.guarded(tx, max_norm=None) if guarded else tx
    w = jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32) * scale

    def loss_fn(w, x, y):
        out = activation(x @ w)
        if loss is not None:
            return loss(out, y)
        return jnp.mean((out[:, 0] - y) ** 2)

    def train_step(state, x, y):
        value, grads = jax.value_and_grad(loss_fn)(state["w"], x, y)
        extra = {"value": value} if guarded else {}
        updates, opt = tx.update(grads, state["opt"], state["w"], **extra)
        return {"w": state["w"] + updates, "opt": opt}, {"loss": value}

    return train_step, {"w": w, "opt": tx.init(w)}


@pytest.mark.parametrize("guarded", [True, False])
def test_learning_rate(guarded):
    step, state = make(rate=3.0, activation=lambda x: x**3, guarded=guarded)
    found = diagnose.attribute(step, state, BATCHES, rates=(0.5, 1e-4))
    assert found.cause == "learning rate"
    assert found.rate == 1e-4
    assert [t.rate for t in found.trials] == [1.0, 0.5, 1e-4, 0.0]
    assert found.trials[-1].failed_at is None
    assert "0.0001 times the rate stays finite" in found.summary()


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, 1e30])
def test_input_data(bad):
    step, state = make(activation=lambda x: x)
    batches = list(BATCHES)
    batches[4] = (X[4].at[2, 1].set(bad), Y[4])
    found = diagnose.attribute(step, state, batches)
    assert found.cause == "input data"
    first, still, replaced = found.trials
    assert (first.failed_at, still.failed_at) == (4, 4)
    assert (replaced.replaced, replaced.failed_at) == (4, None)


def test_activation():
    step, state = make(activation=softmax, scale=200.0)
    found = diagnose.attribute(step, state, BATCHES)
    assert found.cause == "activation"
    assert found.finding.primitive == "exp"


def test_loss():
    def cross_entropy(logits, y):
        p = jax.nn.softmax(logits)
        return -jnp.log(p[jnp.arange(8), y]).mean()

    step, state = make(activation=lambda x: x, loss=cross_entropy, scale=200.0)
    found = diagnose.attribute(step, state, BATCHES)
    assert found.cause == "loss"
    assert found.finding.primitive == "log"


def test_a_batch_like_the_others_is_not_to_blame():
    # Only batch 3 meets the pole, with numbers of the usual size.
    def pole(x):
        return 1 / (x - 0.5)

    step, state = make(rate=1e-12, activation=pole)
    state["w"] = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    batches = list(BATCHES)
    batches[3] = (X[3].at[0, 0].set(0.5), Y[3])
    found = diagnose.attribute(step, state, batches)
    assert found.cause == "activation"
    assert found.trials[-1].failed_at is None  # the replacement cures it as well


def test_a_loss_above_the_limit_is_a_failure():
    step, state = make(rate=1.1, activation=lambda x: x, guarded=False)
    batches = BATCHES * 4
    found = diagnose.attribute(step, state, batches, limit=100.0, rates=(0.1,))
    assert found.cause in ("learning rate", "not reproduced")
    assert diagnose.attribute(step, state, batches).cause == "not reproduced"
    fast, state = make(rate=30.0, activation=lambda x: x, guarded=False)
    found = diagnose.attribute(fast, state, batches, limit=1e4, rates=(0.003,))
    assert (found.cause, found.rate, found.finding) == ("learning rate", 0.003, None)


def test_healthy_steps_are_not_blamed():
    step, state = make()
    found = diagnose.attribute(step, state, BATCHES)
    assert (found.cause, len(found.trials)) == ("not reproduced", 1)


def test_json_and_errors():
    step, state = make(activation=softmax, scale=200.0)
    plain = json.loads(diagnose.attribute(step, state, BATCHES).to_json())
    assert plain["cause"] == "activation"
    assert plain["trials"][0]["failed_at"] == 0
    assert plain["finding"]["primitive"] == "exp"
    with pytest.raises(ValueError, match="attribute: there is no batch to replay"):
        diagnose.attribute(step, state, [])
    with pytest.raises(ValueError, match="a rate must lie in"):
        diagnose.attribute(step, state, BATCHES, rates=(2.0,))
