"""A guarded run leaves a file for each finding, and never dies of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsafe import diagnose, guard

TX = optax.adam(0.1)
GOOD, BAD = np.array([1.0, 2.0], np.float32), np.array([0.0, 2.0], np.float32)


def train_step(state, x):
    loss, grads = jax.value_and_grad(lambda w: jnp.mean(w * jnp.log(x)))(state["w"])
    updates, opt = TX.update(grads, state["opt"])
    return {"w": state["w"] + updates, "opt": opt}, {"loss": loss}


def run(batches, **options):
    step = guard.transaction(train_step)
    w = jnp.asarray(0.5)
    carry = step.init({"w": w, "opt": TX.init(w)})
    events = []
    guard.run(
        jax.jit(step, donate_argnums=0),
        carry,
        batches,
        on_event=events.append,
        **options,
    )
    return events


def test_one_file_for_each_finding(tmp_path):
    folder = tmp_path / "faults"
    events = run([GOOD, BAD, BAD, GOOD, BAD], bundles=folder)
    names = [path.name for path in sorted(folder.iterdir())]
    assert names == ["batch-000001.zip", "batch-000004.zip"]  # once for a series
    result = diagnose.replay(folder / names[0])
    assert (result.outcome, result.function) == ("again", "train_step")
    assert result.finding.to_json() == events[1].finding.to_json()


def test_the_step_itself_can_be_diagnosed_on_the_inputs(tmp_path):
    run([GOOD, BAD], bundles=tmp_path)
    result = diagnose.replay(tmp_path / "batch-000001.zip", fn=train_step)
    assert result.finding_here.primitive == "log"
    assert result.finding_here.operands[0].minimum == 0


def test_nothing_is_written_unless_asked_or_without_a_finding(tmp_path):
    run([GOOD, GOOD], bundles=tmp_path)
    run([GOOD, BAD])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_does_not_end_the_run(tmp_path):
    file = tmp_path / "no_folder"
    file.write_text("")
    with pytest.warns(UserWarning, match=r"^guard\.run: a bundle was not saved"):
        events = run([BAD, GOOD], bundles=file)
    assert [event.kind for event in events] == ["rejected", "committed"]
    assert events[0].finding.primitive == "log"


@pytest.mark.parametrize("nan", [float("nan"), np.float32("nan")])
def test_a_batch_that_is_the_number_nan_is_an_input(nan):
    step = guard.transaction(lambda mean, x: (0.5 * mean + 0.5 * x, x))
    events = []
    guard.run(
        jax.jit(step), step.init(jnp.zeros(())), [1.0, nan], on_event=events.append
    )
    finding = events[1].finding
    assert (finding.phase, finding.result.name) == ("input", "x")
