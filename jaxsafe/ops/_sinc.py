"""sinc: sin and cos of pi x without ever rounding pi x.

x minus the nearest multiple of 1/2 is exact, and sine and cosine of pi times a number
in [-1/4, 1/4] keep all their digits; the multiple says which one is wanted, with which
sign. Derivatives near 0, where the closed forms are 0/0, come from the Taylor series.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog
from jaxsafe._catalog import Edge
from jaxsafe.ops._entrywise import chain, entrywise

_INF, _NAN = float("inf"), float("nan")
# Enough for float64 up to 0.85.
_SERIES = tuple((-1) ** k / math.factorial(2 * k + 1) for k in range(14))
_SLOPES = tuple(2 * k * c for k, c in enumerate(_SERIES))[1:]
_CURVATURES = tuple(2 * k * (2 * k - 1) * c for k, c in enumerate(_SERIES))[1:]


def sinc(x: ArrayLike) -> jax.Array:
    """Sine of pi x over pi x.

    Value: sin(pi x)/(pi x); 1 at 0, 0 at infinity.
    Gradient: (cos(pi x) - sinc(x))/x; 0 at 0 and at infinity.
    NaN in: NaN out.
    Error: float32 4 ulp; gradient 7 and second derivative 100 ulp of
      max(|true|, 1/16); bfloat16 and float16 0.51.

    Args:
      x: floating array.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.

    Examples:
      >>> jax.grad(sinc)(jnp.float32(1e-4))
      Array(-0.00032899, dtype=float32)

    References:
      Muller, "Elementary Functions", chapter 11 (argument reduction), 2016.
    """
    return entrywise("ops.sinc", _sinc, x=x)


def _sin_cos(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sine and cosine of pi x; 0 and 1 at infinity."""
    # From here on there are only even integers.
    x = jnp.where(jnp.abs(x) >= 2.0 ** (jnp.finfo(x.dtype).nmant + 1), 0, x)
    quarters = jnp.round(2 * x)
    angle = math.pi * (x - quarters / 2)
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    turn = quarters - 4 * jnp.floor(quarters / 4)
    odd = (turn == 1) | (turn == 3)
    return (
        _flipped(turn >= 2, jnp.where(odd, cosine, sine)),
        _flipped((turn == 1) | (turn == 2), jnp.where(odd, sine, cosine)),
    )


def _flipped(flip: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.where(flip, -x, x)


def _split(x: jax.Array, limit: float = 0.5) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(is below the limit, `x` if it is, `x` if it is not); 0 and 1 stand in."""
    near = jnp.abs(x) < limit
    return near, jnp.where(near, x, 0), jnp.where(near, 1, x)


def _polynomial(coefficients: tuple[float, ...], x: jax.Array) -> jax.Array:
    """Horner's rule in (pi x)**2."""
    square = jnp.square(math.pi * x)
    total = jnp.zeros_like(x)
    for c in reversed(coefficients):
        total = total * square + c
    return total


def _value(x: jax.Array) -> jax.Array:
    near, small, large = _split(x)
    sine, _ = _sin_cos(large)
    # Not over pi * x, which overflows.
    return jnp.where(near, _polynomial(_SERIES, small), sine / math.pi / large)


def _slope(x: jax.Array) -> jax.Array:
    near, small, large = _split(x)
    _, cosine = _sin_cos(large)
    series = math.pi**2 * _polynomial(_SLOPES, small) * small
    return jnp.where(near, series, (cosine - _value(large)) / large)


def _curvature(x: jax.Array) -> jax.Array:
    near, small, large = _split(x, 0.85)
    sine, _ = _sin_cos(large)
    series = math.pi**2 * _polynomial(_CURVATURES, small)
    return jnp.where(near, series, -(math.pi * sine + 2 * _slope(large)) / large)


_sinc = chain(_value, _slope, _curvature)


def _oracle(mp: Any, x: Any) -> tuple[Any, ...]:
    if x == 0:
        return mp.mpf(1), (mp.mpf(0),), -(mp.pi**2) / 3
    value, cosine = mp.sinpi(x) / (mp.pi * x), mp.cospi(x)
    if abs(x) < 0.01:
        square = (mp.pi * x) ** 2
        terms = [(-square) ** k / mp.factorial(2 * k + 1) for k in range(30)]
        slope = mp.fsum(2 * k * t for k, t in enumerate(terms)) / x
        curvature = mp.fsum(2 * k * (2 * k - 1) * t for k, t in enumerate(terms)) / x**2
        return value, (slope,), curvature
    slope = (cosine - value) / x
    return value, (slope,), -(mp.pi**2) * value - 2 * slope / x


_catalog.add(
    _catalog.Row(
        name="ops.sinc",
        function=sinc,
        naive=lambda x: jnp.sin(math.pi * x) / (math.pi * x),
        kind="entrywise",
        domain=((-_INF, _INF),),
        edges=(
            Edge(args=(0.0,), value=1.0, gradient=(0.0,)),
            Edge(args=(1.5,), value=-2 / (3 * math.pi), gradient=(4 / (9 * math.pi),)),
            Edge(args=(2.0**60,), value=0.0, gradient=(2.0**-60,)),
            Edge(args=(_INF,), value=0.0, gradient=(0.0,)),
            Edge(args=(-_INF,), value=0.0, gradient=(0.0,)),
            Edge(args=(_NAN,), value=_NAN, gradient=(_NAN,)),
        ),
        ulp=_catalog.bounds(float32=(4, 7, 100), float64=(3, 7, 116)),
        oracle=_oracle,
        size=_catalog.at_least(_oracle, 0, 2**-4, 2**-4),
    )
)
