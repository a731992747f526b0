"""Terms of the relative entropy: right where the two probabilities nearly agree.

The idea: the difference of numbers within a factor of two of each other is exact, so
log(x/y) comes from (y - x)/x, and the part that cancels in x log(x/y) - x + y is summed
as a series instead, which cannot turn negative. Farther apart nothing cancels.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe.ops._entrywise import entrywise
from jaxsafe.ops._exact import is_zero
from jaxsafe.ops._log import floored_log1p
from jaxsafe.ops._power import quotient

_INF, _NAN = float("inf"), float("nan")


def rel_entr(x: ArrayLike, y: ArrayLike) -> jax.Array:
    """Term of the relative entropy, x log(x/y).

    Value: x log(x/y); 0 at x = 0; inf at y = 0 < x, and for negative arguments.
    Gradient: log(x/y) + 1 and -x/y; 0 at x = 0 and at y = 0, where the slope is
      infinite; NaN for negative arguments.
    NaN in: NaN out.
    Error: float32 and float64 4 ulp, gradient 21 ulp of max(|gradient|, 2**-4);
      bfloat16 and float16 0.51.

    Args:
      x: floating array.
      y: floating array that broadcasts with `x`.

    Returns:
      Array of the common shape and dtype of `x` and `y`.

    Raises:
      TypeError: `x` or `y` is not floating.

    Examples:
      >>> rel_entr(jnp.asarray([0.0, 0.5, 0.5]), jnp.asarray([0.5, 0.25, 0.0]))
      Array([0.       , 0.3465736,       inf], dtype=float32)

    References:
      Sterbenz, "Floating-Point Computation", 1974: y - x is exact near x.
    """
    return entrywise("ops.rel_entr", _rel_entr, x=x, y=y)


def kl_div(x: ArrayLike, y: ArrayLike) -> jax.Array:
    """Term of the Kullback-Leibler divergence, x log(x/y) - x + y, never negative.

    Value: x log(x/y) - x + y; y at x = 0; inf at y = 0 < x, and for negative arguments.
    Gradient: log(x/y), 0 at x = 0 and at y = 0 where it is infinite; 1 - x/y, which is
      0 at y = 0 < x; NaN for negative arguments.
    NaN in: NaN out.
    Error: float32 and float64 8 ulp, gradient 2.7; bfloat16 and float16 0.51.

    Args:
      x: floating array.
      y: floating array that broadcasts with `x`.

    Returns:
      Array of the common shape and dtype of `x` and `y`.

    Raises:
      TypeError: `x` or `y` is not floating.

    Examples:
      >>> kl_div(jnp.asarray([0.0, 0.5, 0.5]), jnp.asarray([0.5, 0.5, 0.0]))
      Array([0.5, 0. , inf], dtype=float32)

    References:
      log1p(r) = 2 atanh(r / (2 + r)): Abramowitz and Stegun, 4.1.27.
    """
    return entrywise("ops.kl_div", _kl_div, x=x, y=y)


def _lifted(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both times a power of two: no difference flushed to 0, no sum out of range."""
    small = (x < 2.0**-60) & (y < 2.0**-60)
    large = (x > 2.0**60) & (y > 2.0**60)
    scale = jnp.where(small, 2.0**60, jnp.where(large, 2.0**-60, 1)).astype(x.dtype)
    return x * scale, y * scale


def _near(x: jax.Array, y: jax.Array) -> jax.Array:
    """Whether y - x has no rounding error."""
    return (y > 0.5 * x) & (0.5 * y < x)


def _close(x: jax.Array, y: jax.Array) -> jax.Array:
    """Whether x (log(x/y) - 1) + y would lose digits."""
    return (y > 0.375 * x) & (0.375 * y < x)


