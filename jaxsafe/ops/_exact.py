"""Exact steps that inexact functions are built from.

A power of two changes only the exponent, so scaling by one costs no accuracy; the
rounding error of a difference is itself a float and can be computed. Both hold only
while the compiler does what is written: `pinned` keeps it from simplifying.

The product of two numbers of half the digits is exact, whether the compiler fuses it
with an addition or not. A sum of multiples of one number is exact, in whatever order,
while it stays below that number times 2**digits. `remainder` and `dot` are made so.

Any other sum is not exact, but its error need not grow with the number of terms:
`total` adds blocks first, where a plain sum on CPU may add one term after the other.

Sources: Knuth, "The Art of Computer Programming" 2, 4.2.2, theorem B (TwoSum); Dekker,
"A floating-point technique for extending the available precision", Numerische
Mathematik 18, 1971; Rump, Ogita & Oishi, "Accurate floating-point summation part I",
SIAM J. Sci. Comput. 31(1), 2008 (sums cut at one place); Higham, "The accuracy of
floating point summation", SIAM J. Sci. Comput. 14(4), 1993.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsafe import _floats
from jaxsafe._pin import pinned

# A number in float64, and what that leaves of it.
LOG2 = 0.6931471805599453, 2.3190468138462996e-17
ONE_OVER_E = 0.36787944117144233, -1.2428753672788363e-17
# Entries from which the library of XLA for a CPU adds; 2**12 where it was tried.
_LARGE = 2**14


def rounding(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(rounded x - y, what the rounding lost); that is NaN if it overflowed."""
    rounded = pinned(x - y)
    from_y = rounded - x
    from_x = rounded - from_y
    return rounded, (x - from_x) - (y + from_y)


def difference(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(rounded x - y, what the rounding lost); nothing is lost if it overflowed."""
    rounded, lost = rounding(x, y)
    return rounded, jnp.where(jnp.isfinite(rounded), lost, 0)


def short(x: jax.Array) -> jax.Array:
    """`x` rounded to half of its digits: products of two such numbers are exact."""
    digits = jnp.finfo(x.dtype)
    return lax.reduce_precision(x, digits.nexp, (digits.nmant - 1) // 2)


def cut(x: jax.Array) -> jax.Array:
    """The leading half of the digits, as of `short`, but without rounding up."""
    bits = lax.bitcast_convert_type(x, np.dtype(f"uint{8 * x.dtype.itemsize}"))
    digits = jnp.finfo(x.dtype).nmant
    behind = np.array((1 << (digits - (digits - 1) // 2)) - 1, bits.dtype)
    return lax.bitcast_convert_type(bits & ~behind, x.dtype)


def remainder(
    total: jax.Array, a: jax.Array, b: jax.Array, *, rest: jax.Array | float = 0.0
) -> jax.Array:
    """`total` - a * (b + `rest`), as if rounded at the end; `rest` is below b."""
    a1, b1 = short(a), short(b)
    # What comes last is smaller by half of the digits, and so is its rounding.
    return (total - a1 * b1) - (a1 * ((b - b1) + rest) + (a - a1) * (b + rest))


def dot(
    x: jax.Array, y: jax.Array, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """(x.y but for a small rest, the rest) where |x|, |y| <= 1; axes kept.

    Cut at the same binary place, all products are multiples of one number, and the
    place is such that their sum is exact. The rounding of the rest does not count up
    to 1,000 entries in float32; with more of them it approaches that of a plain sum.
    """
    count = math.prod(x.shape[axis] for axis in axes)
    (x1, x2), (y1, y2) = _cut(x, count), _cut(y, count)
    head = jnp.sum(x1 * y1, axes, keepdims=True)
    return head, jnp.sum(x1 * y2 + x2 * y, axes, keepdims=True)


def _cut(x: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    digits = int(jnp.finfo(x.dtype).nmant) + 1
    place = math.ceil((math.log2(max(count, 1)) - digits) / 2)
    # Too large a number to hold any digit below the place.
    shift = 1.5 * 2.0 ** (place + digits - 1)
    head = pinned(x + shift) - shift
    return head, x - head


def in_two(number: tuple[float, float], dtype: jnp.dtype) -> tuple[float, float]:
    """(the number in `dtype`, what that leaves of it)."""
    double, rest = number
    high = float(dtype.type(double))
    return high, double - high + rest


def is_zero(x: jax.Array) -> jax.Array:
    """Whether `x` is 0 or subnormal.

    XLA on CPU flushes subnormals in arithmetic, but `x == 0` comes out either way, even
    twice differently in one program. Against `tiny` every backend agrees.
    """
    return jnp.abs(x) < _floats.tiny(x.dtype)


def exponent_near(size: jax.Array) -> jax.Array:
    """Exponent of a power of two near `size` that `power_of_two` and its inverse have.

    0 for what is not finite, so that scaling by it leaves infinity and NaN as they are.
    """
    reach = int(jnp.finfo(size.dtype).maxexp) - 2
    return jnp.clip(jnp.frexp(size)[1], -reach, reach)


def power_of_two(exponent: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """2**exponent; both it and its inverse must be normal numbers."""
    return jnp.ldexp(jnp.ones((), dtype), exponent)


def total(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Sum over `axes`, which are kept; within 2 ulp for 100,000 terms of one sign.

    Linear, so JAX differentiates and transposes it. GPU and TPU add in a tree by
    themselves and keep their one fused reduction.
    """
    return lax.platform_dependent(
        x,
        cpu=functools.partial(_blocked, axes=axes),
        default=lambda x: jnp.sum(x, axes, keepdims=True),
    )


def fast_total(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """`total`, in one pass on a CPU too where the array is large; as linear.

    XLA adds in a tree there where it uses its library, and that is for large arrays.
    Small ones it adds one by one: 1000 equal terms would be off by 7 ulp.
    """
    if x.size < _LARGE:
        return total(x, axes)
    return jnp.sum(x, axes, keepdims=True)


def spread_total(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """`fast_total`, to be used beside every entry: its transpose is as accurate.

    That of a broadcast is a plain sum.
    """
    row = fast_total(x, axes)
    if x.size >= _LARGE:
        return row
    (spread,) = jax.linear_transpose(lambda x: total(x, axes), x)(row)
    return spread


def _blocked(x: jax.Array, *, axes: tuple[int, ...]) -> jax.Array:
    for axis in axes:
        while x.shape[axis] > 1:
            x = block_sums(x, axis)
        x = jnp.sum(x, axis, keepdims=True)  # of no entries at all
    return x


def _terms(length: int) -> int:
    """How many to add one after the other: few where their errors do not average out.

    Preferably a divisor of the length, because filling up costs a copy.
    """
    most = 16 if length > 256 else 8 if length > 64 else 4
    divisors = (n for n in range(most, most // 2, -1) if length % n == 0)
    return min(length, next(divisors, most))


def block_sums(x: jax.Array, axis: int) -> jax.Array:
    """Sums of a few entries each, taken the same distance apart."""
    length = x.shape[axis]
    terms = _terms(length)
    blocks = -(-length // terms)
    missing = terms * blocks - length
    if missing:
        ends = [(0, missing if a == axis else 0, 0) for a in range(x.ndim)]
        x = lax.pad(x, jnp.zeros((), x.dtype), ends)
    x = x.reshape(*x.shape[:axis], terms, blocks, *x.shape[axis + 1 :])
    # Pinned, or XLA merges the sum of sums into one sum.
    return pinned(jnp.sum(x, axis))
