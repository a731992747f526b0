"""Powers and quotients: finite at their singular points, right everywhere else.

The idea: a singular point is replaced *before* the primitive runs and selected away
after it, in the value and in the slope. Selecting the result alone would leave
0 * inf in the derivative. Each slope is written in terms of the safe function itself,
so that derivatives of any order stay guarded. Half precision is computed in float32
and rounded once.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe._errors import check_floating
from jaxsafe.ops._exact import pinned

_INF, _NAN = float("inf"), float("nan")


def _is_zero(x: jax.Array) -> jax.Array:
    """Whether `x` is 0 or subnormal.

    XLA on CPU flushes subnormals in arithmetic, but `x == 0` comes out either way, even
    twice differently in one program. Against `tiny` every backend agrees.
    """
    return jnp.abs(x) < _floats.tiny(x.dtype)


def sqrt(x: ArrayLike) -> jax.Array:
    """Square root with slope 0, not infinite, at 0.

    Value: sqrt(x); NaN for x < 0.
    Gradient: 1/(2 sqrt(x)); 0 at 0; NaN for x < 0.
    NaN in: NaN out.
    Error: float32 0.51 ulp, gradient 1.5; bfloat16 and float16 0.51.

    Args:
      x: floating array.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.

    Examples:
      >>> jax.value_and_grad(sqrt)(jnp.zeros(()))
      (Array(0., dtype=float32), Array(0., dtype=float32))

    References:
      Edge convention: zero subgradient where the slope is infinite.
    """
    x = check_floating("ops.sqrt", "x", x)
    return _sqrt(x.astype(_floats.wide(x.dtype))).astype(x.dtype)


@jax.custom_jvp
def _sqrt(x: jax.Array) -> jax.Array:
    return jnp.sqrt(x)


@_sqrt.defjvp
def _sqrt_jvp(primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    zero = _is_zero(x)
    root = _sqrt(x)
    return root, jnp.where(zero, 0, 0.5 / jnp.where(zero, 1, root) * dx)


def divide(x: ArrayLike, y: ArrayLike, *, fill: ArrayLike = 0.0) -> jax.Array:
    """Quotient x / y, with a chosen value where y is 0.

    Value: x / y; `fill` where y is 0, or subnormal: XLA on CPU makes 0 of that.
    Gradient: 1/y and -(x/y)/y, which no square of y overflows; 0 where y is 0.
    NaN in: NaN out, also NaN / 0.
    Error: float32 1 ulp, gradient 2; 1.5 by a scalar, where XLA multiplies with the
      reciprocal; bfloat16 and float16 0.51.

    Args:
      x: floating array.
      y: floating array that broadcasts with `x`.
      fill: value where y is 0; broadcasts to the result.

    Returns:
      Array of the common shape and dtype of `x` and `y`.

    Raises:
      TypeError: `x` or `y` is not floating.

    Examples:
      >>> divide(jnp.asarray([1.0, 1.0]), jnp.asarray([4.0, 0.0]))
      Array([0.25, 0.  ], dtype=float32)

    References:
      Scaling as in Smith, "Algorithm 116: Complex division", CACM 5(8), 1962.
    """
    x, y = check_floating("ops.divide", "x", x), check_floating("ops.divide", "y", y)
    dtype = jnp.result_type(x, y)
    wide = _floats.wide(dtype)
    x, y = jnp.broadcast_arrays(x.astype(wide), y.astype(wide))
    fill = jnp.broadcast_to(jnp.asarray(fill, wide), x.shape)
    filled = _is_zero(y) & ~jnp.isnan(x)
    return jnp.where(filled, fill, quotient(x, y)).astype(dtype)


@jax.custom_jvp
def quotient(x: jax.Array, y: jax.Array) -> jax.Array:
    """Divide arrays of equal shape and dtype; 0 where y is 0, unless x is NaN."""
    half = int(jnp.finfo(y.dtype).maxexp) // 2
    # XLA divides by a broadcast scalar by multiplying with its reciprocal, which is
    # flushed to 0 for a scalar above 2**126.
    scale = jnp.where(jnp.abs(y) >= 2.0**half, 2.0**-half, 1).astype(y.dtype)
    zero = _is_zero(y)
    # Pinned, or for a constant y the two constants would be folded back into one.
    ratio = pinned(x * scale) / (jnp.where(zero, 1, y) * scale)
    return jnp.where(zero, jnp.where(jnp.isnan(x), _NAN, 0), ratio)


@quotient.defjvp
def _quotient_jvp(primals: Any, tangents: Any) -> Any:
    (x, y), (dx, dy) = primals, tangents
    half = int(jnp.finfo(y.dtype).maxexp) // 2
    zero = _is_zero(y)
    safe = jnp.where(zero, 1, y)
    size = jnp.abs(safe)
    # With |y * scale| in [2**-63, 2**64) its square is in range, so that the second
    # derivative of the reciprocal is too.
    large, small = size >= 2.0**half, size < 2.0 ** (1 - half)
    scale = jnp.where(large, 2.0**-half, jnp.where(small, 2.0**half, 1))
    scale = scale.astype(y.dtype)
    inverse = 1 / (safe * scale)
    ratio = quotient(jnp.where(zero, 0, x), safe)
    tangent = pinned(dx * inverse) * scale - quotient(ratio, safe) * dy
    return quotient(x, y), jnp.where(zero, 0, tangent)


_catalog.add(
    _catalog.Row(
        name="ops.sqrt",
        function=sqrt,
        naive=jnp.sqrt,
        kind="entrywise",
        domain=((0.0, _INF),),
        edges=(
            Edge(args=(0.0,), value=0.0, gradient=(0.0,)),
            Edge(args=(4.0,), value=2.0, gradient=(0.25,)),
            Edge(args=(-1.0,), value=_NAN, gradient=(_NAN,)),
            Edge(args=(_INF,), value=_INF, gradient=(0.0,)),
            Edge(args=(_NAN,), value=_NAN, gradient=(_NAN,)),
        ),
        ulp=_catalog.bounds(float32=(0.51, 1.5), float64=(0.51, 1.5)),
        oracle=lambda mp, x: (mp.sqrt(x), (0.5 / mp.sqrt(x),), -0.25 / mp.sqrt(x) ** 3),
    )
)
_catalog.add(
    _catalog.Row(
        name="ops.divide",
        function=divide,
        naive=lambda x, y: x / y,
        kind="entrywise",
        domain=((-_INF, _INF), (-_INF, _INF)),
        edges=(
            Edge(args=(1.0, 0.0), value=0.0, gradient=(0.0, 0.0)),
            Edge(args=(0.0, 0.0), value=0.0, gradient=(0.0, 0.0)),
            Edge(args=(-_INF, 0.0), value=0.0, gradient=(0.0, 0.0)),
            Edge(args=(1.0, 4.0), value=0.25, gradient=(0.25, -0.0625)),
            Edge(args=(1.0, _INF), value=0.0, gradient=(0.0, 0.0)),
            Edge(args=(1.0, _NAN), value=_NAN, gradient=(_NAN, _NAN)),
            Edge(args=(_NAN, 0.0), value=_NAN, gradient=(0.0, 0.0)),
        ),
        ulp=_catalog.bounds(float32=(1, 2), float64=(1, 2)),
        oracle=lambda _, x, y: (x / y, (1 / y, -x / y / y)),
    )
)
