"""gelu: x times the normal distribution function, or times a gate much like it.

The idea: both forms are 0 on the left only in the limit. The usual 1 + tanh(u) and
1 + erf(u) have no digits left there (tanh: 0 from x = -4.9 on in float32, from -3.1 on
in bfloat16), while a product of x and exponentials keeps them all.

For tanh, (1 + tanh(w)) / 2 = sigmoid(2 w) is a gate as in silu. An exponential turns
the absolute error of its argument into a relative one, and |w| grows to 44 before the
tail is gone (373 in float64), so w is kept in two pieces. For erf, the tail of the
normal distribution is a product as in log_ndtr.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsafe import _catalog
from jaxsafe.ops._entrywise import add_unary, chain, entrywise
from jaxsafe.ops._exact import difference, short
from jaxsafe.ops._gated import gated, gated_curvature, gated_slope
from jaxsafe.ops._normal import half_bell, scaled_tail, side

_INF = float("inf")
_SQRT_HALF = 0.7071067811865476
_DENSITY = 0.3989422804014327  # 1 / sqrt(2 pi)
# w = _LINE x + _CUBE x**3 with _LINE = sqrt(2 / pi) and _CUBE = 0.044715 _LINE; the
# head of each has 12 bits, so that its product with a short number is exact.
_LINE_HEAD, _LINE_REST = 0.7978515625, 3.299830286535588e-05
_CUBE_HEAD, _CUBE_REST = 0.035675048828125, 2.359308175124388e-06
_LINE, _CUBE = _LINE_HEAD + _LINE_REST, _CUBE_HEAD + _CUBE_REST


def gelu(x: ArrayLike, approximate: bool = True) -> jax.Array:
    """Gaussian error linear unit.

    Value: x P(N < x); with `approximate` x (1 + tanh(w)) / 2, where
      w = sqrt(2 / pi) (x + 0.044715 x**3). 0 at -inf.
    Gradient: of the same formula, with limits 0 and 1.
    NaN in: NaN out.
    Error: float32 6.7 ulp, gradient 9.5, second derivative 18; bfloat16 and
      float16 0.51. With `approximate=False`: float32 7.7 ulp, gradient 11, second
      derivative 6.5. Both derivatives cross 0: in ulp of at least 1/16.

    Args:
      x: floating array.
      approximate: whether to take the tanh form.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.

    Examples:
      >>> gelu(jnp.asarray([-jnp.inf, -5.0, 100.0]))
      Array([-0.0000e+00, -2.2918e-07,  1.0000e+02], dtype=float32)

    References:
      Hendrycks and Gimpel, "Gaussian Error Linear Units (GELUs)", 2016.
    """
    return entrywise("ops.gelu", _tanh_form if approximate else _erf_form, x=x)


def _bounded(x: jax.Array) -> jax.Array:
    """`x`, but no further out than where exp(-2 |w|) has long been 0."""
    far = 12.0 if jnp.finfo(x.dtype).bits == 32 else 40.0
    return jnp.where(jnp.abs(x) > far, jnp.sign(x) * far, x)


def _exponent(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """W as a number and what its rounding lost.

    Both factors of w = (w / x) x are a short number and a rest: the product of the
    short ones is exact, and the others are some 2**12 times smaller, in float32.
    """
    head = short(x)
    square = head * head
    square_head = short(square)
    square_rest = (square - square_head) + (x - head) * (x + head)
    slope = short(_LINE + _CUBE * x * x)
    rest = _CUBE_HEAD * square_head - (slope - _LINE_HEAD)
    rest += _LINE_REST + (_CUBE_REST * square_head + _CUBE * square_rest)
    return difference(slope * head, -(rest * x + slope * (x - head)))


def _decay(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """exp(-|w|), twice: their product is exp(-2 |w|)."""
    w, lost = _exponent(x)
    h = jnp.exp(-jnp.abs(w))
    h = h - h * jnp.sign(w) * lost
    return h, h


def _tanh_value(x: jax.Array) -> jax.Array:
    near = _bounded(x)
    return gated(x, near, *_decay(near))


def _tanh_slope(x: jax.Array) -> jax.Array:
    x = _bounded(x)
    growth = 2 * x * (_LINE + 3 * _CUBE * x * x)
    return gated_slope(x, growth, *_decay(x))


def _tanh_curvature(x: jax.Array) -> jax.Array:
    x = _bounded(x)
    w, _ = _exponent(x)
    square = x * x
    first, second = 2 * (_LINE + 3 * _CUBE * square), 12 * _CUBE * square
    bend = 2 * first + second - x * first * first * jnp.tanh(w)
    return gated_curvature(bend, *_decay(x))


_tanh_form = chain(_tanh_value, _tanh_slope, _tanh_curvature)


def _tail(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(size, ratio, c, h): |x|, bounded, and P(N > size) = ratio c h h.

    To be multiplied in this order: c h alone would become one exponential again, of a
    rounded sum.
    """
    size = side(x)
    y = _SQRT_HALF * size
    h, c = half_bell(size)
    return size, 0.25 * scaled_tail(y) / (0.5 + y), c, h