@jax.custom_jvp
def _log_ratio(x: jax.Array, y: jax.Array) -> jax.Array:
    """Logarithm of x/y for positive numbers."""
    x, y = _lifted(x, y)
    near = _near(x, y)
    change = (jnp.where(near, y, 1) - jnp.where(near, x, 1)) / jnp.where(near, x, 1)
    ratio = quotient(x, y)
    normal = (ratio >= _floats.tiny(x.dtype)) & (ratio < _INF)
    far = jnp.where(
        normal, jnp.log(jnp.where(normal, ratio, 1)), jnp.log(x) - jnp.log(y)
    )
    return jnp.where(near, -floored_log1p(change), far)


@_log_ratio.defjvp
def _log_ratio_jvp(primals: Any, tangents: Any) -> Any:
    (x, y), (dx, dy) = primals, tangents
    one = jnp.ones_like(x)
    return _log_ratio(x, y), quotient(one, x) * dx - quotient(one, y) * dy


def _surplus(x: jax.Array, y: jax.Array) -> jax.Array:
    """Value of r - log1p(r) at r = (y - x)/x where x and y are close, elsewhere 0."""
    x, y = _lifted(x, y)
    close = _close(x, y)
    x, y = jnp.where(close, x, 1), jnp.where(close, y, 1)
    r = (y - x) / x
    s = (y - x) / (y + x)
    # log1p(r) = 2 (s + s**3/3 + ...) and 2 s = r - r s, so the first terms cancel.
    square, rest = s * s, jnp.zeros_like(s)
    for k in range(_terms(x.dtype), 0, -1):
        rest = square * (rest + 2 / (2 * k + 1))
    return s * (r - rest)


def _one_minus_ratio(x: jax.Array, y: jax.Array) -> jax.Array:
    """Value of 1 - x/y, from the difference of x and y where that is exact."""
    near = _near(x, y)
    low, high = _lifted(jnp.where(near, x, 1), jnp.where(near, y, 1))
    return jnp.where(near, quotient(high - low, high), 1 - quotient(x, y))


def _terms(dtype: Any) -> int:
    """How many terms until s**(2 k) <= 4**-k is rounded away; |s| is below 5/11."""
    return math.ceil(-math.log(float(jnp.finfo(dtype).eps)) / math.log(4))


