"""Products with a logarithm, x log y: a factor 0 wins against a logarithm of 0.

The idea: information theory counts what does not happen as nothing, so x = 0 gives 0
whatever y is. The logarithm keeps its floor, so that no 0 * inf arises on the way, and
the slope x/y is a quotient that neither overflows nor meets 0/0.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe._pin import pinned
from jaxsafe.ops._entrywise import chain, entrywise
from jaxsafe.ops._exact import ONE_OVER_E, in_two, is_zero
from jaxsafe.ops._log import floored_log, floored_log1p
from jaxsafe.ops._power import quotient

_INF, _NAN = float("inf"), float("nan")


def xlogy(x: ArrayLike, y: ArrayLike) -> jax.Array:
    """Product x log(y), 0 where x is 0.

    Value: x log(max(y, floor)), with the smallest normal number of the dtype computed
      in as floor (float32 for half precision); 0 at x = 0; NaN for y < 0 unless x is 0.
    Gradient: log(max(y, floor)), also at x = 0, and x/y, which is 0 where y is 0; for
      y < 0 NaN, or 0 where the value is 0.
    NaN in: NaN out, also from x = 0.
    Error: float32 and float64 2.7 ulp, gradient 1.3; bfloat16 and float16 0.51; on a
      GPU gradient 1.7.

    Args:
      x: floating array.
      y: floating array that broadcasts with `x`.

    Returns:
      Array of the common shape and dtype of `x` and `y`.

    Raises:
      TypeError: `x` or `y` is not floating.

    Examples:
      >>> xlogy(jnp.asarray([0.0, 2.0]), jnp.asarray([0.0, 1.5]))
      Array([0.       , 0.8109302], dtype=float32)

    References:
      Convention 0 log 0 = 0: Cover and Thomas, "Elements of Information Theory", 2.1.
    """
    return entrywise("ops.xlogy", _xlogy, x=x, y=y)


def xlog1py(x: ArrayLike, y: ArrayLike) -> jax.Array:
    """Product x log(1 + y), 0 where x is 0.

    Value: x log(1 + y), at y = -1 with the floor of `xlogy`; 0 at x = 0; NaN for y < -1
      unless x is 0.
    Gradient: log(1 + y), also at x = 0, and x/(1 + y), which is 0 at y = -1; for
      y < -1 NaN, or 0 where the value is 0.
    NaN in: NaN out, also from x = 0.
    Error: float32 and float64 3.6 ulp, gradient 2; bfloat16 and float16 0.51.

    Args:
      x: floating array.
      y: floating array that broadcasts with `x`.

    Returns:
      Array of the common shape and dtype of `x` and `y`.

    Raises:
      TypeError: `x` or `y` is not floating.

    Examples:
      >>> xlog1py(jnp.asarray([0.0, 2.0]), jnp.asarray([-1.0, 1e-10]))
      Array([0.e+00, 2.e-10], dtype=float32)

    References:
      Convention 0 log 0 = 0: Cover and Thomas, "Elements of Information Theory", 2.1.
    """
    return entrywise("ops.xlog1py", _xlog1py, x=x, y=y)


def entr(x: ArrayLike) -> jax.Array:
    """Entropy term -x log(x), 0 at 0.

    Value: -x log(x); 0 at 0; -inf for x < 0.
    Gradient: -1 - log(x), without cancellation at its zero 1/e; 0 at 0; NaN for x < 0.
    NaN in: NaN out.
    Error: float32 and float64 2.6 ulp, gradient 3.9, second derivative 0.6; bfloat16
      and float16 0.51; on a GPU second derivative 1.1.

    Args:
      x: floating array.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.

    Examples:
      >>> entr(jnp.asarray([0.0, 0.5, 1.0]))
      Array([ 0.        ,  0.34657359, -0.        ], dtype=float32)

    References:
      Edge convention: zero subgradient where the slope is infinite.
    """
    return entrywise("ops.entr", _entr_core, x=x)


def _product(x: jax.Array, logarithm: jax.Array, y: jax.Array) -> jax.Array:
    """Multiply, but give 0 where x is 0 unless y is NaN."""
    zero = is_zero(x) & ~jnp.isnan(y)
    return jnp.where(zero, 0, x * jnp.where(zero, 0, logarithm))


@jax.custom_jvp
def _xlogy(x: jax.Array, y: jax.Array) -> jax.Array:
    return _product(x, floored_log(y), y)


@_xlogy.defjvp
def _xlogy_jvp(primals: Any, tangents: Any) -> Any:
    (x, y), (dx, dy) = primals, tangents
    outside = y <= -_floats.tiny(y.dtype)
    hole = outside & is_zero(x)
    to_x = floored_log(jnp.where(hole, 1, y))
    to_y = jnp.where(outside, _NAN, quotient(x, jnp.where(outside, 1, y)))
    return _xlogy(x, y), to_x * dx + jnp.where(hole, 0, to_y) * dy


@jax.custom_jvp
def _xlog1py(x: jax.Array, y: jax.Array) -> jax.Array:
    return _product(x, floored_log1p(y), y)


@_xlog1py.defjvp
def _xlog1py_jvp(primals: Any, tangents: Any) -> Any:
    (x, y), (dx, dy) = primals, tangents
    outside = y < -1
    hole = outside & is_zero(x)
    to_x = floored_log1p(jnp.where(hole, 0, y))
    to_y = jnp.where(outside, _NAN, quotient(x, 1 + jnp.where(outside, 0, y)))
    return _xlog1py(x, y), to_x * dx + jnp.where(hole, 0, to_y) * dy


def _entr(x: jax.Array) -> jax.Array:
    zero = is_zero(x)
    negative = ~zero & (x < 0)
    inner = jnp.where(zero | negative, 1, x)
    return jnp.where(zero, 0, jnp.where(negative, -_INF, -inner * jnp.log(inner)))


def _entr_slope(x: jax.Array) -> jax.Array:
    zero = is_zero(x)
    # Around its zero at 1/e, where 1 + log(x) = log1p(e (x - 1/e)).
    near = (x > 0.25) & (x < 0.7)
    high, rest = in_two(ONE_OVER_E, x.dtype)
    inner = pinned(jnp.where(near, x, high) - high) - rest
    slope = jnp.where(near, floored_log1p(math.e * inner), 1 + floored_log(x))
    return jnp.where(zero, 0, -slope)


def _entr_curvature(x: jax.Array) -> jax.Array:
    zero = is_zero(x)
    inverse = 1 / jnp.where(zero, 1, x)
    return jnp.where(zero, 0, jnp.where(inverse < 0, _NAN, -inverse))


_entr_core = chain(_entr, _entr_slope, _entr_curvature)


_catalog.add(
    _catalog.Row(
        name="ops.xlogy",
        function=xlogy,
        naive=lambda x, y: x * jnp.log(y),
        kind="entrywise",
        domain=((-_INF, _INF), (None, _INF)),
        edges=(
            Edge(args=(0.0, 2.0), value=0.0, gradient=(math.log(2), 0.0)),
            Edge(args=(0.0, _INF), value=0.0, gradient=(_INF, 0.0)),
            Edge(args=(0.0, -1.0), value=0.0, gradient=(0.0, 0.0)),
            Edge(args=(2.0, -1.0), value=_NAN, gradient=(_NAN, _NAN)),
            Edge(args=(0.0, _NAN), value=_NAN, gradient=(_NAN, _NAN)),
            Edge(args=(_NAN, 1.0), value=_NAN, gradient=(0.0, _NAN)),
            Edge(args=(2.0, _INF), value=_INF, gradient=(_INF, 0.0)),
        ),
        ulp=_catalog.bounds(float32=(2.7, 1.3), float64=(1.8, 0.6), gpu=(2.7, 1.7)),
        oracle=lambda mp, x, y: (x * mp.log(y), (mp.log(y), x / y)),
    )
)
_catalog.add(
    _catalog.Row(
        name="ops.xlog1py",
        function=xlog1py,
        naive=lambda x, y: x * jnp.log(1 + y),
        kind="entrywise",
        domain=((-_INF, _INF), (-1.0, _INF)),
        edges=(
            Edge(args=(0.0, 1.0), value=0.0, gradient=(math.log(2), 0.0)),
            Edge(args=(0.0, _INF), value=0.0, gradient=(_INF, 0.0)),
            Edge(args=(0.0, -2.0), value=0.0, gradient=(0.0, 0.0)),
            Edge(args=(2.0, -2.0), value=_NAN, gradient=(_NAN, _NAN)),
            Edge(args=(0.0, _NAN), value=_NAN, gradient=(_NAN, _NAN)),
            Edge(args=(_NAN, 0.0), value=_NAN, gradient=(0.0, _NAN)),
        ),
        ulp=_catalog.bounds(float32=(3.6, 2), float64=(2.3, 1.8)),
        oracle=lambda mp, x, y: (x * mp.log1p(y), (mp.log1p(y), x / (1 + y))),
    )
)
_catalog.add(
    _catalog.Row(
        name="ops.entr",
        function=entr,
        naive=lambda x: -x * jnp.log(x),
        kind="entrywise",
        domain=((0.0, _INF),),
        edges=(
            Edge(args=(0.0,), value=0.0, gradient=(0.0,)),
            Edge(args=(1.0,), value=0.0, gradient=(-1.0,)),
            Edge(args=(-1.0,), value=-_INF, gradient=(_NAN,)),
            Edge(args=(_INF,), value=-_INF, gradient=(-_INF,)),
            Edge(args=(_NAN,), value=_NAN, gradient=(_NAN,)),
        ),
        ulp=_catalog.bounds(
            float32=(2.6, 3.9, 0.6), float64=(1.8, 2.9, 0.6), gpu=(2.6, 3.9, 1.1)
        ),
        oracle=lambda mp, x: (-x * mp.log(x), (-1 - mp.log(x),), -1 / x),
    )
)
