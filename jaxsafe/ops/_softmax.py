"""softmax and log_softmax, on a reduction that all relatives share.

Three ideas. (1) Subtract the maximum and carry the rounding error of that subtraction
along, so that the error does not grow with the distance from the maximum. (2) Sum the
entries *below* the maximum apart (`rest`): log(1 + rest) and the gradient of a
confident row then never come from p - 1, which has no digits left. (3) An excluded
entry is -inf before anything else happens, so one mask serves value and gradient.

A NaN reaches the result through the sum, never through the maximum, which XLA on CPU
may lose. Where several entries are +inf they share the mass.

Source: Blanchard, Higham & Higham, "Accurately computing the log-sum-exp and softmax
functions", IMA J. Numer. Anal. 41(4), 2021; `rest` is their formula for log(1 + s).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsafe import _catalog
from jaxsafe._catalog import Edge
from jaxsafe._pin import pinned
from jaxsafe.ops import _in_two as in_two
from jaxsafe.ops._exact import LOG2, difference, fast_total, spread_total
from jaxsafe.ops._reduction import Axes, Axis, only, reduction

_INF, _NAN = float("inf"), float("nan")
_LOG2 = LOG2[0]


def softmax(x: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None) -> jax.Array:
    """Exponentials normalised to sum 1 along `axis`.

    Value: exp(x) / sum(exp(x)); 0 where excluded, and for a row with nothing left;
      +inf takes the whole mass.
    Gradient: that of the value, 0 for an empty row; own-class slope p(1 - p) from the
      sum of the others.
    NaN in: NaN for the whole row; never from where `where` is False.
    Error: float32 5 ulp, gradient 7; bfloat16 and float16 0.51; however far from
      the maximum.

    Args:
      x: floating array.
      axis: axis or axes to normalise over.
      where: bool array, True = include; broadcasts to `x`. An entry of -inf counts as
        excluded.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.
      ValueError: `x` has no such axis.

    Examples:
      >>> softmax(jnp.asarray([0.0, jnp.nan]), where=jnp.asarray([True, False]))
      Array([1., 0.], dtype=float32)

    References:
      Blanchard, Higham & Higham, IMA J. Numer. Anal. 41(4), 2021.
    """
    return reduction("ops.softmax", _masked_softmax, axis, where=where, x=x)


def log_softmax(
    x: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None
) -> jax.Array:
    """Logarithm of `softmax`, accurate also where the probability rounds to 1.

    Value: x - logsumexp(x); -inf where excluded, and for a row with nothing left.
    Gradient: that of the value, own class from the sum of the others; 0 where
      excluded and for an empty row.
    NaN in: NaN for the whole row; never from where `where` is False.
    Error: float32 3 ulp, gradient 5; bfloat16 and float16 0.51.

    Args:
      x: floating array.
      axis: axis or axes to normalise over.
      where: bool array, True = include; broadcasts to `x`.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.
      ValueError: `x` has no such axis.

    Examples:
      >>> log_softmax(jnp.asarray([18.0, 0.0]))[0]
      Array(-1.523e-08, dtype=float32)

    References:
      Blanchard, Higham & Higham, IMA J. Numer. Anal. 41(4), 2021.
    """
    return reduction("ops.log_softmax", _masked_log_softmax, axis, where=where, x=x)


Where = jax.Array | None


def _masked_softmax(x: jax.Array, axes: Axes, where: Where) -> jax.Array:
    return softmax_core(only(x, where, -_INF), axes)


def _masked_log_softmax(x: jax.Array, axes: Axes, where: Where) -> jax.Array:
    return only(log_softmax_core(only(x, where, -_INF), axes), where, -_INF)


class Shifted(NamedTuple):
    """A row measured from its maximum; reduced axes are kept.

    Attributes:
      peak: the maximum; -inf if nothing is left.
      gap: x - peak, 0 at the maximum also if that is infinite.
      lost: what rounding took off the gap.
      weight: exp of the exact gap.
      rest: sum of the weights - 1, from the entries other than one maximum.
      empty: bool, nothing is left in the row.
    """

    peak: jax.Array
    gap: jax.Array
    lost: jax.Array
    weight: jax.Array
    rest: jax.Array
    empty: jax.Array


def shifted(x: jax.Array, axes: Axes, low: jax.Array | None = None) -> Shifted:
    """Measure `x` from its maximum; -inf is excluded.

    `low` is what the rounding of `x` itself lost, where that is known.
    """
    peak, gap, lost, weight = _from_peak(x, axes, low)

    def on_cpu(gap: jax.Array, lost: jax.Array, weight: jax.Array) -> tuple[Any, Any]:
        del gap, lost
        return _ties_and_tail(weight, axes, in_two.rounded_total)

    def elsewhere(
        gap: jax.Array, lost: jax.Array, weight: jax.Array
    ) -> tuple[Any, Any]:
        # Comparisons are free, and sums that do not wait for each other are one pass.
        # At the top the weight is off from 1 by what is lost.
        top = gap == 0
        tail = jnp.where(top, lost, weight)
        return fast_total(top.astype(gap.dtype), axes), fast_total(tail, axes)

    ties, tail = lax.platform_dependent(
        gap, lost, weight, cpu=on_cpu, default=elsewhere
    )
    # Of a row with a NaN the tail is NaN.
    empty = (ties == 0) & (tail == 0)
    return Shifted(peak, gap, lost, weight, (ties - 1) + tail, empty)


def _ties_and_tail(
    weight: jax.Array, axes: Axes, add: Callable[..., jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """(how many weights are 1, sum of the others), for a CPU.

    A weight of 1 is at the top, or so near that nothing is lost if it counts as one.
    What is used once is no array of its own, so both passes write nothing.
    """
    tail = add(weight - jnp.floor(weight), axes)
    return jnp.round(fast_total(weight, axes) - tail), tail


def _whole(weight: jax.Array, axes: Axes) -> jax.Array:
    """Sum of the weights, one of which is 1."""
    # To add the small ones to a large one, one by one, rounds every time. A GPU and a
    # TPU add in a tree.
    return lax.platform_dependent(
        weight,
        cpu=lambda weight: sum(_ties_and_tail(weight, axes, fast_total)),
        default=lambda weight: fast_total(weight, axes),
    )


def _peak(x: jax.Array, axes: Axes) -> jax.Array:
    # Pinned, or a CPU writes it out for every entry.
    return pinned(jnp.max(x, axes, keepdims=True, initial=-_INF))


def _from_peak(
    x: jax.Array, axes: Axes, low: jax.Array | None
) -> tuple[jax.Array, ...]:
    """(peak, gap, lost, weight) of `Shifted`."""
    peak = _peak(x, axes)
    if low is not None:
        low = low - low_of_peak(x, peak, low, axes)
    return peak, *below(x, peak, low)


def below(
    x: jax.Array, peak: jax.Array, low: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(x - peak, what rounding took off it, the exponential of both); -inf is out.

    `low` is what the rounding of x - peak lost before, where that is known.
    """
    out = x == -_INF
    gap, lost = difference(x, peak)
    gap = jnp.where(out, -_INF, jnp.where(x == peak, 0, gap))
    if low is not None:
        lost = jnp.where(out, 0, lost + low)
    return gap, lost, _power(gap, lost)


