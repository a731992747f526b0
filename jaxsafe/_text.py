"""How records are written: plain text within 80 columns, and JSON."""

import dataclasses
import json
import math
import textwrap
from collections.abc import Sequence
from typing import Any

WIDTH = 80


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines under a header, names on the left, figures on the right.

    The first column gives way when the others need the room.
    """
    lines = [tuple(header), *map(tuple, rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    others = sum(width + 2 for width in widths[1:])
    widths[0] = min(widths[0], max(8, WIDTH - others))
    return "\n".join(_line(cells, widths) for cells in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    name, *figures = cells
    if len(name) > widths[0]:
        name = name[: widths[0] - 3] + "..."
    right = [cell.rjust(w) for cell, w in zip(figures, widths[1:], strict=True)]
    return "  ".join([name.ljust(widths[0]), *right]).rstrip()


def wrap(text: str, *, width: int = WIDTH) -> list[str]:
    """Lines of an indented paragraph; what comes after the first is indented more."""
    return textwrap.wrap(
        text,
        width,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def tail(name: str, width: int) -> str:
    """`name` without its beginning, if it is longer than `width`: paths differ last."""
    return name if len(name) <= width else "..." + name[3 - width :]


def to_json(record: Any) -> str:
    """A dataclass as one JSON object; a number that is not finite is null."""
    return json.dumps(to_plain(record), allow_nan=False)


def to_plain(record: Any) -> dict[str, Any]:
    """A dataclass as JSON knows it; a number that is not finite is None."""
    return dict(_plain(dataclasses.asdict(record)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
