"""Exponentials that saturate, and the logarithms of their differences.

The idea: an exponential grows only until its dtype ends. From there on it is the
largest number, with slope 0, so that no infinity enters a sum or meets a 0. For
logarithms of 1 - exp(-x) and exp(x) - 1 the cancellation is left to expm1 and log1p,
each on the side where it has something to do.

Source: Mächler, "Accurately computing log(1 - exp(-|a|))", 2012.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe._errors import check_floating
from jaxsafe._pin import pinned
from jaxsafe.ops._entrywise import Formula, chain, entrywise
from jaxsafe.ops._exact import LOG2, in_two, is_zero
from jaxsafe.ops._log import floored_log1p

_INF, _NAN = float("inf"), float("nan")
_LOG2 = LOG2[0]


def exp(x: ArrayLike) -> jax.Array:
    """Exponential that saturates instead of overflowing.

    Value: exp(x); the largest finite number above its logarithm.
    Gradient: exp(x); 0 where saturated.
    NaN in: NaN out.
    Error: float32 and float64 2 ulp, all derivatives; bfloat16 and float16 0.51.

    Args:
      x: floating array.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.

    Examples:
      >>> jax.value_and_grad(exp)(jnp.float32(1000.0))
      (Array(3.4028235e+38, dtype=float32), Array(0., dtype=float32))

    References:
      Edge convention: zero slope where the value is clamped.
    """
    x = check_floating("ops.exp", "x", x)
    limit = _floats.largest(x.dtype)
    return entrywise("ops.exp", _saturating(_power_of_e, limit), x=x)


def expm1(x: ArrayLike) -> jax.Array:
    """exp(x) - 1 without cancellation near 0; saturates instead of overflowing.

    Value: exp(x) - 1; the largest finite number above its logarithm.
    Gradient: exp(x); 0 where saturated.
    NaN in: NaN out.
    Error: float32 6.4 ulp, float64 4, derivatives 2; bfloat16 and float16 0.51; on a
      GPU gradient 2.6, second derivative 2.6.

    Args:
      x: floating array.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.

    Examples:
      >>> expm1(jnp.asarray([1e-10, 1000.0]))
      Array([1.0000000e-10, 3.4028235e+38], dtype=float32)

    References:
      Edge convention: zero slope where the value is clamped.
    """
    x = check_floating("ops.expm1", "x", x)
    limit = _floats.largest(x.dtype)
    return entrywise("ops.expm1", _saturating(_expm1, limit), x=x)


def log1mexp(x: ArrayLike) -> jax.Array:
    """Logarithm of 1 - exp(-x), for x > 0.

    Value: log(1 - exp(-x)); -inf at 0; NaN for x < 0.
    Gradient: 1 / (exp(x) - 1); 0 at 0; NaN for x < 0.
    NaN in: NaN out.
    Error: float32 6.1 ulp, gradient 7, second derivative 12; bfloat16 and float16 0.51.

    Args:
      x: floating array.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.

    Examples:
      >>> log1mexp(jnp.float32(50.0))
      Array(-1.9287499e-22, dtype=float32)

    References:
      Mächler, "Accurately computing log(1 - exp(-|a|))", 2012.
    """
    return entrywise("ops.log1mexp", log1mexp_core, x=x)


def log_expm1(x: ArrayLike) -> jax.Array:
    """Logarithm of exp(x) - 1, for x > 0: the inverse of softplus.

    Value: log(exp(x) - 1), which is x for large x; -inf at 0; NaN for x < 0.
    Gradient: 1 / (1 - exp(-x)); 0 at 0; NaN for x < 0.
    NaN in: NaN out.
    Error: float32 10 ulp, gradient 6.8, second derivative 13; bfloat16 and float16
      0.51.

    Args:
      x: floating array.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.

    Examples:
      >>> log_expm1(jnp.asarray([1.0, 1000.0]))
      Array([5.4132485e-01, 1.0000000e+03], dtype=float32)

    References:
      Mächler, "Accurately computing log(1 - exp(-|a|))", 2012.
    """
    return entrywise("ops.log_expm1", log_expm1_core, x=x)


@functools.cache
def _saturating(function: Formula, limit: float) -> Formula:
    """The function up to the limit, with slope exp(x) there."""

    @jax.custom_jvp
    def clamped(x: jax.Array) -> jax.Array:
        value = function(x)
        return jnp.where(value > limit, limit, value)

    @clamped.defjvp
    def _rule(primals: Any, tangents: Any) -> Any:
        (x,), (dx,) = primals, tangents
        return clamped(x), _growth(x, limit) * dx

    return clamped


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _growth(x: jax.Array, limit: float) -> jax.Array:
    """exp(x), but 0 above the limit; its own derivative."""
    value = _power_of_e(x)
    return jnp.where(value > limit, 0, value)


@_growth.defjvp
def _growth_jvp(limit: float, primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    value = _growth(x, limit)
    return value, value * dx


def _power_of_e(x: jax.Array) -> jax.Array:
    # The last binades of XLA's exp are 5 ulp off; x - shift is exact there.
    shift = 2.0 ** (int(jnp.finfo(x.dtype).maxexp).bit_length() - 2)
    late = x >= shift
    value = jnp.exp(pinned(jnp.where(late, x - shift, x)))
    high, low = in_two((math.exp(shift), 0.0), x.dtype)
    # 0 times the infinity of an infinite x would be NaN.
    rest = jnp.where(jnp.isfinite(value), low * value, 0)
    return jnp.where(late, high * value + rest, value)


def lifted_exp(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(scale, power) whose product is exp(x), for x <= 0.

    Where exp(x) is about to be flushed the power is larger by exp(16), so that a factor
    comes in time if it is multiplied with the scale first.
    """
    late = x < -(2.0 ** (int(jnp.finfo(x.dtype).maxexp).bit_length() - 2))
    # An exact step: so far out, neighbours are further apart than those of the sum.
    power = jnp.exp(pinned(jnp.where(late, x + 16, x)))
    return jnp.where(late, jnp.asarray(math.exp(-16), x.dtype), 1), power


