"""The verdict of running a bad step again: who is at fault, and does it say so."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsafe import guard, transforms

GOOD = jnp.asarray([1.0, 2.0])
BAD = jnp.asarray([0.0, 2.0])
TX = transforms.guarded(optax.adam(0.1))


def train_step(state, x):
    loss, grads = jax.value_and_grad(lambda w: jnp.mean(w * jnp.log(x)))(state["w"])
    updates, opt = TX.update(grads, state["opt"], state["w"], value=loss)
    return {"w": state["w"] + updates, "opt": opt}, {"loss": loss}


def start(step):
    w = jnp.asarray(0.5)
    return step.init({"w": w, "opt": TX.init(w)})


class Machine:
    """A jitted step on a machine that hands it a NaN at the given calls."""

    def __init__(self, step, faults):
        self.__wrapped__ = step
        self.compiled = jax.jit(step, donate_argnums=0)
        self.faults = faults
        self.calls = 0

    def __call__(self, carry, x):
        poison = jnp.nan if self.calls in self.faults else 0.0
        self.calls += 1
        return self.compiled(carry, x + poison)

    def lower(self, *args):
        return self.compiled.lower(*args)


def drive(step, carry, batches, **options):
    events, ledger = [], {}
    carry = guard.run(
        step, carry, batches, ledger=ledger, on_event=events.append, **options
    )
    return carry, events, ledger


class TestInARun:
    def test_a_fault_that_shows_once_is_the_machine_s(self):
        step = guard.transaction(train_step)
        # Calls: two good batches, the faulty one, and the same again.
        machine = Machine(step, faults={2})
        carry, events, ledger = drive(machine, start(step), [GOOD] * 4)
        assert [e.kind for e in events] == [
            "committed", "committed", "rejected", "committed"
        ]  # fmt: skip
        assert [e.verdict and e.verdict.kind for e in events] == [
            None, None, "transient", None
        ]  # fmt: skip
        assert not events[2].verdict.bitwise
        assert events[2].finding is None
        assert ledger == {2: "transient: gone when the step was run again"}
        assert machine.calls == 5
        assert int(carry.control.rejected) == 1

    def test_a_real_fault_after_a_transient_one_is_still_diagnosed(self):
        step = guard.transaction(train_step)
        machine = Machine(step, faults={0})
        _, events, ledger = drive(machine, start(step), [GOOD, BAD])
        kinds = [e.verdict.kind for e in events]
        assert kinds == ["transient", "reproduced"]
        assert events[1].finding.primitive == "log"
        assert ledger[1].endswith("(reproduced)")

    def test_the_data_s_fault_comes_back_bit_by_bit(self):
        step = guard.transaction(train_step)
        carry, events, ledger = drive(
            jax.jit(step, donate_argnums=0), start(step), [GOOD, BAD, BAD, GOOD]
        )
        verdicts = [e.verdict for e in events]
        assert verdicts[0] is None
        assert verdicts[3] is None
        assert [v.kind for v in verdicts[1:3]] == ["reproduced", "reproduced"]
        assert all(v.bitwise for v in verdicts[1:3])
        assert "log" in ledger[1]
        assert int(carry.control.attempts) == 4  # running again is no attempt
        assert int(carry.state["opt"].control.attempts) == 4

    def test_it_goes_back_to_the_control_state_of_the_step(self):
        # As with a loss scale: overflow at this rate factor, none at the next lower.
        tx = transforms.adapt_learning_rate(backoff=0.5)

        def scaled(state, x):
            factor = state["opt"].control.rate_factor
            loss = jnp.exp(x * factor)
            updates, opt = tx.update(jnp.ones(()), state["opt"], value=loss)
            return {"w": state["w"] + updates, "opt": opt}, loss

        step = guard.transaction(scaled)
        w = jnp.zeros(())
        carry = step.init({"w": w, "opt": tx.init(w)})
        high = jnp.asarray(100.0)  # exp(100) is too much for float32, exp(50) is not
        _, events, _ = drive(jax.jit(step, donate_argnums=0), carry, [high, high])
        assert [e.kind for e in events] == ["rejected", "committed"]
        assert events[0].verdict.kind == "reproduced"
        assert events[0].verdict.bitwise

    def test_read_late_only_an_unmoved_state_is_run_again(self):
        step = guard.transaction(train_step)
        policy = guard.Policy(read_every=3)
        _, events, _ = drive(
            jax.jit(step, donate_argnums=0),
            start(step),
            [BAD, GOOD, GOOD, GOOD, BAD, BAD],
            policy=policy,
        )
        kinds = [e.verdict and e.verdict.kind for e in events]
        assert kinds == [None, None, None, None, "reproduced", "reproduced"]

    def test_what_a_halted_guard_turned_down_is_not_run_again(self):
        policy = guard.Policy(give_up_after=1, read_every=2)
        step = guard.transaction(train_step, policy=policy)
        events = []
        with pytest.raises(guard.Halted):
            guard.run(jax.jit(step), start(step), [BAD, GOOD], on_event=events.append)
        assert [e.kind for e in events] == ["rejected", "rejected", "halted"]
        assert events[0].verdict.kind == "reproduced"
        assert events[1].verdict is None

    @pytest.mark.several_devices
    def test_thorough_on_demand(self):
        step = guard.transaction(train_step)
        _, events, ledger = drive(
            jax.jit(step, donate_argnums=0), start(step), [BAD], thorough=True
        )
        verdict = events[0].verdict
        assert verdict.kind == "program"
        assert [r.way for r in verdict.reruns] == [
            "again", "elsewhere", "op by op", "float64"
        ]  # fmt: skip
        assert {r.outcome for r in verdict.reruns} == {"bad"}
        assert ledger[0].endswith("(program)")

    def test_a_check_that_says_no_is_run_again_too(self):
        step = guard.transaction(
            lambda state, x: (state + x, x), check=lambda _, aux: aux < 10.0
        )
        _, events, _ = drive(
            jax.jit(step), step.init(jnp.asarray(0.0)), [jnp.asarray(99.0)]
        )
        assert events[0].verdict.kind == "reproduced"
        assert events[0].finding is None


HALVES = jax.jit(lambda x, y: x * 0.5 + y * 0.5)
HUGE = jnp.full(3, 2e38)


class TestReexecute:
    def test_a_compiler_that_rewrites(self):
        # XLA on CPU makes it (x + y) * 0.5, which overflows.
        assert np.isinf(HALVES(HUGE, HUGE)).all()
        verdict = guard.reexecute(HALVES, HUGE, HUGE)
        assert verdict.kind == "compiler"
        assert verdict.reruns[-1].way == "op by op"
        assert verdict.reruns[-1].outcome == "good"

    def test_a_compiler_that_repairs(self):
        # Op by op inf * 0 is NaN; compiled it is a select, and 0.
        def masked(x, keep):
            return jnp.exp(x) * keep.astype(jnp.float32)

        x, keep = jnp.asarray([100.0, 1.0]), jnp.asarray([False, True])
        assert np.isfinite(jax.jit(masked)(x, keep)).all()
        verdict = guard.reexecute(masked, x, keep)
        assert verdict.kind == "compiler"
        assert verdict.reruns[-1].way == "compiled"

    @pytest.mark.parametrize(
        ("fn", "x", "kind"),
        [
            (jnp.exp, 100.0, "precision"),  # e**100 fits into float64
            (jnp.exp, 1000.0, "program"),  # not even that
            (jnp.log, -1.0, "program"),
            (jnp.log, 1.0, "finite"),
            (lambda x: 1 / (x * 1e-30), 1e-20, "precision"),
        ],
    )
    def test_range_or_mathematics(self, fn, x, kind):
        assert guard.reexecute(jax.jit(fn), jnp.asarray(x)).kind == kind

    def test_numbers_that_numpy_holds_are_widened_too(self):
        x = np.asarray([100.0], np.float32)
        assert guard.reexecute(jax.jit(jnp.exp), x).kind == "precision"

    @pytest.mark.several_devices
    def test_one_device_that_is_wrong(self):
        here, other = jax.devices()[:2]
        double = jax.jit(lambda x: 2 * x)

        def broken(x):
            result = double(x)
            return result * jnp.nan if here in x.devices() else result

        broken.lower = double.lower
        verdict = guard.reexecute(broken, jax.device_put(1.0, here))
        assert verdict.kind == "device"
        assert verdict.reruns[1].way == "elsewhere"
        assert str(other) in verdict.reruns[1].note
        assert guard.reexecute(broken, jax.device_put(1.0, other)).kind == "finite"

    def test_what_was_observed_is_compared(self):
        x = jnp.asarray([1.0, 4.0])
        log = jax.jit(jnp.log)
        verdict = guard.reexecute(log, x, observed=jnp.asarray([jnp.nan, 1.0]))
        assert verdict.kind == "transient"
        verdict = guard.reexecute(log, -x, observed=np.asarray(log(-x)))
        assert (verdict.kind, verdict.bitwise) == ("program", True)
        verdict = guard.reexecute(log, x, observed=jnp.asarray([0.0, 1.0]))
        assert (verdict.kind, verdict.bitwise) == ("finite", False)

    def test_bits_are_compared_and_not_numbers(self):
        cases = [
            (0.0, -0.0), (np.float16(1), np.float16(1.001)), (1j, 1j + 1e-7), (1, 2)
        ]  # fmt: skip
        for a, b in cases:
            same = guard.reexecute(lambda a=a: jnp.asarray(a), observed=jnp.asarray(a))
            other = guard.reexecute(lambda a=a: jnp.asarray(a), observed=jnp.asarray(b))
            assert (same.bitwise, other.bitwise) == (True, False)
        nan = guard.reexecute(lambda: jnp.asarray(jnp.nan), thorough=False)
        assert (nan.kind, nan.bitwise) == ("reproduced", True)
        key = jax.random.key(3)
        assert guard.reexecute(lambda: key).bitwise

    def test_a_carry_after_the_fault_and_a_halted_one_will_do(self):
        policy = guard.Policy(give_up_after=1)
        step = guard.transaction(train_step, policy=policy)
        jitted = jax.jit(step, donate_argnums=0)
        carry, _ = jitted(start(step), BAD)
        assert bool(carry.control.halted)
        assert guard.reexecute(jitted, carry, BAD).kind == "program"
        assert guard.reexecute(jitted, carry, GOOD).kind == "finite"
        assert not carry.state["w"].is_deleted()

    def test_apply_gradients_is_asked_through_its_control_state(self):
        tx, w = optax.adam(0.1), jnp.ones(2)

        @jax.jit
        def step(w, opt_state, control, x):
            loss, grads = jax.value_and_grad(lambda w: jnp.sum(jnp.exp(w * x)))(w)
            return guard.apply_gradients(tx, grads, w, opt_state, control, value=loss)

        args = (w, tx.init(w), transforms.init_control())
        assert np.isfinite(step(*args, jnp.full(2, 100.0))[0]).all()
        assert guard.reexecute(step, *args, jnp.full(2, 100.0)).kind == "precision"
        assert guard.reexecute(step, *args, jnp.full(2, 1e4)).kind == "program"

    @pytest.mark.several_devices
    def test_a_way_that_cannot_be_gone_decides_nothing(self):
        @jax.jit
        def only_float32(x):
            if x.dtype != jnp.float32:
                raise TypeError("float32, please")
            return jnp.log(x)

        mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:2]), ("data",))
        rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        verdict = guard.reexecute(only_float32, jax.device_put(-GOOD, rows))
        assert verdict.kind == "program"
        assert [r.outcome for r in verdict.reruns] == [
            "bad",
            "not run",
            "bad",
            "not run",
        ]
        assert verdict.reruns[1].note == "the arguments live on 2 devices"
        assert verdict.reruns[3].note == "TypeError: float32, please"

    def test_it_reads_and_travels(self):
        verdict = guard.reexecute(HALVES, HUGE, HUGE)
        text = verdict.summary()
        assert text.splitlines()[:2] == ["compiler", "  again: bad, the same bits"]
        assert max(map(len, text.splitlines())) <= 80
        read = json.loads(verdict.to_json())
        assert read["kind"] == "compiler"
        assert read["reruns"][-1] == {"way": "op by op", "outcome": "good", "note": ""}

    def test_bad_arguments(self):
        with pytest.raises(TypeError, match=r"reexecute: fn must be a function"):
            guard.reexecute(3)
        x = jnp.ones(2)
        jax.jit(lambda x: x + 1, donate_argnums=0)(x)
        with pytest.raises(
            ValueError, match=r"was donated and is gone \(got args\[0\]"
        ):
            guard.reexecute(jnp.log, x)
