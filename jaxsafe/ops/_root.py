"""Square root and its reciprocal, with slope 0 where theirs is infinite.

The slope of a root is a reciprocal root, so both are chains of safe quotients.
1 / sqrt(x) is rounded twice; what either rounding lost is computed and put back.

Source: Dekker, "A floating-point technique for extending the available precision",
Numerische Mathematik 18, 1971.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe._errors import check_floating
from jaxsafe._pin import pinned
from jaxsafe.ops._entrywise import Formula, chain, entrywise
from jaxsafe.ops._exact import is_zero, remainder
from jaxsafe.ops._power import quotient

_INF, _NAN = float("inf"), float("nan")


def sqrt(x: ArrayLike) -> jax.Array:
    """Square root with slope 0, not infinite, at 0.

    Value: sqrt(x); NaN for x < 0.
    Gradient: 1/(2 sqrt(x)); 0 at 0; NaN for x < 0.
    NaN in: NaN out.
    Error: float32 0.51 ulp, gradient 0.6, second derivative 1.6; bfloat16 and float16
      0.51; on a GPU float32 1.1 ulp, second derivative 2.1.

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
    return entrywise("ops.sqrt", sqrt_core, x=x)


def rsqrt(x: ArrayLike) -> jax.Array:
    """Reciprocal square root, finite at 0.

    Value: 1 / sqrt(x); finfo.max of the dtype at 0, also for a subnormal where XLA on
      CPU makes 0 of that; NaN for x < 0.
    Gradient: -1/(2 x sqrt(x)); 0 at 0; NaN for x < 0.
    NaN in: NaN out.
    Error: float32 0.6 ulp, gradient 1.6, second derivative 3; bfloat16 and float16
      0.51; on a GPU gradient 2.1, second derivative 4.2.

    Args:
      x: floating array.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.

    Examples:
      >>> jax.value_and_grad(rsqrt)(jnp.zeros(()))
      (Array(3.4028235e+38, dtype=float32), Array(0., dtype=float32))

    References:
      Edge convention: zero subgradient where the slope is infinite.
    """
    x = check_floating("ops.rsqrt", "x", x)
    return entrywise("ops.rsqrt", _topped(_floats.largest(x.dtype)), x=x)


@functools.cache
def _topped(top: float) -> Formula:
    """1 / sqrt(x), `top` at 0."""
    return lambda x: jnp.where(is_zero(x), top, rsqrt_core(x))


def _inverse(x: jax.Array) -> jax.Array:
    """1 / sqrt(x), but 0 at 0; rounded as if once."""
    zero = is_zero(x)
    half = int(jnp.finfo(x.dtype).maxexp) // 2
    small = x < 2.0**-half
    # Lifted, so that what the root's rounding lost is a normal number.
    lifted = jnp.where(zero, 1, pinned(x * jnp.where(small, 2.0**half, 1)))
    root = jnp.sqrt(lifted)
    inverse = 1 / root
    from_root = remainder(lifted, root, root) / lifted
    from_inverse = remainder(jnp.ones_like(x), root, inverse)
    lost = inverse * (from_inverse - 0.5 * from_root)
    inverse = inverse + jnp.where(jnp.isfinite(lost), lost, 0)
    return jnp.where(zero, 0, inverse * jnp.where(small, 2.0 ** (half // 2), 1))


# In the dtype of the argument, for other modules to build on; rsqrt_core is 0 at 0.
rsqrt_core: Formula = chain(
    _inverse,
    lambda x: -quotient(0.5 * rsqrt_core(x), x),
    lambda x: quotient(quotient(0.75 * rsqrt_core(x), x), x),
)
sqrt_core = chain(
    jnp.sqrt,
    lambda x: 0.5 * rsqrt_core(x),
    lambda x: -quotient(0.25 * rsqrt_core(x), x),
)


def _sqrt_oracle(mp: Any, x: Any) -> tuple[Any, ...]:
    root = mp.sqrt(x)
    return root, (0.5 / root,), -0.25 / root**3


def _rsqrt_oracle(mp: Any, x: Any) -> tuple[Any, ...]:
    root = mp.sqrt(x)
    return 1 / root, (-0.5 / root**3,), 0.75 / root**5


_OUTSIDE = (
    Edge(args=(-1.0,), value=_NAN, gradient=(_NAN,)),
    Edge(args=(_NAN,), value=_NAN, gradient=(_NAN,)),
)
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
            Edge(args=(_INF,), value=_INF, gradient=(0.0,)),
            *_OUTSIDE,
        ),
        ulp=_catalog.bounds(
            float32=(0.51, 0.6, 1.6), float64=(0.51, 0.6, 1.6), gpu=(1.1, 0.6, 2.1)
        ),
        oracle=_sqrt_oracle,
    )
)
_catalog.add(
    _catalog.Row(
        name="ops.rsqrt",
        function=rsqrt,
        naive=lambda x: 1 / jnp.sqrt(x),
        kind="entrywise",
        domain=((0.0, _INF),),
        edges=(
            Edge(args=(4.0,), value=0.5, gradient=(-0.0625,)),
            Edge(args=(_INF,), value=0.0, gradient=(0.0,)),
            *_OUTSIDE,
        ),
        ulp=_catalog.bounds(
            float32=(0.6, 1.6, 3), float64=(0.6, 1.6, 3), gpu=(0.6, 2.1, 4.2)
        ),
        oracle=_rsqrt_oracle,
    )
)
