"""The harness: honest ratios, complete records, and no case that stops the others."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks import __main__ as command
from benchmarks import _counts, _floor, _measure, _results, _run, _session
from benchmarks._case import Case, Program
from benchmarks._floor import Floor
from benchmarks._measure import Compiled, Ratio
from benchmarks._results import Row

FLOOR = Floor(bandwidth=1e10, arithmetic=1e11)


def row(**changes):
    base = Row(suite="s", case="c", contender="ours", baseline="theirs")
    return dataclasses.replace(base, **changes)


def test_ratio_is_taken_within_the_rounds():
    # A machine that is ten times slower for a while: the ratio does not see it.
    slow = np.where(np.arange(40) < 13, 10.0, 1.0)
    found = _measure.ratio(0.5 * slow, slow)
    assert found == Ratio(0.5, 0.5, 0.5)


def test_interval_of_a_ratio_holds_the_truth():
    rng = np.random.default_rng(0)
    noise = rng.lognormal(0, 0.1, (2, 60))
    found = _measure.ratio(1.2 * noise[0], noise[1])
    assert found.low < 1.2 < found.high
    assert found.high - found.low < 0.15


def test_rounds_are_shuffled_and_complete():
    calls = []
    taken = _measure.interleaved(
        {name: lambda name=name: calls.append(name) for name in "abc"}, rounds=20
    )
    assert {name: len(t) for name, t in taken.items()} == dict.fromkeys("abc", 20)
    rounds = [tuple(calls[i : i + 3]) for i in range(0, 60, 3)]
    assert all(set(r) == set("abc") for r in rounds)
    assert len(set(rounds)) > 1


@pytest.mark.parametrize("carried", [False, True])
def test_what_is_short_is_repeated_inside(carried):
    if carried:
        args = (jnp.int32(0), jnp.ones(3))
        program = Program(lambda n, x: (n + 1, x * 2), args, carried=True)
    else:
        program = Program(lambda x, y: x * y, (jnp.arange(3.0), jnp.ones(3)))
    compiled = _measure.ready(program, short=1.0)
    assert compiled.repeats > 1
    compiled.call()


def test_a_training_step_is_called_again_with_its_own_state():
    def step(x):
        return jnp.sin(x @ x), ()

    program = Program(step, (jnp.ones((300, 300)),), carried=True)
    assert _measure.ready(program, short=1e-9).repeats > 1
    assert _measure.ready(program._replace(carried=False), short=1e-9).repeats == 1


def test_repeats_of_a_call_feed_it_its_own_state():
    seen = []
    call = _measure._host_call(
        Program(lambda n: (seen.append(int(n)) or n + 1, n), (0,), carried=True)
    )
    call(3)
    call()
    assert seen == [0, 1, 2, 3]


def test_traffic_is_what_kernels_read_and_write():
    text = """
%inner (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %e = f32[8]{0} exponential(%p)
}

%graph (q: f32[8]) -> bf16[4,2] {
  %q = f32[8]{0} parameter(0)
  ROOT %c = bf16[4,2]{1,0} custom-call(%q), custom_call_target="x"
}

