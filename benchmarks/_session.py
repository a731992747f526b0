"""One call of the command: run suites, show them, write them, compare them."""

import argparse
import dataclasses
import importlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import _floor, _machine, _plot, _results, _run
from benchmarks._case import Case
from benchmarks._results import Row

_ON_CPU = (
    "A figure of a CPU tells ratios of like programs in the same run; kernels, fusion "
    "and memory of an accelerator are others."
)


def main(suites: Sequence[str], options: argparse.Namespace) -> int:
    """Exit status: 1 for a missed bar or a regression, 2 if nothing was run."""
    # Into a file, a table may be as wide as it is.
    console = Console(width=None if sys.stdout.isatty() else 150)
    context = _machine.context()
    errors = Console(stderr=True)
    errors.print(_head(context))
    floor = _floor.measure(quick=options.quick)
    errors.print(
        f"best of this device: {floor.bandwidth / 1e9:.3g} GB/s, "
        f"{floor.arithmetic / 1e9:.4g} GFLOP/s"
    )
    rows = _all_rows(suites, options, floor, errors)
    if not rows:
        errors.print("No case has such a name.")
        return 2
    _show(console, rows)
    context |= {"bandwidth": floor.bandwidth, "arithmetic": floor.arithmetic}
    if options.out:
        _results.save(options.out, context, rows)
    if options.markdown:
        text = f"{_head(context)}\n\n{_results.markdown(rows)}"
        options.markdown.write_text(text, "utf-8")
    if options.plot:
        for path in _plot.save(options.plot, rows, floor):
            errors.print(f"wrote {path}")
    return _verdict(rows, options, errors)


def _all_rows(
    suites: Sequence[str], options: argparse.Namespace, floor: Any, errors: Console
) -> list[Row]:
    rows: list[Row] = []
    with Progress(console=errors, transient=True) as progress:
        for suite in suites:
            cases = list(_chosen(suite, options))
            bar = progress.add_task(suite, total=len(cases))

            def told(name: str, bar: Any = bar) -> None:
                progress.update(bar, advance=1, description=name)

            found = _run.measured(
                suite, cases, floor,
                quick=options.quick, told=told, seconds=options.seconds,
            )  # fmt: skip
            try:
                rows.extend(found)
            except KeyboardInterrupt:
                errors.print("Stopped; what is done is kept.")
                break
    return rows


def _chosen(suite: str, options: argparse.Namespace) -> Iterator[Case]:
    module: Any = importlib.import_module(f"benchmarks.{suite}")
    for case in module.cases(quick=options.quick):
        if not options.only or any(part in case.name for part in options.only):
            yield _narrowed(case, options.contender)


def _narrowed(case: Case, parts: Sequence[str]) -> Case:
    """The case with its baseline and the contenders that are asked for."""
    kept = {
        name: build
        for name, build in case.contenders.items()
        if not parts or name == case.baseline or any(part in name for part in parts)
    }
    return dataclasses.replace(case, contenders=kept)


def _head(context: dict[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in context["versions"].items())
    lines = [
        f"{context['device']} x {context['devices']}, {context['cores']} cores, "
        f"load {context['load']:.2g}, {versions}, Python {context['python']}, "
        f"{context['date'][:10]}"
    ]
    if context["platform"] == "cpu":
        lines.append(_ON_CPU)
    return "\n".join(lines)


def _show(console: Console, rows: Sequence[Row]) -> None:
    for case in dict.fromkeys((row.suite, row.case) for row in rows):
        table = Table(*_results.HEADER, title=": ".join(case), title_justify="left")
        for row in rows:
            if (row.suite, row.case) == case:
                table.add_row(*_results.cells(row))
        console.print(table)


def _verdict(rows: Sequence[Row], options: argparse.Namespace, errors: Console) -> int:
    missed = [(row, what) for row in rows for what in row.missed]
    for row, what in missed:
        errors.print(f"missed: {row.case}, {row.contender}: {what}")
    worse: list[str] = []
    if options.compare:
        _, old = _results.load(options.compare)
        worse = _results.regressions(old, rows)
        for line in worse:
            errors.print(f"slower: {line}")
        if not worse:
            errors.print(f"nothing is slower than in {options.compare}")
    sys.stdout.flush()
    return 1 if missed or worse else 0
