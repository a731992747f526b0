"""From statistics per column to the arrays per feature that a device needs.

Everything that can be computed once is computed here, in float64: where outliers
begin, what a hole becomes after scaling, what to divide by.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxsafe import _floats
from jaxsafe._errors import error
from jaxsafe.clean import _sketch
from jaxsafe.clean._cleaner import Cleaner, Column
from jaxsafe.clean._moments import Facts, needs_deviation
from jaxsafe.clean._options import Options
from jaxsafe.clean._table import HostArray

# A normal column's deviation is this many median distances from the median.
_NORMAL = 1.482602218505602
LARGEST = _floats.largest(jnp.float32)


def build(
    columns: Sequence[Column],
    facts: Facts,
    frequencies: Sequence[HostArray],
    options: Options,
) -> Cleaner:
    """Lay out one float32 array per statistic, one entry per feature.

    Args:
      columns: of the data.
      facts: of the numeric columns, in order.
      frequencies: of the other columns, in order: rows of each category, then of the
        missing ones.
      options: the arguments of `fit`.
    """
    import numpy as np

    names = [column.name for column in columns if column.kind == "number"]
    numeric = _numeric(names, facts, options)
    parts: dict[str, list[HostArray]] = {name: [] for name in numeric}
    number, category = iter(range(len(names))), iter(frequencies)
    for column in columns:
        if column.kind == "number":
            i = next(number)
            block = {name: values[i : i + 1] for name, values in numeric.items()}
        else:
            block = _neutral(column, next(category), options)
        for name, values in block.items():
            parts[name].append(values)
    rows = {name: np.concatenate(values) for name, values in parts.items()}
    if rows["count"].max(initial=0) > np.iinfo(np.int32).max:
        raise error(
            ValueError,
            "clean.merge",
            "more entries than an int32 can count",
            int(rows["count"].max()),
            "Fit on a sample of the data.",
        )
    return Cleaner(
        **_arrays(rows),
        sketch=_device(facts.sketch),
        frequent=_device(facts.frequent),
        columns=tuple(columns),
        options=options,
    )


def _arrays(rows: dict[str, HostArray]) -> dict[str, Any]:
    import numpy as np

    found = {name: x.astype(np.float32) for name, x in rows.items()}
    for name in ("mean", "std", "center", "inverse"):
        found[f"{name}_low"] = (rows[name] - found[name]).astype(np.float32)
    found["count"] = rows["count"].astype(np.int32)
    return jax.device_put(found)


def _device(counts: Any) -> Any:
    if counts is None:
        return None
    return type(counts)(*(jnp.array(part) for part in counts))


def _numeric(
    names: Sequence[str], facts: Facts, options: Options
) -> dict[str, HostArray]:
    """Every statistic of the numeric columns, float64[columns]."""
    import numpy as np

    seen = facts.count > 0
    constant = np.asarray([options.fill_value_of(name) for name in names], np.float64)

    def known(values: Any) -> HostArray:
        return np.where(seen, values, constant)

    mean, minimum, maximum = map(known, (facts.mean, facts.minimum, facts.maximum))
    # XLA on CPU flushes a subnormal deviation to 0; so it is 0 from the start.
    std = np.where(seen & (facts.std >= _floats.tiny(jnp.float32)), facts.std, 0.0)
    fills: dict[str, Any] = {
        "zero": np.zeros(len(names)),
        "constant": constant,
        "mean": mean,
    }
    if "median" in options.imputes:
        fills["median"] = known(facts.quantiles[0.5])
    if facts.frequent is not None:
        fills["most_frequent"] = known(np.nan_to_num(_sketch.mode(facts.frequent)))
    fill = np.asarray(
        [fills[options.impute_of(name)][i] for i, name in enumerate(names)], np.float64
    )
    center, spread = _scaling(facts, options, mean, std, minimum, maximum, known)
    lower, upper = _fences(facts, options, mean, std, center, spread, known)
    divisor = np.where(spread >= _floats.tiny(jnp.float32), spread, 1.0)
    # A divisor in [1/4, 1/2): neither a difference nor a product leaves the range.
    unit = np.exp2(np.clip(-1 - np.frexp(divisor)[1], -126, 126))
    return {
        "count": facts.count,
        "mean": mean,
        "std": std,
        "minimum": minimum,
        "maximum": maximum,
        "fill": fill,
        "filled": _limited((fill - center) / divisor),
        "center": center,
        "unit": unit,
        "divisor": divisor * unit,
        "inverse": 1 / (divisor * unit),
        "lower": lower,
        "upper": upper,
    }


def _scaling(
    facts: Facts,
    options: Options,
    mean: HostArray,
    std: HostArray,
    minimum: HostArray,
    maximum: HostArray,
    known: Any,
) -> tuple[HostArray, HostArray]:
    """(what is subtracted, what is divided by; 0 stands for 1)."""
    import numpy as np

    if options.scale is None:
        return np.zeros_like(mean), np.ones_like(mean)
    if options.scale == "standard":
        return mean, std
    if options.scale == "minmax":
        return minimum, maximum - minimum
    low, middle, high = (known(facts.quantiles[p]) for p in (0.25, 0.5, 0.75))
    return middle, high - low


def _fences(
    facts: Facts,
    options: Options,
    mean: HostArray,
    std: HostArray,
    center: HostArray,
    spread: HostArray,
    known: Any,
) -> tuple[HostArray, HostArray]:
    """Beyond which numbers are outliers, after scaling."""
    import numpy as np

    none = np.full_like(mean, LARGEST)
    if options.outliers is None:
        return -none, none
    rule, limit = options.outliers
    at = {p: known(q) for p, q in facts.quantiles.items()}
    if rule == "std":
        low, high = mean - limit * std, mean + limit * std
    elif rule == "iqr":
        reach = limit * (at[0.75] - at[0.25])
        low, high = at[0.25] - reach, at[0.75] + reach
    elif rule == "mad":
        assert needs_deviation(options)
        assert facts.deviation is not None
        reach = limit * _NORMAL * facts.deviation
        low, high = at[0.5] - reach, at[0.5] + reach
    else:
        low, high = at[limit], at[1 - limit]
    divisor = np.where(spread >= _floats.tiny(jnp.float32), spread, 1.0)
    return _limited((low - center) / divisor), _limited((high - center) / divisor)


def _limited(x: HostArray) -> HostArray:
    import numpy as np

    return np.clip(x, -LARGEST, LARGEST)


def _neutral(
    column: Column, frequencies: HostArray, options: Options
) -> dict[str, HostArray]:
    """Statistics that leave a category's features as they are."""
    import numpy as np

    width = len(column.features(options.categories))
    one_hot = options.categories == "onehot"
    count = frequencies[:width] if one_hot else frequencies.sum(keepdims=True)
    ones = np.ones(width)
    values = {
        "mean": 0.0,
        "std": 1.0,
        "minimum": 0.0,
        "maximum": float(len(column.categories) + 1),
        "fill": 0.0,
        "filled": 0.0,
        "center": 0.0,
        "unit": 1.0,
        "divisor": 1.0,
        "inverse": 1.0,
        "lower": -LARGEST,
        "upper": LARGEST,
    }
    return {"count": count, **{name: value * ones for name, value in values.items()}}
