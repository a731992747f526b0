"""Quotients and powers: finite at their singular points, right everywhere else.

The idea: a singular point is replaced *before* the primitive runs and selected away
after it, in the value and in the slope. Selecting the result alone would leave
0 * inf in the derivative. Each slope is written in terms of the safe function itself,
so that derivatives of any order stay guarded. The slope y x**(y-1) is written as
y x**y / x, because y - 1 is rounded and a logarithm of up to 88 multiplies that error.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe._errors import check_floating
from jaxsafe._pin import pinned
from jaxsafe.ops._entrywise import Formula, chain, entrywise
from jaxsafe.ops._exact import is_zero

_INF, _NAN = float("inf"), float("nan")


def divide(x: ArrayLike, y: ArrayLike, *, fill: ArrayLike = 0.0) -> jax.Array:
    """Quotient x / y, with a chosen value where y is 0.

    Value: x / y; `fill` where y is 0, or subnormal: XLA on CPU makes 0 of that.
    Gradient: 1/y and -(x/y)/y, which no square of y overflows; 0 where y is 0.
    NaN in: NaN out, also NaN / 0.
    Error: float32 0.6 ulp, gradient 1.8; 1.5 by a scalar, where XLA multiplies with the
      reciprocal; bfloat16 and float16 0.51; on a GPU float32 1.8 ulp, gradient 2.9.

    Args:
      x: floating array.
      y: floating array that broadcasts with `x`.
      fill: value where y is 0; broadcasts to the result.

    Returns:
      Array of the common shape and dtype of `x` and `y`.

    Raises:
      TypeError: `x` or `y` is not floating.

    Examples:
      >>> divide(jnp.asarray([1.0, 1.0]), jnp.asarray([4.0, 0.0]))
      Array([0.25, 0.  ], dtype=float32)

    References:
      Scaling as in Smith, "Algorithm 116: Complex division", CACM 5(8), 1962.
    """
    x, y = check_floating("ops.divide", "x", x), check_floating("ops.divide", "y", y)
    return _divide(x, y, jnp.asarray(fill, jnp.result_type(x, y)))


@jax.jit
def _divide(x: jax.Array, y: jax.Array, fill: jax.Array) -> jax.Array:
    wide = _floats.wide(fill.dtype)
    arrays = jnp.broadcast_arrays(x.astype(wide), y.astype(wide))
    filled = is_zero(arrays[1]) & ~jnp.isnan(arrays[0])
    fill_wide = jnp.broadcast_to(fill.astype(wide), filled.shape)
    out = jnp.where(filled, fill_wide, quotient(*arrays))
    return out.astype(fill.dtype)


def reciprocal(x: ArrayLike) -> jax.Array:
    """Reciprocal 1 / x, finite at 0.

    Value: 1 / x; finfo.max of the dtype at 0 and -finfo.max at -0, also for a subnormal
      where XLA on CPU makes 0 of that.
    Gradient: -1/x**2; 0 at 0.
    NaN in: NaN out.
    Error: float32 0.6 ulp, gradient 1.5, second derivative 2.3; bfloat16 and float16
      0.51; on a GPU float32 1 ulp, gradient 2.7, second derivative 4.

    Args:
      x: floating array.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.

    Examples:
      >>> jax.value_and_grad(reciprocal)(jnp.zeros(()))
      (Array(3.4028235e+38, dtype=float32), Array(-0., dtype=float32))

    References:
      Edge convention: zero subgradient where the slope is infinite.
    """
    x = check_floating("ops.reciprocal", "x", x)
    return entrywise("ops.reciprocal", _topped(_floats.largest(x.dtype)), x=x)


@functools.cache
def _topped(top: float) -> Formula:
    """1 / x, `top` with the sign of x at 0."""

    def function(x: jax.Array) -> jax.Array:
        pole = jnp.copysign(jnp.asarray(top, x.dtype), x)
        return jnp.where(is_zero(x), pole, reciprocal_core(x))

    return function


def power(x1: ArrayLike, x2: ArrayLike) -> jax.Array:
    """Power x1**x2, with finite slopes at 0 and in x2.

    Value: x1**x2; 1 for 0**0; finfo.max of the dtype for 0 to a negative power, with
      the sign of the zero if that power is odd; NaN for x1 < 0 unless x2 is whole.
    Gradient: x2 x1**(x2 - 1) and x1**x2 log(x1). To x1 at 0 its limit, or 0 where that
      is infinite. To x2 it is 0 for x1 <= 0, where only whole powers exist, and for an
      infinite x1; an infinite x2 gives 0. NaN where the value is NaN.
    NaN in: NaN out, also NaN**0 and 1**NaN.
    Error: float32 0.6 ulp, gradient 4 (of max(|true|, 1/16)); bfloat16 and float16
      0.51; on a GPU float32 0.8 ulp.

    Args:
      x1: floating array or Python number.
      x2: floating array or Python number that broadcasts with `x1`.

    Returns:
      Array of the common shape and dtype of `x1` and `x2`.

    Raises:
      TypeError: `x1` or `x2` is not floating.

    Examples:
      >>> jax.grad(power)(jnp.zeros(()), 0.5)
      Array(0., dtype=float32)
      >>> power(jnp.asarray([-2.0, 0.0]), 3)
      Array([-8.,  0.], dtype=float32)

    References:
      Gradient in the exponent as in TensorFlow: 0 where the base is not positive.
    """
    value = entrywise("ops.power", _power, x1=x1, x2=x2)
    pole = entrywise("ops.power", _pole, x1=x1, x2=x2)
    return jnp.where(pole == 0, value, pole * _floats.largest(value.dtype))


@jax.custom_jvp
def quotient(x: jax.Array, y: jax.Array) -> jax.Array:
    """Divide arrays of equal shape and dtype; 0 where y is 0, unless x is NaN."""
    half = int(jnp.finfo(y.dtype).maxexp) // 2
    # XLA divides by a broadcast scalar by multiplying with its reciprocal, which is
    # flushed to 0 for a scalar above 2**126.
    scale = jnp.where(jnp.abs(y) >= 2.0**half, 2.0**-half, 1).astype(y.dtype)
    zero = is_zero(y)
    # Pinned, or for a constant y the two constants would be folded back into one.
    ratio = pinned(x * scale) / (jnp.where(zero, 1, y) * scale)
    return jnp.where(zero, jnp.where(jnp.isnan(x), _NAN, 0), ratio)


@quotient.defjvp
def _quotient_jvp(primals: Any, tangents: Any) -> Any:
    (x, y), (dx, dy) = primals, tangents
    half = int(jnp.finfo(y.dtype).maxexp) // 2
    zero = is_zero(y)
    safe = jnp.where(zero, 1, y)
    size = jnp.abs(safe)
    # With |y * scale| in [2**-63, 2**64) its square is in range, so that the second
    # derivative of the reciprocal is too.
    large, small = size >= 2.0**half, size < 2.0 ** (1 - half)
    scale = jnp.where(large, 2.0**-half, jnp.where(small, 2.0**half, 1))
    scale = scale.astype(y.dtype)
    inverse = 1 / (safe * scale)
    ratio = quotient(jnp.where(zero, 0, x), safe)
    tangent = pinned(dx * inverse) * scale - quotient(ratio, safe) * dy
    return quotient(x, y), jnp.where(zero, 0, tangent)


# In the dtype of the argument, for other modules to build on; 0 at 0.
reciprocal_core: Formula = chain(
    lambda x: quotient(jnp.ones_like(x), x),
    lambda x: -quotient(reciprocal_core(x), x),
    lambda x: 2 * quotient(quotient(reciprocal_core(x), x), x),
)


@jax.custom_jvp
def _power(x: jax.Array, y: jax.Array) -> jax.Array:
    """Powers of arrays of equal shape and dtype; 0 to a negative power is 0."""
    zero = is_zero(x)
    at_zero = jnp.where(is_zero(y), 1, jnp.zeros_like(y))
    value = jnp.where(zero, at_zero, lax.pow(jnp.where(zero, 1, x), y))
    # lax gives 1 for NaN**0 and 1**NaN.
    return jnp.where(jnp.isnan(x) | jnp.isnan(y), _NAN, value)


@_power.defjvp
def _power_jvp(primals: Any, tangents: Any) -> Any:
    (x, y), (dx, dy) = primals, tangents
    value = _power(x, y)
    # At these ends y x**(y-1) is exact as it stands, and in between it is not.
    end = is_zero(x) | jnp.isinf(x)
    base, top = jnp.where(end, 1, x), jnp.where(jnp.isinf(y), 0, y)
    first, second = _halves(base, top)
    slope = quotient(top * first, base) * second
    slope = jnp.where(end, top * _power(jnp.where(end, x, 1), top - 1), slope)
    growth = first * jnp.log(jnp.where(base > 0, base, 1)) * second
    growth = jnp.where(jnp.isinf(y), 0, growth)
    lost = jnp.isnan(value)
    return value, (
        jnp.where(lost, _NAN, slope) * dx + jnp.where(lost, _NAN, growth) * dy
    )


def _pole(x: jax.Array, y: jax.Array) -> jax.Array:
    """The sign of x**y where 0 is raised to a negative power, else 0."""
    one = jnp.ones_like(x)
    sign = jnp.where(_is_odd(y), jnp.copysign(one, x), one)
    return jnp.where(is_zero(x) & (y < 0), sign, 0)


def _halves(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two factors of x**y that do not leave the range before the slope does.

    The first carries the sign of an odd power of x < 0.
    """
    size = jnp.abs(x)
    reach = 0.75 * float(jnp.finfo(x.dtype).maxexp) * math.log(2)
    inside = jnp.abs(y * lax.stop_gradient(jnp.log(size))) < reach
    first = _power(size, jnp.where(inside, y, y / 2))
    second = _power(size, jnp.where(inside, 0, y / 2))
    return jnp.where((x < 0) & _is_odd(y), -first, first), second


