"""Casting to a narrow dtype without making an infinity or a NaN.

A plain cast of 70000 to float16 is infinite, and of 500 to float8_e4m3fn is NaN, for
that format has no infinity. Saturating is what the hardware does with its `satfinite`
conversions; how often it happened is worth knowing, so it can be counted.
"""

import functools
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe._errors import check_floating, error

_INF, _NAN = float("inf"), float("nan")
_HALF_MAX = 65504.0


@overload
def saturate_cast(
    x: ArrayLike, dtype: DTypeLike, *, count: Literal[False] = False
) -> jax.Array: ...
@overload
def saturate_cast(
    x: ArrayLike, dtype: DTypeLike, *, count: Literal[True]
) -> tuple[jax.Array, jax.Array]: ...
def saturate_cast(
    x: ArrayLike, dtype: DTypeLike, *, count: bool = False
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Cast to a floating dtype; what is too large becomes its largest number.

    Value: x rounded to `dtype`; +-finfo.max beyond that, also for an infinity.
    Gradient: 1 within the range, rounded to `dtype` on its way; 0 where saturated.
    NaN in: NaN out, gradient 1.
    Error: 0.51 ulp of `dtype`, gradient exact.

    Args:
      x: floating array.
      dtype: floating dtype such as jnp.float16, jnp.bfloat16, jnp.float8_e4m3fn or
        jnp.float8_e5m2.
      count: also return how many entries were saturated.

    Returns:
      Array of the shape of `x`; with `count` a pair of it and an int32 number.

    Raises:
      TypeError: `x` or `dtype` is not floating.

    Examples:
      >>> saturate_cast(jnp.asarray([500.0, -jnp.inf]), jnp.float8_e4m3fn, count=True)
      (Array([448, -448], dtype=float8_e4m3fn), Array(2, dtype=int32))

    References:
      Saturation mode of "OCP 8-bit Floating Point Specification (OFP8)", 2023.
    """
    x = check_floating("ops.saturate_cast", "x", x)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise error(
            TypeError,
            "ops.saturate_cast",
            "dtype must be floating",
            jnp.dtype(dtype),
            "Pass a dtype such as jnp.float16.",
        )
    wide = x.astype(_floats.wide(x.dtype))
    # The largest number that the wide dtype holds too.
    limit = min(_floats.largest(dtype), _floats.largest(wide.dtype))
    above, below = wide > limit, wide < -limit
    bounded = jnp.where(above, limit, jnp.where(below, -limit, wide)).astype(dtype)
    if not count:
        return bounded
    return bounded, jnp.sum(above | below, dtype=jnp.int32)


def _oracle(mp: Any, x: Any) -> tuple[Any, ...]:
    limit = mp.mpf(_HALF_MAX)
    return max(-limit, min(x, limit)), (mp.mpf(abs(x) <= limit),)


_catalog.add(
    _catalog.Row(
        name="ops.saturate_cast",
        function=functools.partial(saturate_cast, dtype=jnp.float16),
        naive=lambda x: x.astype(jnp.float16),
        kind="entrywise",
        domain=((-_INF, _INF),),
        edges=(
            Edge(args=(_INF,), value=_HALF_MAX, gradient=(0.0,)),
            Edge(args=(-_INF,), value=-_HALF_MAX, gradient=(0.0,)),
            Edge(args=(_NAN,), value=_NAN, gradient=(1.0,)),
        ),
        ulp=_catalog.bounds(float32=(0.51, 0.51), float64=(0.51, 0.51)),
        oracle=_oracle,
        result=lambda _: jnp.float16,
    )
)
