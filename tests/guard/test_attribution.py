"""A run that breaks says which of the four causes it was."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsafe import guard, transforms
from jaxsafe.guard import _attribution
from jaxsafe.guard._snapshot import Snapshots

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 8, 3)).astype(np.float32)
Y = RNG.integers(0, 2, (12, 8))
BATCHES = list(zip(X, Y, strict=True))


def softmax(x):
    power = jnp.exp(x)
    return power / power.sum(-1, keepdims=True)


def make(*, rate=0.1, activation=jnp.tanh, scale=1.0, tx=None, **how):
    """A small network under a transaction; (jitted step that donates, carry)."""
    tx = tx or optax.sgd(rate)

    def loss_fn(w, x, y):
        return jnp.mean((activation(x @ w)[:, 0] - y) ** 2)

    def train_step(state, x, y):
        value, grads = jax.value_and_grad(loss_fn)(state["w"], x, y)
        updates, opt = tx.update(grads, state["opt"], state["w"], value=value)
        return {"w": state["w"] + updates, "opt": opt}, {"loss": value}

    tx = optax.with_extra_args_support(tx)
    step = guard.transaction(train_step, **how)
    w = scale * jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32)
    carry = step.init({"w": w, "opt": tx.init(w)})
    return jax.jit(step, donate_argnums=0), carry


def events_of(step, carry, batches, policy, **options):
    events = []
    try:
        guard.run(
            step, carry, batches, policy=policy, on_event=events.append, **options
        )
    except guard.Halted as halted:
        return events, halted
    return events, None


def policy(**fields):
    return guard.Policy(**{"snapshot_every": 2, "roll_back_after": 2, **fields})


def test_a_rate_that_is_too_high():
    rules = policy(give_up_after=2, roll_back_after=3)
    step, carry = make(rate=3.0, activation=lambda x: x**3, policy=rules)
    events, halted = events_of(step, carry, BATCHES, rules, snapshots="host")
    assert [event.kind for event in events[-3:]] == ["rejected", "rejected", "halted"]
    assert events[0].kind == "committed"
    found = halted.attribution
    assert found.cause == "learning rate"
    assert found.finding is halted.finding
    assert "\nlearning rate" in str(halted)
    assert "rate x 0: finite" in str(halted)
    assert events[-1].attribution is found


@pytest.mark.parametrize("read_every", [1, 2])
def test_bad_batches(read_every):
    rules = policy(read_every=read_every)
    step, carry = make(policy=rules)
    batches = list(BATCHES)
    for at in (8, 9):
        batches[at] = (np.full_like(X[at], np.nan), Y[at])
    events, _ = events_of(step, carry, batches, rules)
    told = {e.batch: e.attribution for e in events if e.kind == "rolled_back"}
    assert [*told] == [9]
    assert told[9].cause == "input data"
    failed, _, replaced = told[9].trials
    assert (replaced.replaced, replaced.failed_at) == (failed.failed_at, None)
    # What comes after a good step is another story.
    assert events[-1].kind == "committed"
    assert events[-1].attribution is None


def test_a_broken_activation_and_once_for_a_series():
    rules = policy(give_up_after=5)
    step, carry = make(activation=softmax, scale=200.0, policy=rules)
    events, halted = events_of(step, carry, BATCHES, rules)
    kinds = [event.kind for event in events]
    assert kinds == 2 * [*["rejected"] * 2, "rolled_back"] + ["rejected", "halted"]
    found = halted.attribution
    assert found.cause == "activation"
    told = [event.attribution for event in events]
    assert told[:2] == [None, None]
    assert all(attribution is found for attribution in told[2:])


def test_a_check_that_says_no_is_a_failure():
    rules = policy()
    step, carry = make(
        rate=30.0,
        activation=lambda x: x,
        policy=rules,
        check=lambda _, aux: aux["loss"] < 100.0,
    )
    events, _ = events_of(step, carry, BATCHES, rules)
    found = [e.attribution for e in events if e.kind == "rolled_back"]
    assert found[0].cause == "learning rate"
    assert found[0].finding is None


@pytest.mark.slow
def test_behind_a_guard_in_the_chain():
    rules = policy()
    step, carry = make(
        tx=transforms.guarded(optax.sgd(3.0), max_norm=None),
        activation=lambda x: x**3,
        policy=rules,
    )
    events, _ = events_of(step, carry, BATCHES, rules)
    found = [e.attribution for e in events if e.kind == "rolled_back"]
    assert found[0].cause == "learning rate"


@pytest.mark.several_devices
def test_inside_shard_map():
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:2]), ("data",))
    everywhere, rows = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("data")

    def train_step(w, x):
        loss, grads = jax.value_and_grad(lambda w: jnp.mean((x @ w) ** 4))(w)
        grads, loss = jax.lax.pmean((grads, loss), "data")
        return w - 0.01 * grads, loss

    rules = policy()
    step = guard.transaction(train_step, axis_name="data", policy=rules)
    mapped = jax.jit(
        jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(everywhere, rows),
            out_specs=(everywhere, everywhere),
            check_vma=False,
        ),
        donate_argnums=0,
    )
    driven = _wrapped(mapped, step)
    batches = [*X[:6], *[np.full_like(X[0], np.nan)] * 2]
    events, _ = events_of(driven, step.init(jnp.ones(3)), batches, rules)
    assert events[-1].kind == "rolled_back"
    assert events[-1].attribution.cause == "input data"


def _wrapped(mapped, step):
    def driven(*args):
        return mapped(*args)

    driven.__wrapped__ = step
    return driven


@pytest.mark.parametrize("off", [{"snapshot_every": 0}, {"replay_batches": 0}])
def test_off(off, monkeypatch):
    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr(_attribution, "replayed", never)
    options = {k: v for k, v in off.items() if k == "replay_batches"}
    fields = {k: v for k, v in off.items() if k == "snapshot_every"}
    rules = policy(give_up_after=3, **fields)
    step, carry = make(activation=softmax, scale=200.0, policy=rules)
    events, halted = events_of(step, carry, BATCHES, rules, **options)
    assert halted.attribution is None
    assert {event.attribution for event in events} == {None}


def test_a_replay_that_fails_does_not_end_the_run(monkeypatch):
    def full(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(_attribution, "replayed", full)
    rules = policy()
    step, carry = make(activation=softmax, scale=200.0, policy=rules)
    with pytest.warns(UserWarning, match=r"cause was not found out \(got out of mem"):
        events, _ = events_of(step, carry, BATCHES[:2], rules)
    assert events[-1].kind == "rolled_back"


@pytest.mark.parametrize(("every", "keep"), [(1, 64), (3, 64), (3, 3), (7, 5)])
def test_the_batches_since_the_good_state(every, keep):
    # The oracle keeps everything: the state is the list of all batches so far.
    copies = Snapshots(every, {"x": jnp.zeros(())}, keep=keep)
    state, longest = [], 0
    seen = collections.Counter()
    for i in range(40):
        state.append(i)
        copies.note_batch((i,))
        copies.note_committed({"x": jnp.asarray(float(len(state)))})
        good = int(copies.good["x"])
        since = copies.since.batches()
        longest = max(longest, len(copies.since.recent))
        known = len(state) - good <= keep
        assert since == ([(b,) for b in state[good:]] if known else None)
        seen[known] += 1
    assert longest <= min(keep, every + 2)
    assert seen[True] > 0
    assert (seen[False] > 0) == (keep < every + 1)


def test_batches_that_were_read_by_another_process_are_not_known():
    copies = Snapshots(2, {"x": jnp.zeros(())}, keep=8)
    packed = copies.pack()
    copies.unpack(packed, None)
    assert copies.since.batches() is None
    for i in range(4):
        copies.note_batch((i,))
        copies.note_committed({"x": jnp.asarray(float(i))})
    assert copies.since.batches() == [(2,), (3,)]


def test_refuses_a_number_of_batches_below_zero():
    step, carry = make()
    with pytest.raises(ValueError, match=r"replay_batches must be an integer of at l"):
        guard.run(step, carry, [], replay_batches=-1)
