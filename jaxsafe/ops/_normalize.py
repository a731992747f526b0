"""Directions: normalize and cosine_similarity.

Both are made of the unit vector of `_norm`, which is taken from a scaled copy and so is
right at any magnitude, and whose derivative never forms a quotient by 0. A vector of
length 0 has no direction: its unit vector and every derivative are 0.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe._errors import check_floating
from jaxsafe.ops._norm import direction
from jaxsafe.ops._reduction import Axis, axis_tuple

_INF, _NAN = float("inf"), float("nan")


def normalize(
    x: ArrayLike, axis: Axis = -1, *, where: ArrayLike | None = None
) -> jax.Array:
    """Vector of length 1 in the direction of `x`.

    Value: x / norm(x); 0 for a zero vector and where excluded.
    Gradient: (I - u u^T) / norm(x) with u the value; 0 for a zero vector.
    NaN in: NaN for the whole vector; never from where `where` is False.
    Error: float32 3 ulp, gradient 10 ulp of max(|true|, 1/(16 norm(x))); bfloat16 and
      float16 0.51.

    Args:
      x: floating array.
      axis: axis or axes that make up a vector.
      where: bool array, True = include; broadcasts to `x`.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.
      ValueError: `x` has no such axis.

    Examples:
      >>> normalize(jnp.asarray([[0.0, 4e30], [0.0, 0.0]]))
      Array([[0., 1.],
             [0., 0.]], dtype=float32)

    References:
      Blue, ACM TOMS 4(1), 1978.
    """
    x = check_floating("ops.normalize", "x", x)
    axes = axis_tuple("ops.normalize", axis, x.ndim)
    return _unit(x, axes, where).astype(x.dtype)


def cosine_similarity(
    x: ArrayLike, y: ArrayLike, axis: int = -1, where: ArrayLike | None = None
) -> jax.Array:
    """Cosine of the angle between two vectors.

    Value: sum of the products of the two unit vectors; 0 beside a zero vector.
    Gradient: (v - u cos) / norm(x) with u, v the unit vectors; 0 beside a zero vector.
    NaN in: NaN out, value and gradient; never from where `where` is False.
    Error: float32 10 ulp of max(|true|, 1/16), gradient 32 ulp of
      max(|true|, 1/(16 norm)), up to 60 entries: what cancels leaves four roundings
      of numbers near 1; bfloat16 and float16 0.51.

    Args:
      x: floating array.
      y: floating array that broadcasts with `x`.
      axis: axis that makes up a vector, counted in the broadcast shape.
      where: bool array, True = include; broadcasts to the common shape.

    Returns:
      Array of the common dtype of `x` and `y`, without `axis`.

    Raises:
      TypeError: `x` or `y` is not floating.
      ValueError: there is no such axis.

    Examples:
      >>> cosine_similarity(jnp.asarray([1e20, 1e20]), jnp.asarray([1e-30, 0.0]))
      Array(0.70710677, dtype=float32)

    References:
      Blue, ACM TOMS 4(1), 1978.
    """
    x = check_floating("ops.cosine_similarity", "x", x)
    y = check_floating("ops.cosine_similarity", "y", y)
    dtype = jnp.result_type(x, y)
    shape = jnp.broadcast_shapes(x.shape, y.shape)
    axes = axis_tuple("ops.cosine_similarity", axis, len(shape))
    x, y = (
        _unit(jnp.broadcast_to(a.astype(dtype), shape), axes, where) for a in (x, y)
    )
    return jnp.sum(x * y, axes).astype(dtype)


def _unit(x: jax.Array, axes: tuple[int, ...], where: ArrayLike | None) -> jax.Array:
    wide = x.astype(_floats.wide(x.dtype))
    if where is not None:
        wide = jnp.where(jnp.broadcast_to(where, x.shape), wide, 0)
    unit, _ = direction(wide, axes)
    return unit


def _length(mp: Any, x: list[Any]) -> Any:
    return mp.sqrt(mp.fsum(v * v for v in x))


def _normalize_oracle(mp: Any, x: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    r = _length(mp, x)
    unit = [v / r for v in x]
    own = mp.fsum(v * v for v in unit[1:]) / r
    return unit, ([own, *(-unit[0] * v / r for v in unit[1:])],)


def _normalize_size(mp: Any, x: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    value, (gradient,) = _normalize_oracle(mp, x)
    least = 1 / (16 * _length(mp, x))
    return value, ([max(abs(g), least) for g in gradient],)


def _cosine_oracle(mp: Any, x: list[Any], y: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    r, s = _length(mp, x), _length(mp, y)
    u, v = [a / r for a in x], [b / s for b in y]
    cosine = mp.fsum(a * b for a, b in zip(u, v, strict=True))
    return cosine, (
        [(b - a * cosine) / r for a, b in zip(u, v, strict=True)],
        [(a - b * cosine) / s for a, b in zip(u, v, strict=True)],
    )


def _cosine_size(mp: Any, x: list[Any], y: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    value, slopes = _cosine_oracle(mp, x, y)
    floors = (1 / (16 * _length(mp, a)) for a in (x, y))
    pairs = zip(slopes, floors, strict=True)
    return max(abs(value), mp.mpf(1) / 16), tuple(
        [max(abs(g), least) for g in slope] for slope, least in pairs
    )


def _sample(rng: Any) -> Iterator[tuple[Any, ...]]:
    """Pairs of rows of every length: unrelated, nearly parallel, long and short."""
    for n in (7, 60):
        x, y = rng.standard_normal((2, 16, n))
        y[::4] = x[::4] * (1 + 1e-3 * rng.standard_normal((4, n)))
        x[8:12] *= 2.0 ** rng.integers(-12, 12, (4, 1))
        yield x, y


_catalog.add(
    _catalog.Row(
        name="ops.normalize",
        function=normalize,
        naive=lambda x: x / jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True)),
        kind="reduction",
        domain=((-_INF, _INF),),
        edges=(
            Edge(args=((0.0, 0.0),), value=(0.0, 0.0), gradient=((0.0, 0.0),)),
            Edge(args=((3.0, 4.0),), value=(0.6, 0.8), gradient=((0.128, -0.096),)),
            Edge(args=((_INF, 1.0),), value=(1.0, 0.0), gradient=((0.0, 0.0),)),
            Edge(args=((1.0, _NAN),), value=(_NAN, _NAN), gradient=((_NAN, _NAN),)),
        ),
        ulp=_catalog.bounds(float32=(3, 10), float64=(3, 10)),
        oracle=_normalize_oracle,
        size=_normalize_size,
    )
)
_catalog.add(
    _catalog.Row(
        name="ops.cosine_similarity",
        function=cosine_similarity,
        naive=lambda x, y: (
            jnp.sum(x * y, -1) / jnp.sqrt(jnp.sum(x**2, -1) * jnp.sum(y**2, -1))
        ),
        kind="reduction",
        domain=((-_INF, _INF), (-_INF, _INF)),
        edges=(
            Edge(
                args=((0.0, 0.0), (1.0, 2.0)),
                value=0.0,
                gradient=((0.0, 0.0), (0.0, 0.0)),
            ),
            Edge(
                args=((1.0, 0.0), (0.0, 2.0)),
                value=0.0,
                gradient=((0.0, 1.0), (0.5, 0.0)),
            ),
            Edge(
                args=((1.0, _NAN), (1.0, 2.0)),
                value=_NAN,
                gradient=((_NAN, _NAN), (_NAN, _NAN)),
            ),
        ),
        ulp=_catalog.bounds(float32=(10, 32), float64=(10, 32)),
        oracle=_cosine_oracle,
        size=_cosine_size,
        sample=_sample,
    )
)
