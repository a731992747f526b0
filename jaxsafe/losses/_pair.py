"""What every loss of predictions and targets shares: how the two meet, and masking.

Numbers narrower than float32 are widened first, and the loss stays in float32: it goes
into means and sums, where half precision has no digits to spare.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxsafe import _floats
from jaxsafe._errors import check_floating, check_not_empty, error


def floating(function: str, name: str, value: Any) -> jax.Array:
    """`value` as a wide floating array that is not empty."""
    x = check_floating(function, name, value)
    check_not_empty(function, name, x)
    return x.astype(_floats.wide(x.dtype))


def same_shape(function: str, name: str, value: Any, like: jax.Array) -> jax.Array:
    """`value` with the shape and dtype of `like`; only a scalar is broadcast.

    [n] against [n, 1] would broadcast to [n, n], a classic silent bug.
    """
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


def included(loss: Callable[..., jax.Array], where: Any, *args: jax.Array) -> jax.Array:
    """`loss(*args)`, 0 with zero gradient where excluded, whatever is there."""
    if where is None:
        return loss(*args)
    mask = jnp.broadcast_to(where, args[0].shape)
    value = loss(*(jnp.where(mask, a, 0) for a in args))
    return jnp.where(mask, value, 0)