def _is_odd(y: jax.Array) -> jax.Array:
    return jnp.abs(lax.rem(y, jnp.asarray(2, y.dtype))) == 1


_catalog.add(
    _catalog.Row(
        name="ops.divide",
        function=divide,
        naive=lambda x, y: x / y,
        kind="entrywise",
        domain=((-_INF, _INF), (-_INF, _INF)),
        edges=(
            Edge(args=(1.0, 0.0), value=0.0, gradient=(0.0, 0.0)),
            Edge(args=(0.0, 0.0), value=0.0, gradient=(0.0, 0.0)),
            Edge(args=(-_INF, 0.0), value=0.0, gradient=(0.0, 0.0)),
            Edge(args=(1.0, 4.0), value=0.25, gradient=(0.25, -0.0625)),
            Edge(args=(1.0, _INF), value=0.0, gradient=(0.0, 0.0)),
            Edge(args=(1.0, _NAN), value=_NAN, gradient=(_NAN, _NAN)),
            Edge(args=(_NAN, 0.0), value=_NAN, gradient=(0.0, 0.0)),
        ),
        ulp=_catalog.bounds(float32=(0.6, 1.8), float64=(0.6, 1.8), gpu=(1.8, 2.9)),
        oracle=lambda _, x, y: (x / y, (1 / y, -x / y / y)),
    )
)
_catalog.add(
    _catalog.Row(
        name="ops.reciprocal",
        function=reciprocal,
        naive=lambda x: 1 / x,
        kind="entrywise",
        domain=((-_INF, _INF),),
        edges=(
            Edge(args=(2.0,), value=0.5, gradient=(-0.25,)),
            Edge(args=(_INF,), value=0.0, gradient=(0.0,)),
            Edge(args=(_NAN,), value=_NAN, gradient=(_NAN,)),
        ),
        ulp=_catalog.bounds(
            float32=(0.6, 1.5, 2.3), float64=(0.6, 1.5, 2.3), gpu=(1, 2.7, 4)
        ),
        oracle=lambda _, x: (1 / x, (-1 / x**2,), 2 / x**3),
    )
)


