"""Cosine similarity and distance, for vectors of any length, 0 included.

Both are those of `ops._cosine`. A distance of its own is needed because 1 - similarity
has no digits left for vectors that nearly agree, which is where training ends.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe.losses._inputs import given, matching, not_infinite, wide_floating
from jaxsafe.ops._cosine import cosine, one_minus_cosine, oracle, sample, size
from jaxsafe.ops._norm import direction, length
from jaxsafe.ops._power import quotient
from jaxsafe.ops._reduction import Axis, axis_tuple, only

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
    NaN in: NaN out, as for an infinite entry; never from where `where` is False.
    Error: float32 4.7 ulp of max(|value|, 1/16), gradient 4.5 of
      max(|gradient|, 1 / (16 |x|)), up to 1,000 entries; bfloat16 and float16 give a
      float32 value within 4.7 ulp and gradients within 0.51 ulp of the same.

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
    return jnp.squeeze(_similarity(x, y, given(epsilon), axes), axes)


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
    NaN in: NaN out, as for an infinite entry; never from where `where` is False.
    Error: float32 5.4 ulp of max(|value|, 1/16), gradient 4.5 of
      max(|gradient|, 1 / (16 |x|)), up to 1,000 entries; bfloat16 and float16 give a
      float32 value within 5.4 ulp and gradients within 0.51 ulp of the same.

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
    return _distance(x, y, mask, given(epsilon), axes)


def _pair(
    name: str, predictions: Any, targets: Any, axis: Axis, where: Any
) -> tuple[jax.Array, jax.Array, tuple[int, ...], jax.Array | None]:
    """Both arrays with 0 where excluded, the axes to reduce, and the mask if any."""
    x = wide_floating(name, "predictions", predictions)
    y = matching(name, "targets", targets, x)
    mask = None if where is None else jnp.broadcast_to(where, x.shape)
    axes = axis_tuple(name, axis, x.ndim)
    x, y = (not_infinite(only(a, mask)) for a in (x, y))
    return x, y, axes, mask


@functools.partial(jax.jit, static_argnums=4)
def _distance(
    x: jax.Array,
    y: jax.Array,
    mask: jax.Array | None,
    epsilon: ArrayLike | None,
    axes: tuple[int, ...],
) -> jax.Array:
    distance = one_minus_cosine(x, y, axes)
    if epsilon is not None:
        full = _is_full(x, epsilon, axes) & _is_full(y, epsilon, axes)
        distance = jnp.where(full, distance, 1 - _similarity(x, y, epsilon, axes))
    distance = jnp.squeeze(distance, axes)
    return distance if mask is None else jnp.where(mask.any(axes), distance, 0)


@functools.partial(jax.jit, static_argnums=3)
def _similarity(
    x: jax.Array, y: jax.Array, epsilon: ArrayLike | None, axes: tuple[int, ...]
) -> jax.Array:
    """Cosine, reduced axes kept; no vector is divided by less than sqrt(epsilon)."""
    own = cosine(x, y, axes)
    if epsilon is None:
        return own
    least = jnp.sqrt(jnp.asarray(epsilon, x.dtype))
    inverse = quotient(jnp.ones_like(least), least)

    def divided(x: jax.Array) -> jax.Array:
        return jnp.where(_is_full(x, epsilon, axes), direction(x, axes)[0], x * inverse)

    shortened = jnp.sum(divided(x) * divided(y), axes, keepdims=True)
    full = _is_full(x, epsilon, axes) & _is_full(y, epsilon, axes)
    return jnp.where(full, own, shortened)


def _is_full(x: jax.Array, epsilon: Any, axes: tuple[int, ...]) -> jax.Array:
    """Whether a vector is divided by its own length, not below `epsilon`."""
    # Negated, so that a NaN counts as full and comes out.
    return ~(length(x, axes) < jnp.sqrt(jnp.asarray(epsilon, x.dtype)))


def _distance_oracle(mp: Any, x: list[Any], y: list[Any]) -> tuple[Any, ...]:
    c, slopes = oracle(mp, x, y)
    return 1 - c, tuple([-g for g in slope] for slope in slopes)


def _naive(x: jax.Array, y: jax.Array) -> jax.Array:
    long_x, long_y = (jnp.sqrt(jnp.sum(a**2, -1)) for a in (x, y))
    return jnp.sum(x * y, -1) / (long_x * long_y)


_ZERO = ((0.0, 0.0), (3.0, 4.0))
_FLAT = ((0.0, 0.0), (0.0, 0.0))
_NONE = ((1.0, _NAN), (1.0, 1.0))
for _name, _function, _twin, _oracle, _at_zero, _ulp in (
    (
        "cosine_similarity",
        cosine_similarity,
        _naive,
        oracle,
        0.0,
        _catalog.bounds(float32=(4.7, 4.5), float64=(4.7, 4.5), half=(4.7, 0.51)),
    ),
    (
        "cosine_distance",
        cosine_distance,
        lambda x, y: 1 - _naive(x, y),
        _distance_oracle,
        1.0,
        _catalog.bounds(float32=(5.4, 4.5), float64=(5.4, 4.5), half=(5.4, 0.51)),
    ),
):
    _catalog.add(
        _catalog.Row(
            name=f"losses.{_name}",
            function=_function,
            naive=_twin,
            kind="reduction",
            domain=((-float("inf"), float("inf")),) * 2,
            edges=(
                Edge(args=_ZERO, value=_at_zero, gradient=_FLAT),
                Edge(args=_NONE, value=_NAN, gradient=((_NAN, _NAN), (_NAN, _NAN))),
            ),
            ulp=_ulp,
            oracle=_oracle,
            size=functools.partial(size, _oracle),
            sample=sample,
            result=_floats.wide,
        )
    )
