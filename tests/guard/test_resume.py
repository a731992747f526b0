"""A run that is killed and started again is, bit for bit, the run that was not."""

import json
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsafe import guard
from tests.guard import training_script

ROOT = pathlib.Path(__file__).parents[2]


def read(directory):
    """The whole lines of the file of losses; a kill may cut the last one."""
    path = directory / "losses.txt"
    text = path.read_text("utf-8") if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Losses, ledger and last carry of a run that nobody kills."""
    directory = tmp_path_factory.mktemp("undisturbed")
    carry = training_script.main(directory)
    return read(directory), dict(guard.Ledger(directory / "ledger.json")), carry


def test_the_undisturbed_run_goes_every_way(undisturbed):
    lines, ledger, carry = undisturbed
    kinds = [line.split()[1] for line in lines]
    assert kinds.count("rejected") == len(training_script.BAD)
    assert kinds.count("rolled_back") == 1
    assert sorted(ledger) == sorted(training_script.BAD)
    assert float(carry.state["opt"][1].control.rate_factor) < 1.0


def kill_and_restart(directory, seed, kills):
    """Run the script to its end, with that many SIGKILLs on the way."""
    rng = random.Random(seed)
    command = [sys.executable, str(ROOT / "tests/guard/training_script.py")]
    command += [str(directory), "0.01"]
    for _ in range(kills):
        process = subprocess.Popen(command, cwd=ROOT)
        # Some way on from where it starts, at no particular point of a step.
        wanted = len(read(directory)) + rng.randint(1, 15)
        while len(read(directory)) < wanted and process.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=ROOT, check=True)


def assert_same_run(directory, undisturbed):
    expected, ledger, carry = undisturbed
    seen = {}
    for line in read(directory):
        batch, kind, loss = line.split()
        # A step that was computed again after a kill has to agree too.
        assert seen.setdefault((int(batch), kind), loss) == loss, line
    assert [f"{b} {k} {loss}" for (b, k), loss in sorted(seen.items())] == sorted(
        expected, key=lambda line: (int(line.split()[0]), line.split()[1])
    )
    assert dict(guard.Ledger(directory / "ledger.json")) == ledger
    with guard.Checkpoints(directory / "checkpoints") as checkpoints:
        again, position = checkpoints.restore(carry)
    assert position == training_script.STEPS
    assert_bitwise(again, carry)


def assert_bitwise(a, b):
    def raw(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.asarray(leaf).tobytes()

    jax.tree.map(lambda x, y: np.testing.assert_equal(raw(x), raw(y)), a, b)


@pytest.mark.slow
def test_kill_9_changes_nothing(tmp_path, undisturbed):
    kill_and_restart(tmp_path, seed=0, kills=2)
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_kill_9_many_times_changes_nothing(tmp_path, undisturbed, seed):
    kill_and_restart(tmp_path, seed=seed, kills=5)
    assert_same_run(tmp_path, undisturbed)


class Crash(Exception):
    pass


def add(state, x):
    return state + x, state


STEP = guard.transaction(add, policy=guard.Policy(give_up_after=2))
ONE, NAN = jnp.asarray(1.0), jnp.asarray(jnp.nan)


def start(directory, batches, ledger, **kwargs):
    tried = []
    with guard.Checkpoints(directory / "checkpoints") as checkpoints:
        carry = guard.run(
            STEP,
            STEP.init(jnp.asarray(0.0)),
            batches,
            ledger=ledger,
            checkpoints=checkpoints,
            on_event=lambda event: tried.append(event.batch),
            **kwargs,
        )
    return carry, tried


def test_a_halted_run_that_is_started_again_leaves_out_what_halted_it(tmp_path):
    batches = [ONE, NAN, NAN, ONE]
    path = tmp_path / "ledger.json"
    with pytest.raises(guard.Halted):
        start(tmp_path, batches, guard.Ledger(path))
    carry, tried = start(tmp_path, batches, guard.Ledger(path))
    assert tried == [3]
    assert float(carry.state) == 2.0
    assert int(carry.control.rejected) == 0


def test_what_was_noted_by_hand_is_never_tried(tmp_path):
    path = tmp_path / "ledger.json"

    def killed(position):
        yield from [ONE, ONE][position:]
        raise Crash

    with pytest.raises(Crash):
        start(tmp_path, killed, guard.Ledger(path))
    guard.Ledger(path)[2] = "out of focus"
    carry, tried = start(tmp_path, [ONE, ONE, ONE, ONE], guard.Ledger(path))
    assert tried == [3]
    assert float(carry.state) == 3.0
    assert dict(guard.Ledger(path)) == {2: "out of focus"}


def test_a_batch_that_is_good_the_second_time_leaves_the_ledger(tmp_path):
    path = tmp_path / "ledger.json"

    def flipped_bit(position):
        assert position == 0
        yield from [ONE, NAN]
        raise Crash

    with pytest.raises(Crash):
        start(tmp_path, flipped_bit, guard.Ledger(path))
    assert json.loads(path.read_text("utf-8"))["tentative"] == [1]
    carry, tried = start(tmp_path, [ONE, ONE, ONE], guard.Ledger(path))
    assert tried == [1, 2]
    assert float(carry.state) == 3.0
    assert not guard.Ledger(path)


def test_a_run_that_is_over_is_over(tmp_path):
    carry, tried = start(tmp_path, [ONE, NAN, ONE], {})
    assert tried == [0, 1, 2]
    again, tried = start(tmp_path, [ONE, NAN, ONE], {})
    assert tried == []
    assert_bitwise(again, carry)


def test_positions_count_over_the_whole_run(tmp_path):
    with guard.Checkpoints(tmp_path) as checkpoints:
        carry = STEP.init(jnp.asarray(0.0))
        carry = guard.run(STEP, carry, [ONE, ONE], checkpoints=checkpoints)
        with pytest.raises(ValueError, match="a run that has come to its end"):
            guard.run(STEP, carry, [ONE, ONE], checkpoints=checkpoints)
    with (
        guard.Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match=r"fewer batches than the 2 .*got 1"),
    ):
        guard.run(STEP, carry, [ONE], checkpoints=checkpoints)


def test_a_directory_that_was_used_before_loses_nothing(tmp_path):
    old, _ = start(tmp_path, [ONE, ONE], {})

    # A fresh carry resumes, as documented; what stands on disk stays.
    carry, tried = start(tmp_path, [NAN, NAN, ONE], {})
    assert tried == [2]
    assert float(carry.state) == float(old.state) + 1.0
    with guard.Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.positions() == [1, 2, 3]
        assert not checkpoints.save(old, 2)

        # A carry that was trained elsewhere is not thrown away in silence.
        trained, _ = STEP(STEP.init(jnp.asarray(5.0)), ONE)
        with pytest.raises(ValueError, match=r"would be lost .* 3 \(got 1 attempts\)"):
            guard.run(STEP, trained, [ONE] * 4, checkpoints=checkpoints)
        # One that the checkpoint itself gave back goes on.
        again, _ = checkpoints.restore(STEP.init(jnp.asarray(0.0)))
        last = guard.run(STEP, again, [ONE] * 4, checkpoints=checkpoints)
    assert float(last.state) == 4.0


@pytest.mark.parametrize(
    ("read_every", "place"),
    [(1, "device"), pytest.param(3, "host", marks=pytest.mark.slow)],
)
def test_a_crash_before_any_batch_changes_nothing(tmp_path, read_every, place):
    policy = guard.Policy(read_every=read_every, snapshot_every=2, roll_back_after=2)
    batches = [ONE, ONE, ONE, ONE, NAN, ONE, NAN, NAN, NAN, ONE, ONE, ONE, NAN, ONE]
    step = guard.transaction(add, policy=guard.Policy(give_up_after=9))

    def train(directory, stop):
        def some():
            yield from batches[:stop]
            if stop < len(batches):
                raise Crash

        with guard.Checkpoints(directory / "checkpoints", every=2) as checkpoints:
            return guard.run(
                jax.jit(step, donate_argnums=0),
                step.init(jnp.asarray(0.0)),
                some(),
                policy=policy,
                ledger=guard.Ledger(directory / "ledger.json"),
                checkpoints=checkpoints,
                snapshots=place,
            )

    carry = train(tmp_path / "whole", len(batches))
    assert int(carry.control.rejected) == 5
    assert float(carry.state) < int(carry.control.attempts) - 5  # it has rolled back
    for stop in range(len(batches)):
        with pytest.raises(Crash):
            train(tmp_path / "cut", stop)
    assert_bitwise(train(tmp_path / "cut", len(batches)), carry)
