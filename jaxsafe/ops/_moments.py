"""Centered rows: two passes, scaled by a power of two, no difference of squares.

The mean is refined by the mean of what it leaves: one more sum makes the centered
entries sum to 0 even where the mean is a million times the spread. It is kept between
the smallest and the largest entry, so a constant row has exactly nothing left. Very
large or very small rows are moved by a power of two, which rounds nothing, so that
neither a sum nor a square leaves the range unless the result does.

Source: Chan, Golub & LeVeque, "Algorithms for computing the sample variance", The
American Statistician 37(3), 1983.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsafe._pin import pinned
from jaxsafe.ops._exact import difference, power_of_two, total
from jaxsafe.ops._power import quotient
from jaxsafe.ops._reduction import only

_INF = float("inf")

# Rows with a largest entry between 2**-24 and 2**24 stay as they are.
_SPAN = 24


class Over(NamedTuple):
    """What a row runs over.

    Attributes:
      axes: axes of the array.
      axis_name: that of the devices which hold the row together, if there are several.
      groups: which of these devices belong together; None for all.
      centered: whether the mean is taken off; else it counts as 0.
    """

    axes: tuple[int, ...]
    axis_name: Any = None
    groups: tuple[tuple[int, ...], ...] | None = None
    centered: bool = True

    def across(self, collective: Any, x: jax.Array) -> jax.Array:
        """`x` after a `lax` collective over the devices."""
        if self.axis_name is None:
            return x
        return collective(x, self.axis_name, axis_index_groups=self.groups)


class Frame(NamedTuple):
    """What is known of a row without its derivative; reduced axes are kept.

    Attributes:
      included: which entries count, of the shape of the row; None for all.
      empty: bool, none counts.
      number: how many count; 1 for an empty row.
      low: smallest entry.
      high: largest entry.
      exponent: the row is computed with after division by 2**exponent.
    """

    included: jax.Array | None
    empty: jax.Array
    number: jax.Array
    low: jax.Array
    high: jax.Array
    exponent: jax.Array


def frame(
    x: jax.Array, over: Over, where: ArrayLike | None = None, floor: ArrayLike = 0.0
) -> Frame:
    """Look at the rows; `floor` is a magnitude that must stay in range with them."""
    x = lax.stop_gradient(x)
    included = None if where is None else jnp.broadcast_to(where, x.shape)
    count = over.across(lax.psum, _count(x, over.axes, included))
    low = jnp.min(only(x, included, _INF), over.axes, keepdims=True, initial=_INF)
    high = jnp.max(only(x, included, -_INF), over.axes, keepdims=True, initial=-_INF)
    low, high = over.across(lax.pmin, low), over.across(lax.pmax, high)
    empty = count == 0
    low, high = jnp.where(empty, 0, low), jnp.where(empty, 0, high)
    peak = jnp.maximum(jnp.maximum(high, -low), jnp.asarray(floor, x.dtype))
    exponent = jnp.frexp(peak)[1]
    beyond = jnp.maximum(exponent - _SPAN, 0) + jnp.minimum(exponent + _SPAN, 0)
    return Frame(included, empty, jnp.where(empty, 1, count), low, high, beyond)


def _count(
    x: jax.Array, axes: tuple[int, ...], included: jax.Array | None
) -> jax.Array:
    if included is not None:
        count = jnp.sum(included, axes, keepdims=True, dtype=jnp.int32)
        return count.astype(x.dtype)
    shape = tuple(1 if a in axes else n for a, n in enumerate(x.shape))
    counted = math.prod(x.shape[a] for a in axes)
    # Hidden, or XLA multiplies by the rounded reciprocal of a constant.
    return lax.optimization_barrier(jnp.full(shape, counted, x.dtype))


def _between(x: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    # Not by min and max: a NaN stays.
    return jnp.where(x < low, low, jnp.where(x > high, high, x))


def _total(x: jax.Array, row: Frame, over: Over) -> jax.Array:
    return over.across(lax.psum, total(only(x, row.included), over.axes))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def center(x: jax.Array, row: Frame, over: Over) -> tuple[jax.Array, jax.Array]:
    """(mean, x - mean divided by 2**exponent), the latter also where left out.

    There `x` must be finite.
    """
    return _center(x, row, over)[:2]


def _center(
    x: jax.Array, row: Frame, over: Over
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`center`, and what its second result was rounded by."""
    scaled = x * power_of_two(-row.exponent, x.dtype)
    if not over.centered:
        return jnp.zeros_like(row.number), scaled, jnp.zeros_like(scaled)
    down = power_of_two(-row.exponent, x.dtype)
    low, high = row.low * down, row.high * down
    guess = _between(_total(scaled, row, over) / row.number, low, high)
    rest, lost = difference(scaled, jnp.broadcast_to(guess, x.shape))
    missing = _total(rest, row, over) / row.number
    mean = _between(guess + jnp.where(jnp.isinf(guess), 0, missing), low, high)
    lost = lost - missing
    whole = pinned(rest + lost)
    up = power_of_two(row.exponent, x.dtype)
    return mean * up, whole, lost - (whole - rest)