def _positive(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(whether both are positive, x and y with 1 where they are not)."""
    tiny = _floats.tiny(x.dtype)
    both = (x >= tiny) & (y >= tiny)
    return both, jnp.where(both, x, 1), jnp.where(both, y, 1)


def _outside(x: jax.Array, y: jax.Array, at_zero: jax.Array) -> jax.Array:
    """The value where not both are positive; `at_zero` is the one at x = 0."""
    tiny = _floats.tiny(x.dtype)
    value = jnp.where(is_zero(x) & (y > -tiny), at_zero, _INF)
    return jnp.where(jnp.isnan(x) | jnp.isnan(y), _NAN, value)


def _edge_slope(x: jax.Array, y: jax.Array, slope: jax.Array) -> jax.Array:
    """`slope` where not both are positive, unless one is negative or NaN."""
    tiny = _floats.tiny(x.dtype)
    return jnp.where((x > -tiny) & (y > -tiny), slope, _NAN)


@jax.custom_jvp
def _rel_entr(x: jax.Array, y: jax.Array) -> jax.Array:
    both, a, b = _positive(x, y)
    return jnp.where(both, a * _log_ratio(a, b), _outside(x, y, jnp.zeros_like(x)))


@_rel_entr.defjvp
def _rel_entr_jvp(primals: Any, tangents: Any) -> Any:
    (x, y), (dx, dy) = primals, tangents
    both, a, b = _positive(x, y)
    edge = _edge_slope(x, y, jnp.zeros_like(x))
    to_x = jnp.where(both, _log_ratio(a, b) + 1, edge)
    to_y = jnp.where(both, -quotient(a, b), edge)
    return _rel_entr(x, y), to_x * dx + to_y * dy


@jax.custom_jvp
def _kl_div(x: jax.Array, y: jax.Array) -> jax.Array:
    both, a, b = _positive(x, y)
    # x (log(x/y) - 1) + y overflows only if the sum does; inf - inf is inf here.
    far = a * (_log_ratio(a, b) - 1) + b
    one_infinite = jnp.isinf(a) != jnp.isinf(b)
    value = jnp.where(_close(a, b), a * _surplus(a, b), far)
    return jnp.where(
        both, jnp.where(one_infinite, _INF, value), _outside(x, y, jnp.maximum(y, 0))
    )


@_kl_div.defjvp
def _kl_div_jvp(primals: Any, tangents: Any) -> Any:
    (x, y), (dx, dy) = primals, tangents
    both, a, b = _positive(x, y)
    to_x = jnp.where(both, _log_ratio(a, b), _edge_slope(x, y, jnp.zeros_like(x)))
    edge = _edge_slope(x, y, jnp.where(is_zero(x), 1, 0).astype(x.dtype))
    to_y = jnp.where(both, _one_minus_ratio(a, b), edge)
    return _kl_div(x, y), to_x * dx + to_y * dy


def _rel_entr_oracle(mp: Any, x: Any, y: Any) -> tuple[Any, ...]:
    return x * mp.log(x / y), (mp.log(x / y) + 1, -x / y)


def _kl_div_oracle(mp: Any, x: Any, y: Any) -> tuple[Any, ...]:
    return x * mp.log(x / y) - x + y, (mp.log(x / y), 1 - x / y)


_POSITIVE = ((0.0, _INF), (0.0, _INF))
_catalog.add(
    _catalog.Row(
        name="ops.rel_entr",
        function=rel_entr,
        naive=lambda x, y: x * jnp.log(x / y),
        kind="entrywise",
        domain=_POSITIVE,
        edges=(
            Edge(args=(0.0, 0.0), value=0.0, gradient=(0.0, 0.0)),
            Edge(args=(0.0, 1.0), value=0.0, gradient=(0.0, 0.0)),
            Edge(args=(1.0, 0.0), value=_INF, gradient=(0.0, 0.0)),
            Edge(args=(1.0, 1.0), value=0.0, gradient=(1.0, -1.0)),
            Edge(args=(-1.0, 1.0), value=_INF, gradient=(_NAN, _NAN)),
            Edge(args=(1.0, -1.0), value=_INF, gradient=(_NAN, _NAN)),
            Edge(args=(0.0, _INF), value=0.0, gradient=(0.0, 0.0)),
            Edge(args=(0.0, _NAN), value=_NAN, gradient=(_NAN, _NAN)),
        ),
        ulp=_catalog.bounds(float32=(4, 21), float64=(3.7, 16.8)),
        oracle=_rel_entr_oracle,
        size=_catalog.at_least(_rel_entr_oracle, 0.0, 2.0**-4),
    )
)
_catalog.add(
    _catalog.Row(
        name="ops.kl_div",
        function=kl_div,
        naive=lambda x, y: x * jnp.log(x / y) - x + y,
        kind="entrywise",
        domain=_POSITIVE,
        edges=(
            Edge(args=(0.0, 0.0), value=0.0, gradient=(0.0, 1.0)),
            Edge(args=(0.0, 2.0), value=2.0, gradient=(0.0, 1.0)),
            Edge(args=(1.0, 0.0), value=_INF, gradient=(0.0, 0.0)),
            Edge(args=(1.0, 1.0), value=0.0, gradient=(0.0, 0.0)),
            Edge(args=(_INF, 1.0), value=_INF, gradient=(_INF, -_INF)),
            Edge(args=(1.0, _INF), value=_INF, gradient=(-_INF, 1.0)),
            Edge(args=(-1.0, 1.0), value=_INF, gradient=(_NAN, _NAN)),
            Edge(args=(1.0, -1.0), value=_INF, gradient=(_NAN, _NAN)),
            Edge(args=(0.0, _NAN), value=_NAN, gradient=(_NAN, _NAN)),
        ),
        ulp=_catalog.bounds(float32=(8, 2.7), float64=(5.8, 2.3)),
        oracle=_kl_div_oracle,
    )
)
