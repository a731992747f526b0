"""`python -m experiments`: run them all, print recap and table, write a page."""

import argparse
import importlib
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from experiments import _page, _progress
from experiments._records import Outcome
from jaxsafe import report

NEEDS = ("matplotlib", "palmerpenguins", "pandas", "sklearn")
NAMES = (
    "input_data",
    "learning_rate",
    "tune_rate",
    "exploding_gradient",
    "activation",
    "masked_row",
    "flax_module",
    "low_precision",
    "loss",
    "bounded_loss",
    "full_run",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run experiments; return 0 if every cure reached its accuracy, else 1."""
    parser = _parser()
    args = parser.parse_args(argv)
    if missing := [n for n in NEEDS if importlib.util.find_spec(n) is None]:
        parser.error(
            f"the experiments need {', '.join(missing)}. "
            "Install them: pip install -e '.[experiments]'"
        )
    console = Console(width=None if sys.stdout.isatty() else 120)
    start = time.perf_counter()
    # Progress goes to stderr: what a pipe receives begins with the recap.
    outcomes = _run(args.only or NAMES, Console(stderr=True))
    _print_recap(outcomes, console)
    _print_table(outcomes, console)
    if args.only:
        for outcome in outcomes:
            report.show(outcome.finding)
            for _, finding in outcome.further:
                report.show(finding)
    path = _page.write(args.out, outcomes)
    console.print(
        f"Wrote {path} ({time.perf_counter() - start:.0f} s in all).", soft_wrap=True
    )
    missed = [o.name for o in outcomes if not o.reached]
    if missed:
        console.print(f"Below the accuracy they had to reach: {', '.join(missed)}.")
    return 1 if missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description="What breaks a training run, and what cures it, on real data.",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=NAMES,
        metavar="NAME",
        help=f"run these only, and print their findings: {', '.join(NAMES)}",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("report.html"),
        help="where to write the page (default: %(default)s)",
    )
    return parser


def _run(names: Sequence[str], console: Console) -> list[Outcome]:
    columns = (
        TextColumn("{task.description:30}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
    )
    outcomes = []
    with (
        Progress(*columns, console=console, transient=True) as progress,
        _progress.shown(progress),
    ):
        bar = progress.add_task("starting", total=len(names))
        for name in names:
            progress.update(bar, description=name)
            start = time.perf_counter()
            outcome: Outcome = importlib.import_module(f"experiments.{name}").run()
            outcomes.append(outcome)
            progress.advance(bar)
            console.print(
                f"{name:20} broke at step {outcome.broken.broke_at}, "
                f"cured {outcome.best.accuracy:.1%} "
                f"({time.perf_counter() - start:.0f} s)"
            )
    return outcomes


def _print_recap(outcomes: Sequence[Outcome], console: Console) -> None:
    grid = Table(title="What to do about NaN", title_justify="left", box=None)
    for header in ("cause", "action", "shown by (accuracy broken -> cured)"):
        grid.add_column(header, overflow="fold")
    for row in _page.recap(outcomes):
        grid.add_row(*row)
    console.print()
    console.print(grid)
    console.print()


def _print_table(outcomes: Sequence[Outcome], console: Console) -> None:
    grid = Table(title="Experiments", title_justify="left", box=SIMPLE)
    for header in _page.HEADERS:
        grid.add_column(header, overflow="fold")
    for row in _page.table(outcomes):
        grid.add_row(*row)
    console.print(grid)


if __name__ == "__main__":
    sys.exit(main())
