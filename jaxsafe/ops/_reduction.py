"""What reductions share: the axes, the mask, one program per call, one rounding."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _floats
from jaxsafe._errors import check_axis, check_floating

Axis = int | tuple[int, ...] | None
Axes = tuple[int, ...]


def axis_tuple(function: str, axis: Axis, ndim: int) -> tuple[int, ...]:
    """The axes as non-negative numbers; None means all."""
    if axis is None:
        return tuple(range(ndim))
    axes = axis if isinstance(axis, tuple) else (axis,)
    return tuple(check_axis(function, a, ndim) for a in axes)


def reduction(
    name: str,
    core: Callable[..., jax.Array],
    axis: Axis,
    *options: Any,
    where: ArrayLike | None,
    keepdims: bool = True,
    **argument: ArrayLike,
) -> jax.Array:
    """Check the argument, compute in a wide dtype and round once.

    `core(x, axes, where, *options)` keeps the axes it reduces; options are arrays or
    None. `core` must be the same object at each call, or each call compiles.
    """
    ((key, value),) = argument.items()
    x = check_floating(name, key, value)
    axes = axis_tuple(name, axis, x.ndim)
    mask = None if where is None else jnp.asarray(where)
    return _rounded_once(core, axes, keepdims, x, mask, *options)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _rounded_once(
    core: Callable[..., jax.Array],
    axes: tuple[int, ...],
    keepdims: bool,
    x: jax.Array,
    where: jax.Array | None,
    *options: Any,
) -> jax.Array:
    out = core(x.astype(_floats.wide(x.dtype)), axes, where, *options)
    return (out if keepdims else jnp.squeeze(out, axes)).astype(x.dtype)


def only(x: jax.Array, where: ArrayLike | None, other: float = 0.0) -> jax.Array:
    """`x` with another number for what is left out, in value and gradient."""
    return x if where is None else jnp.where(jnp.broadcast_to(where, x.shape), x, other)
