"""squareplus and softsign: smooth units without an exponential.

The idea: squareplus for x < 0 is a quotient of positive numbers, where
(x + sqrt(x**2 + b)) / 2 would cancel, and the square under its root, which overflows
from 1.8e19 on in float32, is never formed.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._pin import pinned
from jaxsafe.ops._entrywise import add_unary, chain, entrywise

_INF = float("inf")


def squareplus(x: ArrayLike, b: ArrayLike = 4) -> jax.Array:
    """Smooth positive part without an exponential.

    Value: (x + sqrt(x**2 + b)) / 2; positive for b > 0, NaN for b < 0.
    Gradient: (1 + x / sqrt(x**2 + b)) / 2, and 1 / (4 sqrt(x**2 + b)) in b; 0 in both
      where x and b are 0.
    NaN in: NaN out.
    Error: float32 3.1 ulp, gradient 6.1, for another b 7, second derivative 9; bfloat16
      and float16 0.51.

    Args:
      x: floating array.
      b: curvature at 0 is 1 / (2 sqrt(b)); broadcasts with `x`.

    Returns:
      Array of the common shape and dtype of `x` and `b`.

    Raises:
      TypeError: `x` or `b` is not floating.

    Examples:
      >>> squareplus(jnp.asarray([-1e30, 0.0, 1e30]))
      Array([1.e-30, 1.e+00, 1.e+30], dtype=float32)

    References:
      Barron, "Squareplus: A Softplus-Like Algebraic Rectifier", 2021.
    """
    return entrywise("ops.squareplus", _squareplus, x=x, b=b)


def softsign(x: ArrayLike) -> jax.Array:
    """Algebraic sigmoid between -1 and 1.

    Value: x / (1 + |x|); -1 and 1 at -inf and inf.
    Gradient: 1 / (1 + |x|)**2.
    NaN in: NaN out.
    Error: float32 1.7 ulp, gradient 4, second derivative 6.1; bfloat16 and float16
      0.51; on a GPU float32 3 ulp.

    Args:
      x: floating array.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.

    Examples:
      >>> softsign(jnp.asarray([1.0, jnp.inf]))
      Array([0.5, 1. ], dtype=float32)

    References:
      Bergstra et al., "Quadratic Polynomials Learn Better Image Features", 2009.
    """
    return entrywise("ops.softsign", _softsign, x=x)


def _root(x: jax.Array, b: jax.Array) -> jax.Array:
    """sqrt(x**2 + b) without the square; 1 where it would be 0."""
    side, size = jnp.sqrt(b), jnp.abs(x)
    longer = jnp.where(side > size, side, size)
    shorter = jnp.where(side > size, size, side)
    longer = jnp.where(longer < _floats.tiny(x.dtype), 1, longer)
    ratio = jnp.where(jnp.isinf(shorter), 1, shorter / longer)
    return longer * jnp.sqrt(1 + jnp.square(ratio))


def _cosine(x: jax.Array, root: jax.Array) -> jax.Array:
    return jnp.where(jnp.isinf(x), jnp.sign(x), x / root)


@jax.custom_jvp
def _squareplus(x: jax.Array, b: jax.Array) -> jax.Array:
    root, size = _root(x, b), jnp.abs(x)
    half = 0.5 * root
    # Pinned, or XLA makes (x + root) * 0.5 of it, which overflows.
    return jnp.where(
        x > 0, pinned(0.5 * x) + pinned(half), 0.25 * b / (0.5 * size + half)
    )


@_squareplus.defjvp
def _squareplus_jvp(primals: Any, tangents: Any) -> Any:
    (x, b), (dx, db) = primals, tangents
    return _squareplus(x, b), _ramp(x, b) * dx + _share(x, b) * db


@jax.custom_jvp
def _ramp(x: jax.Array, b: jax.Array) -> jax.Array:
    """Slope in x: (1 + x / root) / 2."""
    root, size = _root(x, b), jnp.abs(x)
    below = 0.25 * b / (0.5 * size + 0.5 * root) / root
    return jnp.where(x > 0, 0.5 + 0.5 * _cosine(x, root), below)


@_ramp.defjvp
def _ramp_jvp(primals: Any, tangents: Any) -> Any:
    (x, b), (dx, db) = primals, tangents
    root = _root(x, b)
    bend = 0.5 * b / root / root / root
    return _ramp(x, b), bend * dx - 0.25 * _cosine(x, root) / root / root * db


@jax.custom_jvp
def _share(x: jax.Array, b: jax.Array) -> jax.Array:
    """Slope in b: 1 / (4 root)."""
    return jnp.where((x == 0) & (b == 0), 0, 0.25 / _root(x, b))


@_share.defjvp
def _share_jvp(primals: Any, tangents: Any) -> Any:
    (x, b), (dx, db) = primals, tangents
    root = _root(x, b)
    along = -0.25 * _cosine(x, root) / root / root
    return _share(x, b), along * dx - 0.125 / root / root / root * db


def _softsign_value(x: jax.Array) -> jax.Array:
    largest = _floats.largest(x.dtype)
    x = jnp.where(jnp.isinf(x), jnp.sign(x) * largest, x)
    return x / (1 + jnp.abs(x))


def _softsign_slope(x: jax.Array) -> jax.Array:
    return jnp.square(1 / (1 + jnp.abs(x)))


def _softsign_curvature(x: jax.Array) -> jax.Array:
    r = 1 / (1 + jnp.abs(x))
    return -2 * jnp.sign(x) * r * r * r


_softsign = chain(_softsign_value, _softsign_slope, _softsign_curvature)


def _squareplus_oracle(mp: Any, x: Any, b: Any = 4) -> tuple[Any, ...]:
    root = mp.sqrt(x * x + b)
    value = (x + root) / 2 if x > 0 else b / (root - x) / 2
    return value, (value / root,), b / root**3 / 2


def _softsign_oracle(mp: Any, x: Any) -> tuple[Any, ...]:
    scale = 1 + abs(x)
    return x / scale, (scale**-2,), -2 * mp.sign(x) * scale**-3


add_unary(
    "squareplus",
    squareplus,
    lambda x: (x + jnp.sqrt(x * x + 4)) / 2,
    ((0.0, 0.0), (1.0, 0.5), (_INF, 1.0)),
    _catalog.bounds(float32=(3.1, 6.1, 9), float64=(3.2, 6, 9.7)),
    _squareplus_oracle,
)
add_unary(
    "squareplus[b]",
    lambda x: squareplus(x, 0.5),
    lambda x: (x + jnp.sqrt(x * x + 0.5)) / 2,
    ((0.0, 0.0), (0.125**0.5, 0.5), (_INF, 1.0)),
    _catalog.bounds(float32=(3.1, 7, 9), float64=(3.2, 7.5, 10)),
    lambda mp, x: _squareplus_oracle(mp, x, mp.mpf(0.5)),
)
add_unary(
    "softsign",
    softsign,
    lambda x: x / (1 + jnp.abs(x)),
    ((-1.0, 0.0), (0.0, 1.0), (1.0, 0.0)),
    _catalog.bounds(float32=(1.7, 4, 6.1), float64=(1.8, 4, 6.1), gpu=(3, 4, 6.1)),
    _softsign_oracle,
)
