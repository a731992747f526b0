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

from jaxsafe.ops._exact import difference, pinned, power_of_two, total
from jaxsafe.ops._power import quotient

_INF = float("inf")

# Rows with a largest entry between 2**-24 and 2**24 stay as they are.
_SPAN = 24


class Frame(NamedTuple):
    """What is known of a row without its derivative; reduced axes are kept.

    Attributes:
      included: which entries count, of the shape of the row; None for all.
      number: how many; 1 for an empty row.
      low: smallest entry.
      high: largest entry.
      exponent: the row is computed with after division by 2**exponent.
    """

    included: jax.Array | None
    number: jax.Array
    low: jax.Array
    high: jax.Array
    exponent: jax.Array


def frame(
    x: jax.Array,
    axes: tuple[int, ...],
    where: ArrayLike | None = None,
    floor: ArrayLike = 0.0,
) -> Frame:
    """Look at the rows; `floor` is a magnitude that must stay in range with them."""
    x = lax.stop_gradient(x)
    included = None if where is None else jnp.broadcast_to(where, x.shape)
    if included is None:
        shape = tuple(1 if a in axes else n for a, n in enumerate(x.shape))
        counted = math.prod(x.shape[a] for a in axes)
        # Hidden, or XLA multiplies by the rounded reciprocal of a constant.
        count = lax.optimization_barrier(jnp.full(shape, counted, x.dtype))
    else:
        count = jnp.sum(included, axes, keepdims=True, dtype=jnp.int32).astype(x.dtype)
    low = jnp.min(_only(included, x, _INF), axes, keepdims=True, initial=_INF)
    high = jnp.max(_only(included, x, -_INF), axes, keepdims=True, initial=-_INF)
    empty = count == 0
    low, high = jnp.where(empty, 0, low), jnp.where(empty, 0, high)
    peak = jnp.maximum(jnp.maximum(high, -low), jnp.asarray(floor, x.dtype))
    exponent = jnp.frexp(peak)[1]
    beyond = jnp.maximum(exponent - _SPAN, 0) + jnp.minimum(exponent + _SPAN, 0)
    return Frame(included, jnp.where(empty, 1, count), low, high, beyond)


def include(x: jax.Array, where: ArrayLike | None) -> jax.Array:
    """`x` with 0 for what is left out, in value and gradient."""
    return x if where is None else jnp.where(jnp.broadcast_to(where, x.shape), x, 0)


def _only(included: jax.Array | None, x: jax.Array, other: float) -> jax.Array:
    return x if included is None else jnp.where(included, x, other)


def _between(x: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    # Not by min and max: a NaN stays.
    return jnp.where(x < low, low, jnp.where(x > high, high, x))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def center(
    x: jax.Array, row: Frame, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """(mean, x - mean divided by 2**exponent); x must be 0 where it is left out."""
    return _center(x, row, axes)[:2]


def _center(x: jax.Array, row: Frame, axes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """`center`, and what its second result was rounded by."""
    down = power_of_two(-row.exponent, x.dtype)
    low, high = row.low * down, row.high * down
    scaled = x * down
    guess = _between(total(scaled, axes) / row.number, low, high)
    rest, lost = difference(scaled, jnp.broadcast_to(guess, x.shape))
    missing = total(_only(row.included, rest, 0.0), axes) / row.number
    mean = _between(guess + jnp.where(jnp.isinf(guess), 0, missing), low, high)
    up = power_of_two(row.exponent, x.dtype)
    lost = lost - missing
    whole = pinned(rest + lost)
    lost = lost - (whole - rest)
    return mean * up, *(_only(row.included, part, 0.0) for part in (whole, lost))


def _mean_square(
    x: jax.Array, row: Frame, ddof: jax.Array, axes: tuple[int, ...]
) -> jax.Array:
    """Of what `center` leaves; with its rounding, which a square doubles."""
    _, rest, lost = _center(x, row, axes)
    squares = jnp.square(rest) + 2 * rest * lost
    return total(squares, axes) / _freedom(row, ddof)


@center.defjvp
def _center_jvp(axes: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    (x, row), (dx, _) = primals, tangents
    down = power_of_two(-row.exponent, x.dtype)
    mean = total(dx, axes) / row.number
    rest = _only(row.included, (dx - mean) * down, 0.0)
    return center(x, row, axes), (mean, rest)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def variance(
    x: jax.Array, row: Frame, ddof: jax.Array, axes: tuple[int, ...]
) -> jax.Array:
    """Mean square of what the mean leaves, dividing by count - ddof."""
    up = power_of_two(row.exponent, x.dtype)
    return pinned(_mean_square(x, row, ddof, axes) * up) * up


@variance.defjvp
def _variance_jvp(axes: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    (x, row, ddof), (dx, _, _) = primals, tangents
    up = power_of_two(row.exponent, x.dtype)
    slope = 2 * center(x, row, axes)[1] / _freedom(row, ddof) * up
    return variance(x, row, ddof, axes), total(slope * dx, axes)


def _freedom(row: Frame, ddof: jax.Array) -> jax.Array:
    """Count - ddof; infinite where that leaves nothing, which makes a mean 0."""
    return jnp.where(row.number > ddof, row.number - ddof, _INF)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def deviation(
    x: jax.Array,
    row: Frame,
    ddof: jax.Array,
    epsilon: jax.Array,
    axes: tuple[int, ...],
) -> jax.Array:
    """sqrt(variance + epsilon), in range if the result is."""
    down = power_of_two(-row.exponent, x.dtype)
    added = pinned(epsilon * down) * down
    mean_square = _mean_square(x, row, ddof, axes)
    return jnp.sqrt(mean_square + added) * power_of_two(row.exponent, x.dtype)


@deviation.defjvp
def _deviation_jvp(axes: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    (x, row, ddof, epsilon), (dx, *_) = primals, tangents
    spread = deviation(x, row, ddof, epsilon, axes)
    unit = standard(center(x, row, axes)[1], spread, row)
    return spread, total(unit / _freedom(row, ddof) * dx, axes)


def standard(rest: jax.Array, spread: jax.Array, row: Frame) -> jax.Array:
    """What `center` leaves over a deviation; 0 where that is 0."""
    scaled = spread * power_of_two(-row.exponent, rest.dtype)
    return quotient(rest, jnp.broadcast_to(scaled, rest.shape))


def centered(
    x: jax.Array, axes: tuple[int, ...], where: ArrayLike | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(mean, x - mean, variance) in the dtype of `x`, for layers to build on.

    Reduced axes are kept; what `where` leaves out is 0 in `x - mean`. Use
    `standardize_core` rather than dividing by a square root of this variance, which
    overflows where the standardised row does not.
    """
    x = include(x, where)
    row = frame(x, axes, where)
    mean, rest = center(x, row, axes)
    ddof = jnp.zeros((), x.dtype)
    up = power_of_two(row.exponent, x.dtype)
    return mean, rest * up, variance(x, row, ddof, axes)


def standardize_core(
    x: jax.Array,
    axes: tuple[int, ...],
    where: ArrayLike | None = None,
    epsilon: ArrayLike = 1e-5,
) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) in the dtype of `x`; 0 where left out."""
    x = include(x, where)
    epsilon = jnp.asarray(epsilon, x.dtype)
    row = frame(x, axes, where, floor=jnp.sqrt(epsilon))
    spread = deviation(x, row, jnp.zeros((), x.dtype), epsilon, axes)
    return standard(center(x, row, axes)[1], spread, row)
