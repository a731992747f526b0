"""What is wrong with a table, counted per column before anything is repaired.

With a cleaner it also says what that cleaner has never met: categories, and numbers
outside the range of the fitted data.
"""

import dataclasses
import json
from typing import Any

from jaxsafe import _text
from jaxsafe.clean import _encode, _rules, _table
from jaxsafe.clean._cleaner import Cleaner, Column
from jaxsafe.clean._options import Sentinels
from jaxsafe.clean._table import HostArray, Kind

_BARS = " ▁▂▃▄▅▆▇█"
_BINS = 16
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
# Narrower, so that the shift has room as well.
_COMPARED = (
    "column",
    "missing",
    "Inf",
    "sentinel",
    "unseen",
    "forbidden",
    "outside",
    "const",
    "shift",
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
      forbidden: entries outside the `ranges` of the cleaner, or not `allowed`.
      observed: finite entries that are no sentinel; the known texts of a category.
      mean: of the observed numbers, with those that a running audit has joined.
      std: their population standard deviation.
      minimum: the smallest of them, 0 if there are none.
      maximum: the largest.
      shift: how far the mean lies from the fitted one, in fitted deviations; of a
        one-hot category, half the sum of the changes of its shares (0 to 1).
      spread: the deviation as a multiple of the fitted one; 1 without a cleaner.
      histogram: counts in 16 equal bins, from `bounds[0]` to `bounds[1]`; what lies
        beyond is counted in the outer ones.
      bounds: with a cleaner the fitted mean -+ 4 deviations, else the ends.
      shares: rows of each known category.

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
    forbidden: int = 0
    observed: int = 0
    mean: float = 0.0
    std: float = 0.0
    minimum: float = 0.0
    maximum: float = 0.0
    shift: float = 0.0
    spread: float = 1.0
    histogram: tuple[int, ...] = ()
    bounds: tuple[float, float] = (0.0, 0.0)
    shares: tuple[int, ...] = ()

    @property
    def sparkline(self) -> str:
        """The histogram as one line of text, empty without one."""
        most = max(self.histogram, default=0)
        if not most:
            return ""
        return "".join(_BARS[-(-8 * count // most)] for count in self.histogram)

    @property
    def is_clean(self) -> bool:
        """Nothing missing, infinite or unseen; a wide range or a constant is fine."""
        holes = self.missing + self.positive_infinite + self.negative_infinite
        return holes + self.sentinel + self.unseen + self.forbidden == 0


@dataclasses.dataclass(frozen=True)
class Audit:
    """What `clean.audit` found.

    Attributes:
      rows: number of rows looked at.
      columns: one record per column, in order.
      cleaner: what the data was compared with, or None.

    Audits of several batches add up: `clean.audit(a) + clean.audit(b)`.

    >>> from jaxsafe import clean
    >>> clean.audit({"rain": [2.5, None, 4.6], "wind": [7.9, 8.9, 3.0]})
    Audit(3 rows, 2 columns, 1 to clean)
    """

    rows: int
    columns: tuple[ColumnAudit, ...]
    cleaner: Cleaner | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def is_clean(self) -> bool:
        """Every column can go into a model as it is."""
        return all(column.is_clean for column in self.columns)

    def __repr__(self) -> str:
        bad = sum(not column.is_clean for column in self.columns)
        found = f"{bad} to clean" if bad else "clean"
        return f"Audit({self.rows} rows, {len(self.columns)} columns, {found})"

    def summary(self) -> str:
        """A table within 80 columns, one line per column; nothing found is a dot.

        With a cleaner also what its options forbid, what lies outside the fitted range,
        and the shift; what was found in no column is then left out.
        """
        if self.cleaner is None:
            rows = [_cells(column) for column in self.columns]
            return f"{self!r}\n{_text.table(_HEADER, rows)}"
        rows = [_compared_cells(column) for column in self.columns]
        by_title = zip(_COMPARED, zip(*rows, strict=True), strict=True)
        kept = [c for c in by_title if c[0] == "shift" or set(c[1]) != {"."}]
        header, cells = zip(*kept, strict=True)
        return f"{self!r}\n{_text.table(header, list(zip(*cells, strict=True)))}"

    def __add__(self, other: "Audit") -> "Audit":
        """The running audit: of the rows of both, with the same cleaner or none."""
        from jaxsafe.clean import _running

        return _running.join(self, other)

    def to_json(self) -> str:
        """The record as JSON text."""
        columns = [dataclasses.asdict(column) for column in self.columns]
        record = {"rows": self.rows, "columns": columns, "is_clean": self.is_clean}
        return json.dumps(record)


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
        parts = zip(table.names, table.kinds, table.columns, strict=True)
        found = [_count(Column(name, kind), x, ()) for name, kind, x in parts]
        return Audit(table.rows, tuple(found))
    from jaxsafe.clean import _running

    table = _encode.matched("clean.audit", cleaner, data)
    found, feature = [], 0
    for column, values in zip(cleaner.columns, table.columns, strict=True):
        record = _count(column, values, cleaner.options.missing)
        if column.kind == "number":
            changes = _against(cleaner, column, feature, values)
            record = dataclasses.replace(record, **changes)
        else:
            entries = _rules.entries(column.name, values, cleaner.options)
            code = _encode.codes(column, entries)
            unseen = int((code > len(column.categories)).sum())
            shares = tuple(
                int((code == i).sum()) for i in range(len(column.categories))
            )
            forbidden = int(entries.forbidden.sum())
            record = dataclasses.replace(
                record, unseen=unseen, shares=shares, forbidden=forbidden
            )
        found.append(_running.compared(record, cleaner, feature))
        feature += len(column.features(cleaner.options.categories))
    return Audit(table.rows, tuple(found), cleaner)


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
            observed=len(known),
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
        **_moments_and_histogram(observed.astype(np.float64)),
    )


def _moments_and_histogram(x: HostArray) -> dict[str, Any]:
    import numpy as np

    if x.size == 0:
        return {}
    low, high = float(x.min()), float(x.max())
    shifted = x - x[0]
    return {
        "observed": x.size,
        "mean": float(x[0] + shifted.mean()),
        "std": float(np.std(shifted)),
        "minimum": low,
        "maximum": high,
        "bounds": (low, high),
        "histogram": histogram(x, low, high),
    }


def histogram(
    x: HostArray, low: float, high: float, weights: Any = 1
) -> tuple[int, ...]:
    """Counts in equal bins; what lies beyond is counted in the outer ones."""
    import numpy as np

    width = (high - low) / _BINS
    place = (x - low) / width if width > 0 else np.zeros_like(x)
    counts = np.zeros(_BINS, np.int64)
    np.add.at(counts, np.clip(place, 0, _BINS - 1).astype(int), weights)
    return tuple(counts.tolist())


def _against(
    cleaner: Cleaner, column: Column, feature: int, values: HostArray
) -> dict[str, Any]:
    """What a cleaner adds to the record of a numeric column."""
    import numpy as np

    x = _table.numbers("clean.audit", column.name, values)
    sentinel = _table.sentinel_mask(values, cleaner.options.missing)
    x = x[np.isfinite(x) & ~sentinel].astype(np.float64)
    found: dict[str, Any] = {"out_of_range": _outside(cleaner, feature, values)}
    low, high = dict(cleaner.options.ranges).get(column.name, (-np.inf, np.inf))
    dtype = _table.precision(values.dtype)
    rows = _rules.rows([column.name], cleaner.options, dtype)
    wrong = (x < low) | (x > high) | ~_rules.holds(np, x[:, None], rows)[:, 0]
    found["forbidden"] = int(wrong.sum())
    mean, std = float(cleaner.mean[feature]), float(cleaner.std[feature])
    if x.size:
        found["bounds"] = (mean - 4 * std, mean + 4 * std)
        found["histogram"] = histogram(x, *found["bounds"])
    return found


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
    return (column.name, *map(_figure, counts), "yes" if column.constant else ".")


def _compared_cells(column: ColumnAudit) -> tuple[str, ...]:
    counts = (
        column.missing,
        column.positive_infinite + column.negative_infinite,
        column.sentinel,
        column.unseen,
        column.forbidden,
        column.out_of_range,
    )
    shift = f"{column.shift:.2g}" if abs(column.shift) >= 0.01 else "."
    constant = "yes" if column.constant else "."
    return (column.name, *map(_figure, counts), constant, shift)


def _figure(count: int) -> str:
    return str(count) if count else "."
