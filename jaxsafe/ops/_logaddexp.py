"""Sums and differences of numbers that are kept as logarithms.

The idea: factor out the larger one; what remains depends on the gap between the two.
Equal numbers have the gap 0, infinities too, so inf - inf never arises. The slopes are
functions of the gap alone: exp(x - result) has lost its digits once x is large.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog
from jaxsafe._catalog import Edge
from jaxsafe.ops._entrywise import entrywise
from jaxsafe.ops._exact import LOG2, difference, in_two
from jaxsafe.ops._exp import log1mexp_core, log1mexp_slope, log_expm1_slope
from jaxsafe.ops._sigmoid import sigmoid_below, sigmoid_core

_INF, _NAN = float("inf"), float("nan")
_LOG2 = LOG2[0]


def logaddexp(x1: ArrayLike, x2: ArrayLike) -> jax.Array:
    """Logarithm of exp(x1) + exp(x2).

    Value: max(x1, x2) + log(1 + exp(-|x1 - x2|)).
    Gradient: sigmoid(x1 - x2) and sigmoid(x2 - x1), which sum to 1; 1/2 each where
      x1 = x2, infinite ones included.
    NaN in: NaN out.
    Error: float32 8.3 ulp of max(|value|, 2**-4), gradient 4.4 of max(|gradient|,
      2**-4); float64 7, gradient 4.5; bfloat16 and float16 0.51.

    Args:
      x1: floating array.
      x2: floating array that broadcasts with `x1`.

    Returns:
      Array of the common shape and dtype of `x1` and `x2`.

    Raises:
      TypeError: `x1` or `x2` is not floating.

    Examples:
      >>> jax.grad(logaddexp)(jnp.float32(3e7), jnp.float32(3e7))
      Array(0.5, dtype=float32)

    References:
      Blanchard, Higham and Higham, "Accurately computing the log-sum-exp and softmax
      functions", 2021.
    """
    return entrywise("ops.logaddexp", _logaddexp, x1=x1, x2=x2)


def logsubexp(x1: ArrayLike, x2: ArrayLike) -> jax.Array:
    """Logarithm of exp(x1) - exp(x2), for x1 >= x2.

    Value: x1 + log(1 - exp(x2 - x1)); -inf where x1 = x2; NaN where x1 < x2 or both are
      inf.
    Gradient: 1 / (1 - exp(x2 - x1)) and -1 / (exp(x1 - x2) - 1), which sum to 1; 0
      where x1 = x2; NaN where the value is.
    NaN in: NaN out.
    Error: float32 and float64 6.7 ulp of max(|value|, |x1|, 2**-4), gradient 6.2 ulp of
      max(|gradient|, 2**-4); bfloat16 and float16 0.51.

    Args:
      x1: floating array.
      x2: floating array that broadcasts with `x1`.

    Returns:
      Array of the common shape and dtype of `x1` and `x2`.

    Raises:
      TypeError: `x1` or `x2` is not floating.

    Examples:
      >>> logsubexp(jnp.float32(1000.0), jnp.float32(999.0))
      Array(999.5413, dtype=float32)

    References:
      Mächler, "Accurately computing log(1 - exp(-|a|))", 2012.
    """
    return entrywise("ops.logsubexp", logsubexp_core, x1=x1, x2=x2)


@jax.custom_jvp
def _gap(x1: jax.Array, x2: jax.Array) -> jax.Array:
    """Subtract: 0 for equal infinities, and slopes 1 and -1 even there."""
    return jnp.where(x1 == x2, 0, x1 - x2)


@_gap.defjvp
def _gap_jvp(primals: Any, tangents: Any) -> Any:
    return _gap(*primals), tangents[0] - tangents[1]


@jax.custom_jvp
def _logaddexp(x1: jax.Array, x2: jax.Array) -> jax.Array:
    # A NaN in either gets into the gap.
    larger = jnp.where(x1 > x2, x1, x2)
    gap, lost = difference(x1, x2)
    gap, lost = _gap(x1, x2), jnp.where(gap < 0, -lost, lost)
    t = jnp.exp(-jnp.abs(gap))
    whole, rest = difference(t, jnp.full_like(t, -1))
    # Where the result may be near 0, log(2) is set apart: what is left of log(1 + t) is
    # small, and so is its rounding error.
    close = t > 0.5
    high, low = in_two(LOG2, t.dtype)
    main = jnp.where(close, larger + high, larger)
    main = main + jnp.log(jnp.where(close, 0.5 * whole, whole))
    return main + (jnp.where(close, low, 0) + (rest - lost * t) / whole)


@_logaddexp.defjvp
def _logaddexp_jvp(primals: Any, tangents: Any) -> Any:
    (x1, x2), (dx1, dx2) = primals, tangents
    gap = _gap(x1, x2)
    tangent = sigmoid_core(gap) * dx1 + sigmoid_below(gap) * dx2
    return _logaddexp(x1, x2), tangent


@jax.custom_jvp
def logsubexp_core(x1: jax.Array, x2: jax.Array) -> jax.Array:
    return x1 + log1mexp_core(_gap(x1, x2))


@logsubexp_core.defjvp
def _logsubexp_jvp(primals: Any, tangents: Any) -> Any:
    (x1, x2), (dx1, dx2) = primals, tangents
    value = logsubexp_core(x1, x2)
    # The gap between two infinities that cancel is not 0, it is unknown.
    gap = jnp.where(jnp.isnan(value), _NAN, _gap(x1, x2))
    tangent = log_expm1_slope(gap) * dx1 - log1mexp_slope(gap) * dx2
    return value, tangent


def _oracle(mp: Any, x1: Any, x2: Any) -> tuple[Any, ...]:
    low, high = min(x1, x2), max(x1, x2)
    value = high + mp.log1p(mp.exp(low - high))
    return value, (1 / (1 + mp.exp(x2 - x1)), 1 / (1 + mp.exp(x1 - x2)))


def _sub_oracle(mp: Any, x1: Any, x2: Any) -> tuple[Any, ...]:
    value = x1 + mp.log(-mp.expm1(x2 - x1))
    return value, (-1 / mp.expm1(x2 - x1), -1 / mp.expm1(x1 - x2))


def _sub_size(mp: Any, x1: Any, x2: Any) -> tuple[Any, ...]:
    # Where the result is far below x1, rounding x1 alone moves it by an ulp of x1.
    at_least = _catalog.at_least(_sub_oracle, max(abs(x1), 2.0**-4), 2.0**-4)
    return at_least(mp, x1, x2)


def _sample(rng: Any) -> Iterator[tuple[Any, ...]]:
    """Pairs x1 > x2 that stay apart in every dtype: all gaps, then tame ones."""
    x1 = rng.normal(size=500) * 2.0 ** rng.uniform(-8, 7, 500)
    step = 2.0 ** rng.uniform(-6, 7, 500)
    x2 = x1 - step * (0.02 + abs(x1))
    x1[-50:], x2[-50:] = rng.uniform(0.5, 2, 50), rng.uniform(-2, 0, 50)
    yield x1, x2


_catalog.add(
    _catalog.Row(
        name="ops.logaddexp",
        function=logaddexp,
        naive=lambda x1, x2: jnp.log(jnp.exp(x1) + jnp.exp(x2)),
        kind="entrywise",
        domain=((-_INF, _INF), (-_INF, _INF)),
        edges=(
            Edge(args=(0.0, 0.0), value=_LOG2, gradient=(0.5, 0.5)),
            Edge(args=(300.0, 300.0), value=300 + _LOG2, gradient=(0.5, 0.5)),
            Edge(args=(1.0, _INF), value=_INF, gradient=(0.0, 1.0)),
            Edge(args=(_INF, _INF), value=_INF, gradient=(0.5, 0.5)),
            Edge(args=(-_INF, -_INF), value=-_INF, gradient=(0.5, 0.5)),
            Edge(args=(1.0, -_INF), value=1.0, gradient=(1.0, 0.0)),
            Edge(args=(_NAN, -_INF), value=_NAN, gradient=(_NAN, _NAN)),
        ),
        ulp=_catalog.bounds(float32=(8.3, 4.4), float64=(7, 4.5)),
        oracle=_oracle,
        size=_catalog.at_least(_oracle, 2.0**-4, 2.0**-4),
    )
)
_catalog.add(
    _catalog.Row(
        name="ops.logsubexp",
        function=logsubexp,
        naive=lambda x1, x2: jnp.log(jnp.exp(x1) - jnp.exp(x2)),
        kind="entrywise",
        domain=((-_INF, _INF), (-_INF, _INF)),
        edges=(
            Edge(args=(2.0, 2.0), value=-_INF, gradient=(0.0, 0.0)),
            Edge(args=(1.0, 2.0), value=_NAN, gradient=(_NAN, _NAN)),
            Edge(args=(1.0, -_INF), value=1.0, gradient=(1.0, 0.0)),
            Edge(args=(_INF, 1.0), value=_INF, gradient=(1.0, 0.0)),
            Edge(args=(-_INF, -_INF), value=-_INF, gradient=(0.0, 0.0)),
            Edge(args=(_INF, _INF), value=_NAN, gradient=(_NAN, _NAN)),
            Edge(args=(_NAN, -_INF), value=_NAN, gradient=(_NAN, _NAN)),
        ),
        ulp=_catalog.bounds(float32=(6.7, 6.2), float64=(5, 5.4)),
        oracle=_sub_oracle,
        size=_sub_size,
        sample=_sample,
    )
)
