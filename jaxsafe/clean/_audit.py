"""What is wrong with a table, counted per column before anything is repaired.

With a cleaner it also says what that cleaner has never met: categories, and numbers
outside the range of the fitted data.
"""

import dataclasses
import json
from typing import Any

from jaxsafe import _text
from jaxsafe.clean import _encode, _table
from jaxsafe.clean._cleaner import Cleaner, Column
from jaxsafe.clean._options import Sentinels
from jaxsafe.clean._table import HostArray, Kind

_HEADER = (
    "column",
    "missing",
    "+Inf",
    "-Inf",
    "sentinel",
    "unseen",
    "out of range",
    "constant",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnAudit:
    """Counts for one column; those that need a cleaner are 0 without one.

    Attributes:
      name: of the column.
      kind: "number" or "category".
      missing: NaN, None and their kin.
      positive_infinite: +Inf, and numbers above the largest float32.
      negative_infinite: -Inf, and numbers below the smallest.
      sentinel: entries listed in the cleaner's `missing`.
      unseen: categories the cleaner does not know.
      out_of_range: numbers outside the fitted minimum and maximum.
      constant: all of at least two observed entries are equal.

    >>> from jaxsafe import clean
    >>> clean.audit({"rain": [2.5, None, float("inf")]}).columns[0].missing
    1
    """

    name: str
    kind: Kind
    missing: int = 0
    positive_infinite: int = 0
    negative_infinite: int = 0
    sentinel: int = 0
    unseen: int = 0
    out_of_range: int = 0
    constant: bool = False

    @property
    def is_clean(self) -> bool:
        """Nothing missing, infinite or unseen; a wide range or a constant is fine."""
        holes = self.missing + self.positive_infinite + self.negative_infinite
        return holes + self.sentinel + self.unseen == 0


@dataclasses.dataclass(frozen=True)
class Audit:
    """What `clean.audit` found.

    Attributes:
      rows: number of rows looked at.
      columns: one record per column, in order.

    >>> from jaxsafe import clean
    >>> clean.audit({"rain": [2.5, None, 4.6], "wind": [7.9, 8.9, 3.0]})
    Audit(3 rows, 2 columns, 1 to clean)
    """

    rows: int
    columns: tuple[ColumnAudit, ...]

    @property
    def is_clean(self) -> bool:
        """Every column can go into a model as it is."""
        return all(column.is_clean for column in self.columns)

    def __repr__(self) -> str:
        bad = sum(not column.is_clean for column in self.columns)
        found = f"{bad} to clean" if bad else "clean"
        return f"Audit({self.rows} rows, {len(self.columns)} columns, {found})"

    def summary(self) -> str:
        """A table within 80 columns, one line per column; nothing found is a dot."""
        return f"{self!r}\n{_text.table(_HEADER, [_cells(c) for c in self.columns])}"

    def to_json(self) -> str:
        """The record as JSON text."""
        return json.dumps({**dataclasses.asdict(self), "is_clean": self.is_clean})


def audit(data: Any, cleaner: Cleaner | None = None) -> Audit:
    """Count what is wrong with a table; runs on the host and changes nothing.

    Args:
      data: array[rows, columns], a data frame, or a mapping from names to columns.
      cleaner: adds sentinels, unseen categories and the fitted range to what is looked
        for; the columns must then be the fitted ones.

    Returns:
      An `Audit`; print its `summary()`.

    Raises:
      TypeError: complex, date or traced data.
      ValueError: empty data, or columns other than the fitted ones.

    >>> import numpy as np
    >>> audit(np.array([[1.0, np.nan], [2.0, np.inf]]))
    Audit(2 rows, 2 columns, 1 to clean)
    """
    if cleaner is None:
        table = _table.read("clean.audit", data)
        pairs = zip(table.names, table.columns, strict=True)
        found = [_count(Column(n, _table.kind(v)), v, ()) for n, v in pairs]
        return Audit(table.rows, tuple(found))
    table = _encode.matched("clean.audit", cleaner, data)
    found, feature = [], 0
    for column, values in zip(cleaner.columns, table.columns, strict=True):
        record = _count(column, values, cleaner.options.missing)
        if column.kind == "number":
            outside = _outside(cleaner, feature, values)
            record = dataclasses.replace(record, out_of_range=outside)
        else:
            code = _encode.codes(cleaner, column, values)
            unseen = int((code > len(column.categories)).sum())
            record = dataclasses.replace(record, unseen=unseen)
        found.append(record)
        feature += len(column.features(cleaner.options.categories))
    return Audit(table.rows, tuple(found))


def _count(column: Column, values: HostArray, sentinels: Sentinels) -> ColumnAudit:
    """What can be said of a column without a fit."""
    import numpy as np

    sentinel = _table.sentinel_mask(values, sentinels)
    if column.kind == "category":
        texts = _table.texts(values)
        known = [
            text
            for text, gone in zip(texts, sentinel, strict=True)
            if text is not None and not gone
        ]
        return ColumnAudit(
            name=column.name,
            kind="category",
            missing=texts.count(None),
            sentinel=int(sentinel.sum()),
            constant=len(known) > 1 and len(set(known)) == 1,
        )
    x = _table.numbers("clean.audit", column.name, values)
    observed = x[np.isfinite(x) & ~sentinel]
    return ColumnAudit(
        name=column.name,
        kind="number",
        missing=int(np.isnan(x).sum()),
        positive_infinite=int(np.isposinf(x).sum()),
        negative_infinite=int(np.isneginf(x).sum()),
        sentinel=int(sentinel.sum()),
        constant=observed.size > 1 and bool((observed == observed[0]).all()),
    )


def _outside(cleaner: Cleaner, feature: int, values: HostArray) -> int:
    """How many finite numbers lie outside the fitted range of one feature."""
    import numpy as np

    if int(cleaner.count[feature]) == 0:
        return 0
    x = _table.numbers("clean.audit", "", values)
    sentinel = _table.sentinel_mask(values, cleaner.options.missing)
    low, high = float(cleaner.minimum[feature]), float(cleaner.maximum[feature])
    return int((np.isfinite(x) & ~sentinel & ((x < low) | (x > high))).sum())


def _cells(column: ColumnAudit) -> tuple[str, ...]:
    counts = (
        column.missing,
        column.positive_infinite,
        column.negative_infinite,
        column.sentinel,
        column.unseen,
        column.out_of_range,
    )
    figures = [str(count) if count else "." for count in counts]
    return (column.name, *figures, "yes" if column.constant else ".")