def _power(gap: jax.Array, lost: jax.Array) -> jax.Array:
    """Exponential of gap + lost; within 2 ulp in float32 on CPU, else within 0.7.

    XLA's own for a CPU is off by 1 ulp and takes half of the time; of float64 by more.
    """

    def in_float32(gap: jax.Array, lost: jax.Array) -> jax.Array:
        power = jnp.exp(gap)
        return power + power * lost

    on_cpu = in_float32 if gap.dtype == jnp.float32 else in_two.exp
    return lax.platform_dependent(gap, lost, cpu=on_cpu, default=in_two.exp)


def low_of_peak(x: jax.Array, peak: jax.Array, low: jax.Array, axes: Axes) -> jax.Array:
    """What the rounding of the maximum lost; 0 if nothing is there."""
    lift = jnp.max(jnp.where(x == peak, low, -_INF), axes, keepdims=True)
    return jnp.where(jnp.isfinite(lift), lift, 0)


def log1p_rest(row: Shifted) -> jax.Array:
    """log(sum of the weights); 0 for an empty row."""
    return log1p(jnp.where(row.empty, 0, row.rest))


def log1p(x: jax.Array) -> jax.Array:
    """log(1 + x) for x > -1.

    XLA's own is off by 2.3 ulp on CPU.
    """
    one = jnp.ones_like(x)
    return in_two.log(in_two.plus(in_two.single(one), in_two.single(x)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax_core(x: jax.Array, axes: Axes, low: jax.Array | None = None) -> jax.Array:
    """Softmax in the dtype of `x`; `low` as for `shifted`."""
    *_, weight = _from_peak(x, axes, low)
    whole = _whole(weight, axes)
    return weight / jnp.where(whole == 0, 1, whole)


@softmax_core.defjvp
def _softmax_jvp(axes: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    (x, low), (dx, _) = primals, tangents
    p = softmax_core(x, axes, low)
    winner, small, change = from_winner(p, dx, axes)
    weighted = small * change
    change = weighted - small * spread_total(weighted, axes)
    # The changes add up to 0; said in this way the transpose measures from the one too.
    return p, change - winner * spread_total(change, axes)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def log_softmax_core(
    x: jax.Array, axes: Axes, low: jax.Array | None = None
) -> jax.Array:
    """Its logarithm; see `shifted`."""
    row = shifted(x, axes, low)
    log = log1p_rest(row)
    # Measured from the logarithm of the sum, an entry is rounded as that is, once.
    whole, rest = difference(row.peak, -log)
    if low is None:
        top, out = -log, (x - whole) - rest
    else:
        low = low - low_of_peak(x, row.peak, low, axes)
        top, out = low - log, (x - whole) - (rest - low)
    top = jnp.where(row.peak == -_INF, -_INF, top)
    return jnp.where(x == row.peak, top, out)


@log_softmax_core.defjvp
def _log_softmax_jvp(axes: Axes, primals: Any, tangents: Any) -> Any:
    (x, low), (dx, _) = primals, tangents
    p = softmax_core(x, axes, low)
    _, small, change = from_winner(p, dx, axes)
    shared = spread_total(small * change, axes)
    # The maximum may have lost a NaN.
    empty = (_peak(x, axes) == -_INF) & (x == -_INF)
    change = jnp.where(empty, 0, change - shared)
    return log_softmax_core(x, axes, low), change


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def logsumexp_core(x: jax.Array, axes: Axes) -> jax.Array:
    """`logsumexp` in the dtype of `x`, reduced axes kept; -inf is excluded."""
    row = shifted(x, axes)
    return row.peak + log1p_rest(row)


@logsumexp_core.defjvp
def _logsumexp_jvp(axes: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    weighted = softmax_core(x, axes) * dx
    return logsumexp_core(x, axes), fast_total(weighted, axes)


def from_winner(
    p: jax.Array, dx: jax.Array, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(1 at the one entry above 1/2, if there is one, the others' `p`, their change).

    Changes are measured from that of the one: every sum is then one of small
    probabilities, in the transpose as well. It is all products and sums, which a CPU
    makes in one pass; with comparisons they were six.
    """
    winner = jnp.round(p)
    change = dx - spread_total(winner * dx, axes)
    return winner, p - winner * p, change - winner * change


def powers(mp: Any, x: list[Any]) -> tuple[list[Any], Any]:
    """Oracle: exponentials measured from the maximum, and their sum."""
    peak = max(x)
    weights = [mp.exp(v - peak) for v in x]
    return weights, mp.fsum(weights)


def _softmax_oracle(mp: Any, x: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    weights, total = powers(mp, x)
    p = [w / total for w in weights]
    own = p[0] * mp.fsum(p[1:])
    return p, ([own, *(-p[0] * q for q in p[1:])],)


def _log_softmax_oracle(mp: Any, x: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    weights, total = powers(mp, x)
    p, peak = [w / total for w in weights], max(x)
    value = [v - peak - mp.log(total) for v in x]
    return value, ([mp.fsum(p[1:]), *(-q for q in p[1:])],)


_catalog.add(
    _catalog.Row(
        name="ops.softmax",
        function=softmax,
        naive=lambda x: jnp.exp(x) / jnp.sum(jnp.exp(x), axis=-1, keepdims=True),
        kind="reduction",
        domain=((-_INF, _INF),),
        edges=(
            Edge(args=((_INF, 1.0),), value=(1.0, 0.0), gradient=((0.0, 0.0),)),
            Edge(args=((-_INF, -_INF),), value=(0.0, 0.0), gradient=((0.0, 0.0),)),
            Edge(args=((3e38, -3e38),), value=(1.0, 0.0), gradient=((0.0, 0.0),)),
            Edge(args=((1.0, 1.0),), value=(0.5, 0.5), gradient=((0.25, -0.25),)),
            Edge(args=((0.0, _NAN),), value=(_NAN, _NAN), gradient=((_NAN, _NAN),)),
        ),
        ulp=_catalog.bounds(float32=(5, 7), float64=(3.5, 6.5)),
        oracle=_softmax_oracle,
    )
)
_catalog.add(
    _catalog.Row(
        name="ops.log_softmax",
        function=log_softmax,
        naive=lambda x: jnp.log(
            jnp.exp(x) / jnp.sum(jnp.exp(x), axis=-1, keepdims=True)
        ),
        kind="reduction",
        domain=((-_INF, _INF),),
        edges=(
            Edge(args=((_INF, 1.0),), value=(0.0, -_INF), gradient=((0.0, 0.0),)),
            Edge(args=((0.0, -_INF),), value=(0.0, -_INF), gradient=((0.0, 0.0),)),
            Edge(args=((-_INF, -_INF),), value=(-_INF, -_INF), gradient=((0.0, 0.0),)),
            Edge(args=((0.0, _NAN),), value=(_NAN, _NAN), gradient=((_NAN, _NAN),)),
        ),
        ulp=_catalog.bounds(float32=(3, 5), float64=(2.4, 3.5)),
        oracle=_log_softmax_oracle,
    )
)
