"""Statistics of every column of a numeric matrix, in one pass on the device.

Blocks of rows are shifted by a pivot inside the column, scaled by a power of two, and
summed block by block, each number cut in two: the heads add without rounding, and
what that leaves is small. The pivot is the mean of the first block, and their mean in
that block says where squares are cut. A column whose mean or deviation turned out far
from that of its first block, or whose numbers left the range in which squares can be
trusted, has a second pass around the mean just found. Sums of blocks are then added as
float32 pairs. What is missing stands at the pivot: it adds 0 and is no extreme.

Must never count a missing entry, neither in a mean nor in a deviation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsafe._pin import pinned
from jaxsafe.ops._in_two import Two, normal, plus, single, times, total

BLOCK = 8000
# Numbers of up to 8 that are cut at this place add exactly, a part of a block of them.
_CUT = 1.5 * 2.0**13
# Sums of each column and block: what is added one after the other has to be short.
_FOLD = 8
_GRID = 2.0**10  # a pivot is a multiple of 1 / _GRID, scaled
_FARTHEST = 2.0**40  # squares of scaled numbers up to here are safe
_UNUSUAL = 16.0  # a mean square so many times as large wants to be cut elsewhere
_LEAST_VARIANCE = 2.0**-60
_LEAST_MEAN = 2.0**-30  # the largest safe square over it is still in range

Admit = Callable[[jax.Array], jax.Array]


class Seen(NamedTuple):
    """What is known of the numeric columns; a column without entries has zeros."""

    number: jax.Array
    mean: Two
    std: Two
    minimum: jax.Array
    maximum: jax.Array


class _Sums(NamedTuple):
    number: jax.Array
    head: jax.Array
    tail: jax.Array
    square: jax.Array
    square_tail: jax.Array
    low: jax.Array
    high: jax.Array


def over_blocks(x: jax.Array, carry: Any, step: Any, admit: Admit) -> tuple[Any, Any]:
    """A scan of step(carry, block) over blocks of rows, NaN for what is missing."""
    rows = x.shape[0]
    size = min(BLOCK, rows // _FOLD * _FOLD or rows)

    def body(carry: Any, number: jax.Array) -> tuple[Any, Any]:
        # The last block begins earlier, so that it is whole; its first rows are done.
        start = jnp.minimum(number * size, rows - size)
        block = admit(lax.dynamic_slice_in_dim(x, start, size))
        if rows % size:
            fresh = start + jnp.arange(size) >= number * size
            block = jnp.where(fresh[:, None], block, jnp.nan)
        return step(carry, block)

    return lax.scan(body, carry, jnp.arange(-(-rows // size), dtype=jnp.int32))


def observe(x: jax.Array, admit: Admit) -> tuple[Seen, jax.Array]:
    """Statistics of x [rows, columns], and the pivot of each column."""
    pivot, unit = _first_guess(x, admit)
    usual = _usual_square(admit(x[:BLOCK]), pivot, unit)
    seen, trusted = _around(x, admit, pivot, unit, usual)

    def again() -> Seen:
        low, high = seen.minimum, seen.maximum
        middle = low / 2 + high / 2
        mean = jnp.where(jnp.isfinite(seen.mean.high), seen.mean.high, middle)
        better = jnp.clip(mean, low, high)
        far = jnp.maximum(jnp.abs(low / 4 - better / 4), jnp.abs(high / 4 - better / 4))
        closer = _unit(jnp.where(seen.number > 0, far, 1))
        better = _few_digits(better, closer, low, high)
        square = jnp.square(seen.std.high * closer)
        square = jnp.where(jnp.isfinite(square), square, 1)
        return _around(x, admit, better, closer, square)[0]

    return lax.cond(trusted.all(), lambda: seen, again), pivot


def _around(
    x: jax.Array, admit: Admit, pivot: jax.Array, unit: jax.Array, usual: jax.Array
) -> tuple[Seen, jax.Array]:
    """The statistics, and for which columns they can be trusted."""
    sums = _sums(x, admit, pivot, unit, usual)
    return _evaluate(sums, pivot, unit, usual)


def _first_guess(x: jax.Array, admit: Admit) -> tuple[jax.Array, jax.Array]:
    """(pivot, unit): the mean of a block, and a power of two that scales to about 1.

    The pivot lies between the smallest and the largest entry of its column.
    """
    block = admit(x[:BLOCK])
    observed = jnp.isfinite(block)
    low = jnp.where(observed, block, jnp.inf).min(axis=0)
    high = jnp.where(observed, block, -jnp.inf).max(axis=0)
    found = observed.any(axis=0)
    block = jnp.where(observed, block, 0)
    count = jnp.maximum(observed.sum(axis=0), 1).astype(jnp.float32)
    size = _unit(jnp.abs(block / 4).max(axis=0))
    mean = jnp.clip((block * size[None]).sum(axis=0) / count / size, low, high)
    pivot = lax.cond(
        found.all(), lambda: mean, lambda: _any_entry(x, admit, found, mean)
    )
    far = jnp.where(observed, jnp.abs(block / 4 - pivot[None] / 4), 0).max(axis=0)
    unit = _unit(jnp.where(far > 0, far, jnp.abs(pivot / 4)))
    return _few_digits(pivot, unit, low, high), unit


def _few_digits(
    pivot: jax.Array, unit: jax.Array, low: jax.Array, high: jax.Array
) -> jax.Array:
    """A pivot near this one, which most numbers near it are exactly apart from."""
    return jnp.clip(jnp.round(pivot * unit * _GRID) / _GRID / unit, low, high)


def _distance(block: jax.Array, pivot: jax.Array, unit: jax.Array) -> jax.Array:
    return block * unit[None] - (pivot * unit)[None]


def _any_entry(
    x: jax.Array, admit: Admit, found: jax.Array, known: jax.Array
) -> jax.Array:
    """`known` where it was found, else the largest entry of the column, or 0."""

    def step(high: jax.Array, block: jax.Array) -> tuple[jax.Array, None]:
        block = jnp.where(jnp.isfinite(block), block, -jnp.inf)
        return jnp.maximum(high, block.max(axis=0)), None

    high, _ = over_blocks(x, jnp.full_like(known, -jnp.inf), step, admit)
    return jnp.where(found, known, jnp.where(jnp.isfinite(high), high, 0))


def _unit(quarter: jax.Array) -> jax.Array:
    """The power of two that brings 4 * quarter into [1, 8)."""
    bits = lax.bitcast_convert_type(quarter, jnp.int32) & 0x7F800000
    inverse = jnp.maximum((254 << 23) - bits, 3 << 23)
    found = lax.bitcast_convert_type(inverse.astype(jnp.int32), jnp.float32) / 4
    return jnp.where(quarter > 0, found, 1)


def _sums(
    x: jax.Array, admit: Admit, pivot: jax.Array, unit: jax.Array, usual: jax.Array
) -> _Sums:
    """Sums of each block of rows, or of parts of it, [blocks or parts, columns]."""
    quantum = _quantum_of_squares(usual)

    def step(carry: None, block: jax.Array) -> tuple[None, _Sums]:
        observed = jnp.isfinite(block)
        # Written out, because XLA on CPU adds rows at the speed of memory only where
        # nothing is fused into the sum; a block of them stays in the cache.
        here, filled = lax.optimization_barrier(
            (observed.astype(jnp.float32), jnp.where(observed, block, pivot[None]))
        )
        distance = _distance(filled, pivot, unit)
        square = jnp.square(distance)
        head = pinned(distance + _CUT) - _CUT
        # Rounded, not cut by a sum: what contracts a product with a sum in one loop and
        # not in another would cut it at two places.
        square_head = jnp.round(square * quantum[0]) * quantum[1]
        parts = lax.optimization_barrier(
            (head, distance - head, square_head, square - square_head)
        )
        number = _sums_of_rows(here).astype(jnp.int32)
        one, two, three, four = map(_sums_of_rows, parts)
        low, high = filled.min(axis=0), filled.max(axis=0)
        return carry, _Sums(number, one, two, three, four, low, high)

    found = over_blocks(x, None, step, admit)[1]
    return jax.tree.map(lambda s: s.reshape(-1, x.shape[1]), found)


def _usual_square(block: jax.Array, pivot: jax.Array, unit: jax.Array) -> jax.Array:
    """Mean of the squares in a block."""
    observed = jnp.isfinite(block)
    square = jnp.square(_distance(block, pivot, unit))
    square = jnp.where(observed, square, 0)
    count = jnp.maximum(observed.sum(axis=0), 1).astype(jnp.float32)
    return square.sum(axis=0) / count


def _quantum_of_squares(usual: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(1 / quantum, quantum): multiples of it add exactly, those of a part of a block.

    It goes by their mean, which may be far from 1: up to 64, or very small. A part may
    be 500 times as large, and what is cut off is a hundredth of the mean.
    """
    inverse = 2.0**6 * _unit(jnp.clip(usual, _LEAST_MEAN, _FARTHEST) / 4)
    return inverse[None], 1 / inverse[None]


