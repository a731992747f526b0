"""Many devices, many processes: one decision, nobody hangs, one NaN rolls all back.

Scripts of their own run the programs, with more devices than this process has; every
script runs once and writes down all it saw.
"""

import json
import math
import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from tests.guard._sharded import GUARDS, LAYOUTS, ORDER

ROOT = pathlib.Path(__file__).parents[2]
HANG = 900  # seconds; only to end a deadlock, far above what any of them needs
AUTO = [name for name, layout in LAYOUTS.items() if layout.axis is None]


def start(module, *args, devices, flags=""):
    flag = f"--xla_force_host_platform_device_count={devices} {flags}"
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read(processes):
    """What they wrote; all of them are gone afterwards, whatever happens."""
    try:
        outputs = [process.communicate(timeout=HANG) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def together(count, layouts):
    port = free_port()
    return read(
        [
            start(
                "tests.guard._processes",
                *("--index", index, "--of", count, "--port", port),
                *("--layouts", *layouts),
                devices=2,
            )
            for index in range(count)
        ]
    )


@pytest.fixture(scope="module")
def seen():
    """What one process with eight devices saw."""
    (result,) = read([start("tests.guard._devices", devices=8)])
    return result


def decisions(guard):
    """Whether each step of ORDER commits."""
    # Unclipped, the huge gradient would drive Adam's second moment to infinity.
    fatal = {"bad rows", "bad loss"} | ({"huge"} if guard == "transaction" else set())
    return [name not in fatal for name in ORDER]


def check_steps(steps, guard):
    assert [step["ok"] for step in steps] == decisions(guard)
    for step in steps:
        assert step["unchanged"] == (not step["ok"])  # bitwise, on every shard
        assert step["sharding kept"]
        assert len(step["control"]) == 1  # the same on every device
    assert sum(not step["ok"] for step in steps) == int(
        json.loads(steps[-1]["control"][0])[1]
    )


def check_run(driven):
    assert driven["kinds"] == [
        *("committed", "rejected", "committed", "rejected", "rejected", "rejected"),
        "halted",
    ]
    rejected = [kind != "committed" for kind in driven["kinds"]]
    assert driven["verdicts"] == [(r and "reproduced") or None for r in rejected]
    assert driven["bitwise"] == [r or None for r in rejected]
    assert driven["primitives"] == [(r and "(input)") or None for r in rejected]
    assert sorted(driven["ledger"]) == ["1", "3", "4", "5"]
    assert "NaN in an input: " in driven["raised"]  # the series began with it
    assert len(driven["control"]) == 1
    assert driven["finite"]


@pytest.mark.slow
class TestEightDevices:
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("guard", GUARDS)
    def test_one_nan_on_one_device_rolls_all_back(self, seen, guard, layout):
        steps = seen["many"][guard][layout]["steps"]
        check_steps(steps, guard)
        assert [s["ok"] for s in seen["alone"][guard]] == decisions(guard)

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("guard", ["guarded", "apply_gradients"])
    def test_the_sharded_norm_is_the_norm(self, seen, guard, layout):
        steps = seen["many"][guard][layout]["steps"]
        assert steps[0]["norm"] == pytest.approx(seen["true norm"], rel=1e-6)
        assert math.isnan(steps[2]["norm"])  # its gradient is NaN
        norms = [step["norm"] for step in steps]
        alone = [step["norm"] for step in seen["alone"][guard]]
        assert norms == pytest.approx(alone, rel=1e-5, nan_ok=True)

    @pytest.mark.parametrize("layout", AUTO)
    def test_a_sharded_gradient_is_clipped_like_a_whole_one(self, seen, layout):
        whole, parts = seen["clip"]["alone"], seen["clip"][layout]
        assert whole["norms"][0] == pytest.approx(seen["true norm"], rel=1e-6)
        assert parts["norms"] == pytest.approx(whole["norms"], rel=1e-5)
        assert parts["params"] == pytest.approx(whole["params"], rel=1e-5)
        assert parts["clipped"] == whole["clipped"] == 2

    @pytest.mark.parametrize("layout", AUTO)
    @pytest.mark.parametrize("guard", GUARDS)
    def test_it_costs_one_all_reduce(self, seen, guard, layout):
        always, _ = seen["many"][guard][layout]["all-reduces"]
        plain, _ = seen["many"]["plain"][layout]["all-reduces"]
        # Of replicated gradients every device knows the norm already.
        assert always - plain == (0 if layout == "data" else 1)

    def test_a_run_gives_up(self, seen):
        check_run(seen["run"]["tensor"])


def check_processes(results, layouts, devices):
    first = results[0]
    assert first["devices"] == devices
    for guard in GUARDS:
        for layout in layouts:
            check_steps(first["many"][guard][layout]["steps"], guard)
    for layout in layouts:
        check_run(first["run"][layout])
    # Every process decided, clipped, told, noted and raised alike.
    same = json.dumps(first)
    assert all(json.dumps(other) == same for other in results)


@pytest.mark.slow
def test_two_processes_act_as_one():
    layouts = ["fsdp", "shard_map"]
    check_processes(together(2, layouts), layouts, devices=4)


@pytest.mark.slow
def test_four_processes_act_as_one():
    check_processes(together(4, list(LAYOUTS)), list(LAYOUTS), devices=8)


@pytest.mark.slow
def test_error_if_of_equinox_hangs_and_dies_and_ours_goes_on():
    soon = "--xla_cpu_collective_call_terminate_timeout_seconds=5"
    theirs = start("tests.guard._hang", "theirs", devices=2, flags=soon)
    _, errors = theirs.communicate(timeout=HANG)
    # One device raises, the other waits for it in an all-reduce until XLA aborts.
    assert theirs.returncode == -signal.SIGABRT, errors
    assert "endezvous" in errors
    assert read([start("tests.guard._hang", "ours", devices=2)]) == [[False]]
