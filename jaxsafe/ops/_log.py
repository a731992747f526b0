"""Logarithms: finite at their singular points, right everywhere else.

The idea: a singular point is replaced *before* the primitive runs and selected away
after it, in the value and in every derivative. Selecting the result alone would leave
0 * inf in the derivative. What 1 + x rounds away is known exactly, so log1p is a
logarithm and one correction: XLA's own is 100 ulp off in float64.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe._errors import check_choice, check_floating, error
from jaxsafe.ops._entrywise import chain, entrywise
from jaxsafe.ops._exact import difference, is_zero

_INF, _NAN = float("inf"), float("nan")


def log(
    x: ArrayLike,
    *,
    floor: float | None = None,
    grad: Literal["zero", "limit"] = "zero",
) -> jax.Array:
    """Natural logarithm, finite at 0.

    Value: log(max(x, floor)); NaN for x < 0.
    Gradient: 1/x; below the floor 0 (`grad="zero"`) or 1/floor (`grad="limit"`); NaN
      for x < 0.
    NaN in: NaN out.
    Error: float32 1.3 ulp, gradient 0.6, second derivative 2; bfloat16 and float16
      0.51; on a GPU gradient 1, second derivative 2.5.

    Args:
      x: floating array.
      floor: smallest argument that is told from 0, by default the smallest normal
        number of the dtype: anything smaller is flushed to 0 by XLA on CPU.
      grad: slope below the floor.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.
      ValueError: `floor` is below the smallest normal number, or `grad` is unknown.

    Examples:
      >>> jax.value_and_grad(log)(jnp.zeros(()))
      (Array(-87.33655, dtype=float32), Array(0., dtype=float32))

    References:
      Edge convention: zero subgradient where the slope is infinite.
    """
    x = check_floating("ops.log", "x", x)
    check_choice("ops.log", "grad", grad, ("zero", "limit"))
    least = _floats.tiny(x.dtype)
    if floor is not None and not least <= floor < _INF:
        raise error(
            ValueError,
            "ops.log",
            f"floor must be finite and at least {least}, the smallest normal number",
            floor,
            "Leave floor out to use that number.",
        )
    floor = least if floor is None else float(floor)
    return entrywise("ops.log", log_core(floor, limit=grad == "limit"), x=x)


def log1p(x: ArrayLike) -> jax.Array:
    """Logarithm of 1 + x, finite at -1.

    Value: log(1 + x); log(floor) at -1, with the smallest normal number of the dtype as
      floor; NaN for x < -1.
    Gradient: 1/(1 + x); 0 at -1; NaN for x < -1.
    NaN in: NaN out.
    Error: float32 and float64 2 ulp, gradient 1.8, second derivative 4; bfloat16 and
      float16 0.51.

    Args:
      x: floating array.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.

    Examples:
      >>> jax.value_and_grad(log1p)(jnp.float32(-1.0))
      (Array(-87.33655, dtype=float32), Array(0., dtype=float32))

    References:
      Edge convention: zero subgradient where the slope is infinite.
      Kahan, "Pracniques: further remarks on reducing truncation errors", 1965.
    """
    x = check_floating("ops.log1p", "x", x)
    return entrywise("ops.log1p", log1p_core(_floats.tiny(x.dtype)), x=x)


def logit(x: ArrayLike) -> jax.Array:
    """Inverse of the logistic function, finite at 0 and 1.

    Value: log(x / (1 - x)); at 0 and 1 minus and plus the magnitude of log(floor), with
      the smallest normal number of the dtype computed in as floor (float32 for half
      precision); NaN outside [0, 1].
    Gradient: 1 / (x (1 - x)); 0 at 0 and 1; NaN outside.
    NaN in: NaN out.
    Error: float32 and float64 3.3 ulp, gradient 2.5, second derivative 7; bfloat16 and
      float16 0.51.

    Args:
      x: floating array of probabilities.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.

    Examples:
      >>> logit(jnp.asarray([0.0, 0.5, 0.75]))
      Array([-87.33655  ,   0.       ,   1.0986123], dtype=float32)

    References:
      Sterbenz, "Floating-Point Computation", 1974: 2 x - 1 is exact near 1/2.
    """
    return entrywise("ops.logit", _logit_core, x=x)


def _is_low(x: jax.Array, floor: float) -> jax.Array:
    """Whether `x` counts as 0: it is below the floor, and not truly negative."""
    return (x > -_floats.tiny(x.dtype)) & (x < floor)


@functools.cache
def log_core(floor: float, *, limit: bool = False) -> Callable[[jax.Array], jax.Array]:
    """Logarithm with a floor, in the dtype of its argument; see `log`."""

    def safe(x: jax.Array) -> jax.Array:
        return jnp.where(_is_low(x, floor), floor, x)

    def value(x: jax.Array) -> jax.Array:
        return jnp.log(safe(x))

    def slope(x: jax.Array) -> jax.Array:
        inverse = jnp.where(safe(x) < 0, _NAN, 1 / safe(x))
        return inverse if limit else jnp.where(_is_low(x, floor), 0, inverse)

    def curvature(x: jax.Array) -> jax.Array:
        # The square of the quotient: the square of x would leave the range first.
        return jnp.where(_is_low(x, floor), 0, -jnp.square(slope(x)))

    return chain(value, slope, curvature)


@functools.cache
def log1p_core(floor: float) -> Callable[[jax.Array], jax.Array]:
    """Logarithm of 1 + x, in the dtype of its argument; see `log1p`."""

    def value(x: jax.Array) -> jax.Array:
        sum_, lost = difference(x, jnp.full_like(x, -1))
        safe = jnp.where(x == -1, floor, sum_)
        return jnp.log(safe) + lost / safe

    def slope(x: jax.Array) -> jax.Array:
        inverse = 1 / jnp.where(x == -1, 1, 1 + x)
        return jnp.where(x == -1, 0, jnp.where(x < -1, _NAN, inverse))

    def curvature(x: jax.Array) -> jax.Array:
        return -jnp.square(slope(x))

    return chain(value, slope, curvature)


def floored_log(x: jax.Array) -> jax.Array:
    """`log_core` with the smallest normal number of its dtype as floor."""
    return log_core(_floats.tiny(x.dtype))(x)


def floored_log1p(x: jax.Array) -> jax.Array:
    """`log1p_core` with the smallest normal number of its dtype as floor."""
    return log1p_core(_floats.tiny(x.dtype))(x)


def _ends(p: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(whether p counts as 0, whether it is 1, p with both replaced by 1/2)."""
    low, high = is_zero(p), p == 1
    return low, high, jnp.where(low | high, 0.5, p)


