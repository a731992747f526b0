"""arccos and arcsin: a cosine that rounding pushed past 1 is still a cosine.

The slope is taken from (1 - x)(1 + x), whose first factor is exact near 1, where
1 - x**2 has lost its digits. At the ends it is truly infinite and defined as 0, so a
step along a direction that cannot get any closer does not become NaN.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog
from jaxsafe._catalog import Edge
from jaxsafe._errors import check_floating
from jaxsafe.ops._entrywise import chain, entrywise

_INF, _NAN = float("inf"), float("nan")
_PI = 3.141592653589793


def arccos(x: ArrayLike) -> jax.Array:
    """Angle in [0, pi] whose cosine is `x`.

    Value: arccos(x); that of the end within 4 eps outside [-1, 1], NaN beyond.
    Gradient: -1/sqrt((1 - x)(1 + x)); 0 at the ends and within 4 eps outside.
    NaN in: NaN out.
    Error: float32 2.4 ulp, gradient 2.5, second derivative 5.8; bfloat16 and
      float16 0.51.

    Args:
      x: floating array.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.

    Examples:
      >>> jax.value_and_grad(arccos)(jnp.float32(1.0000002))
      (Array(0., dtype=float32), Array(0., dtype=float32))

    References:
      Kahan, "Branch cuts for complex elementary functions", 1987.
    """
    return entrywise("ops.arccos", _arccos, x=_clamped("ops.arccos", x))


def arcsin(x: ArrayLike) -> jax.Array:
    """Angle in [-pi/2, pi/2] whose sine is `x`.

    Value: arcsin(x); that of the end within 4 eps outside [-1, 1], NaN beyond.
    Gradient: 1/sqrt((1 - x)(1 + x)); 0 at the ends and within 4 eps outside.
    NaN in: NaN out.
    Error: float32 2.6 ulp, gradient 2.3, second derivative 5.5; bfloat16 and
      float16 0.51.

    Args:
      x: floating array.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.

    Examples:
      >>> arcsin(jnp.asarray([0.5, 1.0000002, 2.0]))
      Array([0.5235988, 1.5707964,       nan], dtype=float32)

    References:
      Kahan, "Branch cuts for complex elementary functions", 1987.
    """
    return entrywise("ops.arcsin", _arcsin, x=_clamped("ops.arcsin", x))


def _clamped(name: str, x: ArrayLike) -> jax.Array:
    """`x`, or the end that it missed by no more than 4 eps of its own dtype."""
    x = check_floating(name, "x", x)
    size = jnp.abs(x)
    reach = 1 + 4 * float(jnp.finfo(x.dtype).eps)
    return jnp.where((size > 1) & (size <= reach), jnp.sign(x), x)


def _to_circle(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(is an end, 1 - x**2; 1 stands in at an end)."""
    end = jnp.abs(x) == 1
    return end, jnp.where(end, 1, (1 - x) * (1 + x))


def _slope(x: jax.Array) -> jax.Array:
    end, square = _to_circle(x)
    return jnp.where(end, 0, 1 / jnp.sqrt(square))


def _curvature(x: jax.Array) -> jax.Array:
    _, square = _to_circle(x)
    return x / square * _slope(x)


_arcsin = chain(jnp.arcsin, _slope, _curvature)
_arccos = chain(jnp.arccos, lambda x: -_slope(x), lambda x: -_curvature(x))


def _arcsin_oracle(mp: Any, x: Any) -> tuple[Any, ...]:
    slope = 1 / mp.sqrt((1 - x) * (1 + x))
    return mp.asin(x), (slope,), x * slope**3


def _arccos_oracle(mp: Any, x: Any) -> tuple[Any, ...]:
    _, (slope,), curvature = _arcsin_oracle(mp, x)
    return mp.acos(x), (-slope,), -curvature


_INSIDE = ((-1.0, 1.0),)
_OUTSIDE = tuple(
    Edge(args=(x,), value=_NAN, gradient=(_NAN,)) for x in (2.0, -_INF, _NAN)
)
_catalog.add(
    _catalog.Row(
        name="ops.arccos",
        function=arccos,
        naive=jnp.arccos,
        kind="entrywise",
        domain=_INSIDE,
        edges=(
            *_OUTSIDE,
            Edge(args=(0.0,), value=_PI / 2, gradient=(-1.0,)),
            Edge(args=(1.0,), value=0.0, gradient=(0.0,)),
            Edge(args=(-1.0,), value=_PI, gradient=(0.0,)),
        ),
        ulp=_catalog.bounds(float32=(2.4, 2.5, 5.8), float64=(1.8, 2, 4)),
        oracle=_arccos_oracle,
    )
)
_catalog.add(
    _catalog.Row(
        name="ops.arcsin",
        function=arcsin,
        naive=jnp.arcsin,
        kind="entrywise",
        domain=_INSIDE,
        edges=(
            *_OUTSIDE,
            Edge(args=(0.0,), value=0.0, gradient=(1.0,)),
            Edge(args=(1.0,), value=_PI / 2, gradient=(0.0,)),
            Edge(args=(-1.0,), value=-_PI / 2, gradient=(0.0,)),
        ),
        ulp=_catalog.bounds(float32=(2.6, 2.3, 5.5), float64=(1.7, 2, 4)),
        oracle=_arcsin_oracle,
    )
)
