"""The chain of a finding as boxes and arrows: what went in, broke, and came out.

Boxes are list items, so that they are read in order where nothing is drawn; they stand
side by side, and below each other on a phone.
"""

import os
from typing import NamedTuple

from jaxsafe.diagnose import Finding, Stats
from jaxsafe.report import _html, _lines

_ARROW = (
    '<svg class="arrow" viewBox="0 0 24 12" aria-hidden="true">'
    '<path d="M0 6h22M17 1l5 5-5 5"/></svg>'
)
_KINDS = {"nan": "NaN", "inf": "Inf"}
_SHOWN = 3  # operands in the first box


class Link(NamedTuple):
    """One entry of `Finding.chain`: "exp -> inf at model.py:16"."""

    name: str
    kind: str
    place: str


def link(text: str) -> Link:
    """Its parts; of anything else the text itself as the name."""
    name, found, rest = text.rpartition(" -> ")
    kind, at, place = rest.partition(" at ")
    if not (found and at and kind in _KINDS):
        return Link(text, "", "")
    return Link(name, kind, place)


def drawn(finding: Finding) -> str:
    """The HTML of the chain."""
    links = [link(text) for text in finding.chain]
    boxes = [_operands(finding)] if finding.phase != "input" else []
    boxes += [_step(finding, each, rank) for rank, each in enumerate(links)]
    boxes.append(_end(links[-1].kind))
    parts = [boxes[0], *(_ARROW + box for box in boxes[1:])]
    items = "".join(f"<li>{part}</li>\n" for part in parts)
    return f'<ol class="chain">\n{items}</ol>'


def _operands(finding: Finding) -> str:
    said = [_range(stats) for stats in finding.operands[:_SHOWN]]
    more = len(finding.operands) - _SHOWN
    said += [f"and {more} more"] if more > 0 else []
    return _box("went in", finding.primitive, said)


def _step(finding: Finding, each: Link, rank: int) -> str:
    born = "born here" if rank == 0 else f"turns into {_KINDS.get(each.kind, 'NaN')}"
    if not each.kind:
        return _box(born, each.name, [])
    title = f"{each.name} → {_KINDS[each.kind]}"
    file, _, number = each.place.rpartition(":")
    known = number.isdigit() and file == os.path.basename(finding.file)
    source = _lines.text(finding, int(number)) if known else ""
    return _box(born, title, [], place=each.place, source=source, bad=True)


def _end(kind: str) -> str:
    what = _KINDS.get(kind, "not finite")
    return _box("comes out", what, ["in an output of the function"], bad=True)


def _box(
    label: str,
    title: str,
    said: list[str],
    *,
    place: str = "",
    source: str = "",
    bad: bool = False,
) -> str:
    lines = "".join(f"<span>{_html.escape(text)}</span>" for text in said)
    lines += f"<span><code>{_html.escape(place)}</code></span>" if place else ""
    lines += f"<code class='line'>{_html.escape(source)}</code>" if source else ""
    name = "box bad-box" if bad else "box"
    return (
        f'<div class="{name}"><span class="quiet">{_html.escape(label)}</span>'
        f"<strong>{_html.escape(title)}</strong>{lines}</div>"
    )


def _range(stats: Stats) -> str:
    low, high = _html.number(stats.minimum), _html.number(stats.maximum)
    if low == "NaN":
        return f"{stats.name}: no finite entry"
    ends = low if low == high else f"{low} to {high}"
    bad = [f"{stats.num_nan} NaN"] if stats.num_nan else []
    bad += [f"{stats.num_inf} Inf"] if stats.num_inf else []
    return ", ".join([f"{stats.name}: {ends}", *bad])