def _logit(p: jax.Array) -> jax.Array:
    low, high, safe = _ends(p)
    # 2 p - 1 has no rounding error here, and so no cancellation.
    near = (safe > 0.3) & (safe < 0.7)
    middle = jnp.where(near, safe, 0.5)
    inner = floored_log1p((2 * middle - 1) / (1 - middle))
    value = jnp.where(near, inner, jnp.log(safe) - floored_log1p(-safe))
    end = -jnp.log(_floats.tiny(p.dtype)).astype(p.dtype)
    return jnp.where(low, -end, jnp.where(high, end, value))


def _logit_slope(p: jax.Array) -> jax.Array:
    low, high, safe = _ends(p)
    outside = (safe < 0) | (safe > 1)
    slope = jnp.where(outside, _NAN, 1 / (safe * (1 - safe)))
    return jnp.where(low | high, 0, slope)


def _logit_curvature(p: jax.Array) -> jax.Array:
    _, _, safe = _ends(p)
    return (2 * safe - 1) * jnp.square(_logit_slope(p))


_logit_core = chain(_logit, _logit_slope, _logit_curvature)


_catalog.add(
    _catalog.Row(
        name="ops.log",
        function=log,
        naive=jnp.log,
        kind="entrywise",
        domain=((None, _INF),),
        edges=(
            Edge(args=(1.0,), value=0.0, gradient=(1.0,)),
            Edge(args=(-1.0,), value=_NAN, gradient=(_NAN,)),
            Edge(args=(_INF,), value=_INF, gradient=(0.0,)),
            Edge(args=(_NAN,), value=_NAN, gradient=(_NAN,)),
        ),
        ulp=_catalog.bounds(
            float32=(1.3, 0.6, 2), float64=(0.64, 0.6, 2), gpu=(1.3, 1, 2.5)
        ),
        oracle=lambda mp, x: (mp.log(x), (1 / x,), -1 / x**2),
    )
)
_catalog.add(
    _catalog.Row(
        name="ops.log1p",
        function=log1p,
        naive=lambda x: jnp.log(1 + x),
        kind="entrywise",
        domain=((-1.0, _INF),),
        edges=(
            Edge(args=(0.0,), value=0.0, gradient=(1.0,)),
            Edge(args=(-2.0,), value=_NAN, gradient=(_NAN,)),
            Edge(args=(_INF,), value=_INF, gradient=(0.0,)),
            Edge(args=(-_INF,), value=_NAN, gradient=(_NAN,)),
            Edge(args=(_NAN,), value=_NAN, gradient=(_NAN,)),
        ),
        ulp=_catalog.bounds(float32=(2, 1.8, 4), float64=(1.5, 1.8, 4)),
        oracle=lambda mp, x: (mp.log1p(x), (1 / (1 + x),), -1 / (1 + x) ** 2),
    )
)
_catalog.add(
    _catalog.Row(
        name="ops.logit",
        function=logit,
        naive=lambda p: jnp.log(p / (1 - p)),
        kind="entrywise",
        domain=((0.0, 1.0),),
        edges=(
            Edge(args=(0.5,), value=0.0, gradient=(4.0,)),
            Edge(args=(-0.5,), value=_NAN, gradient=(_NAN,)),
            Edge(args=(1.5,), value=_NAN, gradient=(_NAN,)),
            Edge(args=(_INF,), value=_NAN, gradient=(_NAN,)),
            Edge(args=(_NAN,), value=_NAN, gradient=(_NAN,)),
        ),
        ulp=_catalog.bounds(float32=(3.3, 2.5, 7), float64=(3.2, 2.3, 6.4)),
        oracle=lambda mp, p: (
            mp.log(p / (1 - p)),
            (1 / (p * (1 - p)),),
            (2 * p - 1) / (p * (1 - p)) ** 2,
        ),
    )
)
