"""The cosine of an angle, one minus it, and how both turn with the vectors.

The slope of the cosine is the part of one vector across the other, over their lengths.
It cancels where the vectors nearly agree, and unit vectors would bring their rounding
into it. Here the vectors themselves are used, only scaled by a power of two: y - t x,
with t = x.y / x.x known to half as many digits again and its product with x taken
without rounding. One minus the cosine is the square of the sine over one plus the
cosine, and the sine is the length of that same part.

Sources: Blue, "A portable Fortran program to find the Euclidean norm of a vector",
ACM TOMS 4(1), 1978, for the scaling; `_exact` for the sums.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe._errors import check_floating
from jaxsafe.ops._exact import dot, remainder
from jaxsafe.ops._norm import direction, scaled
from jaxsafe.ops._reduction import axis_tuple, only

_INF, _NAN = float("inf"), float("nan")


def cosine_similarity(
    x: ArrayLike, y: ArrayLike, axis: int = -1, where: ArrayLike | None = None
) -> jax.Array:
    """Cosine of the angle between two vectors.

    Value: sum of the products of the two unit vectors; 0 beside a zero vector.
    Gradient: (v - u cos) / norm(x) with u, v the unit vectors; 0 beside a zero vector.
    NaN in: NaN out, value and gradient; never from where `where` is False.
    Error: float32 4.6 ulp of max(|true|, 1/16), gradient 4.5 ulp of
      max(|true|, 1/(16 norm)), up to 1,000 entries; bfloat16 and float16 0.51.

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
      Array(0.70711, dtype=float32)

    References:
      Blue, ACM TOMS 4(1), 1978.
    """
    x = check_floating("ops.cosine_similarity", "x", x)
    y = check_floating("ops.cosine_similarity", "y", y)
    x, y = jnp.broadcast_arrays(x, y)
    axes = axis_tuple("ops.cosine_similarity", axis, x.ndim)
    return _masked(x, y, None if where is None else jnp.asarray(where), axes)


@functools.partial(jax.jit, static_argnums=3)
def _masked(
    x: jax.Array, y: jax.Array, where: jax.Array | None, axes: tuple[int, ...]
) -> jax.Array:
    dtype = jnp.result_type(x, y)
    x, y = (only(a.astype(_floats.wide(dtype)), where) for a in (x, y))
    return jnp.squeeze(cosine(x, y, axes), axes).astype(dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def cosine(x: jax.Array, y: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Cosine of the angle, reduced axes kept; 0 beside a vector of length 0."""
    x, y = scaled(x, axes)[0], scaled(y, axes)[0]
    return _over_lengths(_product(x, y, axes), x, y, axes)


