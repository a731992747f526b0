"""Audits of several batches made one, and how far they lie from the fitted data."""

import dataclasses
import math
from typing import Any

from jaxsafe._errors import error
from jaxsafe.clean import _audit
from jaxsafe.clean._audit import Audit, ColumnAudit
from jaxsafe.clean._cleaner import Cleaner

_COUNTS = (
    "missing",
    "positive_infinite",
    "negative_infinite",
    "sentinel",
    "unseen",
    "out_of_range",
    "forbidden",
    "observed",
)


def join(a: Audit, b: Audit) -> Audit:
    """The audit of the rows of both."""
    names = [[column.name for column in audit.columns] for audit in (a, b)]
    if names[0] != names[1] or (a.cleaner is None) != (b.cleaner is None):
        raise error(
            ValueError,
            "clean.Audit",
            "the two audits are of different columns, or only one has a cleaner",
            f"{names[0]} and {names[1]}",
            "Audit every batch with the same cleaner.",
        )
    found, feature = [], 0
    for i, (one, two) in enumerate(zip(a.columns, b.columns, strict=True)):
        record = _joined(one, two)
        if a.cleaner is not None:
            record = compared(record, a.cleaner, feature)
            column = a.cleaner.columns[i]
            feature += len(column.features(a.cleaner.options.categories))
        found.append(record)
    return Audit(a.rows + b.rows, tuple(found), a.cleaner)


def _joined(a: ColumnAudit, b: ColumnAudit) -> ColumnAudit:
    counts = {name: getattr(a, name) + getattr(b, name) for name in _COUNTS}
    shares = tuple(map(sum, zip(a.shares, b.shares, strict=False)))
    if not a.observed or not b.observed:
        kept = b if not a.observed else a
        return dataclasses.replace(kept, **counts, shares=shares)
    share = b.observed / counts["observed"]
    delta = b.mean - a.mean
    variance = a.std**2 * (1 - share) + b.std**2 * share
    low, high = min(a.minimum, b.minimum), max(a.maximum, b.maximum)
    one_value = a.constant or a.observed == 1, b.constant or b.observed == 1
    return dataclasses.replace(
        a,
        **counts,
        shares=shares,
        constant=low == high and all(one_value) and a.kind == "number",
        mean=a.mean + delta * share,
        std=math.sqrt(variance + delta * delta * share * (1 - share)),
        minimum=low,
        maximum=high,
        **_histogram(a, b, low, high),
    )


def _histogram(a: ColumnAudit, b: ColumnAudit, low: float, high: float) -> Any:
    """Counts of both; where the bins differ, those of each move to the nearest."""
    import numpy as np

    if a.kind != "number":
        return {}
    if a.bounds == b.bounds:
        both = zip(a.histogram, b.histogram, strict=True)
        return {"histogram": tuple(map(sum, both))}
    counts = np.zeros(len(a.histogram), np.int64)
    for part in (a, b):
        bins = len(part.histogram)
        middle = np.arange(bins) + 0.5
        start, end = part.bounds
        x = start + (end - start) * middle / bins
        counts += _audit.histogram(x, low, high, np.asarray(part.histogram))
    return {"histogram": tuple(counts.tolist()), "bounds": (low, high)}


def compared(record: ColumnAudit, cleaner: Cleaner, feature: int) -> ColumnAudit:
    """The record with its distance from the fitted data."""
    if not record.observed:
        return record
    if record.kind == "number":
        if not int(cleaner.count[feature]):
            return record
        mean, std = float(cleaner.mean[feature]), float(cleaner.std[feature])
        unit = std if std > 0 else 1.0
        return dataclasses.replace(
            record,
            shift=(record.mean - mean) / unit,
            spread=record.std / std if std > 0 else 1.0,
        )
    known = sum(record.shares)
    if cleaner.options.categories != "onehot" or not known:
        return record
    counts = [int(c) for c in cleaner.count[feature : feature + len(record.shares)]]
    total = max(sum(counts), 1)
    pairs = zip(record.shares, counts, strict=True)
    change = sum(abs(now / known - then / total) for now, then in pairs) / 2
    return dataclasses.replace(record, shift=change)
