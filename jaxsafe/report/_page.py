"""One self-contained HTML page: no script, no font, no picture from elsewhere."""

import os
import pathlib
from collections.abc import Iterator, Sequence

from jaxsafe.report import _blocks, _card, _html, _plot, _style
from jaxsafe.report._blocks import Block, Plot, Pre, Section, Table, Text


def page(title: str, sections: Sequence[Section], *, subtitle: str = "") -> str:
    """Write sections as one HTML page with a table of contents.

    Args:
      title: heading of the page.
      sections: what is on it, in order.
      subtitle: a line below the heading.

    Returns:
      A whole HTML5 document; equal arguments give equal text.

    Raises:
      ValueError: an empty title.
      TypeError: something other than a `Section`.

    >>> html = page("Run 7", [Section("Result", [Text("It converged.")])])
    >>> "<p>It converged.</p>" in html
    True
    """
    _blocks.check_title("report.page", title)
    _blocks.check_types("report.page", "sections", sections, (Section,))
    contents = "\n".join(
        f'<li><a href="#section-{k}">{_html.inline(section.title)}</a></li>'
        for k, section in enumerate(sections, 1)
    )
    count = iter(range(1, 1_000_000))
    body = "\n".join(_section(s, k, count) for k, s in enumerate(sections, 1))
    below = f'<p class="subtitle">{_html.inline(subtitle)}</p>' if subtitle else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_html.escape(title)}</title>
<style>
{_style.sheet()}</style>
</head>
<body>
<header><h1>{_html.inline(title)}</h1>{below}</header>
<nav aria-label="Contents"><ol>
{contents}
</ol></nav>
<main>
{body}
</main>
</body>
</html>
"""


def write(
    path: str | os.PathLike[str],
    title: str,
    sections: Sequence[Section],
    *,
    subtitle: str = "",
) -> pathlib.Path:
    """Write `page(...)` to a file; a reader sees the old page or the new, never half.

    Args:
      path: the file; missing folders are created.
      title: heading of the page.
      sections: what is on it, in order.
      subtitle: a line below the heading.

    Returns:
      The path.

    Raises:
      ValueError, TypeError: as `page`.
      OSError: the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(f"{folder}/a/run.html", "Run 7", []).name
    'run.html'
    """
    html = page(title, sections, subtitle=subtitle)
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename across file systems is not atomic.
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        # A file name in a finding may hold bytes that are not text.
        draft.write_bytes(html.encode("utf-8", errors="replace"))
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def _section(section: Section, rank: int, count: Iterator[int]) -> str:
    blocks = "\n".join(_block(block, count) for block in section.blocks)
    name = f"section-{rank}"
    return (
        f'<section id="{name}" aria-labelledby="{name}-title">\n'
        f'<h2 id="{name}-title">{_html.inline(section.title)}</h2>\n'
        f"{blocks}\n</section>"
    )


def _block(block: Block, count: Iterator[int]) -> str:
    match block:
        case Text():
            return _html.paragraphs(block)
        case Pre():
            return _html.pre(block.text)
        case Table():
            return _html.table(block)
        case Plot():
            return _plot.figure(block, next(count))
        case _:
            return _card.card(block)
