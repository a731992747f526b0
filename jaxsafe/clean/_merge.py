"""Two fits made one: the statistics of two chunks as if fitted on both at once."""

import dataclasses
from typing import Any

from jaxsafe._errors import error
from jaxsafe.clean import _moments, _table
from jaxsafe.clean._build import build
from jaxsafe.clean._cleaner import Cleaner, Column
from jaxsafe.clean._moments import Facts
from jaxsafe.clean._options import Options
from jaxsafe.clean._table import HostArray


def merge(a: Cleaner, b: Cleaner) -> Cleaner:
    """Join two cleaners fitted on two chunks, as if fitted on both at once.

    Means, deviations and ends are exact to float32 rounding, in any order; categories
    are united. Quantiles come from the counts of both: each is off by at most 1/64 of
    its distance from the pivot of its column, and by as much again where the two fits
    had different pivots: a cleaner holds no data, so neither small fits nor those with
    exact quantiles merge into exact ones. For exact quantiles of parts that fit into
    memory, fit once on the list of them: `clean.fit([one, two])`. The most frequent
    number is exact while a column has no more than 256 different ones; beyond that it
    is one with at most rows / 256 entries less.

    Args:
      a: from `clean.fit`.
      b: fitted with the same options, on the same columns.

    Returns:
      A `Cleaner`.

    Raises:
      ValueError: options or columns differ; of ordinal categories, the most frequent
        one that fills holes.

    >>> import numpy as np
    >>> from jaxsafe.clean import fit
    >>> halves = fit(np.array([[1.0]])), fit(np.array([[3.0], [np.nan]]))
    >>> float(merge(*halves).mean[0])
    2.0
    """
    if a.options != b.options:
        raise error(
            ValueError,
            "clean.merge",
            "the two were fitted with different options",
            f"{a.options} and {b.options}",
            "Fit both with the same arguments.",
        )
    kinds = [{c.name: c.kind for c in cleaner.columns} for cleaner in (a, b)]
    if kinds[0] != kinds[1] or list(kinds[0]) != list(kinds[1]):
        raise error(
            ValueError,
            "clean.merge",
            "the two have different columns",
            f"{kinds[0]} and {kinds[1]}",
            "Fit both on the same columns in the same order.",
        )
    columns = [_unite(*pair) for pair in zip(a.columns, b.columns, strict=True)]
    facts = _moments.join(facts_of(a), facts_of(b), a.options)
    frequencies = []
    for i, column in enumerate(columns):
        if column.kind == "category":
            both = sum(_frequencies(cleaner, i, column) for cleaner in (a, b))
            fill = _fill(a.columns[i], b.columns[i], column, both, a.options)
            columns[i] = dataclasses.replace(column, fill=fill)
            frequencies.append(both)
    return build(columns, facts, frequencies, a.options)


def facts_of(cleaner: Cleaner) -> Facts:
    """Back from features to numeric columns, in float64; without quantiles."""
    import numpy as np

    numbers = np.flatnonzero(np.asarray(cleaner.is_number, bool))

    def wide(name: str) -> HostArray:
        low = getattr(cleaner, f"{name}_low", 0.0)
        x = np.asarray(getattr(cleaner, name), np.float64) + np.asarray(low, np.float64)
        return x[numbers]

    names = ("count", "mean", "std", "minimum", "maximum")
    return Facts(
        **{name: wide(name) for name in names},
        quantiles={},
        sketch=cleaner.sketch,
        frequent=cleaner.frequent,
    )


def _unite(a: Column, b: Column) -> Column:
    alike = all(column.numbered or not column.categories for column in (a, b))
    numbered = alike and (a.numbered or b.numbered)
    labels = {*a.categories, *b.categories}
    return dataclasses.replace(
        a,
        categories=_table.in_order(labels, numbered=numbered),
        had_missing=a.had_missing or b.had_missing,
        numbered=numbered,
    )


def _fill(
    a: Column, b: Column, united: Column, frequencies: HostArray, options: Options
) -> str | None:
    """The most frequent category of both."""
    fills = {a.fill, b.fill} - {None}
    if len(fills) < 2:  # most frequent in each is most frequent in both
        return next(iter(fills), None)
    if options.categories == "ordinal":
        raise error(
            ValueError,
            "clean.merge",
            f"the most frequent category of {a.name!r} differs, and "
            "categories='ordinal' does not keep how often each occurs",
            f"{a.fill!r} and {b.fill!r}",
            "Fit on both at once, clean.fit([a, b]), or use categories='onehot'.",
        )
    return united.categories[int(frequencies[:-1].argmax())]


def _frequencies(cleaner: Cleaner, position: int, united: Column) -> Any:
    """Rows of each category of the united column, then of the missing ones."""
    import numpy as np

    features = [i for i, owner in enumerate(cleaner.owners) if owner == position]
    counts = np.asarray(cleaner.count)[features].astype(np.int64)
    found = np.zeros(len(united.categories) + 1, np.int64)
    column = cleaner.columns[position]
    if cleaner.options.categories == "ordinal":
        found[-1] = counts[0]
        return found
    labels = list(united.categories)
    for label, count in zip(column.categories, counts, strict=False):
        found[labels.index(label)] = count
    if column.had_missing and column.fill is None:
        found[-1] = counts[-1]
    return found
