"""hypot and arctan2: a point of the plane as distance and angle.

With the unit vector (c, s) and the inverse distance, both taken from a scaled copy of
the point, d distance = c dx + s dy and d angle = (c dy - s dx)/distance. No square of
a coordinate is formed, so nothing overflows, underflows or cancels.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog
from jaxsafe._catalog import Edge
from jaxsafe.ops._entrywise import entrywise
from jaxsafe.ops._exact import is_zero
from jaxsafe.ops._norm import direction, length

_INF, _NAN = float("inf"), float("nan")
_PI = 3.141592653589793


def hypot(x1: ArrayLike, x2: ArrayLike) -> jax.Array:
    """Length of the hypotenuse.

    Value: sqrt(x1**2 + x2**2); infinite only if the true length overflows.
    Gradient: x1/hypot and x2/hypot; 0 at (0, 0).
    NaN in: NaN out, also beside an infinity.
    Error: float32 1.4 ulp, gradient 2.4; bfloat16 and float16 0.51; on a GPU gradient
      3.

    Args:
      x1: floating array.
      x2: floating array that broadcasts with `x1`.

    Returns:
      Array of the common shape and dtype of `x1` and `x2`.

    Raises:
      TypeError: `x1` or `x2` is not floating.

    Examples:
      >>> jax.value_and_grad(hypot)(jnp.float32(3e30), jnp.float32(4e30))
      (Array(5.e+30, dtype=float32), Array(0.59999996, dtype=float32))

    References:
      Blue, ACM TOMS 4(1), 1978.
    """
    return entrywise("ops.hypot", _hypot, x1=x1, x2=x2)


def arctan2(x1: ArrayLike, x2: ArrayLike) -> jax.Array:
    """Angle in [-pi, pi] of the point with ordinate `x1` and abscissa `x2`.

    Value: arctan(x1/x2) in the right quadrant; 0 at (0, 0), whatever the signs.
    Gradient: x2/r**2 and -x1/r**2 with r = hypot(x1, x2); 0 at (0, 0).
    NaN in: NaN out.
    Error: float32 1.8 ulp, gradient 5.2; bfloat16 and float16 0.51.

    Args:
      x1: floating array, ordinates.
      x2: floating array that broadcasts with `x1`, abscissas.

    Returns:
      Array of the common shape and dtype of `x1` and `x2`.

    Raises:
      TypeError: `x1` or `x2` is not floating.

    Examples:
      >>> jax.value_and_grad(arctan2)(jnp.zeros(()), jnp.zeros(()))
      (Array(0., dtype=float32), Array(0., dtype=float32))

    References:
      Kahan, "Branch cuts for complex elementary functions", 1987.
    """
    return entrywise("ops.arctan2", _arctan2, x1=x1, x2=x2)


def _hypot(x: jax.Array, y: jax.Array) -> jax.Array:
    return length(jnp.stack([x, y]), (0,))[0]


@jax.custom_jvp
def _arctan2(y: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.where(is_zero(x) & is_zero(y), 0, jnp.arctan2(y, x))


@_arctan2.defjvp
def _arctan2_jvp(primals: Any, tangents: Any) -> Any:
    (y, x), (dy, dx) = primals, tangents
    (cosine, sine), (inverse,) = direction(jnp.stack([x, y]), (0,))
    return _arctan2(y, x), cosine * inverse * dy - sine * inverse * dx


def _hypot_oracle(mp: Any, x: Any, y: Any) -> tuple[Any, tuple[Any, ...]]:
    r = mp.sqrt(x * x + y * y)
    return r, (x / r, y / r) if r else (r, r)


def _arctan2_oracle(mp: Any, y: Any, x: Any) -> tuple[Any, tuple[Any, ...]]:
    square = x * x + y * y
    slopes = (x / square, -y / square) if square else (square, square)
    return mp.atan2(y, x), slopes


_PLANE = ((-_INF, _INF), (-_INF, _INF))
_catalog.add(
    _catalog.Row(
        name="ops.hypot",
        function=hypot,
        naive=lambda x1, x2: jnp.sqrt(x1**2 + x2**2),
        kind="entrywise",
        domain=_PLANE,
        edges=(
            Edge(args=(0.0, 0.0), value=0.0, gradient=(0.0, 0.0)),
            Edge(args=(3.0, -4.0), value=5.0, gradient=(0.6, -0.8)),
            Edge(args=(-2.0, 0.0), value=2.0, gradient=(-1.0, 0.0)),
            Edge(args=(_INF, 1.0), value=_INF, gradient=(1.0, 0.0)),
            Edge(args=(_INF, _NAN), value=_NAN, gradient=(_NAN, _NAN)),
        ),
        ulp=_catalog.bounds(float32=(1.4, 2.4), float64=(1.4, 2.4), gpu=(1.4, 3)),
        oracle=_hypot_oracle,
    )
)
_catalog.add(
    _catalog.Row(
        name="ops.arctan2",
        function=arctan2,
        naive=lambda x1, x2: 2 * jnp.arctan(x1 / (jnp.sqrt(x1**2 + x2**2) + x2)),
        kind="entrywise",
        domain=_PLANE,
        edges=(
            Edge(args=(0.0, 0.0), value=0.0, gradient=(0.0, 0.0)),
            Edge(args=(1.0, 0.0), value=_PI / 2, gradient=(0.0, -1.0)),
            Edge(args=(1.0, -1.0), value=0.75 * _PI, gradient=(-0.5, -0.5)),
            Edge(args=(_INF, 1.0), value=_PI / 2, gradient=(0.0, 0.0)),
            Edge(args=(1.0, _NAN), value=_NAN, gradient=(_NAN, _NAN)),
        ),
        ulp=_catalog.bounds(float32=(1.8, 5.2), float64=(0.64, 5.2)),
        oracle=_arctan2_oracle,
    )
)
