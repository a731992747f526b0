"""What guarded steps compile to, for machines that need not be here.

Counts, no times: bytes, temporaries, conditionals, copies, beside those of a clip and
adamw. The extras `tpu` and `cuda` bring the compilers; without them this machine's
programs are counted, and the others are only lowered.
"""

import argparse
import dataclasses
import json
import math
from datetime import date
from typing import Any

import jax
from jax import export
from rich.console import Console
from rich.progress import track

from benchmarks import _counts, _machine, _steps, _targets, _workloads
from benchmarks._counts import Counts
from benchmarks._results import size
from benchmarks._targets import HERE, Target
from benchmarks._workloads import Workload

_SHOWN = (
    _steps.PLAIN,
    _steps.CLIP,
    _steps.PEER,
    _steps.STEP,
    _steps.WRAPPER,
    _steps.UNCHECKED,
    _steps.TRANSACTION,
)
# Largest share of the bytes of clip + adamw, where nothing is to be paid.
_LARGE, _SMALL = 1.005, 1.06
_EXTRA_MEMORY = 1e6
HEADER = (
    "workload",
    "target",
    "step",
    "bytes",
    "of clip + adamw",
    "temporary",
    "in place",
    "conditionals",
    "copies",
    "fusions",
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One step, compiled for one target."""

    workload: str
    target: str
    step: str
    counts: Counts
    clip: Counts

    @property
    def share(self) -> float:
        """Of the bytes that clip + adamw moves."""
        return self.counts.traffic / self.clip.traffic

    def missed(self) -> list[str]:
        """Bars of an accelerator that our step API misses."""
        if self.target == HERE.name or self.step != _steps.STEP:
            return []
        bar = _LARGE if "40 M" in self.workload else _SMALL
        extra = self.counts.temporary - self.clip.temporary
        tests = {
            f"{self.share:.4f} of the bytes, bar {bar}": self.share > bar,
            f"{self.counts.conditionals} conditionals": self.counts.conditionals > 0,
            f"{extra / 1e6:.1f} MB more temporaries": extra > _EXTRA_MEMORY,
        }
        where = f"{self.workload}, {self.target}"
        return [f"{where}: {what}" for what, bad in tests.items() if bad]

    def cells(self) -> tuple[str, ...]:
        """One line of the table."""
        c = self.counts
        return (
            self.workload,
            self.target,
            self.step,
            size(c.traffic),
            f"{self.share:.3f}" if math.isfinite(self.share) else "",
            size(c.temporary),
            f"{c.alias / c.argument:.0%}",
            str(c.conditionals),
            str(c.copies),
            str(c.fusions),
        )


def main(options: argparse.Namespace) -> int:
    """Compile, count, print, write; 1 if a bar is missed."""
    console = Console(width=140)
    works = [
        work
        for work in _workloads.ALL[: 1 if options.quick else None]
        if not options.only or any(part in work.name for part in options.only)
    ]
    rows: list[Row] = []
    for work in track(works, console=Console(stderr=True)):
        for target in _targets.available():
            rows += _rows(work, target)
        _lower(work)
    console.print(markdown(rows), markup=False)
    if options.out:
        options.out.write_text(to_json(rows), "utf-8")
    if options.markdown:
        title = "# What a guarded step compiles to"
        head = f"{title}\n\n{_machine.name()}, {date.today()}\n\n"
        options.markdown.write_text(head + markdown(rows), "utf-8")
    missed = [line for row in rows for line in row.missed()]
    for line in missed:
        console.print(f"missed: {line}", markup=False)
    return 1 if missed else 0


def markdown(rows: list[Row]) -> str:
    """All rows as one table."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def to_json(rows: list[Row]) -> str:
    """Rows and the machine, as text."""
    plain = [dataclasses.asdict(row) for row in rows]
    for row in plain:
        for part in ("counts", "clip"):
            row[part] = {k: None if v != v else v for k, v in row[part].items()}
    found = {"context": _machine.context(), "rows": plain}
    return json.dumps(found, indent=1, allow_nan=False) + "\n"


def _rows(work: Workload, target: Target) -> list[Row]:
    found: dict[str, Counts] = {}
    contenders = _steps.contenders(work)
    for name in _SHOWN:
        build = contenders[name]
        assert build is not None
        program = build()
        done = _targets.compiled(
            target, program.fn, program.args, donated=program.carried
        )
        found[name] = _counts.of(done)
    return [
        Row(
            workload=work.name,
            target=target.name,
            step=name,
            counts=counts,
            clip=found[_steps.CLIP],
        )
        for name, counts in found.items()
    ]


def _lower(work: Workload) -> Any:
    """Raise if a step does not lower for every platform."""
    build = _steps.contenders(work)[_steps.STEP]
    assert build is not None
    program = build()
    shapes = jax.tree.map(jax.typeof, program.args)
    jitted = jax.jit(program.fn)
    return export.export(jitted, platforms=("cpu", "cuda", "tpu"))(*shapes)
