"""The half of cleaning that runs on the device: fill, scale, clip, mask.

Every step is a selection or a bounded sum, so whatever bits come in, finite numbers
come out. `x - mean` can overflow where the quotient by the deviation does not, and a
deviation above 8.5e37 has a reciprocal that XLA on CPU flushes to 0; so large numbers
are scaled down by a power of two first.

Must never multiply a missing entry by anything: 0 * NaN is NaN.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsafe import _floats
from jaxsafe._errors import error
from jaxsafe.clean import _rules, _table
from jaxsafe.clean._cleaner import Cleaner
from jaxsafe.ops import _exact


def apply(
    cleaner: Cleaner, array: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """Fill the holes of a numeric array, scale it and tame its outliers.

    Pure, for use inside jit, vmap, grad and scan. Half precision is computed in
    float32; integers come out as float32.

    Value: finite for every input, at most the largest number of the dtype.
    Gradient: finite; 0 for missing, clipped and masked entries.
    NaN in: counts as missing, like an infinity, and is filled.

    Args:
      cleaner: from `clean.fit`.
      array: [..., features], numeric columns as they are or the output of `encode`.
      where: bool[...], one per row; a row with False comes out as zeros.

    Returns:
      An array of the same shape and floating dtype; with indicators, one more feature
      for each name in `cleaner.output_features` beyond `cleaner.features`.

    Raises:
      TypeError: text, complex numbers or a frame instead of a numeric array.
      ValueError: the number of features differs from the fitted one.

    >>> import numpy as np
    >>> from jaxsafe import clean
    >>> data = np.array([[2.5, 7.9], [np.nan, 8.9], [4.6, np.nan]], np.float32)
    >>> clean.apply(clean.fit(data, scale=None), data)
    Array([[2.5 , 7.9 ],
           [3.55, 8.9 ],
           [4.6 , 8.4 ]], dtype=float32)
    """
    x = check_array("clean.apply", cleaner, array)
    keep = None if where is None else _check_where(where, x.shape)
    # The counts of a fit are of no use here, and large.
    lean = dataclasses.replace(cleaner, sketch=None, frequent=None)
    return _jitted(lean, x, keep)


def cleaned(xp: Any, cleaner: Cleaner, x: Any, keep: Any) -> Any:
    """`apply` in NumPy or JAX: `xp` is the module."""
    dtype = x.dtype
    wide = x.astype(_floats.wide(dtype))
    z, missing = _scaled(xp, cleaner, wide, dtype)
    z = xp.where(missing, _row(cleaner.filled.astype(z.dtype), z), z)
    limit = _floats.largest(dtype)
    z = xp.clip(z, -limit, limit)
    if cleaner.indicated_columns:
        owners = cleaner.owners
        places = [owners.index(i) for i in cleaner.indicated_columns]
        flags = missing[..., xp.asarray(places)].astype(z.dtype)
        z = xp.concatenate([z, flags], axis=-1)
    if keep is not None:
        z = xp.where(keep[..., None], z, xp.zeros_like(z))
    return z.astype(dtype)


@jax.jit
def _jitted(cleaner: Cleaner, x: jax.Array, keep: Any) -> jax.Array:
    return cleaned(jnp, cleaner, x, keep)


def missing_in(xp: Any, cleaner: Cleaner, x: Any, dtype: Any) -> Any:
    """bool[..., features]: NaN, infinite, a sentinel, or not one of the allowed.

    Values of the options are compared as `dtype` would hold them.
    """
    missing = ~xp.isfinite(x)
    numeric = None
    for value in _table.sentinel_numbers(cleaner.options.missing, dtype):
        numeric = _numeric(xp, cleaner, x) if numeric is None else numeric
        missing = missing | ((x == value) & numeric)
    if cleaner.options.allowed:
        pairs = zip(cleaner.owners, cleaner.is_number, strict=True)
        names = [cleaner.columns[i].name if number else None for i, number in pairs]
        rows = _rules.rows(names, cleaner.options, dtype)
        missing = missing | ~_rules.holds(xp, x, rows)
    return missing


def ends(xp: Any, cleaner: Cleaner, x: Any) -> tuple[Any, Any] | None:
    """(low, high) of each feature by the rules of the options, if there are any."""
    rules = dict(cleaner.options.ranges)
    if not rules:
        return None
    largest = _floats.largest(x.dtype)
    pairs = [
        rules.get(cleaner.columns[owner].name, (-largest, largest))
        for owner in cleaner.owners
    ]
    low, high = (xp.asarray(end, dtype=x.dtype) for end in zip(*pairs, strict=True))
    return _row(low, x), _row(high, x)


def _scaled(xp: Any, cleaner: Cleaner, x: Any, dtype: Any) -> tuple[Any, Any]:
    """(scaled, with outliers clipped as the options say; what must be filled)."""
    options = cleaner.options
    missing = missing_in(xp, cleaner, x, dtype)
    limits = ends(xp, cleaner, x)
    if limits is not None:
        low, high = limits
        if options.range_action == "mask":
            missing = missing | (x < low) | (x > high)
        else:
            x = xp.clip(x, low, high)
    x = xp.where(missing, xp.zeros_like(x), x)
    if options.scale is not None:
        x = _centred(xp, cleaner, x)
    if options.outliers is None:
        return x, missing
    lower, upper = (_row(v.astype(x.dtype), x) for v in (cleaner.lower, cleaner.upper))
    if options.outlier_action == "mask":
        return x, missing | (x < lower) | (x > upper)
    return xp.clip(x, lower, upper), missing


def _centred(xp: Any, cleaner: Cleaner, x: Any) -> Any:
    """(x - center) / divisor; may overflow, is never NaN."""
    fields = (
        cleaner.center,
        cleaner.center_low,
        cleaner.unit,
        cleaner.inverse,
        cleaner.inverse_low,
    )
    if xp is not jnp:  # the host has float64, which needs no care
        center, low, unit, high, rest = (v.astype(xp.float64) for v in fields)
        z = (x * unit - (center + low) * unit) * (high + rest)
        limit = _floats.largest(x.dtype)
        return xp.clip(z, -limit, limit).astype(x.dtype)
    center, low, unit, high, rest = (_row(v.astype(x.dtype), x) for v in fields)
    coarse = _exact.short(high)
    # Behind a barrier they are made once for each column, not for each entry; and XLA
    # would fold (x - mean) - low into one.
    unit, base, low, coarse, rest = lax.optimization_barrier(
        (unit, center * unit, low * unit, coarse, (high - coarse) + rest)
    )
    distance, lost = _exact.rounding(x * unit, jnp.broadcast_to(base, x.shape))
    # The product of the leading halves is exact; all else is small and added last.
    leading, moved = _exact.cut(distance), lost - low
    fine = (distance - leading) + moved
    z = leading * coarse + (fine * coarse + (distance + moved) * rest)
    return jnp.where(jnp.isfinite(distance), z, distance * coarse)


def _numeric(xp: Any, cleaner: Cleaner, x: Any) -> Any:
    return _row(xp.asarray(cleaner.is_number), x)


def _row(statistic: Any, x: Any) -> Any:
    """A [features] array with as many axes as `x`, so that no rank is promoted."""
    return statistic.reshape((1,) * (x.ndim - 1) + statistic.shape)


def check_array(function: str, cleaner: Cleaner, array: Any) -> jax.Array:
    """A numeric array with the fitted features, or an error that says what it is."""
    import numpy as np

    if hasattr(array, "columns"):
        raise error(
            TypeError,
            function,
            "array must be an array, not a frame",
            type(array).__name__,
            "Turn it into numbers first: clean.encode(cleaner, data).",
        )
    if not isinstance(array, jax.Array):
        array = np.asarray(array)
    number = jnp.issubdtype(array.dtype, jnp.floating)
    if not number and array.dtype.kind not in "biu":
        raise error(
            TypeError,
            function,
            "array must hold real numbers",
            array.dtype,
            "Turn text into numbers first: clean.encode(cleaner, data).",
        )
    features = len(cleaner.features)
    if array.ndim == 0 or array.shape[-1] != features:
        raise error(
            ValueError,
            function,
            f"the last axis must have the {features} fitted features",
            f"shape {array.shape}",
            "Pass the columns the cleaner was fitted on, or encode them first.",
        )
    # A float64 that float32 cannot hold is missing, a signalling NaN as well.
    with np.errstate(over="ignore", invalid="ignore"):
        return jnp.asarray(array, None if number else jnp.float32)


def _check_where(where: ArrayLike, shape: tuple[int, ...]) -> jax.Array:
    mask = jnp.asarray(where)
    if mask.dtype != jnp.bool_ or mask.shape != shape[:-1]:
        raise error(
            ValueError,
            "clean.apply",
            f"where must be a bool array of shape {shape[:-1]}",
            f"{mask.dtype}{list(mask.shape)}",
            "Give one flag per row, True for a row that counts.",
        )
    return mask