ENTRY %main (x: f32[8], b: pred[]) -> (bf16[4,2], f32[8]) {
  %x = f32[8]{0} parameter(0), metadata={op_name="x"}
  %b = pred[] parameter(1)
  %f = f32[8]{0} fusion(%x, /*index=1*/%b), kind=kLoop, calls=%inner
  %g = bf16[4,2]{1,0} call(%f), to_apply=%graph
  ROOT %t = (bf16[4,2]{1,0}, f32[8]{0}) tuple(%g, %f)
}
"""
    # The fusion reads 32 + 1 and writes 32, the call inside reads 32 and writes 16.
    assert _counts.traffic(text) == 113


def test_the_floor_of_a_repeated_program_is_per_run(monkeypatch):
    monkeypatch.setattr(_floor._measure, "ready", lambda _: Compiled(lambda: None, 10))
    ones = np.ones(3)
    monkeypatch.setattr(
        _floor._measure, "interleaved", lambda calls, **_: dict.fromkeys(calls, ones)
    )
    floor = _floor.measure(quick=True)
    assert floor.arithmetic == 2 * 1024**3 / 0.1


def test_work_in_a_loop_is_unknown():
    # XLA counts a loop once: a share of the floor would be too small by its length.
    def looped(x):
        return lax.fori_loop(0, 10, lambda _, x: x @ x, x)

    x = jnp.full((64, 64), 0.01)
    assert math.isnan(_measure.ready(Program(looped, (x,))).flops)
    assert _measure.ready(Program(lambda x: x @ x, (x,))).flops >= 2 * 64**3


def test_contenders_can_be_chosen_and_the_baseline_stays():
    case = Case(
        name="c",
        contenders=dict.fromkeys(["theirs", "ours", "ours, fast", "other"]),
        baseline="theirs",
    )
    assert list(_session._narrowed(case, ["ours"]).contenders) == [
        "theirs", "ours", "ours, fast"
    ]  # fmt: skip
    assert _session._narrowed(case, []) == case


def test_a_carried_state_goes_on_and_is_donated():
    def step(n, x):
        return n + 1, x

    compiled = _measure._compile(Program(step, (jnp.float32(0), jnp.ones(3)), True), 1)
    for _ in range(3):
        compiled.call()
    assert compiled.alias > 0


def test_a_failing_case_is_a_row_and_the_others_go_on():
    def broken():
        raise RuntimeError("out of order\nmore words")

    def fine():
        return Program(lambda x: x + 1, (jnp.ones(8),))

    cases = [
        Case(
            name="one",
            contenders={"base": fine, "bad": broken, "absent": None, "good": fine},
            baseline="base",
        ),
        Case(name="two", contenders={"base": broken, "good": fine}, baseline="base"),
    ]
    rows = list(_run.measured("s", cases, FLOOR, quick=True, told=str))
    errors = {(r.case, r.contender): r.error for r in rows}
    assert errors["one", "bad"] == "RuntimeError: out of order"
    assert errors["one", "absent"] == _run.NOT_INSTALLED
    assert errors["one", "base"] == errors["one", "good"] == ""
    assert errors["two", "good"] == "base failed"
    good = next(r for r in rows if r.contender == "good")
    assert good.seconds > 0
    assert math.isfinite(good.ratio.median)


def test_record_goes_to_disk_and_back(tmp_path):
    rows = [row(ratio=Ratio(1.0, 0.9, 1.1), seconds=0.1, bar=1.05), row(error="no")]
    path = tmp_path / "deep" / "run.json"
    _results.save(path, {"device": "x"}, rows)
    context, found = _results.load(path)
    assert context == {"device": "x"}
    assert repr(found) == repr(rows)


def test_small_ratios_keep_two_digits():
    small = row(ratio=Ratio(0.0739, 0.0728, 0.1751))
    assert _results.cells(small)[2:4] == ("0.074", "0.073-0.18")


def test_regression_needs_both_intervals():
    old = [row(ratio=Ratio(1.0, 0.95, 1.05))]
    assert not _results.regressions(old, [row(ratio=Ratio(1.2, 1.09, 1.3))])
    (slower,) = _results.regressions(old, [row(ratio=Ratio(1.3, 1.2, 1.4))])
    assert "1 -> 1.3" in slower
    (gone,) = _results.regressions(old, [row(error="MemoryError")])
    assert "MemoryError" in gone


def test_missed_bars_are_named():
    missed = row(ratio=Ratio(1.3, 1.2, 1.4), bar=1.05, memory_ratio=0.5, memory_bar=0.1)
    assert missed.missed == ["time 1.3 above 1.05", "memory 0.5 above 0.1"]
    assert not row(ratio=Ratio(1.0, 0.9, 1.1), bar=1.05).missed


def test_opcodes_of_optimised_hlo():
    text = """
    ENTRY %main (p0: f32[8]) -> (f32[8], pred[]) {
      %p0 = f32[8]{0} parameter(0)
      %all-reduce.1 = f32[8]{0} all-reduce(%p0), replica_groups={}
      %copy.3 = f32[8]{0} copy(%all-reduce.1)
      %cond = (f32[8]{0}, pred[]) conditional(%p, %a, %b), branch_computations={%x, %y}
      ROOT %fusion = f32[8]{0} fusion(%copy.3), kind=kLoop, calls=%fused
    }"""
    seen = _counts.opcodes(text)
    assert seen["all-reduce"] == seen["copy"] == seen["conditional"] == 1
    assert seen["fusion"] == 1


def test_command_says_what_it_does(capsys):
    with pytest.raises(SystemExit) as done:
        command.main(["--help"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    for option in ("--suite", "--filter", "--device", "--quick", "--compare", "--plot"):
        assert option in shown
