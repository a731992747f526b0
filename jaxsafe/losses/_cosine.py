"""Cosine similarity and distance, for vectors of any length, 0 included.

Each vector is divided by its own length after scaling by a power of two, so no square
leaves the range; the unit vector of 0 is 0, with gradient 0. The distance is half the
squared length of the difference of the unit vectors: 1 - similarity has no digits left
for vectors that nearly agree, which is where training ends.

Source: Blue, "A portable Fortran program to find the Euclidean norm of a vector",
ACM TOMS 4(1), 1978, for the scaling.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe.losses._inputs import matching, wide_floating
from jaxsafe.ops._exact import exponent_near, power_of_two
from jaxsafe.ops._norm import length
from jaxsafe.ops._power import quotient
from jaxsafe.ops._reduction import Axis, axis_tuple

_NAN = float("nan")


def cosine_similarity(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    epsilon: ArrayLike = 0.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Cosine of the angle between two vectors.

    Value: x.y / (|x| |y|), whatever the lengths; 0 if one of them is 0 or `where`
      leaves nothing.
    Gradient: (v - (u.v) u) / |x| with u, v the unit vectors; 0 for a vector of length
      0; as for a constant length where `epsilon` replaces it.
    NaN in: NaN out; never from where `where` is False.
    Error: float32 6 ulp of max(|value|, 1/16), gradient 14 of
      max(|gradient|, 1 / (16 |x|)), up to 100 entries; bfloat16 and float16 give a
      float32 value within 6 ulp and gradients within 0.6 ulp of the same.

    Args:
      predictions: floating array.
      targets: array of the shape of `predictions`.
      epsilon: least squared length, as in optax; a shorter vector is divided by
        sqrt(epsilon). Not needed for a finite result.
      axis: axis or axes of the vectors; None takes all entries as one vector.
      where: bool array, True = include; broadcasts to `predictions`.

    Returns:
      Array of the shape of `predictions` without `axis`; float32 for half precision.

    Raises:
      TypeError: `predictions` is not floating.
      ValueError: the batch is empty, the shapes differ, or there is no such axis.

    Examples:
      >>> cosine_similarity(jnp.asarray([3e30, 4e30]), jnp.asarray([4e-30, 3e-30]))
      Array(0.96, dtype=float32)
      >>> jax.grad(cosine_similarity)(jnp.zeros(2), jnp.ones(2))
      Array([0., 0.], dtype=float32)

    References:
      Blue, ACM TOMS 4(1), 1978.
    """
    name = "losses.cosine_similarity"
    x, y, axes, _ = _pair(name, predictions, targets, axis, where)
    return _similarity(x, y, epsilon, axes)


