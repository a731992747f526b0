"""A finding as a card: what, where, why, how it spread, what to do."""

import math
import os

from jaxsafe.diagnose import CAUSES, Finding, Stats
from jaxsafe.report import _chain, _html, _lines, _scale
from jaxsafe.report._blocks import Table


def card(finding: Finding) -> str:
    """The HTML of one finding."""
    chain = f"<h4>Chain</h4>\n{_chain.drawn(finding)}"
    parts = [_head(finding), _where(finding), chain, _why(finding)]
    if finding.remedies:
        lines = "\n".join(map(_html.pre, finding.remedies))
        parts.append(f"<h4>What to try, the best first</h4>\n{lines}")
    return '<article class="finding">\n' + "\n".join(parts) + "\n</article>"


def _head(finding: Finding) -> str:
    kind, _, rest = finding.headline.partition(" ")
    facts = [f"primitive {finding.primitive}", f"{finding.phase} pass"]
    if finding.iteration:
        facts.append("iteration " + ", ".join(map(str, finding.iteration)))
    if finding.device is not None:
        facts.append(f"device {finding.device} of the mesh")
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
        + _lines.around(finding, _chain_lines(finding))
    )


def _chain_lines(finding: Finding) -> set[int]:
    """Numbers of the lines of the chain that are in the finding's file."""
    places = [_chain.link(text).place.rpartition(":") for text in finding.chain]
    name = os.path.basename(finding.file)
    return {int(n) for file, _, n in places if file == name and n.isdigit()}


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
    arrays = [*operands, finding.result]
    table = Table(headers, [_row(s) for s in arrays], caption="Numbers in and out")
    return f"{_scale.pictures(arrays)}\n{_html.table(table)}"


def _row(stats: Stats) -> list[object]:
    # Minimum and maximum are over the finite entries: NaN means that there are none.
    limits = [None if math.isnan(x) else x for x in (stats.minimum, stats.maximum)]
    first = None if stats.first_index is None else str(list(stats.first_index))
    counts = [stats.num_nan, stats.num_inf, stats.num_zero]
    kind = f"{stats.dtype}{list(stats.shape)}"
    return [stats.name, kind, *limits, *counts, first]
