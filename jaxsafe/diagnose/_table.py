"""What a profile says: ranges of equations, of lines or of modules, in one table."""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Iterable

from jaxsafe import _errors, _text

GROUPS = ("equation", "line", "module")
_PHASES = {"input": "in", "forward": "fwd", "backward": "bwd", "update": "upd"}
_TITLES = {
    "float16": "float16",
    "bfloat16": "bfloat16",
    "float8_e4m3fn": "e4m3",
    "float8_e5m2": "e5m2",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """How large numbers are, and how many of them narrower formats would lose.

    Attributes:
      name: of the primitive, "model.py:12", the module's path or the argument.
      file: file of the user's line; "" for an argument and a module.
      line: its number, from 1.
      source: text of that line.
      function: name of the Python function it stands in.
      module: path of the flax module, or "".
      phase: "input", "forward", "backward" or "update".
      dtype: what the numbers were computed in; several are joined by "+".
      smallest: smallest finite magnitude that is not 0, or 0 if there is none.
      largest: largest finite magnitude, or 0.
      entries: how many numbers there are, over all iterations.
      zeros: how many are exactly 0.
      nonfinite: how many are NaN or infinite.
      overflow: by format, how many are too large for it, rounded to nearest.
      underflow: by format, how many would be rounded to 0.

    >>> import jax.numpy as jnp
    >>> from jaxsafe import diagnose
    >>> (x,) = diagnose.profile(lambda x: x, jnp.array([0.0, 1e-5, 3.0])).rows
    >>> x.name, x.zeros, x.exponents, x.underflow["float8_e4m3fn"]
    ('x', 1, (-17, 1), 1)
    """

    name: str
    file: str
    line: int
    source: str
    function: str
    module: str
    phase: str
    dtype: str
    smallest: float
    largest: float
    entries: int
    zeros: int
    nonfinite: int
    overflow: dict[str, int]
    underflow: dict[str, int]

    @property
    def exponents(self) -> tuple[int, int] | None:
        """Powers of two of the smallest and largest magnitude; None if all are 0."""
        if not self.largest:
            return None
        return math.frexp(self.smallest)[1] - 1, math.frexp(self.largest)[1] - 1

    def lost(self, dtype: str) -> float:
        """The share of entries, from 0 to 1, that `dtype` would lose."""
        return (self.overflow[dtype] + self.underflow[dtype]) / self.entries


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Ranges of all numbers of a program.

    Attributes:
      rows: one for each argument and each equation, in order of execution.

    >>> import jax.numpy as jnp
    >>> from jaxsafe import diagnose
    >>> diagnose.profile(jnp.exp, jnp.array([0.0, 12.0]))
    Profile(1 equation, numbers lost by 1 in float16, 1 in e4m3, 1 in e5m2)
    """

    rows: tuple[Range, ...]

    def by(self, group: str) -> tuple[Range, ...]:
        """The ranges of each "equation", "line" or "module", pass by pass.

        Arguments keep a row of their own.
        """
        _errors.check_choice("Profile.by", "group", group, GROUPS)
        if group == "equation":
            return self.rows
        groups: dict[object, list[Range]] = {}
        for row in self.rows:
            key = (_key(row, group), row.phase)
            groups.setdefault(key, []).append(row)
        return tuple(_renamed(merged(rows), group) for rows in groups.values())

    def summary(self, *, by: str = "line", most: int = 20) -> str:
        """A table of at most 80 columns; of many rows those that lose the most."""
        _errors.check_count("Profile.summary", "most", most)
        rows = self.by(by)
        worst = sorted(rows, key=lambda r: -sum(map(r.lost, _TITLES)))[:most]
        shown = [row for row in rows if any(row is w for w in worst)]
        header = ("pass", "from", "to", *_TITLES.values())
        cells = [_cells(row) for row in shown]
        columns = zip(header, *cells, strict=True)
        room = _text.WIDTH - sum(2 + max(map(len, column)) for column in columns)
        table = [(_label(r, by, room), *c) for r, c in zip(shown, cells, strict=True)]
        lines = [repr(self), _text.table((by, *header), table)]
        if len(rows) > len(shown):
            lines.append(f"... and {len(rows) - len(shown)} rows that lose less")
        lines.append("+ would overflow, - would become 0")
        return "\n".join(lines)

    def to_json(self) -> str:
        """The rows as one JSON object."""
        rows = [dataclasses.asdict(row) for row in self.rows]
        return json.dumps({"rows": rows}, allow_nan=False)

    def __repr__(self) -> str:
        equations = [row for row in self.rows if row.phase != "input"]
        counts = {f: sum(row.lost(f) > 0 for row in equations) for f in _TITLES}
        losing = ", ".join(f"{n} in {_TITLES[f]}" for f, n in counts.items() if n)
        plural = "s" * (len(equations) != 1)
        lost = f"numbers lost by {losing}" if losing else "all numbers kept"
        return f"Profile({len(equations)} equation{plural}, {lost})"


def merged(rows: Iterable[Range]) -> Range:
    """Several ranges as one; the first one names it."""
    return functools.reduce(_merge, rows)


def _merge(a: Range, b: Range) -> Range:
    dtypes = dict.fromkeys([*a.dtype.split("+"), *b.dtype.split("+")])
    return dataclasses.replace(
        a,
        dtype="+".join(dtypes),
        smallest=min((x for x in (a.smallest, b.smallest) if x), default=0.0),
        largest=max(a.largest, b.largest),
        entries=a.entries + b.entries,
        zeros=a.zeros + b.zeros,
        nonfinite=a.nonfinite + b.nonfinite,
        overflow={f: n + b.overflow[f] for f, n in a.overflow.items()},
        underflow={f: n + b.underflow[f] for f, n in a.underflow.items()},
    )


def _key(row: Range, group: str) -> object:
    if row.phase == "input":
        return row.name
    return (row.module,) if group == "module" else (row.file, row.line)


def _renamed(row: Range, group: str) -> Range:
    if row.phase == "input":
        return row
    if group == "line":
        return dataclasses.replace(row, name=_place(row), module="")
    name = row.module or "(no module)"
    return dataclasses.replace(row, name=name, file="", line=0, source="", function="")


def _place(row: Range) -> str:
    return f"{os.path.basename(row.file)}:{row.line}" if row.file else "(no line)"


def _label(row: Range, by: str, room: int) -> str:
    if by != "equation" or row.phase == "input":
        return _text.tail(row.name, room)
    place = f"{row.name} {_place(row)}"
    return place if len(place) <= room else f"{row.name} :{row.line}"


def _cells(row: Range) -> tuple[str, ...]:
    ends = [f"2^{e}" for e in row.exponents] if row.exponents else [".", "."]
    return (
        _PHASES[row.phase],
        *ends,
        *(_losses(row, f) for f in _TITLES),
    )


def _losses(row: Range, dtype: str) -> str:
    """`+3% -12%`: what overflows, and what becomes 0."""
    both = (("+", row.overflow[dtype]), ("-", row.underflow[dtype]))
    parts = [f"{sign}{_percent(n / row.entries)}" for sign, n in both if n]
    return " ".join(parts) or "."


def _percent(share: float) -> str:
    if share < 0.005:
        return "<1%"
    return ">99%" if 0.995 <= share < 1 else f"{share:.0%}"