@cosine.defjvp
def _cosine_jvp(axes: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    return cosine(*primals, axes), _turn(axes, primals, tangents)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def one_minus_cosine(x: jax.Array, y: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """1 - cosine, with all its digits for a small angle too; reduced axes kept."""
    c = cosine(x, y, axes)
    x, y = scaled(x, axes)[0], scaled(y, axes)[0]
    across = _across(x, y, axes)
    squared_sine = _product(across, across, axes) / _not_zero(_product(y, y, axes))
    return jnp.where(c > 0.5, squared_sine / (1 + jnp.abs(c)), 1 - c)


@one_minus_cosine.defjvp
def _one_minus_cosine_jvp(axes: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    return one_minus_cosine(*primals, axes), -_turn(axes, primals, tangents)


def _turn(axes: tuple[int, ...], primals: Any, tangents: Any) -> jax.Array:
    """Change of the cosine."""
    (x, y), (dx, dy) = primals, tangents
    change = _slope(x, y, axes) * dx + _slope(y, x, axes) * dy
    return jnp.sum(change, axes, keepdims=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _slope(x: jax.Array, y: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Gradient of the cosine in `x`."""
    (x, power), (y, _) = scaled(x, axes), scaled(y, axes)
    return _over_lengths(_across(x, y, axes), x, y, axes) * power


@_slope.defjvp
def _slope_jvp(axes: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    x, y = primals
    (u, over_x), (v, over_y) = direction(x, axes), direction(y, axes)
    dx, dy = tangents[0] * over_x, tangents[1] * over_y
    slope = _slope(x, y, axes)

    def along(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(a * b, axes, keepdims=True)

    turn = dy - cosine(x, y, axes) * dx
    turn = (turn - u * along(u, turn)) * over_x
    return slope, turn - u * along(slope, dx) - slope * (along(u, dx) + along(v, dy))


def _across(x: jax.Array, y: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The part of `y` across `x`, as if rounded at the end, for entries near 1."""
    (above, above_rest), (below, below_rest) = dot(x, y, axes), dot(x, x, axes)
    square = _not_zero(below + below_rest)
    ratio = (above + above_rest) / square
    lost = remainder(above, ratio, below, rest=below_rest) + above_rest
    return remainder(y, x, ratio, rest=lost / square)


def _over_lengths(
    z: jax.Array, x: jax.Array, y: jax.Array, axes: tuple[int, ...]
) -> jax.Array:
    """Quotient of `z` and |x| |y|, or 0, for entries near 1."""
    squares = _product(x, x, axes) * _product(y, y, axes)
    return jnp.where(squares == 0, 0, z / jnp.sqrt(_not_zero(squares)))


def _product(x: jax.Array, y: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    head, rest = dot(x, y, axes)
    return head + rest


def _not_zero(x: jax.Array) -> jax.Array:
    return jnp.where(x == 0, 1, x)


def oracle(mp: Any, x: list[Any], y: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    """Cosine and its gradients."""
    r, s = (mp.sqrt(mp.fdot(a, a)) for a in (x, y))
    u, v = [a / r for a in x], [b / s for b in y]
    c = mp.fdot(u, v)
    pairs = list(zip(u, v, strict=True))
    return c, ([(b - a * c) / r for a, b in pairs], [(a - b * c) / s for a, b in pairs])


def size(
    oracle: Callable[..., tuple[Any, ...]], mp: Any, x: list[Any], y: list[Any]
) -> tuple[Any, tuple[Any, ...]]:
    """No less than 1/16 of what a unit vector, or its slope, amounts to."""
    value, slopes = oracle(mp, x, y)
    floors = (1 / (16 * mp.sqrt(mp.fdot(a, a))) for a in (x, y))
    pairs = zip(slopes, floors, strict=True)
    return max(abs(value), mp.mpf(1) / 16), tuple(
        [max(abs(g), least) for g in slope] for slope, least in pairs
    )


def sample(rng: Any) -> Iterator[tuple[Any, ...]]:
    """Tame rows; then few entries and many, all lengths, cosines near -1, 0, 1/2, 1."""
    yield rng.standard_normal((8, 5)), rng.standard_normal((8, 5))
    for n in (2, 3, 5, 20):
        x, z = rng.standard_normal((2, 160, n))
        x[::3, 0], z[::3, 0] = 30 * x[::3, 0], 30 * z[::3, 0]
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        z -= x * np.sum(x * z, 1, keepdims=True)
        z /= np.linalg.norm(z, axis=1, keepdims=True)
        near = rng.choice([-1, 1], (160, 1)) * 2.0 ** -rng.uniform(2, 12, (160, 1))
        c = np.clip(rng.choice([-1, 0, 0.5, 1], (160, 1)) + near, -1, 1)
        y = c * x + np.sqrt(1 - c * c) * z
        # Just above a power of two, where the ulp of a reciprocal is small.
        long_x, long_y = rng.uniform(1, 1.04, (2, 160, 1))
        yield long_x * x * 2.0 ** rng.integers(-9, 9, (160, 1)), long_y * y


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
        ulp=_catalog.bounds(float32=(4.6, 4.5), float64=(3.5, 4.4)),
        oracle=oracle,
        size=functools.partial(size, oracle),
        sample=sample,
    )
)