def _power_oracle(mp: Any, x: Any, y: Any) -> tuple[Any, ...]:
    value = mp.power(x, y)
    return value, (y * value / x, value * mp.log(x))


_catalog.add(
    _catalog.Row(
        name="ops.power",
        function=power,
        naive=lambda x, y: x**y,
        kind="entrywise",
        domain=((0.0, _INF), (-_INF, _INF)),
        edges=(
            Edge(args=(0.0, 0.0), value=1.0, gradient=(0.0, 0.0)),
            Edge(args=(0.0, 0.5), value=0.0, gradient=(0.0, 0.0)),
            Edge(args=(0.0, 1.0), value=0.0, gradient=(1.0, 0.0)),
            Edge(args=(0.0, 2.0), value=0.0, gradient=(0.0, 0.0)),
            Edge(args=(-2.0, 3.0), value=-8.0, gradient=(12.0, 0.0)),
            Edge(args=(-2.0, -2.0), value=0.25, gradient=(0.25, 0.0)),
            Edge(args=(-2.0, 0.5), value=_NAN, gradient=(_NAN, _NAN)),
            Edge(args=(_INF, -1.0), value=0.0, gradient=(0.0, 0.0)),
            Edge(args=(_INF, 1.0), value=_INF, gradient=(1.0, 0.0)),
            Edge(args=(0.5, _INF), value=0.0, gradient=(0.0, 0.0)),
            Edge(args=(_NAN, 0.0), value=_NAN, gradient=(_NAN, _NAN)),
            Edge(args=(1.0, _NAN), value=_NAN, gradient=(_NAN, _NAN)),
        ),
        ulp=_catalog.bounds(
            float32=(0.6, 4), float64=(0.6, 4), half=(0.51, 0.51), gpu=(0.8, 4)
        ),
        oracle=_power_oracle,
        size=_catalog.at_least(_power_oracle, 0.0, 1 / 16),
    )
)
