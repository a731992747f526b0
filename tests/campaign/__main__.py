"""`python -m tests.campaign`: thousands of faults into every guard; ends in a table."""

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

import jax
import numpy as np

from tests.campaign import _harness, _peers, _tables, _workloads

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 3000
MODELS = (
    _workloads.cnn,
    _workloads.transformer_bfloat16,
    _workloads.transformer_float16,
    _workloads.micro_batches,
)
DEVICES = "MLP, adam, 8 devices, shard_map"


def on_devices(steps, seed=0):
    """What eight devices in a process of their own did."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.campaign._devices", str(steps), str(seed)],
        cwd=ROOT,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    seen = {key: np.asarray(value) for key, value in seen.items()}
    return {**seen, "changed": seen["changed"] | seen["disagree"]}


def campaign(steps, tick=lambda name: None):
    """(ours, finite faults behind the clip, peers): name -> what every step did."""
    ours, behind, peers = {}, {}, {}
    makers = [*MODELS, *(lambda o=o: _workloads.mlp(o) for o in _workloads.OPTIMIZERS)]
    for seed, make in enumerate(makers):
        workload = make()
        ours[workload.name], *second = _harness.run(workload, steps, seed=2 * seed)
        if second:
            behind[workload.name] = second[0]
        tick(workload.name)
    for make in _peers.all_of_them():
        workload = make()
        (peers[workload.name],) = _harness.run(workload, steps)
        tick(workload.name)
    ours[DEVICES] = on_devices(steps // 2)
    tick(DEVICES)
    return ours, behind, peers


def failures(ours, behind):
    """What must not be, in words; empty if all is well."""
    must = ("poisoned", "missed", "unhealed", "changed")
    found = []
    for runs, names in ((ours, (*must, "healthy rejected")), (behind, must)):
        for run, seen in runs.items():
            counts = _tables.row(seen)
            found += [f"{run}: {n} {counts[n]}" for n in names if counts[n]]
            if not counts["last"] < counts["first"]:
                found.append(f"{run}: did not recover")
    return found


def main(arguments=None):
    """Run the campaign; the exit status is 0 if nothing of ours failed."""
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    parser = argparse.ArgumentParser(prog="python -m tests.campaign")
    parser.add_argument("--steps", type=int, default=STEPS, help="of every run")
    parser.add_argument("--out", type=pathlib.Path, help="write Markdown here")
    options = parser.parse_args(arguments)
    console, began = Console(), time.monotonic()
    with Progress(console=console) as progress:
        runs = len(MODELS) + len(_workloads.OPTIMIZERS) + 5
        bar = progress.add_task("faults", total=runs)

        def tick(name):
            progress.update(bar, advance=1, description=name)

        ours, behind, peers = campaign(options.steps, tick)
    found = list(_tables.tables(ours, behind, peers))
    for title, note, header, rows in found:
        table = Table(*header, title=title, caption=note, title_justify="left")
        for cells in rows:
            table.add_row(*map(str, cells))
        console.print(table)
    wrong = failures(ours, behind)
    total = sum(_tables.row(s)["faults"] for r in (ours, behind) for s in r.values())
    summary = (
        f"{total:,} faults injected into jaxsafe, {time.monotonic() - began:.0f} s; "
        f"jax {jax.__version__}, {platform.machine()}. "
        + ("Failed: " + "; ".join(wrong) if wrong else "Nothing failed.")
    )
    console.print(summary)
    if options.out:
        heading = f"# Fault campaign\n\n`python -m tests.campaign`: {summary}"
        options.out.write_text(_tables.markdown(found, heading), "utf-8")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
