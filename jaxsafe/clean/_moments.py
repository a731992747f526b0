"""Six numbers per column in float64, and their layout as arrays per feature.

Fit produces moments, merge joins them, both hand them to `build`; `moments_of` is the
way back. What float32 loses is kept in the `_low` arrays, so the way there and back
costs about 1e-14.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxsafe import _floats
from jaxsafe._errors import error
from jaxsafe.clean._cleaner import Cleaner, Column, Options
from jaxsafe.clean._table import HostArray


class Moments(NamedTuple):
    """What is known of one column; its features share it."""

    observed: int
    mean: float
    std: float
    minimum: float
    maximum: float
    fill: float


def filling(options: Options, mean: float, median: float) -> float:
    """What a missing number becomes, before scaling."""
    constant = options.fill_value
    known = {"zero": 0.0, "mean": mean, "median": median, "constant": constant}
    return known[options.impute]


def neutral(column: Column, rows: int) -> Moments:
    """Moments that leave a category's features as they are."""
    return Moments(rows, 0.0, 1.0, 0.0, float(len(column.categories) + 1), 0.0)


def build(
    columns: Sequence[Column], moments: Sequence[Moments], options: Options
) -> Cleaner:
    """Lay the moments out as one float32 array per statistic, one entry per feature."""
    import numpy as np

    widths = [len(column.features(options.categories)) for column in columns]
    count, mean, std, minimum, maximum, fill = (
        np.repeat(np.asarray(values, np.float64), widths)
        for values in zip(*moments, strict=True)
    )
    if count.max() > np.iinfo(np.int32).max:
        raise error(
            ValueError,
            "clean.merge",
            "more entries than an int32 can count",
            int(count.max()),
            "Fit on a sample of the data.",
        )
    # XLA on CPU flushes a subnormal deviation to 0; so it is 0 from the start.
    std = np.where(std < _floats.tiny(jnp.float32), 0.0, std)

    def narrow(x: HostArray) -> Any:
        return jnp.asarray(x.astype(np.float32))

    def lost(x: HostArray) -> Any:
        return narrow(x - x.astype(np.float32))

    return Cleaner(
        count=jnp.asarray(count.astype(np.int32)),
        mean=narrow(mean),
        mean_low=lost(mean),
        std=narrow(std),
        std_low=lost(std),
        minimum=narrow(minimum),
        maximum=narrow(maximum),
        fill=narrow(fill),
        columns=tuple(columns),
        options=options,
    )


def moments_of(cleaner: Cleaner) -> list[Moments]:
    """Back from features to columns, in float64."""
    import numpy as np

    def wide(x: Any) -> HostArray:
        return np.asarray(x).astype(np.float64)

    style = cleaner.options.categories
    widths = [len(column.features(style)) for column in cleaner.columns]
    first = np.cumsum([0, *widths[:-1]])
    statistics = (
        wide(cleaner.count),
        wide(cleaner.mean) + wide(cleaner.mean_low),
        wide(cleaner.std) + wide(cleaner.std_low),
        wide(cleaner.minimum),
        wide(cleaner.maximum),
        wide(cleaner.fill),
    )
    rows = zip(*(x[first].tolist() for x in statistics), strict=True)
    return [Moments(int(count), *rest) for count, *rest in rows]
