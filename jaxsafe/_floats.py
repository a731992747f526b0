"""Facts about a floating dtype, as Python floats.

Floors are `tiny`, never the smallest subnormal: XLA on CPU flushes float32 and
bfloat16 subnormals to zero, so `log(max(x, smallest_subnormal))` is -inf there.
"""

from typing import Any

import jax.numpy as jnp


def tiny(dtype: Any) -> float:
    """Smallest positive normal number."""
    return float(jnp.finfo(dtype).tiny)


def largest(dtype: Any) -> float:
    """Largest finite number."""
    return float(jnp.finfo(dtype).max)


def wide(dtype: Any) -> Any:
    """The dtype to compute in: float32 for anything narrower, else itself."""
    dtype = jnp.dtype(dtype)
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else dtype


def half_range(dtype: Any) -> float:
    """A power of two that lifts any finite number out of the reach of overflow.

    Numbers multiplied by its inverse can be squared, and 2**32 of the squares summed,
    without leaving the range: 2**80 for float32, 2**528 for float64.
    """
    return 2.0 ** (int(jnp.finfo(dtype).maxexp) // 2 + 16)