def _sums_of_rows(block: jax.Array) -> jax.Array:
    """float32[parts, columns]; a CPU multiplies by ones faster than it adds."""
    rows, columns = block.shape
    fold = 1 if rows % _FOLD else _FOLD
    parts = block.reshape(fold, rows // fold, columns)

    def by_ones() -> jax.Array:
        return (jnp.ones((fold, 1, rows // fold), block.dtype) @ parts)[:, 0]

    # The products of an accelerator may round to half precision.
    return lax.platform_dependent(cpu=by_ones, default=lambda: parts.sum(axis=1))


def _evaluate(
    sums: _Sums, pivot: jax.Array, unit: jax.Array, usual: jax.Array
) -> tuple[Seen, jax.Array]:
    count = sums.number.sum(axis=0)
    n = counted(jnp.maximum(count, 1))
    shift = quotient(plus(_total(sums.head), _total(sums.tail)), n)
    squares = quotient(plus(_total(sums.square), _total(sums.square_tail)), n)
    variance = plus(squares, _minus(times(shift, shift)))
    low, high = sums.low.min(axis=0), sums.high.max(axis=0)
    constant = low == high
    far = jnp.maximum(jnp.abs(low * unit), jnp.abs(high * unit))
    trusted = (
        (jnp.square(shift.high) <= 0.25 * variance.high)
        & (variance.high >= _LEAST_VARIANCE)
        & (far <= _FARTHEST)
        & (jnp.maximum(usual / variance.high, variance.high / usual) <= _UNUSUAL)
    )
    std = root(variance)
    mean = normal(plus(single(pivot), Two(shift.high / unit, shift.low / unit)))
    seen = Seen(
        count,
        select(constant, single(low), mean),
        select(constant, single(jnp.zeros_like(low)), over(std, unit)),
        low,
        high,
    )
    empty = count == 0
    zeros = jax.tree.map(jnp.zeros_like, seen)
    return select(empty, zeros, seen), trusted | constant | empty


def join(a: Seen, b: Seen) -> Seen:
    """The statistics of both: Chan, Golub and LeVeque, in pairs, scaled to about 1."""
    sizes = (a.mean.high, b.mean.high, a.std.high, b.std.high)
    unit = _unit(jnp.stack([jnp.abs(size) / 4 for size in sizes]).max(axis=0))
    both = a.number + b.number
    share = quotient(counted(b.number), counted(jnp.maximum(both, 1)))
    rest = quotient(counted(a.number), counted(jnp.maximum(both, 1)))
    mean_a, mean_b, std_a, std_b = (
        Two(t.high * unit, t.low * unit) for t in (a.mean, b.mean, a.std, b.std)
    )
    delta = normal(plus(mean_b, _minus(mean_a)))
    between = times(times(delta, share), times(delta, rest))
    within = plus(times(times(std_a, std_a), rest), times(times(std_b, std_b), share))
    joined = Seen(
        both,
        over(normal(plus(mean_a, times(delta, share))), unit),
        over(root(normal(plus(within, between))), unit),
        jnp.minimum(a.minimum, b.minimum),
        jnp.maximum(a.maximum, b.maximum),
    )
    constant = joined.minimum == joined.maximum
    still = Two(*(jnp.zeros_like(joined.minimum),) * 2)
    joined = joined._replace(
        mean=select(constant, single(joined.minimum), joined.mean),
        std=select(constant, still, joined.std),
    )
    return select(a.number == 0, b, select(b.number == 0, a, joined))


def select(flags: jax.Array, yes: Any, no: Any) -> Any:
    """Leaf by leaf, column by column."""
    return jax.tree.map(lambda y, n: jnp.where(flags, y, n), yes, no)


def counted(count: jax.Array) -> Two:
    """An int32 as a pair: one float32 ends at 2**24."""
    high = count.astype(jnp.float32)
    # 2**31 - 1 rounds up to what int32 cannot hold.
    whole = jnp.minimum(high, 2.0**31 - 128).astype(jnp.int32)
    return Two(whole.astype(jnp.float32), (count - whole).astype(jnp.float32))


def quotient(a: Two, b: Two) -> Two:
    """One pair divided by another."""
    high = a.high / b.high
    rest = plus(a, _minus(times(single(high), b)))
    return normal(Two(high, (rest.high + rest.low) / b.high))


def root(x: Two) -> Two:
    """Square root; 0 for what rounding made negative."""
    high = jnp.sqrt(jnp.maximum(x.high, 0))
    rest = plus(x, _minus(times(single(high), single(high))))
    low = (rest.high + rest.low) / jnp.where(high > 0, 2 * high, 1)
    return normal(Two(high, jnp.where(high > 0, low, 0)))


def over(x: Two, unit: jax.Array) -> Two:
    """A pair divided by a power of two."""
    return Two(x.high / unit, x.low / unit)


def _minus(x: Two) -> Two:
    return Two(-x.high, -x.low)


def _total(x: jax.Array) -> Two:
    sums = total(x, (0,))
    return Two(sums.high[0], sums.low[0])
