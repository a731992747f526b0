"""Numbers as the sum of two floats: a number, and what rounding took off it.

Three ideas. (1) An exponential is measured from the nearest power of two, which scales
exactly; what is left is 1 + r with r at most log(2) / 2, and only the small terms of
its series are rounded. (2) A product is exact as four products of halves, whether the
compiler fuses them with the additions or not. (3) Numbers cut at one binary place add
up exactly, in whatever order.

Sources: Dekker, "A floating-point technique for extending the available precision",
Numerische Mathematik 18, 1971; Cody & Waite, "Software Manual for the Elementary
Functions", 1980, chapter 6; Rump, Ogita & Oishi, "Accurate floating-point summation
part I", SIAM J. Sci. Comput. 31(1), 2008.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsafe._pin import pinned
from jaxsafe.ops import _exact
from jaxsafe.ops._exact import LOG2, block_sums, short


class Two(NamedTuple):
    """A number, `high` + `low`."""

    high: jax.Array
    low: jax.Array


def single(x: jax.Array) -> Two:
    """One float as a number."""
    return Two(x, jnp.zeros_like(x))


def normal(x: Two) -> Two:
    """The same number; `low` is only what `high` rounds off."""
    high = pinned(x.high + x.low)
    return Two(high, x.low - (high - x.high))


def plus(x: Two, y: Two) -> Two:
    """Sum, of which only the low part is rounded."""
    high = pinned(x.high + y.high)
    from_y = high - x.high
    lost = (x.high - (high - from_y)) + (y.high - from_y)
    return Two(high, (x.low + y.low) + lost)


def times(x: Two, y: Two) -> Two:
    """Product, of which only the low part is rounded."""
    high = pinned(x.high * y.high)
    a, b = short(x.high), short(y.high)
    a_low, b_low = x.high - a, y.high - b
    lost = ((a * b - high) + a * b_low + a_low * b) + a_low * b_low
    return Two(high, lost + x.high * y.low + x.low * y.high)


def total(x: jax.Array, axes: tuple[int, ...]) -> Two:
    """Sum over `axes`, which are kept, of numbers of one size; NaN if one is."""
    # Many numbers shrink first, by sums of few: their errors average out. Lifted,
    # because what is cut off a tiny number would be flushed to 0.
    while math.prod(x.shape[axis] for axis in axes) > _FEW:
        x = block_sums(x, max(axes, key=lambda axis: x.shape[axis]))
    x = x * _LIFT
    count = math.prod(x.shape[axis] for axis in axes)
    shift = 2 * count * jnp.max(jnp.abs(x), axes, keepdims=True, initial=0)
    head = pinned(x + shift) - shift
    low = jnp.sum(x - head, axes, keepdims=True)
    sums = normal(Two(jnp.sum(head, axes, keepdims=True), low))
    return Two(sums.high / _LIFT, sums.low / _LIFT)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def rounded_total(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The same as one float: only that is rounded. Not linear: not for tangents.

    GPU and TPU add in a tree, whose error is small, in the one pass that they make.
    """
    return lax.platform_dependent(
        x,
        cpu=lambda x: total(x, axes).high,
        default=lambda x: jnp.sum(x, axes, keepdims=True),
    )


@rounded_total.defjvp
def _rounded_total_jvp(axes: Any, primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    return rounded_total(x, axes), _exact.total(dx, axes)


def exp(x: jax.Array, lost: jax.Array) -> jax.Array:
    """Exponential of x + lost within 0.7 ulp; x <= 0, and `lost` is below its ulp."""
    r, scale = _reduced(x, lost)
    one = plus(single(jnp.ones_like(x)), r)
    size = r.high + r.low
    return (one.high + (one.low + size * size * _series(size, 2))) * scale


def exp_in_two(x: jax.Array, lost: jax.Array) -> tuple[Two, jax.Array]:
    """(power, scale): `exp` is their product, rounded by less than 1/32 ulp.

    The scale is a power of two, or 0 where the exponential is below all normal numbers.
    """
    r, scale = _reduced(x, lost)
    r = normal(r)
    square = times(r, r)
    power = plus(single(jnp.ones_like(x)), r)
    power = plus(power, Two(0.5 * square.high, 0.5 * square.low))
    small = r.high * square.high * _series(r.high, 3)
    return normal(Two(power.high, power.low + small)), scale


def expm1(x: jax.Array, lost: jax.Array) -> jax.Array:
    """Exponential of x + lost, less 1, within 1 ulp; where x <= 0 or near it."""
    power, scale = exp_in_two(x, lost)
    far = (power.high * scale - 1) + power.low * scale
    near = jnp.abs(x) < 0.5 * LOG2[0]
    small = jnp.where(near, x, 0)
    return jnp.where(near, x + (lost + small * small * _series(small, 2)), far)


def tanh(x: Two) -> Two:
    """Hyperbolic tangent; off by less than 1/64 ulp."""
    sign = jnp.where(x.high < 0, -1, 1).astype(x.high.dtype)
    power, scale = exp_in_two(-2 * sign * x.high, -2 * sign * x.low)
    one = single(jnp.ones_like(scale))
    above = normal(plus(one, Two(-scale * power.high, -scale * power.low)))
    below = normal(plus(one, Two(scale * power.high, scale * power.low)))
    ratio = above.high / below.high
    product = times(single(ratio), below)
    left = plus(above, Two(-product.high, -product.low))
    return Two(sign * ratio, sign * ((left.high + left.low) / below.high))


def log(x: Two) -> jax.Array:
    """Logarithm of a number of at least 1/2, within 0.8 ulp, and near 1 too."""
    y = jnp.log(x.high)
    # One step of Newton's method, which takes off the error of `y`.
    power, scale = exp_in_two(-y, jnp.zeros_like(y))
    one = times(x, power)
    return y + ((one.high * scale - 1) + one.low * scale)


def _reduced(x: jax.Array, lost: jax.Array) -> tuple[Two, jax.Array]:
    """(r, scale): the exponential of x + lost is that of r times the scale."""
    info = jnp.finfo(x.dtype)
    least = (int(info.minexp) - 1) * LOG2[0]
    small = x < least
    x, lost = jnp.where(small, least, x), jnp.where(small, 0, lost)
    n = jnp.round(x / LOG2[0])
    # Products of n with so short a number are exact, and so is their difference from x.
    bits = int(info.nmant) - int(info.maxexp).bit_length() + 1
    log2 = math.floor(LOG2[0] * 2.0**bits) / 2.0**bits
    r = Two(x - n * log2, lost - n * (LOG2[0] - log2 + LOG2[1]))
    return r, _power_of_two(n)


def _series(r: jax.Array, first: int) -> jax.Array:
    """Terms of exp(r) from r**first / first! on, over r**first; for |r| <= 0.35."""
    last = 8 if jnp.finfo(r.dtype).bits == 32 else 14
    series = jnp.full_like(r, 1 / math.factorial(last))
    for k in range(last - 1, first - 1, -1):
        series = series * r + 1 / math.factorial(k)
    return series


def _power_of_two(n: jax.Array) -> jax.Array:
    """2**n, written into the exponent; 0 for the n next below the normal numbers."""
    info = jnp.finfo(n.dtype)
    exponent = n.astype(f"int{info.bits}") + (1 - int(info.minexp))
    return lax.bitcast_convert_type(exponent << int(info.nmant), n.dtype)


_LIFT = 2.0**60
# Numbers whose cut-off parts add up to less than 1/32 ulp.
_FEW = 512
