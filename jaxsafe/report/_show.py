"""A record in the terminal.

The words are the record's own `summary()`; this module only frames them. Text is handed
to rich as text, never as markup, because source lines are full of square brackets.
"""

import sys
import textwrap
from typing import Protocol, TextIO, runtime_checkable

from jaxsafe import _errors

_WIDTH = 80
_FRAME = 4  # two borders and the spaces beside them


@runtime_checkable
class Record(Protocol):
    """Anything that can say in words what it holds."""

    def summary(self) -> str:
        """Text, its first line a headline."""


def show(record: Record, *, file: TextIO | None = None) -> None:
    """Print a `Finding`, an `Audit` or another record with a `summary()`.

    Framed by rich, in colour if `file` is a terminal; plain text where rich is missing.

    Args:
      record: what to show.
      file: where to; standard output by default.

    Raises:
      TypeError: `record` has no `summary()`.

    >>> import numpy as np
    >>> from jaxsafe import clean
    >>> show(clean.audit(np.array([[1.0, np.nan], [2.0, 3.0]])))
    ╭─ Audit(2 rows, 2 columns, 1 to clean) ...
    """
    if not isinstance(record, Record) or isinstance(record, type):
        raise _errors.error(
            TypeError,
            "report.show",
            "record must have a summary() method",
            type(record).__name__,
            "Pass a Finding, an Audit or another record.",
        )
    stream = sys.stdout if file is None else file
    try:
        import rich  # noqa: F401
    except ImportError:
        stream.write(record.summary() + "\n")
    else:
        _framed(record.summary(), getattr(record, "source", ""), stream)


def _framed(summary: str, source: str, stream: TextIO) -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.rule import Rule
    from rich.text import Text

    terminal = stream.isatty()
    console = Console(
        file=stream,
        force_terminal=terminal,
        force_jupyter=False,
        width=None if terminal else _WIDTH,
    )
    headline, _, rest = summary.partition("\n")
    body = textwrap.dedent(rest)
    text = Text(body)
    text.highlight_regex(r"(?m)^ *(Why|Try)\b.*:$", "bold")
    text.highlight_words([source] if source else [], "cyan")
    widest = max(map(len, [headline, *body.splitlines()]))
    title = Text(headline, "bold red" if source else "bold")
    if widest + _FRAME <= console.width:
        console.print(Panel(text, title=title, title_align="left"))
    else:
        # Sides would break the lines of a table, or a path that a terminal can open.
        console.print(title, soft_wrap=True)
        console.print(Rule(style="dim"))
        console.print(text, soft_wrap=True)
        console.print(Rule(style="dim"))