def cosine_distance(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    epsilon: ArrayLike = 0.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """One minus the cosine of the angle between two vectors.

    Value: |u - v|**2 / 2 with u, v the unit vectors, accurate also for a small angle;
      1 if one vector is 0; 0 if `where` leaves nothing.
    Gradient: ((u.v) u - v) / |x|, from the difference u - v; 0 for a vector of length
      0; as for a constant length where `epsilon` replaces it.
    NaN in: NaN out; never from where `where` is False.
    Error: float32 6 ulp of max(|value|, 1/16), gradient 14 of
      max(|gradient|, 1 / (16 |x|)), up to 100 entries; bfloat16 and float16 give a
      float32 value within 6 ulp and gradients within 0.6 ulp of the same.

    Args:
      predictions: floating array.
      targets: array of the shape of `predictions`.
      epsilon: least squared length, as in optax; a shorter vector is divided by
        sqrt(epsilon). Not needed for a finite result.
      axis: axis or axes of the vectors; None takes all entries as one vector.
      where: bool array, True = include; broadcasts to `predictions`.

    Returns:
      Array of the shape of `predictions` without `axis`; float32 for half precision.

    Raises:
      TypeError: `predictions` is not floating.
      ValueError: the batch is empty, the shapes differ, or there is no such axis.

    Examples:
      >>> cosine_distance(jnp.asarray([1.0, 1e-5]), jnp.asarray([1.0, 0.0]))
      Array(5.e-11, dtype=float32)

    References:
      Blue, ACM TOMS 4(1), 1978.
    """
    name = "losses.cosine_distance"
    x, y, axes, mask = _pair(name, predictions, targets, axis, where)
    full = jnp.squeeze(_is_full(x, epsilon, axes) & _is_full(y, epsilon, axes), axes)
    # A vector of 0, or one that `epsilon` keeps shorter than 1, is no unit vector.
    distance = jnp.where(
        full, _half_chord(x, y, axes), 1 - _similarity(x, y, epsilon, axes)
    )
    return jnp.where(mask.any(axes), distance, 0)


def _pair(
    name: str, predictions: Any, targets: Any, axis: Axis, where: Any
) -> tuple[jax.Array, jax.Array, tuple[int, ...], jax.Array]:
    """Both arrays with 0 where excluded, the axes to reduce, and the mask."""
    x = wide_floating(name, "predictions", predictions)
    y = matching(name, "targets", targets, x)
    mask = jnp.broadcast_to(True if where is None else where, x.shape)
    axes = axis_tuple(name, axis, x.ndim)
    return jnp.where(mask, x, 0), jnp.where(mask, y, 0), axes, mask


def _is_full(x: jax.Array, epsilon: Any, axes: tuple[int, ...]) -> jax.Array:
    """Whether a vector is divided by its own length: not 0, not below `epsilon`."""
    least = jnp.sqrt(jnp.asarray(epsilon, x.dtype))
    size = length(x, axes)
    # Negated, so that a NaN counts as full and comes out.
    return ~((size < least) | (size < _floats.tiny(x.dtype)))


def _similarity(
    x: jax.Array, y: jax.Array, epsilon: Any, axes: tuple[int, ...]
) -> jax.Array:
    own = _cosine(x, y, axes)
    if isinstance(epsilon, int | float) and epsilon == 0:
        return own
    least = jnp.sqrt(jnp.asarray(epsilon, x.dtype))
    full = jnp.squeeze(_is_full(x, epsilon, axes) & _is_full(y, epsilon, axes), axes)

    def divided(x: jax.Array) -> jax.Array:
        short = ~_is_full(x, epsilon, axes)
        inverse = quotient(jnp.ones_like(least), least)
        return jnp.where(short, x * inverse, unit(x, axes))

    return jnp.where(full, own, jnp.sum(divided(x) * divided(y), axes))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _cosine(x: jax.Array, y: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    # Dividing once, after the sum, rounds less than a sum of divided entries.
    (x, long_x), (y, long_y) = _scaled(x, axes), _scaled(y, axes)
    dot = jnp.sum(x * y, axes)
    return quotient(dot, jnp.squeeze(long_x * long_y, axes))


@_cosine.defjvp
def _cosine_jvp(axes: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    return _cosine(*primals, axes), _turn(axes, primals, tangents)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _half_chord(x: jax.Array, y: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return 0.5 * jnp.sum(jnp.square(unit(x, axes) - unit(y, axes)), axes)


@_half_chord.defjvp
def _half_chord_jvp(axes: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    return _half_chord(*primals, axes), -_turn(axes, primals, tangents)


def _turn(axes: tuple[int, ...], primals: Any, tangents: Any) -> jax.Array:
    """Change of the cosine."""
    (x, y), (dx, dy) = primals, tangents
    u, v = unit(x, axes), unit(y, axes)
    slope_x = _across(u, v, axes) * _inverse_length(x, axes)
    slope_y = _across(v, u, axes) * _inverse_length(y, axes)
    return jnp.sum(slope_x * dx + slope_y * dy, axes)


def _across(u: jax.Array, v: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The part of `v` across the unit vector `u`.

    Projected twice: what the rounding of `u` leaves along it goes the second time.
    """
    for _ in range(2):
        v = v - u * jnp.sum(u * v, axes, keepdims=True)
    return v


def _inverse_length(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    size = length(x, axes)
    return quotient(jnp.ones_like(size), size)


def _scaled(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """`x` brought near 1 by a power of two, and its length then, axes kept."""
    peak = jnp.max(jnp.abs(x), axes, keepdims=True, initial=0)
    scaled = x * power_of_two(-exponent_near(peak), x.dtype)
    return scaled, jnp.sqrt(jnp.sum(jnp.square(scaled), axes, keepdims=True))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def unit(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """`x` over its length along `axes`; 0 for a vector of length 0."""
    scaled, size = _scaled(x, axes)
    return quotient(scaled, jnp.broadcast_to(size, x.shape))


@unit.defjvp
def _unit_jvp(axes: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    u = unit(x, axes)
    return u, _across(u, dx, axes) * _inverse_length(x, axes)


def _similarity_oracle(mp: Any, x: list[Any], y: list[Any]) -> tuple[Any, ...]:
    long_x, long_y = (mp.sqrt(mp.fsum(a * a for a in v)) for v in (x, y))
    u, v = [a / long_x for a in x], [a / long_y for a in y]
    s = mp.fsum(a * b for a, b in zip(u, v, strict=True))
    pairs = list(zip(u, v, strict=True))
    return s, (
        [(b - s * a) / long_x for a, b in pairs],
        [(a - s * b) / long_y for a, b in pairs],
    )


def _distance_oracle(mp: Any, x: list[Any], y: list[Any]) -> tuple[Any, ...]:
    s, (gx, gy) = _similarity_oracle(mp, x, y)
    return 1 - s, ([-g for g in gx], [-g for g in gy])


def _size(oracle: Any, mp: Any, x: list[Any], y: list[Any]) -> tuple[Any, ...]:
    """No less than 1/16 of what a unit vector, or its slope, amounts to."""
    value, gradients = oracle(mp, x, y)
    floors = [1 / mp.sqrt(mp.fsum(a * a for a in v)) / 16 for v in (x, y)]
    return max(abs(value), mp.mpf(1) / 16), tuple(
        [max(abs(g), floor) for g in gradient]
        for gradient, floor in zip(gradients, floors, strict=True)
    )


def _sample(rng: Any) -> Iterator[tuple[Any, ...]]:
    """Tame rows; then every scale, and pairs that nearly agree."""
    yield rng.normal(size=(8, 5)), rng.normal(size=(8, 5))
    x, y = rng.normal(size=(2, 24, 20))
    near = 2.0 ** -rng.uniform(0, 20, (24, 1))
    yield x * 10.0 ** rng.uniform(-4, 4, (24, 1)), x + near * y


_ZERO = ((0.0, 0.0), (3.0, 4.0))
_FLAT = ((0.0, 0.0), (0.0, 0.0))
_NONE = ((1.0, _NAN), (1.0, 1.0))
for _name, _function, _naive, _oracle, _at_zero in (
    (
        "cosine_similarity",
        cosine_similarity,
        lambda x, y: (
            jnp.sum(x * y, -1)
            / (jnp.sqrt(jnp.sum(x**2, -1)) * jnp.sqrt(jnp.sum(y**2, -1)))
        ),
        _similarity_oracle,
        0.0,
    ),
    (
        "cosine_distance",
        cosine_distance,
        lambda x, y: (
            1
            - jnp.sum(x * y, -1)
            / (jnp.sqrt(jnp.sum(x**2, -1)) * jnp.sqrt(jnp.sum(y**2, -1)))
        ),
        _distance_oracle,
        1.0,
    ),
):
    _catalog.add(
        _catalog.Row(
            name=f"losses.{_name}",
            function=_function,
            naive=_naive,
            kind="reduction",
            domain=((-float("inf"), float("inf")),) * 2,
            edges=(
                Edge(args=_ZERO, value=_at_zero, gradient=_FLAT),
                Edge(args=_NONE, value=_NAN, gradient=((_NAN, _NAN), (_NAN, _NAN))),
            ),
            ulp=_catalog.bounds(float32=(6, 14), float64=(6, 14), half=(6, 0.6)),
            oracle=_oracle,
            size=functools.partial(_size, _oracle),
            sample=_sample,
            result=_floats.wide,
        )
    )