@center.defjvp
def _center_jvp(over: Over, primals: Any, tangents: Any) -> Any:
    (x, row), (dx, _) = primals, tangents
    mean = jnp.zeros_like(row.number)
    if over.centered:
        mean = _total(dx, row, over) / row.number
    down = power_of_two(-row.exponent, x.dtype)
    return center(x, row, over), (mean, (dx - mean) * down)


def _squares(x: jax.Array, row: Frame, over: Over) -> jax.Array:
    """Of what `center` leaves; with its rounding, which a square doubles."""
    _, rest, lost = _center(x, row, over)
    return jnp.square(rest) + 2 * rest * lost


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def variance(x: jax.Array, row: Frame, ddof: jax.Array, over: Over) -> jax.Array:
    """Mean square of what the mean leaves, dividing by count - ddof."""
    squares = _squares(x, row, over)
    guess = _total(squares, row, over) / row.number
    missing = _total(squares - guess, row, over) / row.number
    mean = (guess + missing) * (row.number / _freedom(row, ddof))
    up = power_of_two(row.exponent, x.dtype)
    return pinned(mean * up) * up


@variance.defjvp
def _variance_jvp(over: Over, primals: Any, tangents: Any) -> Any:
    (x, row, ddof), (dx, _, _) = primals, tangents
    up = power_of_two(row.exponent, x.dtype)
    slope = 2 * center(x, row, over)[1] / _freedom(row, ddof) * up
    return variance(x, row, ddof, over), _total(slope * dx, row, over)


def _freedom(row: Frame, ddof: jax.Array) -> jax.Array:
    """Count - ddof; infinite where that leaves nothing, which makes a mean 0."""
    return jnp.where(row.number > ddof, row.number - ddof, _INF)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def deviation(
    x: jax.Array, row: Frame, ddof: jax.Array, epsilon: jax.Array, over: Over
) -> jax.Array:
    """sqrt(variance + epsilon), in range if the result is."""
    down = power_of_two(-row.exponent, x.dtype)
    added = pinned(epsilon * down) * down
    mean_square = _total(_squares(x, row, over), row, over) / _freedom(row, ddof)
    return jnp.sqrt(mean_square + added) * power_of_two(row.exponent, x.dtype)


@deviation.defjvp
def _deviation_jvp(over: Over, primals: Any, tangents: Any) -> Any:
    (x, row, ddof, epsilon), (dx, *_) = primals, tangents
    spread = deviation(x, row, ddof, epsilon, over)
    unit = _ratio(center(x, row, over)[1], spread, row)
    return spread, _total(unit / _freedom(row, ddof) * dx, row, over)


def _ratio(rest: jax.Array, spread: jax.Array, row: Frame) -> jax.Array:
    """What `center` leaves over a deviation; 0 where that is 0."""
    scaled = spread * power_of_two(-row.exponent, rest.dtype)
    return quotient(rest, jnp.broadcast_to(scaled, rest.shape))


def standard(
    x: jax.Array, row: Frame, epsilon: jax.Array, over: Over
) -> tuple[jax.Array, jax.Array]:
    """(mean, (x - mean) / sqrt(variance + epsilon)), the latter also where left out.

    The frame must have sqrt(epsilon) as its floor.
    """
    mean, rest = center(x, row, over)
    spread = deviation(x, row, jnp.zeros((), x.dtype), epsilon, over)
    return mean, _ratio(rest, spread, row)