def _expm1(x: jax.Array) -> jax.Array:
    large = x > 1
    return jnp.where(large, _power_of_e(x) - 1, jnp.expm1(jnp.where(large, 0, x)))


def _at_zero(
    value: float, formula: Callable[[jax.Array], jax.Array]
) -> Callable[[jax.Array], jax.Array]:
    """The formula on x > 0, the value at 0, NaN below."""

    def function(x: jax.Array) -> jax.Array:
        outside = is_zero(x) | (x < 0)
        result = formula(jnp.where(outside, 1, x))
        return jnp.where(outside, jnp.where(is_zero(x), value, _NAN), result)

    return function


def _log1mexp(x: jax.Array) -> jax.Array:
    small = x < _LOG2
    near = jnp.log(-jnp.expm1(-jnp.where(small, x, 1)))
    far = floored_log1p(-jnp.exp(-jnp.where(small, 1, x)))
    return jnp.where(small, near, far)


def _log1mexp_slope(x: jax.Array) -> jax.Array:
    t = jnp.exp(-x)
    return jnp.where(x < 1, 1 / jnp.expm1(jnp.where(x < 1, x, 1)), t / (1 - t))


def _log_expm1(x: jax.Array) -> jax.Array:
    # Around its zero at log(2), where exp(x) - 1 = 1 + 2 (exp(x - log(2)) - 1).
    middle = (x > 0.3) & (x < 1)
    inner = floored_log1p(2 * jnp.expm1(_minus_log2(jnp.where(middle, x, _LOG2))))
    small = jnp.log(jnp.expm1(jnp.where(x < 1, x, 1)))
    large = x + floored_log1p(-jnp.exp(-x))
    return jnp.where(middle, inner, jnp.where(x < 1, small, large))


def _minus_log2(x: jax.Array) -> jax.Array:
    """Subtract log(2), with those of its digits that do not fit the dtype."""
    high, rest = in_two(LOG2, x.dtype)
    return pinned(x - high) - rest


def _log_expm1_slope(x: jax.Array) -> jax.Array:
    return -1 / jnp.expm1(-x)


