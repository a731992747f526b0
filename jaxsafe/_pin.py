"""One barrier against compilers that know better."""

import jax
import jax.numpy as jnp
from jax import lax


def pinned(x: jax.Array) -> jax.Array:
    """`x`, hidden from the algebraic simplifier; fuses like any pointwise step.

    XLA rewrites `x*.5 + y*.5` to `(x + y)*.5`, which overflows, `(x + c) - c` to `x`,
    which forgets what was rounded, and `(x*c)*(x*c)` to `(x*x)*(c*c)`, infinity times
    0. Rounding hides a number from it, to all digits and one more: rounding to just
    those of the dtype is taken out by the compiler for GPUs, which then rewrites.
    """
    info = jnp.finfo(x.dtype)
    return lax.reduce_precision(x, info.nexp, info.nmant + 1)
