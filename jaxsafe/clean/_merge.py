"""Two fits made one: the statistics of two chunks as if fitted on both at once.

Means and second moments are joined by the pairwise formula, in float64: Chan, Golub
and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
variances", Stanford STAN-CS-79-773, 1979. It needs the difference of the two means
only, never a sum of squares around 0.
"""

import dataclasses
import math

from jaxsafe._errors import error
from jaxsafe.clean._cleaner import Cleaner, Column, Options
from jaxsafe.clean._moments import Moments, build, filling, moments_of, neutral


def merge(a: Cleaner, b: Cleaner) -> Cleaner:
    """Join two cleaners fitted on two chunks, as if fitted on both at once.

    Exact to float32 rounding, in any order; categories are united.

    Raises:
      ValueError: options or columns differ, or `impute` is "median", which cannot be
        had from the medians of two chunks.

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
    if a.options.impute == "median":
        raise error(
            ValueError,
            "clean.merge",
            "medians cannot be merged",
            "impute='median'",
            "Fit on all data at once.",
        )
    columns = [_unite(*pair) for pair in zip(a.columns, b.columns, strict=True)]
    pairs = zip(columns, moments_of(a), moments_of(b), strict=True)
    return build(columns, [_join(*pair, a.options) for pair in pairs], a.options)


def _unite(a: Column, b: Column) -> Column:
    categories = tuple(sorted({*a.categories, *b.categories}))
    return dataclasses.replace(
        a, categories=categories, had_missing=a.had_missing or b.had_missing
    )


def _join(column: Column, a: Moments, b: Moments, options: Options) -> Moments:
    if column.kind == "category":
        return neutral(column, a.observed + b.observed)
    if a.observed == 0 or b.observed == 0:
        return b if a.observed == 0 else a
    total = a.observed + b.observed
    delta = b.mean - a.mean
    mean = a.mean + delta * (b.observed / total)
    between = (delta * (a.observed / total)) * (delta * (b.observed / total))
    within = a.std**2 * (a.observed / total) + b.std**2 * (b.observed / total)
    return Moments(
        total,
        mean,
        math.sqrt(within + between),
        min(a.minimum, b.minimum),
        max(a.maximum, b.maximum),
        filling(options, mean, mean),
    )
