"""Advice on real small runs, each made to show one fault, and on healthy ones."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from jaxsafe import guard, transforms, tune

STEPS = 300
DIGITS = load_digits()
X = (DIGITS.data / 16).astype(np.float32)
Y = DIGITS.target.astype(np.int32)


def loss_fn(p, x, y):
    scores = jax.nn.relu(x @ p["w"] + p["b"]) @ p["v"]
    return optax.softmax_cross_entropy_with_integer_labels(scores, y).mean()


@functools.cache
def trainer(tx):
    """(params, batches) -> the state after them; compiled once for each optimizer."""

    def step(carry, batch):
        params, state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, *batch)
        updates, state = tx.update(grads, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), None

    def train(params, batches):
        return jax.lax.scan(step, (params, tx.init(params)), batches)[0][1]

    return jax.jit(train)


def history(tx, *, size=64, spoilt=()):
    """Train an MLP on digits; the telemetry that is left."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(X), (STEPS, size))
    x = X[rows]
    x[list(spoilt), 0, 0] = np.nan
    params = {
        "w": np.float32(rng.normal(size=(64, 32)) / 8),
        "b": np.zeros(32, np.float32),
        "v": np.float32(rng.normal(size=(32, 10)) / 6),
    }
    return transforms.read_history(trainer(tx)(params, (x, Y[rows])))


def guarded(tx, **options):
    return plain(transforms.guarded(tx, **{"max_norm": 10.0, **options}))


def plain(tx):
    return transforms.telemetry(STEPS, tx)


def climbing(step):
    """A rate that is right, and then rises and rises."""
    return 0.05 * jnp.where(step < 150, 1.0, 1.05 ** (step - 150.0))


HEALTHY = {
    "adam": guarded(optax.adam(3e-3)),
    "descent": plain(optax.sgd(0.3)),
    "cosine": guarded(optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))),
}
FAULTS = {
    "rate too high": plain(optax.sgd(20.0)),
    "rate too low": guarded(optax.adam(1e-5)),
    "clip always active": guarded(optax.sgd(1.0), max_norm=0.05),
    "diverging late": plain(optax.sgd(climbing)),
}
WORDS = {
    "rate too high": ("learning rate", "jumped", "a third"),
    "rate too low": ("learning rate", "of the weights", "three to ten times"),
    "clip always active": ("clip", "100% of the steps", "max_norm="),
    "diverging late": ("schedule", "has risen", "decays before"),
}


@pytest.mark.parametrize(
    "name", ["adam", "descent", pytest.param("cosine", marks=pytest.mark.slow)]
)
def test_a_healthy_run_needs_no_advice(name):
    advice = tune.advise(history(HEALTHY[name]))
    assert advice.ok
    assert advice.note == ""
    assert advice.steps == STEPS
    assert "nothing to change" in advice.summary()


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_told_with_its_evidence(fault):
    advice = tune.advise(history(FAULTS[fault]))
    assert advice.faults == (fault,)
    (hint,) = advice.hints
    topic, seen, remedy = WORDS[fault]
    assert hint.topic == topic
    assert seen in " ".join(hint.evidence)
    assert remedy in hint.remedies[0]
    assert all(len(line) <= 80 for line in advice.summary().splitlines())
    assert json.loads(advice.to_json())["hints"][0]["fault"] == fault


def test_a_batch_that_is_too_small():
    advice = tune.advise(history(guarded(optax.sgd(0.05)), size=1))
    assert advice.faults == ("batch too small",)
    assert "four times" in advice.hints[0].remedies[0]


def test_steps_that_were_skipped_here_and_there_point_to_the_data():
    advice = tune.advise(history(HEALTHY["adam"], spoilt=(70, 180)))
    assert advice.faults == ("skipped steps",)
    assert advice.hints[0].topic == "data"
    assert "70, 180" in advice.hints[0].evidence[0]


def test_steps_that_fail_in_a_row_point_to_the_rate():
    found = history(HEALTHY["adam"], spoilt=range(200, 206))
    hints = {hint.fault: hint for hint in tune.advise(found).hints}
    assert hints["skipped steps"].topic == "learning rate"
    # six times half the rate, and ninety steps of recovery
    assert f"{found['rate_factor'][-1]:.3g}" in hints["rate too high"].evidence[0]


def test_a_run_without_warm_up_that_recovers():
    found = history(plain(optax.adam(0.2)))
    assert found["loss"][1] > 1.5 * found["loss"][0] > 1.5 * found["loss"][-1]
    (hint,) = tune.advise(found).hints
    assert (hint.fault, hint.topic) == ("rough start", "schedule")
    assert f"to {found['loss'].max():.3g} at step" in hint.evidence[0]
    assert "warm-up" in hint.remedies[0]


def test_the_update_ratio_is_that_of_the_run():
    params = jnp.array([3.0, 4.0])
    for tx in (plain(optax.sgd(0.5)), guarded(optax.sgd(0.5))):
        update = jax.jit(tx.update)
        _, state = update(jnp.array([0.6, 0.8]), tx.init(params), params)
        seen = transforms.read_history(state)["update_ratio"]
        np.testing.assert_allclose(seen, [0.1], rtol=1e-6)
        _, state = update(params, tx.init(params), params * 0)
        assert np.isnan(transforms.read_history(state)["update_ratio"]).all()
    tx = transforms.guarded(optax.sgd(0.5), telemetry=STEPS)
    _, state = tx.update(params, tx.init(params), params)
    assert np.isnan(transforms.read_history(state)["update_ratio"]).all()


def test_what_a_transaction_cannot_see_is_not_judged():
    def train_step(w, x):
        return w * 0.99, w * x

    policy = guard.Policy(telemetry=60)
    step = guard.transaction(train_step, policy=policy)
    carry = step.init(jnp.ones(()))
    carry, _ = jax.lax.scan(lambda c, x: step(c, x), carry, jnp.ones(60))
    advice = tune.advise(transforms.read_history(carry.control))
    assert "update_ratio" in advice.note


def test_a_short_run_is_not_judged():
    advice = tune.advise({"loss": np.arange(10.0)})
    assert advice.ok
    assert "Too few" in advice.note


def test_a_history_without_a_loss_is_an_error():
    with pytest.raises(ValueError, match="holds no loss"):
        tune.advise({"ok": np.ones(3, bool)})
    with pytest.raises(ValueError, match="one length"):
        tune.advise({"loss": np.ones(3), "ok": np.ones(2, bool)})
