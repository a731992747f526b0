"""The results as a recap and a table for the terminal, and as one HTML page."""

from collections.abc import Sequence
from pathlib import Path

from experiments import _tools
from experiments._records import Outcome, Run
from jaxsafe import report
from jaxsafe.diagnose import CAUSES

# A run that explodes leaves the picture; what matters is below.
_HIGHEST = 1e4

ACTIONS = {
    "input data": "clean it: impute, standardise, encode",
    "learning rate": "tune it, schedule it, clip the gradient, back off",
    "activation": "use robust functions",
    "loss": "use stable losses",
    "all of them": "all of these together",
}
HEADERS = (
    "cause",
    "broke at step",
    "first bad primitive, line",
    "cure",
    "accuracy",
    "cost",
)


def recap(outcomes: Sequence[Outcome]) -> list[tuple[str, str, str]]:
    """(cause, action, the experiments that show it and their result) in order."""
    rows = []
    for group, action in ACTIONS.items():
        shown = [o for o in outcomes if o.action == group]
        results = [
            f"{o.name} {o.broken.accuracy:.0%} -> {o.best.accuracy:.0%}" for o in shown
        ]
        if results:
            rows.append((group, action, ", ".join(results)))
    return rows


def table(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """One row per experiment; every number comes from its run."""
    return [
        [
            o.title,
            "never" if o.broken.broke_at is None else str(o.broken.broke_at),
            f"{o.finding.primitive}, {Path(o.finding.file).name}:{o.finding.line}",
            o.cure,
            _accuracies(o),
            f"{o.cost:.2f}x",
        ]
        for o in outcomes
    ]


def _accuracies(outcome: Outcome) -> str:
    text = f"{outcome.broken.accuracy:.1%} -> {outcome.best.accuracy:.1%}"
    return text if outcome.reached else f"{text}, below {outcome.target:.0%}"


def write(path: Path, outcomes: Sequence[Outcome]) -> Path:
    """Write the page; return where it is."""
    overview = report.Section(
        "In short",
        [
            report.Table(
                ["cause", "what to do", "shown by"], _with_arrows(recap(outcomes))
            ),
            report.Table(
                HEADERS,
                _with_arrows(table(outcomes)),
                caption="Accuracy: on the test set, of broken and cured run.",
            ),
            report.Text(
                "Cost: time of a cured step over that of the broken one, the median of "
                "40 pairs on the machine that ran this. These steps take well under a "
                "millisecond, so a fixed price weighs most here."
            ),
        ],
    )
    sections = [overview, *(_section(outcome) for outcome in outcomes)]
    return report.write(
        path,
        "What breaks training, and what cures it",
        sections,
        subtitle="All numbers and curves come from the run that wrote this page.",
    )


def _with_arrows(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    # A browser breaks a line inside "->".
    return [[cell.replace(" -> ", "\N{NO-BREAK SPACE}→ ") for cell in r] for r in rows]


def _section(outcome: Outcome) -> report.Section:
    runs = (*outcome.cured, *outcome.runs)
    cause = CAUSES[outcome.finding.cause]
    blocks: list[report.Block] = [
        report.Text(outcome.story),
        report.Table(
            ["run", "broke at step", "steps rejected", "test accuracy"],
            [[r.label, r.broke_at, r.rejected, f"{r.accuracy:.1%}"] for r in runs],
        ),
        _plot("Loss", runs, [r.losses for r in runs], "loss"),
        _plot("Gradient norm", runs, [r.grad_norms for r in runs], "global norm"),
        report.Text("What jaxsafe says of the step that broke:"),
        outcome.finding,
    ]
    for label, finding in outcome.further:
        blocks += [report.Text(f"What it says {label}:"), finding]
    blocks += [
        report.Text(
            f"The cure, `{outcome.cure}`, had to reach {outcome.target:.0%}. "
            f"How to recognise the cause: {cause.symptom}"
        ),
        report.Table(
            ["today's tool", "what it says or does", "names the line"],
            _tools.summary(outcome.verdicts),
        ),
    ]
    blocks += [report.Pre(note) for note in outcome.notes]
    return report.Section(outcome.title, blocks)


def _plot(
    title: str, runs: Sequence[Run], curves: Sequence[Sequence[float]], ylabel: str
) -> report.Plot:
    series = [
        report.Series(run.label, curve, broke_at=run.broke_at)
        for run, curve in zip(runs, curves, strict=True)
    ]
    return report.Plot(title, series, ylabel=ylabel, log_y=True, limit=_HIGHEST)
