"""Text, numbers and tables as HTML; the one place where strings are escaped."""

import html
import math
import re

from jaxsafe.report._blocks import Cell, Table, Text

# XML forbids these even as references, and a source line may hold a form feed.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def clean(text: str) -> str:
    """`text` without characters that no document may hold."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def escape(text: object) -> str:
    """`text` as HTML text or attribute value."""
    return html.escape(clean(str(text)))


def number(value: float) -> str:
    """At least four significant digits, NaN and Inf by name.

    >>> [number(v) for v in (0.25, 1234.5678, 3e-10, 0.0, float("-inf"))]
    ['0.25', '1234.6', '3e-10', '0', '-Inf']
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Inf" if value > 0 else "-Inf"
    if 1000 <= abs(value) < 1e6:
        return f"{value:.1f}"
    return re.sub(r"e([+-])0*", lambda m: "e" + m[1].strip("+"), f"{value:.4g}")


def inline(text: str) -> str:
    """Escaped text with `backticks` turned into code."""
    return re.sub(r"`([^`\n]+)`", r"<code>\1</code>", escape(text))


def paragraphs(block: Text) -> str:
    """A `Text` as paragraphs."""
    parts = re.split(r"\n\s*\n", block.text.strip())
    return "\n".join(f"<p>{inline(part)}</p>" for part in parts if part)


def pre(text: str) -> str:
    """Text with its own lines and spaces; it scrolls, and so can take the focus."""
    return f'<pre tabindex="0"><code>{escape(text)}</code></pre>'


def table(block: Table) -> str:
    """A `Table` in a box of its own that scrolls when the page is narrower."""
    numeric = [_is_numeric(column) for column in zip(*block.rows, strict=True)]
    numeric = numeric or [False] * len(block.headers)
    head = "".join(
        f'<th scope="col"{_class(right)}>{inline(title)}</th>'
        for title, right in zip(block.headers, numeric, strict=True)
    )
    body = "\n".join(
        "<tr>"
        + "".join(_td(c, right) for c, right in zip(row, numeric, strict=True))
        + "</tr>"
        for row in block.rows
    )
    caption = f"<caption>{inline(block.caption)}</caption>" if block.caption else ""
    name = escape(block.caption or "Table")
    return (
        f'<div class="scroll" role="region" aria-label="{name}" tabindex="0">'
        f"<table>{caption}<thead><tr>{head}</tr></thead>\n"
        f"<tbody>{body}</tbody></table></div>"
    )


def _is_numeric(column: tuple[Cell, ...]) -> bool:
    known = [cell for cell in column if cell is not None]
    return bool(known) and all(
        isinstance(cell, int | float) and not isinstance(cell, bool) for cell in known
    )


def _td(cell: Cell, right: bool) -> str:
    if isinstance(cell, float) and not math.isfinite(cell):
        return f"<td{_class(right, 'bad')}>{number(cell)}</td>"
    return f"<td{_class(right)}>{_words(cell)}</td>"


def _words(cell: Cell) -> str:
    if cell is None:
        return "&mdash;"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return number(cell)
    return str(cell) if isinstance(cell, int) else inline(cell)


def _class(right: bool, *names: str) -> str:
    names = (*names, "number") if right else names
    return f' class="{" ".join(names)}"' if names else ""