def _curvature(x: jax.Array) -> jax.Array:
    # Of both: their difference is x. No product of two numbers as small as x.
    return _log1mexp_slope(x) / jnp.expm1(-x)


# In the dtype of the argument, for other modules to build on.
log1mexp_slope = chain(_at_zero(0, _log1mexp_slope), _at_zero(0, _curvature))
log_expm1_slope = chain(_at_zero(0, _log_expm1_slope), _at_zero(0, _curvature))
log1mexp_core = chain(_at_zero(-_INF, _log1mexp), log1mexp_slope)
log_expm1_core = chain(_at_zero(-_INF, _log_expm1), log_expm1_slope)


_NONE = Edge(args=(_NAN,), value=_NAN, gradient=(_NAN,))
_BELOW_LIMIT = ((-_INF, None),)
_catalog.add(
    _catalog.Row(
        name="ops.exp",
        function=exp,
        naive=jnp.exp,
        kind="entrywise",
        domain=_BELOW_LIMIT,
        edges=(
            _NONE,
            Edge(args=(-_INF,), value=0.0, gradient=(0.0,)),
            Edge(args=(0.0,), value=1.0, gradient=(1.0,)),
        ),
        ulp=_catalog.bounds(float32=(2, 2, 2), float64=(2, 2, 2)),
        oracle=lambda mp, x: (mp.exp(x), (mp.exp(x),), mp.exp(x)),
    )
)
_catalog.add(
    _catalog.Row(
        name="ops.expm1",
        function=expm1,
        naive=lambda x: jnp.exp(x) - 1,
        kind="entrywise",
        domain=_BELOW_LIMIT,
        edges=(
            _NONE,
            Edge(args=(-_INF,), value=-1.0, gradient=(0.0,)),
            Edge(args=(0.0,), value=0.0, gradient=(1.0,)),
        ),
        ulp=_catalog.bounds(
            float32=(6.4, 2, 2), float64=(4, 2, 2), gpu=(6.4, 2.6, 2.6)
        ),
        oracle=lambda mp, x: (mp.expm1(x), (mp.exp(x),), mp.exp(x)),
    )
)


def _log1mexp_oracle(mp: Any, x: Any) -> tuple[Any, ...]:
    slope = 1 / mp.expm1(x)
    value = mp.log(-mp.expm1(-x)) if x < 1 else mp.log1p(-mp.exp(-x))
    return value, (slope,), -slope * (1 + slope)


def _log_expm1_oracle(mp: Any, x: Any) -> tuple[Any, ...]:
    _, (slope,), second = _log1mexp_oracle(mp, x)
    return mp.log(mp.expm1(x)), (1 + slope,), second


_catalog.add(
    _catalog.Row(
        name="ops.log1mexp",
        function=log1mexp,
        naive=lambda x: jnp.log(1 - jnp.exp(-x)),
        kind="entrywise",
        domain=((0.0, _INF),),
        edges=(
            _NONE,
            Edge(args=(0.0,), value=-_INF, gradient=(0.0,)),
            Edge(args=(-1.0,), value=_NAN, gradient=(_NAN,)),
            Edge(args=(_INF,), value=0.0, gradient=(0.0,)),
        ),
        ulp=_catalog.bounds(float32=(6.1, 7, 12), float64=(4.5, 6, 10.7)),
        oracle=_log1mexp_oracle,
    )
)
_catalog.add(
    _catalog.Row(
        name="ops.log_expm1",
        function=log_expm1,
        naive=lambda x: jnp.log(jnp.exp(x) - 1),
        kind="entrywise",
        domain=((0.0, _INF),),
        edges=(
            _NONE,
            Edge(args=(0.0,), value=-_INF, gradient=(0.0,)),
            Edge(args=(-1.0,), value=_NAN, gradient=(_NAN,)),
            Edge(args=(_INF,), value=_INF, gradient=(1.0,)),
        ),
        ulp=_catalog.bounds(float32=(10, 6.8, 13), float64=(8.3, 5, 10)),
        oracle=_log_expm1_oracle,
    )
)
