"""The half of cleaning that runs on the device: fill, scale, clip, mask.

Every step is a selection or a bounded sum, so whatever bits come in, finite numbers
come out. `x - mean` can overflow where the quotient by the deviation does not, and a
deviation above 8.5e37 has a reciprocal that XLA on CPU flushes to 0; so large numbers
are scaled down by a power of two first.

Must never multiply a missing entry by anything: 0 * NaN is NaN.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsafe import _floats
from jaxsafe._errors import error
from jaxsafe.clean import _table
from jaxsafe.clean._cleaner import Cleaner


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
      An array of the same shape and floating dtype.

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
    x = _check_array(cleaner, array)
    dtype = x.dtype
    wide = x.astype(_floats.wide(dtype))
    missing = _missing(cleaner, wide, dtype)
    fill = _row(cleaner.fill.astype(wide.dtype), wide)
    z = _scaled(cleaner, jnp.where(missing, fill, wide))
    if cleaner.options.scale and cleaner.options.impute == "mean":
        z = jnp.where(missing, 0, z)  # the mean itself, not its float32 neighbour
    limit = _floats.largest(dtype)
    z = jnp.clip(z, -limit, limit)
    if where is not None:
        z = jnp.where(_check_where(where, x.shape)[..., None], z, 0)
    return z.astype(dtype)


def _missing(cleaner: Cleaner, x: jax.Array, dtype: Any) -> jax.Array:
    """bool[..., features]: NaN, infinite, or a sentinel as `dtype` would hold it."""
    missing = ~jnp.isfinite(x)
    for value in _table.sentinel_numbers(cleaner.options.missing, dtype):
        missing |= (x == value) & _row(jnp.asarray(cleaner.is_number), x)
    return missing


def _scaled(cleaner: Cleaner, x: jax.Array) -> jax.Array:
    """Standardised and clipped, as the options say; may overflow, is never NaN."""
    options = cleaner.options
    # Without the barrier XLA would fold constants, (x - mean) - mean_low, into one.
    mean, low, std = lax.optimization_barrier(
        (cleaner.mean, cleaner.mean_low, cleaner.std)
    )
    mean, low, std = (_row(v.astype(x.dtype), x) for v in (mean, low, std))
    std = jnp.where(std > 0, std, 1)
    numeric = _row(jnp.asarray(cleaner.is_number), x)
    k = options.outliers
    if options.scale is None:
        if k is None:
            return x
        return jnp.where(numeric, jnp.clip(x, mean - k * std, mean + k * std), x)
    # Scaling down a column whose deviation is below 1 could only lose digits.
    unit = jnp.where(std < 1, 1, 0.125).astype(x.dtype)
    z = (x * unit - mean * unit - low * unit) / (std * unit)
    return z if k is None else jnp.where(numeric, jnp.clip(z, -k, k), z)


def _row(statistic: jax.Array, x: jax.Array) -> jax.Array:
    """A [features] array with as many axes as `x`, so that no rank is promoted."""
    return statistic.reshape((1,) * (x.ndim - 1) + statistic.shape)


def _check_array(cleaner: Cleaner, array: Any) -> jax.Array:
    import numpy as np

    if hasattr(array, "columns"):
        raise error(
            TypeError,
            "clean.apply",
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
            "clean.apply",
            "array must hold real numbers",
            array.dtype,
            "Turn text into numbers first: clean.encode(cleaner, data).",
        )
    features = len(cleaner.features)
    if array.ndim == 0 or array.shape[-1] != features:
        raise error(
            ValueError,
            "clean.apply",
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
