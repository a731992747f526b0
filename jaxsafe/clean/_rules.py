"""The only values that a column may hold; whatever else stands there is missing.

Categories are looked up on the host, numbers compared on the device.
"""

from collections.abc import Sequence
from typing import Any

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


def refused(name: str, texts: Sequence[str | None], options: Options) -> HostArray:
    """bool[rows]: a category that its column may not hold; a missing one may stand."""
    import numpy as np

    values = dict(options.allowed).get(name)
    if values is None:
        return np.zeros(len(texts), bool)
    allowed = {_table.label(value) for value in values} | {None}
    return np.asarray([text not in allowed for text in texts], bool)
