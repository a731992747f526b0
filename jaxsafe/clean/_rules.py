"""The only values that a column may hold; whatever else stands there is missing.

Categories are looked up on the host, numbers compared on the device.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxsafe.clean import _table
from jaxsafe.clean._options import Options
from jaxsafe.clean._table import HostArray

Rows = tuple[tuple[float, ...], ...]


def rows(names: Sequence[str | None], options: Options, dtype: Any) -> Rows:
    """The allowed numbers, one row of columns each; a column without a rule has NaN."""
    nan = float("nan")
    sets = dict(options.allowed)
    found = [
        _table.sentinel_numbers(sets[n], dtype) if n in sets else () for n in names
    ]
    most = max(map(len, found), default=0)
    padded = [(*values, *[nan] * (most - len(values))) for values in found]
    return tuple(zip(*padded, strict=True))


def holds(xp: Any, x: Any, table: Rows) -> Any:
    """Which entries of x [..., columns] their column may hold; all without a rule."""
    import numpy as np

    allowed = np.asarray(table, np.float64)
    # As many axes as x has, so that no rank is promoted.
    free = np.isnan(allowed).all(axis=0).reshape((1,) * (x.ndim - 1) + (-1,))
    found = xp.asarray(free) | xp.zeros(x.shape, bool)
    for row in allowed:
        found = found | (x == xp.asarray(row.reshape(free.shape), dtype=x.dtype))
    return found


class Entries(NamedTuple):
    """The entries of a column of categories.

    Attributes:
      texts: None where one is missing, a sentinel, or not allowed.
      forbidden: bool[rows], it stands there, but its column may not hold it.
    """

    texts: list[str | None]
    forbidden: HostArray


def entries(name: str, values: HostArray, options: Options) -> Entries:
    """The entries of the column of this name, by the options."""
    import numpy as np

    sentinel = _table.sentinel_mask(values, options.missing)
    pairs = zip(_table.texts(values), sentinel, strict=True)
    known = [None if gone else text for text, gone in pairs]
    rule = dict(options.allowed).get(name)
    if rule is None:
        return Entries(known, np.zeros(len(known), bool))
    allowed = {_table.label(value) for value in rule} | {None}
    forbidden = np.asarray([text not in allowed for text in known], bool)
    return Entries([text if text in allowed else None for text in known], forbidden)
