"""The half of cleaning that runs on the host: names and text become numbers.

Strings cannot enter a jitted program, so this runs before it, once, and `apply` runs
in it. Numeric columns keep their holes, which is what `apply` fills.
"""

from typing import Any

from jaxsafe._errors import error
from jaxsafe.clean import _rules, _table
from jaxsafe.clean._cleaner import Cleaner, Column
from jaxsafe.clean._rules import Entries
from jaxsafe.clean._table import HostArray, Table


def encode(cleaner: Cleaner, data: Any) -> HostArray:
    """Turn a table into the numeric array that `clean.apply` takes.

    Columns of a frame or a mapping are found by name, in whatever order they stand;
    those of an array by position. Sentinels become NaN. How a category, a missing one
    and one never seen are written is described at `clean.fit`.

    Args:
      cleaner: from `clean.fit`.
      data: array[rows, columns], a data frame, or a mapping from names to columns.

    Returns:
      numpy float32[rows, features]; NaN and infinities only in numeric columns.

    Raises:
      TypeError: text in a column that held numbers; complex, date or traced data.
      ValueError: the columns are not the fitted ones.

    >>> from jaxsafe import clean
    >>> cleaner = clean.fit({"city": ["London", "Venice"], "rain": [2.5, 3.5]})
    >>> clean.encode(cleaner, {"city": ["Venice", "Prague"], "rain": [1.0, None]})
    array([[ 0.,  1.,  1.],
           [ 0.,  0., nan]], dtype=float32)
    """
    import numpy as np

    table = matched("clean.encode", cleaner, data)
    blocks = [
        _block(cleaner, *pair)
        for pair in zip(cleaner.columns, table.columns, strict=True)
    ]
    return np.concatenate(blocks, axis=1)


def matched(function: str, cleaner: Cleaner, data: Any) -> Table:
    """The table of `data`, its columns those of the fit and in their order."""
    table = _table.read(function, data)
    fitted = tuple(column.name for column in cleaner.columns)
    if not table.named:
        if len(table.names) != len(fitted):
            raise error(
                ValueError,
                function,
                f"the fitted data had {len(fitted)} columns",
                len(table.names),
                f"Pass the columns {', '.join(fitted)}.",
            )
        return Table(fitted, table.columns, named=False)
    absent = [name for name in fitted if name not in table.names]
    extra = [name for name in table.names if name not in fitted]
    if absent or extra:
        raise error(
            ValueError,
            function,
            "the columns are not the fitted ones",
            f"absent: {', '.join(absent) or 'none'}; "
            f"unknown: {', '.join(extra) or 'none'}",
            f"Pass the columns {', '.join(fitted)}.",
        )
    by_name = dict(zip(table.names, table.columns, strict=True))
    return Table(fitted, tuple(by_name[name] for name in fitted), named=True)


def codes(column: Column, entries: Entries) -> HostArray:
    """int[rows]: position among the n categories, n if missing, n + 1 if unknown."""
    import numpy as np

    n = len(column.categories)
    position: dict[str | None, int] = {c: i for i, c in enumerate(column.categories)}
    position[None] = n
    return np.asarray([position.get(text, n + 1) for text in entries.texts])


def _block(cleaner: Cleaner, column: Column, values: HostArray) -> HostArray:
    """float32[rows, features of this column]."""
    import numpy as np

    style = cleaner.options.categories
    if column.kind == "number":
        x = _table.numbers("clean.encode", column.name, values)
        sentinel = _table.sentinel_mask(values, cleaner.options.missing)
        return np.where(sentinel, np.float32(np.nan), x)[:, None]
    code = codes(column, _rules.entries(column.name, values, cleaner.options))
    if column.fill is not None:
        code[code == len(column.categories)] = column.categories.index(column.fill)
    if style == "ordinal":
        return code.astype(np.float32)[:, None]
    slots = np.arange(len(column.features(style)))
    return (code[:, None] == slots).astype(np.float32)
