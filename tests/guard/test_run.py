"""The host driver: skips, replays, tells, notes in the ledger, halts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsafe import guard, transforms
from jaxsafe.guard._snapshot import Snapshots

TX = optax.adam(0.1)


def loss_fn(w, x):
    return jnp.mean(w * jnp.log(x))  # a batch with a 0 in it is fatal


def train_step(state, x):
    loss, grads = jax.value_and_grad(loss_fn)(state["w"], x)
    updates, opt = TX.update(grads, state["opt"])
    return {"w": state["w"] + updates, "opt": opt}, {"loss": loss}


GOOD = jnp.asarray([1.0, 2.0])
BAD = jnp.asarray([0.0, 2.0])


def make(**policy):
    step = guard.transaction(train_step, policy=guard.Policy(**policy))
    w = jnp.asarray(0.5)
    return step, step.init({"w": w, "opt": TX.init(w)})


@pytest.mark.parametrize("read_every", [1, 3])
def test_bad_batches_are_skipped_named_and_noted(read_every):
    step, carry = make(read_every=read_every)
    events, ledger = [], {}
    carry = guard.run(
        jax.jit(step, donate_argnums=0),
        carry,
        [GOOD, BAD, BAD, GOOD],
        ledger=ledger,
        on_event=events.append,
    )
    kinds = [event.kind for event in events]
    assert kinds == ["committed", "rejected", "rejected", "committed"]
    assert [event.batch for event in events] == [0, 1, 2, 3]
    assert int(carry.control.rejected) == 2
    assert sorted(ledger) == [1, 2]
    finding = events[1].finding
    assert finding.primitive == "log"
    assert finding.source.startswith("return jnp.mean(w * jnp.log(x))")
    assert events[2].finding is finding  # replayed once for a series
    assert "log" in ledger[1]


def test_a_resumed_run_skips_the_ledger():
    step, carry = make()
    ledger = {1: "known"}
    carry = guard.run(jax.jit(step), carry, [GOOD, BAD, GOOD], ledger=ledger)
    assert int(carry.control.attempts) == 2
    assert ledger == {1: "known"}


def test_halting_raises_with_the_finding_and_the_last_good_state():
    step, carry = make(give_up_after=2)
    events = []
    with pytest.raises(guard.Halted, match=r"guard.run: too many rejected") as caught:
        guard.run(jax.jit(step), carry, [GOOD] + [BAD] * 5, on_event=events.append)
    assert [e.kind for e in events] == ["committed", "rejected", "rejected", "halted"]
    assert caught.value.finding.primitive == "log"
    assert "log" in str(caught.value)
    assert np.isfinite(caught.value.carry.state["w"])
    assert isinstance(caught.value, FloatingPointError)


def test_a_check_that_says_no_needs_no_replay():
    step = guard.transaction(
        lambda state, x: (state + x, {"loss": x}),
        check=lambda state, aux: aux["loss"] < 10.0,
    )
    events, ledger = [], {}
    carry = guard.run(
        step,
        step.init(jnp.asarray(0.0)),
        [jnp.asarray(1.0), jnp.asarray(99.0)],
        ledger=ledger,
        on_event=events.append,
    )
    assert float(carry.state) == 1.0
    assert events[1].finding is None
    assert ledger == {1: "finite, but the check said no (reproduced)"}


def test_divergence_is_rolled_back_and_the_rate_lowered():
    # x**4 at a rate far too high: the step that overshoots is committed, and only the
    # next one shows it; rejecting alone could never bring the state back.
    tx = optax.chain(
        optax.sgd(1.0), transforms.adapt_learning_rate(recovery_steps=10_000)
    )

    def train_step(state, _):
        loss, grads = jax.value_and_grad(lambda x: x**4 / 4)(state["x"])
        updates, opt = tx.update(grads, state["opt"], value=loss)
        return {"x": state["x"] + updates, "opt": opt}, {"loss": loss}

    def check(_, aux):
        return aux["loss"] < 100.0

    def train(**policy):
        step = guard.transaction(
            train_step, check=check, policy=guard.Policy(give_up_after=30, **policy)
        )
        x, events = jnp.asarray(3.0), []
        carry = guard.run(
            jax.jit(step, donate_argnums=0),
            step.init({"x": x, "opt": tx.init(x)}),
            [None] * 40,
            on_event=events.append,
        )
        return carry, [event.kind for event in events]

    carry, kinds = train(snapshot_every=1, roll_back_after=2)
    assert abs(float(carry.state["x"])) < 1.0
    assert kinds.count("rolled_back") >= 1
    assert 0 < float(carry.state["opt"][1].control.rate_factor) < 0.5
    assert int(carry.control.rejected) == kinds.count("rejected")

    with pytest.raises(guard.Halted):
        train()


def test_a_snapshot_is_good_only_after_two_more_steps():
    step = guard.transaction(
        lambda state, x: (state + x, state), check=lambda _, aux: aux < 5.0
    )
    policy = guard.Policy(snapshot_every=1, roll_back_after=1)
    states = []
    carry = guard.run(
        jax.jit(step, donate_argnums=0),
        step.init(jnp.asarray(0.0)),
        [jnp.asarray(x) for x in (1.0, 1.0, 90.0, 1.0, 1.0)],
        policy=policy,
        on_event=lambda event: states.append((event.kind, float(event.aux))),
    )
    assert states == [
        ("committed", 0.0),
        ("committed", 1.0),
        ("committed", 2.0),
        ("rejected", 92.0),
        ("rolled_back", 92.0),
        ("committed", 1.0),
    ]
    assert float(carry.state) == 2.0


def test_a_fault_behind_an_inner_guard_is_found_too():
    tx = transforms.guarded(optax.adam(0.1))

    def guarded_step(state, x):
        grads = jax.grad(lambda w: jnp.sum(jnp.sqrt(w * x)))(state["w"])
        updates, opt = tx.update(grads, state["opt"], state["w"])
        return {"w": state["w"] + updates, "opt": opt}, jnp.asarray(0.0)

    step = guard.transaction(guarded_step)
    w = jnp.asarray(1.0)
    carry, events = step.init({"w": w, "opt": tx.init(w)}), []
    guard.run(step, carry, [jnp.asarray([0.0, 1.0])], on_event=events.append)
    finding = events[0].finding
    assert finding.phase == "backward"
    assert "jnp.sqrt" in finding.source


@pytest.mark.parametrize("snapshots", ["device", "host"])
def test_palms_recipe(snapshots):
    # Back to the last good snapshot, and on with the batches after the bad ones: what
    # was committed since the snapshot is undone, and not tried again.
    step = guard.transaction(
        lambda state, x: ({"x": state["x"] + x}, x), check=lambda _, aux: aux < 50.0
    )
    policy = guard.Policy(snapshot_every=3, roll_back_after=2)
    values = [1.0, 2.0, 4.0, 8.0, 16.0, 99.0, 99.0, 32.0, 99.0, 3.0]
    tried, ledger = [], {}

    def look(event):
        tried.append((event.batch, event.kind))

    carry = guard.run(
        jax.jit(step, donate_argnums=0),
        step.init({"x": jnp.zeros(3)}),
        [jnp.asarray(v) for v in values],
        policy=policy,
        ledger=ledger,
        snapshots=snapshots,
        on_event=look,
    )
    batches = [batch for batch, kind in tried if kind != "rolled_back"]
    assert batches == list(range(10))  # each once, in order
    assert [batch for batch, kind in tried if kind == "rolled_back"] == [6]
    assert sorted(ledger) == [5, 6, 8]
    # 1 + 2 + 4 was the snapshot; 8 and 16 came after it and are gone.
    np.testing.assert_array_equal(carry.state["x"], np.full(3, 7.0 + 32.0 + 3.0))
    assert carry.state["x"].sharding.memory_kind == "device"


def test_snapshots_are_kept_where_it_was_asked_for():
    state = {"x": jnp.ones(4), "key": jax.random.key(0)}
    for place, kind in (("device", "device"), ("host", "pinned_host")):
        kept = Snapshots(1, state, place=place).good
        assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(kept)} == {kind}


@pytest.mark.several_devices
def test_what_a_guard_inside_has_recorded_is_not_blamed():
    # The guard's history is NaN where nothing was recorded yet, and so is the norm of
    # the gradient that it rejects.
    tx = transforms.guarded(optax.adam(0.1), telemetry=3)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:2]), ("data",))
    everywhere = jax.sharding.PartitionSpec()

    def sharded_step(state, x):
        loss, grads = jax.value_and_grad(loss_fn)(state["w"], x)
        updates, opt = tx.update(grads, state["opt"], value=loss)
        return {"w": state["w"] + updates, "opt": opt}, loss

    step = guard.transaction(
        jax.shard_map(
            sharded_step, mesh=mesh, in_specs=everywhere, out_specs=everywhere
        )
    )
    w = jnp.asarray(0.5)
    carry, events = step.init({"w": w, "opt": tx.init(w)}), []
    guard.run(jax.jit(step), carry, [BAD], on_event=events.append)
    assert events[0].finding.primitive == "log"


def test_refuses_a_place_for_snapshots_that_is_none():
    step, carry = make()
    with pytest.raises(ValueError, match=r"snapshots must be one of .*got 'disk'"):
        guard.run(step, carry, [], snapshots="disk")


def test_a_policy_has_at_most_eight_fields():
    assert len(dataclasses.fields(guard.Policy)) <= 8


def test_a_tuple_is_several_arguments():
    def two(state, x, y):
        return state + x * y, x

    step = guard.transaction(two)
    carry = guard.run(step, step.init(jnp.asarray(0.0)), [(2.0, 3.0), (1.0, 1.0)])
    assert float(carry.state) == 7.0


def test_an_empty_run_is_fine():
    step, carry = make()
    assert guard.run(step, carry, []) is carry


def test_only_a_transaction_can_be_driven():
    with pytest.raises(TypeError, match=r"must be a guard.transaction.*Wrap your"):
        guard.run(train_step, None, [])
