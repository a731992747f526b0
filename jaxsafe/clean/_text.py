"""A plain-text table that fits a terminal of 80 columns."""

from collections.abc import Sequence

_WIDTH = 80


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines under a header, names on the left, figures on the right.

    The first column gives way when the others need the room.
    """
    lines = [tuple(header), *map(tuple, rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    others = sum(width + 2 for width in widths[1:])
    widths[0] = min(widths[0], max(8, _WIDTH - others))
    return "\n".join(_line(cells, widths) for cells in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    name, *figures = cells
    if len(name) > widths[0]:
        name = name[: widths[0] - 3] + "..."
    right = [cell.rjust(w) for cell, w in zip(figures, widths[1:], strict=True)]
    return "  ".join([name.ljust(widths[0]), *right]).rstrip()
