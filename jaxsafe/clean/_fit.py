"""Learn from a table what the columns are, and how to fill, scale and encode them."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxsafe.clean import _chunks, _moments, _options, _rules, _table
from jaxsafe.clean._build import build
from jaxsafe.clean._cleaner import Cleaner, Column
from jaxsafe.clean._moments import Admission
from jaxsafe.clean._options import Options
from jaxsafe.clean._table import HostArray, Table

_FUNCTION = "clean.fit"


def fit(
    data: Any,
    *,
    impute: str | Mapping[str, str] = "mean",
    fill_value: float | Mapping[str, float] = 0.0,
    scale: str | None = "standard",
    outliers: float | str | tuple[str, float] | None = None,
    outlier_action: str = "clip",
    ranges: Mapping[str, tuple[float | None, float | None]] | None = None,
    range_action: str = "mask",
    allowed: Mapping[str, Sequence[float | str]] | None = None,
    categories: str = "onehot",
    missing: Sequence[float | str] = (),
    indicator: bool = False,
    quantiles: str = "exact",
) -> Cleaner:
    """Learn from training data how to fill, scale and encode it.

    NaN, None and infinite entries always count as missing (`clean.audit` counts them
    apart), and so does a number that float32 cannot hold. Statistics are those of the
    observed entries, as float32. A column without any is filled with `fill_value`;
    such a column and a constant one are divided by 1, so that they come out as 0.

    Args:
      data: array[rows, columns], a data frame (pandas, polars, arrow, or what has
        `__arrow_c_stream__` or `__dataframe__`; a lazy one must be collected), or a
        mapping from names to columns; or an iterator, list or tuple of such chunks,
        which are read one after the other.
        Integers and floats are numbers; text, booleans and categoricals categories.
      impute: what a missing number becomes: "zero", "mean", "median", "most_frequent"
        (the smallest of several) or "constant"; or a mapping from columns to these,
        where a column that is not named gets its mean. A missing category stays a
        category of its own, unless its column is named with "most_frequent".
      fill_value: the constant, or a mapping from columns to constants.
      scale: "standard" to subtract the mean and divide by the standard deviation,
        "minmax" for 0 to 1, "robust" to subtract the median and divide by the distance
        of the quartiles, None to leave numbers as they are.
      outliers: where outliers begin: a positive k for k standard deviations around the
        mean; or a rule, alone or with its limit: ("std", 3.0), ("iqr", 1.5) times the
        distance of the quartiles beyond them, ("mad", 3.5) times the median distance
        from the median (scaled to the deviation of a normal column), ("quantile",
        0.01), the share cut off at each end.
      outlier_action: "clip" to the nearest number that is none, or "mask": missing.
      ranges: what a column may hold, such as {"age": (0, 120)}; None is an open end.
      range_action: a number out of range is missing ("mask") or moved to the nearest
        end ("clip"), before any statistic; `clean.audit` counts and names it.
      allowed: the only values that a column may hold, such as {"grade": ("a", "b"),
        "stars": (1, 2, 3)}, a few; another one is missing, in training and later, and
        `clean.audit` counts it as forbidden.
      categories: "onehot": one feature per category, and one more for a missing entry
        if the data has any; a category never seen is a row of zeros, so it meets no
        weight that was never trained. "ordinal": the position in sorted order (as
        numbers where a categorical dtype holds numbers, else as text); of n categories,
        n stands for missing and n + 1 for one never seen.
      missing: further values that mean "missing", such as (-999.0, "?").
      indicator: for each numeric column that had holes, `apply` adds a feature that is
        1 where an entry was filled.
      quantiles: "exact", or "sketch": from counts in buckets, in less than a quarter of
        the time; off by at most 1/64 of the distance from the column's pivot, a number
        near its mean.

    Returns:
      A `Cleaner`, for `clean.apply` (inside jit) and `clean.encode` (before it).

    Raises:
      TypeError: complex, date or traced data.
      ValueError: empty or one-dimensional data, an unknown option or column.

    >>> table = {"city": ["London", "Venice", "Prague"], "rain": [2.5, None, 4.6]}
    >>> cleaner = fit(table)
    >>> cleaner
    Cleaner(2 columns -> 4 features, impute='mean', scale='standard')
    >>> float(cleaner.fill[-1])
    3.55
    """
    options = _options.check(
        impute=impute,
        fill_value=fill_value,
        scale=scale,
        outliers=outliers,
        outlier_action=outlier_action,
        ranges=ranges,
        range_action=range_action,
        allowed=allowed,
        categories=categories,
        missing=missing,
        indicator=indicator,
        quantiles=quantiles,
    )
    if _chunks.are_chunks(data):
        return _chunks.fit(data, options, fit_table)
    return fit_table(_table.read(_FUNCTION, data), options)


def fit_table(table: Table, options: Options) -> Cleaner:
    """`fit` of a table that has been read."""
    _options.check_names(options, table.names)
    kinds = table.kinds
    _options.check_kinds(options, dict(zip(table.names, kinds, strict=True)))
    names = [n for n, k in zip(table.names, kinds, strict=True) if k == "number"]
    x, sentinels = _numbers(table, kinds, options)
    admit = Admission(names, sentinels, options, dtype=_table.precision(x.dtype))
    facts = _moments.facts(x, admit, options)
    assert facts.holes is not None
    holes = iter(facts.holes)
    columns, frequencies = [], []
    for name, values, kind in zip(table.names, table.columns, kinds, strict=True):
        if kind == "number":
            had = options.indicator and bool(next(holes))
            columns.append(Column(name, "number", (), had))
        else:
            numbered = name in table.numbered
            column, found = _category(name, values, options, numbered)
            columns.append(column)
            frequencies.append(found)
    return build(columns, facts, frequencies, options)


def _numbers(
    table: Table, kinds: Sequence[str], options: Options
) -> tuple[Any, tuple[float, ...]]:
    """(matrix of the numeric columns, sentinels still to be looked for in it)."""
    import numpy as np

    if table.matrix is not None:
        dtype = table.matrix.dtype
        return table.matrix, _table.sentinel_numbers(options.missing, dtype)
    found = []
    for name, values, kind in zip(table.names, table.columns, kinds, strict=True):
        if kind == "number":
            x = _table.numbers(_FUNCTION, name, values)
            gone = _table.sentinel_mask(values, options.missing)
            found.append(np.where(gone, np.float32(np.nan), x))
    if not found:
        return np.zeros((table.rows, 0), np.float32), ()
    return np.stack(found, axis=1), ()


def _category(
    name: str, values: HostArray, options: Options, numbered: bool
) -> tuple[Column, HostArray]:
    """The column, and the rows of each category, then of the missing ones."""
    import numpy as np

    found = _rules.entries(name, values, options).texts
    seen = {text for text in found if text is not None}
    present = _table.in_order(seen, numbered=numbered)
    place: dict[str | None, int] = {text: i for i, text in enumerate(present)}
    place[None] = len(present)
    codes = np.asarray([place[text] for text in found])
    counts = np.bincount(codes, minlength=len(present) + 1)
    fill = most_frequent(name, present, counts, options)
    had_missing = None in found
    return Column(name, "category", present, had_missing, fill, numbered), counts


def most_frequent(
    name: str, categories: Sequence[str], counts: HostArray, options: Options
) -> str | None:
    """The category that a missing one becomes; of several the first; None if not asked.

    Only a column that is named: `impute="most_frequent"` for all is about numbers.
    """
    asked = isinstance(options.impute, tuple) and name in dict(options.impute)
    if not asked or not categories:
        return None
    return categories[int(counts[: len(categories)].argmax())]
