"""The ledger on disk: a dict that survives, and a file that is never half there."""

import json
import os

import jax.numpy as jnp
import pytest

from jaxsafe import guard


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "ledger.json"


def test_it_is_a_dict_that_outlives_the_process(path):
    ledger = guard.Ledger(path)
    assert dict(ledger) == {}
    ledger[3] = "domain: log"
    ledger.note(5, "overflow: exp")
    ledger[4] = "by hand"
    del ledger[4]
    again = guard.Ledger(path)
    assert dict(again) == {3: "domain: log", 5: "overflow: exp"}
    assert again.tentative == {5}
    assert 3 in again
    assert 4 not in again


def test_entries_are_settled_up_to_a_position(path):
    ledger = guard.Ledger(path)
    for position in (1, 2, 3):
        ledger.note(position, "why")
    ledger.settle(before=2)
    assert guard.Ledger(path).tentative == {2, 3}
    ledger[2] = "seen by a human"
    assert guard.Ledger(path).tentative == {3}
    ledger.settle()
    assert guard.Ledger(path).tentative == frozenset()
    assert sorted(guard.Ledger(path)) == [1, 2, 3]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_writer_that_dies_leaves_the_old_file(path, monkeypatch, broken):
    ledger = guard.Ledger(path)
    ledger[1] = "first"

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, broken, die)
        with pytest.raises(KeyboardInterrupt):
            ledger[2] = "second"
    assert dict(guard.Ledger(path)) == {1: "first"}
    again = guard.Ledger(path)
    again[3] = "third"
    assert dict(guard.Ledger(path)) == {1: "first", 3: "third"}
    assert os.listdir(path.parent) == ["ledger.json"]  # what was left is used up


def test_a_file_written_by_hand_is_read(path):
    path.parent.mkdir()
    path.write_text('{"batches": {"7": "blurred"}}', "utf-8")
    assert dict(guard.Ledger(path)) == {7: "blurred"}


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"batches": {"x": "y"}}', '{"batches": 3}']
)
def test_another_file_is_an_error_and_stays_as_it_is(path, content):
    path.parent.mkdir()
    path.write_text(content, "utf-8")
    with pytest.raises(ValueError, match=r"is no ledger .*repair it or move it away"):
        guard.Ledger(path)
    assert path.read_text("utf-8") == content


def test_entries_are_checked(path):
    ledger = guard.Ledger(path)
    with pytest.raises(ValueError, match="a position must be an integer"):
        ledger["3"] = "why"
    with pytest.raises(TypeError, match="a reason must be a string"):
        ledger[3] = None
    assert not path.exists()


def test_a_run_without_checkpoints_skips_all_of_it(path):
    step = guard.transaction(lambda state, x: (state + x, x))
    batches = [jnp.asarray(x) for x in (1.0, jnp.nan, 1.0)]
    guard.run(step, step.init(0.0), batches, ledger=guard.Ledger(path))
    assert set(json.loads(path.read_text("utf-8"))["batches"]) == {"1"}
    carry = guard.run(step, step.init(0.0), batches, ledger=guard.Ledger(path))
    assert int(carry.control.attempts) == 2
