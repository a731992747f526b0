"""Statistics of the observed entries of every column, on the host, in float64.

Each column is shifted by its first observed entry (the pivot) before anything is
summed, then the mean is taken, then the squares of what is left: right to the last
digit of float32 at mean 1e6 and spread 1, for entries of 3e38, and exactly 0 for a
constant column.

Must never count a missing entry, neither in a mean nor in a deviation.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxsafe import _errors, _floats
from jaxsafe._errors import error
from jaxsafe.clean import _table
from jaxsafe.clean._cleaner import Cleaner, Column, Options
from jaxsafe.clean._moments import Moments, build, filling, neutral
from jaxsafe.clean._table import HostArray


def fit(
    data: Any,
    *,
    impute: str = "mean",
    fill_value: float = 0.0,
    scale: str | None = "standard",
    outliers: float | None = None,
    categories: str = "onehot",
    missing: Sequence[float | str] = (),
) -> Cleaner:
    """Learn from training data how to fill, scale and encode it.

    NaN, None and infinite entries always count as missing (`clean.audit` counts them
    apart), and so does a number that float32 cannot hold. Statistics are those of the
    observed entries, as float32. A column without any is filled with `fill_value`;
    such a column and a constant one are divided by 1, so that they come out as 0.

    Args:
      data: array[rows, columns], a data frame, or a mapping from names to columns.
        Integers and floats are numbers; text, booleans and categoricals categories.
      impute: what a missing number becomes: "zero", "mean", "median" or "constant".
      fill_value: the constant.
      scale: "standard" to subtract the mean and divide by the standard deviation, None
        to leave numbers as they are.
      outliers: a positive k to clip numbers to k standard deviations around the mean.
      categories: "onehot": one feature per category, and one more for a missing entry
        if the data has any; a category never seen is a row of zeros, so it meets no
        weight that was never trained. "ordinal": the position in sorted order; of n
        categories, n stands for missing and n + 1 for one never seen.
      missing: further values that mean "missing", such as (-999.0, "?").

    Returns:
      A `Cleaner`, for `clean.apply` (inside jit) and `clean.encode` (before it).

    Raises:
      TypeError: complex, date or traced data.
      ValueError: empty or one-dimensional data, an unknown option.

    >>> table = {"city": ["London", "Venice", "Prague"], "rain": [2.5, None, 4.6]}
    >>> cleaner = fit(table)
    >>> cleaner
    Cleaner(2 columns -> 4 features, impute='mean', scale='standard')
    >>> float(cleaner.fill[-1])
    3.55
    """
    options = _options(impute, fill_value, scale, outliers, categories, missing)
    table = _table.read("clean.fit", data)
    columns, moments = [], []
    for name, values in zip(table.names, table.columns, strict=True):
        column, known = _fit_column(name, values, options)
        columns.append(column)
        moments.append(known)
    return build(columns, moments, options)


def _options(
    impute: str,
    fill_value: float,
    scale: str | None,
    outliers: float | None,
    categories: str,
    missing: Sequence[float | str],
) -> Options:
    """Check every argument of `fit` and freeze them."""
    function = "clean.fit"
    imputes = ("zero", "mean", "median", "constant")
    _errors.check_choice(function, "impute", impute, imputes)
    _errors.check_choice(function, "categories", categories, ("onehot", "ordinal"))
    if scale is not None and scale != "standard":
        raise error(
            ValueError,
            function,
            "scale must be 'standard' or None",
            repr(scale),
            "Check the spelling.",
        )
    if not abs(fill_value) <= _floats.largest(jnp.float32):
        raise error(
            ValueError,
            function,
            "fill_value must be finite in float32",
            fill_value,
            "Pass an ordinary number.",
        )
    if outliers is not None:
        _errors.check_positive(function, "outliers", outliers)
        outliers = float(outliers)
    if isinstance(missing, str) or not isinstance(missing, Sequence):
        raise error(
            TypeError,
            function,
            "missing must be a tuple of values",
            repr(missing),
            "Put a single value into a tuple, such as (-999.0,).",
        )
    known = tuple(v if isinstance(v, str) else float(v) for v in missing)
    # NaN and infinities are missing anyway; a NaN, equal to nothing, would also make
    # jit compile anew for every cleaner.
    largest = _floats.largest(jnp.float32)
    sentinels = tuple(v for v in known if isinstance(v, str) or abs(v) <= largest)
    return Options(impute, float(fill_value), scale, outliers, categories, sentinels)


def _fit_column(
    name: str, values: HostArray, options: Options
) -> tuple[Column, Moments]:
    import numpy as np

    sentinel = _table.sentinel_mask(values, options.missing)
    if _table.kind(values) == "number":
        x = _table.numbers("clean.fit", name, values)
        observed = x[np.isfinite(x) & ~sentinel].astype(np.float64)
        return Column(name, "number"), _observe(observed, options)
    pairs = zip(_table.texts(values), sentinel, strict=True)
    found = {None if gone else text for text, gone in pairs}
    present = sorted(text for text in found if text is not None)
    column = Column(name, "category", tuple(present), None in found)
    return column, neutral(column, len(values))


def _observe(x: HostArray, options: Options) -> Moments:
    """Moments of the observed entries, float64."""
    import numpy as np

    if x.size == 0:
        value = options.fill_value
        return Moments(0, value, 0.0, value, value, filling(options, value, value))
    shifted = x - x[0]
    shift = shifted.mean()
    mean = float(x[0] + shift)
    std = float(np.sqrt(np.mean(np.square(shifted - shift))))
    median = float(np.median(x)) if options.impute == "median" else mean
    fill = filling(options, mean, median)
    return Moments(x.size, mean, std, float(x.min()), float(x.max()), fill)
