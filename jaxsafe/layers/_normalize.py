"""Standardised values on plain arrays, for every normalisation layer.

The numbers come from `ops._moments`, as those of `ops.standardize` do: two passes, in
range, over several devices if need be. What is particular to a layer: a masked entry
counts for nothing but is normalised as flax does; a masked NaN or Inf is taken for the
mean, so that no gradient meets it.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsafe import _floats
from jaxsafe._errors import check_axis, check_not_empty, error
from jaxsafe.ops._moments import Over, frame, standard, variance

Axes = int | Iterable[int]


class Moments(NamedTuple):
    """Statistics of an array; reduced axes are kept.

    Attributes:
      mean: mean; 0 where it is not asked for, or nothing is left.
      variance: mean square of x - mean, at most the largest number of the dtype.
      standard: (x - mean) / sqrt(variance + eps), of the shape of `x`.
      empty: bool, nothing is left in the row.
    """

    mean: jax.Array
    variance: jax.Array
    standard: jax.Array
    empty: jax.Array


def axis_tuple(function: str, axes: Axes, ndim: int) -> tuple[int, ...]:
    """Axes counted from 0, sorted, each once."""
    several = axes if isinstance(axes, Iterable) else (axes,)
    return tuple(sorted({check_axis(function, axis, ndim) for axis in several}))


def to_compute(function: str, x: Any, dtype: Any) -> jax.Array:
    """`x` in the dtype of its statistics: that of the layer, at least float32."""
    x = jnp.asarray(x)
    dtype = jnp.promote_types(x.dtype if dtype is None else dtype, jnp.float32)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise error(
            TypeError,
            function,
            "inputs must be real numbers",
            dtype,
            "Normalise real and imaginary part apart.",
        )
    check_not_empty(function, "inputs", x)
    return x.astype(dtype)


def standardize(
    x: jax.Array,
    axes: tuple[int, ...],
    *,
    eps: float,
    where: Any = None,
    centre: bool = True,
    axis_name: str | None = None,
    groups: Any = None,
) -> Moments:
    """Statistics of `x` over `axes` and devices, and its standardised values."""
    several = None if groups is None else tuple(map(tuple, groups))
    over = Over(axes, axis_name, several, centre)
    real = True
    if where is not None:
        where = _expanded(where, x.shape)
        real = where | jnp.isfinite(x)
        x = jnp.where(real, x, 0)
    added = jnp.asarray(eps, x.dtype)
    row = frame(x, over, where, floor=jnp.sqrt(added))
    mean, values = standard(x, row, added, over)
    square = variance(x, row, jnp.zeros((), x.dtype), over)
    # Not a minimum: XLA on CPU may lose a NaN in it.
    most = _floats.largest(x.dtype)
    square = jnp.where(square > most, most, square)
    values = jnp.where(real & ~row.empty, values, 0)
    return Moments(mean, square, values, row.empty)


def standardize_groups(
    x: jax.Array, count: int, axes: Axes | None, *, where: Any, **options: Any
) -> jax.Array:
    """Standardised values of `x` whose last axis falls into `count` groups.

    `axes` are those of `x`, the last one among them; None for all but the first.
    """
    name = "layers.GroupNorm"
    several = (
        tuple(range(1, x.ndim)) if axes is None else axis_tuple(name, axes, x.ndim)
    )
    if several[-1:] != (x.ndim - 1,):
        raise error(
            ValueError,
            name,
            "the reduction axes must include the last one, that of the features",
            axes,
            "Add -1 to reduction_axes.",
        )

    def split(a: jax.Array) -> jax.Array:
        return a.reshape(*a.shape[:-1], count, -1)

    mask = None if where is None else split(_expanded(where, x.shape))
    inner = (*several[:-1], x.ndim)
    return standardize(split(x), inner, where=mask, **options).standard.reshape(x.shape)


def affine(
    standard: jax.Array, scale: Any, bias: Any, features: tuple[int, ...]
) -> jax.Array:
    """Times `scale` plus `bias` along the features, in the dtype of the statistics."""
    shape = [n if i in features else 1 for i, n in enumerate(standard.shape)]
    if scale is not None:
        standard = standard * scale.astype(standard.dtype).reshape(shape)
    if bias is not None:
        standard = standard + bias.astype(standard.dtype).reshape(shape)
    return standard


def moving_average(
    moments: Moments, momentum: float, old: jax.Array, new: jax.Array
) -> jax.Array:
    """The running statistic after a batch; as it was where the batch had nothing."""
    new = new.reshape(old.shape)
    moved = momentum * old.astype(new.dtype) + (1 - momentum) * new
    empty = moments.empty.reshape(old.shape)
    return jnp.where(empty, old, moved.astype(old.dtype))


def unmasked(x: Any, where: Any) -> Any:
    """`x` with a masked NaN or Inf taken for 0, for statistics that are given."""
    if where is None:
        return x
    x = jnp.asarray(x)
    return jnp.where(_expanded(where, x.shape) | jnp.isfinite(x), x, 0)


def _expanded(mask: Any, shape: tuple[int, ...]) -> jax.Array:
    mask = jnp.asarray(mask).astype(bool)
    return jnp.broadcast_to(
        mask.reshape((1,) * (len(shape) - mask.ndim) + mask.shape), shape
    )