def _erf_value(x: jax.Array) -> jax.Array:
    size, ratio, c, h = _tail(x)
    above = x * (1 - ratio * c * h * h)
    return jnp.where(x > 0, above, -size * ratio * c * h * h)


def _erf_slope(x: jax.Array) -> jax.Array:
    size, ratio, c, h = _tail(x)
    below = (ratio - _DENSITY * size) * c * h * h
    return jnp.where(x > 0, 1 - below, below)


def _erf_curvature(x: jax.Array) -> jax.Array:
    size = side(x)
    h, c = half_bell(size)
    return _DENSITY * (2 - size * size) * c * h * h


_erf_form = chain(_erf_value, _erf_slope, _erf_curvature)


def _far(mp: Any, x: Any) -> tuple[Any, ...]:
    """What is left where the exponential is below what any dtype holds."""
    return max(x, mp.mpf(0)), (mp.mpf(x > 0),), mp.mpf(0)


def _tanh_oracle(mp: Any, x: Any) -> tuple[Any, ...]:
    if abs(x) > 100:
        return _far(mp, x)
    line, cube = mp.sqrt(2 / mp.pi), mp.mpf("0.044715")
    v = 2 * line * (x + cube * x**3)
    first, second = 2 * line * (1 + 3 * cube * x * x), 12 * line * cube * x
    t = mp.exp(-abs(v))
    gate, bell = (1 if x >= 0 else t) / (1 + t), t / (1 + t) ** 2
    bend = 2 * first + x * second - x * first**2 * mp.tanh(v / 2)
    return x * gate, (gate + x * first * bell,), bell * bend


def _erf_oracle(mp: Any, x: Any) -> tuple[Any, ...]:
    if abs(x) > 100:
        return _far(mp, x)
    tail, density = mp.erfc(-x / mp.sqrt(2)) / 2, mp.npdf(x)
    return x * tail, (tail + x * density,), density * (2 - x * x)


# Slope and curvature cross 0.
_FLOORS = (0, 2**-4, 2**-4)
_ENDS = ((0.0, 0.0), (0.0, 0.5), (_INF, 1.0))
add_unary(
    "gelu[tanh]",
    functools.partial(gelu, approximate=True),
    lambda x: 0.5 * x * (1 + jnp.tanh(0.7978845608 * (x + 0.044715 * x * x * x))),
    _ENDS,
    _catalog.bounds(float32=(6.7, 9.5, 18), float64=(6.4, 10.1, 18.4)),
    _tanh_oracle,
    _FLOORS,
)
add_unary(
    "gelu[erf]",
    functools.partial(gelu, approximate=False),
    lambda x: 0.5 * x * (1 + lax.erf(_SQRT_HALF * x)),
    _ENDS,
    _catalog.bounds(float32=(7.7, 11, 6.5), float64=(9.2, 11.8, 6.8)),
    _erf_oracle,
    _FLOORS,
)
