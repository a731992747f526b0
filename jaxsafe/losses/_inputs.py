"""What losses share: how arguments come in, and a product without 0 * inf.

Shapes have to match exactly: [n] against [n, 1] would broadcast to [n, n], a classic
silent bug. Half precision is widened on the way in and the loss stays in float32.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _floats
from jaxsafe._errors import check_floating, check_not_empty, error
from jaxsafe.ops._exact import is_zero
from jaxsafe.ops._reduction import Axes


def wide_floating(function: str, name: str, x: ArrayLike) -> jax.Array:
    """`x`, not empty, in the dtype to compute in."""
    array = check_floating(function, name, x)
    check_not_empty(function, name, array)
    return array.astype(_floats.wide(array.dtype))


def matching(function: str, name: str, value: ArrayLike, like: jax.Array) -> jax.Array:
    """`value` with the shape and dtype of `like`; only a scalar is broadcast."""
    array = jnp.asarray(value)
    if array.ndim and array.shape != like.shape:
        raise error(
            ValueError,
            function,
            f"{name} must have shape {like.shape}",
            array.shape,
            "Reshape or broadcast one of the two, so that the pairs are certain.",
        )
    return jnp.broadcast_to(array.astype(like.dtype), like.shape)


def included(
    function: str, where: ArrayLike, shape: tuple[int, ...], axes: Axes
) -> jax.Array:
    """`where` as a mask of this shape; a mask of whole rows lacks the `axes`."""
    mask = jnp.asarray(where, bool)
    rows = tuple(n for i, n in enumerate(shape) if i not in axes)
    if mask.ndim and mask.shape == rows and len(rows) < len(shape):
        if rows == shape[-len(rows) :]:
            raise error(
                ValueError,
                function,
                "where could mean rows or classes",
                f"shape {mask.shape} for {shape}",
                "Give it as many dimensions as the predictions have.",
            )
        mask = jnp.expand_dims(mask, axes)
    return jnp.broadcast_to(mask, shape)


def where_included(
    loss: Callable[..., jax.Array], where: ArrayLike | None, *args: jax.Array
) -> jax.Array:
    """`loss(*args)`, 0 with zero gradient where excluded, whatever is there.

    `loss` must be the same object at each call, or each call compiles.
    """
    return _where_included(loss, None if where is None else jnp.asarray(where), *args)


@functools.partial(jax.jit, static_argnums=0)
def _where_included(
    loss: Callable[..., jax.Array], where: jax.Array | None, *args: jax.Array
) -> jax.Array:
    if where is None:
        return loss(*args)
    mask = jnp.broadcast_to(where, args[0].shape)
    value = loss(*(jnp.where(mask, a, 0) for a in args))
    return jnp.where(mask, value, 0)


def check_weight(function: str, name: str, value: Any, below: float) -> None:
    """Raise ValueError unless a concrete `value` lies in [0, below)."""
    if isinstance(value, jax.core.Tracer):
        return
    if not 0 <= float(value) < below:
        raise error(
            ValueError,
            function,
            f"{name} must lie in [0, {below:g})",
            value,
            f"Pass {name}=0.0 to do without.",
        )


def given(value: Any) -> Any:
    """A weight, or None for the number 0, which asks for nothing."""
    nothing = not isinstance(value, jax.core.Tracer) and float(value) == 0
    return None if nothing else value


def not_infinite(x: jax.Array) -> jax.Array:
    """`x` with infinities replaced by NaN, where their limit would hide them."""
    return x * jnp.where(jnp.isinf(x), jnp.nan, 1)


def finite(x: jax.Array) -> jax.Array:
    """`x` with infinities replaced by the largest numbers; a NaN stays."""
    most = _floats.largest(x.dtype)
    return jnp.where(jnp.isinf(x), jnp.sign(x) * most, x)


@jax.custom_jvp
def weighted(weight: jax.Array, x: jax.Array) -> jax.Array:
    """Product, where nothing of an infinity is nothing; a NaN stays."""
    return jnp.where(is_zero(weight) & ~jnp.isnan(x), 0, weight * x)


@weighted.defjvp
def _weighted_jvp(primals: Any, tangents: Any) -> Any:
    (weight, x), (dw, dx) = primals, tangents
    # An infinite slope times the tangent 0 of a constant weight would be NaN.
    return weighted(weight, x), weight * dx + finite(x) * dw
