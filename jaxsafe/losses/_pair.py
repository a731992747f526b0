"""What every loss of predictions and targets shares: how the two meet, and masking.

Numbers narrower than float32 are widened first, and the loss stays in float32: it goes
into means and sums, where half precision has no digits to spare.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxsafe.losses._inputs import matching, wide_floating

floating, same_shape = wide_floating, matching


def included(loss: Callable[..., jax.Array], where: Any, *args: jax.Array) -> jax.Array:
    """`loss(*args)`, 0 with zero gradient where excluded, whatever is there."""
    if where is None:
        return loss(*args)
    mask = jnp.broadcast_to(where, args[0].shape)
    value = loss(*(jnp.where(mask, a, 0) for a in args))
    return jnp.where(mask, value, 0)
