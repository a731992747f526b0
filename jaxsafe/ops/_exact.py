"""Exact steps that inexact functions are built from.

A power of two changes only the exponent, so scaling by one costs no accuracy; the
rounding error of a difference is itself a float and can be computed. Both hold only
while the compiler does what is written: `pinned` keeps it from simplifying.

Source: Knuth, "The Art of Computer Programming" 2, 4.2.2, theorem B (TwoSum).
"""

import jax
import jax.numpy as jnp
from jax import lax


def pinned(x: jax.Array) -> jax.Array:
    """`x`, hidden from the algebraic simplifier; fuses like any pointwise step.

    XLA rewrites `x*.5 + y*.5` to `(x + y)*.5`, which overflows, and `(x + c) - c` to
    `x`, which forgets what was rounded.
    """
    info = jnp.finfo(x.dtype)
    return lax.reduce_precision(x, info.nexp, info.nmant)


def difference(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(rounded x - y, what the rounding lost); nothing is lost if it overflowed."""
    rounded = pinned(x - y)
    from_y = rounded - x
    from_x = rounded - from_y
    lost = (x - from_x) - (y + from_y)
    return rounded, jnp.where(jnp.isfinite(rounded), lost, 0)


def power_of_two(exponent: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """2**exponent; both it and its inverse must be normal numbers."""
    return jnp.ldexp(jnp.ones((), dtype), exponent)
