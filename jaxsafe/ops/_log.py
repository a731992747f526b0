"""Logarithms: finite at their singular points, right everywhere else.

The idea: a singular point is replaced *before* the primitive runs and selected away
after it, in the value and in the slope. Selecting the result alone would leave
0 * inf in the derivative.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe._errors import check_choice, check_floating, error

_INF, _NAN = float("inf"), float("nan")


def log(
    x: ArrayLike,
    *,
    floor: float | None = None,
    grad: Literal["zero", "limit"] = "zero",
) -> jax.Array:
    """Natural logarithm, finite at 0.

    Value: log(max(x, floor)); NaN for x < 0.
    Gradient: 1/x; below the floor 0 (`grad="zero"`) or 1/floor (`grad="limit"`); NaN
      for x < 0.
    NaN in: NaN out.
    Error: float32 1.5 ulp, gradient 1; bfloat16 and float16 0.51.

    Args:
      x: floating array.
      floor: smallest argument that is told from 0, by default the smallest normal
        number of the dtype: anything smaller is flushed to 0 by XLA on CPU.
      grad: slope below the floor.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.
      ValueError: `floor` is below the smallest normal number, or `grad` is unknown.

    Examples:
      >>> jax.value_and_grad(log)(jnp.zeros(()))
      (Array(-87.33655, dtype=float32), Array(0., dtype=float32))

    References:
      Edge convention: zero subgradient where the slope is infinite.
    """
    x = check_floating("ops.log", "x", x)
    check_choice("ops.log", "grad", grad, ("zero", "limit"))
    least = _floats.tiny(x.dtype)
    if floor is not None and not least <= floor < _INF:
        raise error(
            ValueError,
            "ops.log",
            f"floor must be finite and at least {least}, the smallest normal number",
            floor,
            "Leave floor out to use that number.",
        )
    floor = least if floor is None else float(floor)
    wide = x.astype(_floats.wide(x.dtype))
    return _log(wide, floor, grad == "limit").astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _log(x: jax.Array, floor: float, limit: bool) -> jax.Array:
    del limit
    return jnp.log(jnp.where(_is_low(x, floor), floor, x))


@_log.defjvp
def _log_jvp(floor: float, limit: bool, primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    low = _is_low(x, floor)
    slope = 1 / jnp.where(low, floor, x)
    tangent = jnp.where((x < 0) & ~low, _NAN, slope) * dx
    if not limit:
        tangent = jnp.where(low, 0, tangent)
    return _log(x, floor, limit), tangent


def _is_low(x: jax.Array, floor: float) -> jax.Array:
    return (x > -_floats.tiny(x.dtype)) & (x < floor)


_catalog.add(
    _catalog.Row(
        name="ops.log",
        function=log,
        naive=jnp.log,
        kind="entrywise",
        domain=((None, _INF),),
        edges=(
            Edge(args=(1.0,), value=0.0, gradient=(1.0,)),
            Edge(args=(-1.0,), value=_NAN, gradient=(_NAN,)),
            Edge(args=(_INF,), value=_INF, gradient=(0.0,)),
            Edge(args=(_NAN,), value=_NAN, gradient=(_NAN,)),
        ),
        ulp=_catalog.bounds(float32=(1.5, 1), float64=(1, 1)),
        oracle=lambda mp, x: (mp.log(x), (1 / x,), -1 / x**2),
    )
)
