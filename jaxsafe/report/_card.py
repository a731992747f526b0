"""A finding as a card: what, where, why, how it spread, what to do."""

import math

from jaxsafe.diagnose import CAUSES, Finding, Stats
from jaxsafe.report import _html
from jaxsafe.report._blocks import Table


def card(finding: Finding) -> str:
    """The HTML of one finding."""
    parts = [_head(finding), _where(finding), _why(finding)]
    if finding.chain:
        steps = "".join(f"<li>{_html.escape(step)}</li>" for step in finding.chain)
        parts.append(f"<h4>Chain</h4>\n<ol>{steps}</ol>")
    if finding.remedies:
        lines = "\n".join(map(_html.pre, finding.remedies))
        parts.append(f"<h4>What to try, the best first</h4>\n{lines}")
    return '<article class="finding">\n' + "\n".join(parts) + "\n</article>"


def _head(finding: Finding) -> str:
    kind, _, rest = finding.headline.partition(" ")
    facts = [f"primitive {finding.primitive}", f"{finding.phase} pass"]
    if finding.iteration:
        facts.append("iteration " + ", ".join(map(str, finding.iteration)))
    if finding.branch is not None:
        facts.append(f"branch {finding.branch}")
    if finding.module:
        facts.append(f"module {finding.module}")
    details = "".join(f"<li>{_html.escape(fact)}</li>" for fact in facts)
    return (
        f'<h3><span class="badge">{_html.escape(kind)}</span> '
        f"{_html.escape(rest)}</h3>\n"
        f'<ul class="facts">{details}</ul>'
    )


def _where(finding: Finding) -> str:
    if not finding.file:
        return ""
    inside = f" in <code>{_html.escape(finding.function)}</code>"
    return (
        f'<p class="where"><code>{_html.escape(finding.place)}</code>'
        f"{inside if finding.function else ''}</p>\n"
        + (_html.pre(finding.source.strip()) if finding.source else "")
    )


def _why(finding: Finding) -> str:
    cause = CAUSES[finding.cause]
    sure = f"{finding.confidence:.0%} sure of the cause, {finding.cause}"
    return (
        f"<h4>Why</h4>\n<p>{_html.inline(finding.why)} "
        f"{_html.inline(cause.explanation)} "
        f'<span class="quiet">({_html.escape(sure)})</span></p>\n{_numbers(finding)}'
    )


def _numbers(finding: Finding) -> str:
    headers = ("array", "type", "min", "max", "NaN", "Inf", "zero", "first bad")
    operands = () if finding.phase == "input" else finding.operands
    rows = [_row(stats) for stats in (*operands, finding.result)]
    return _html.table(Table(headers, rows, caption="Numbers that went in and out"))


def _row(stats: Stats) -> list[object]:
    # Minimum and maximum are over the finite entries: NaN means that there are none.
    limits = [None if math.isnan(x) else x for x in (stats.minimum, stats.maximum)]
    first = None if stats.first_index is None else str(list(stats.first_index))
    counts = [stats.num_nan, stats.num_inf, stats.num_zero]
    kind = f"{stats.dtype}{list(stats.shape)}"
    return [stats.name, kind, *limits, *counts, first]
