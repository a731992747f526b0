"""logmeanexp and cumlogsumexp: relatives of logsumexp with slopes of their own.

A mean of exponentials near 1 is measured from 1, so nearly equal entries keep their
digits. A running sum of exponentials is carried as (largest, sum of weights). The
largest is held fixed, so that only the weights have a slope: it is carried by the same
factors, all in [0, 1], and cannot overflow.

Source: Blanchard, Higham & Higham, "Accurately computing the log-sum-exp and softmax
functions", IMA J. Numer. Anal. 41(4), 2021.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsafe import _catalog
from jaxsafe._catalog import Edge
from jaxsafe.ops import _in_two as in_two
from jaxsafe.ops._exact import difference, total
from jaxsafe.ops._reduction import Axis, only, reduction
from jaxsafe.ops._softmax import log1p, powers, shifted, softmax_core

_INF, _NAN = float("inf"), float("nan")


def logmeanexp(
    x: ArrayLike,
    axis: Axis = None,
    where: ArrayLike | None = None,
    keepdims: bool = False,
) -> jax.Array:
    """Logarithm of the mean of exponentials.

    Value: log(mean(exp(x))); -inf for a row with nothing left.
    Gradient: softmax(x); 0 for an empty row; one-hot at +inf.
    NaN in: NaN for the whole row; never from where `where` is False.
    Error: float32 4 ulp, gradient 4.3; bfloat16 and float16 0.51; the value in ulp of
      max(|value|, |max(x)|).

    Args:
      x: floating array.
      axis: axis or axes to take the mean over, all by default.
      where: bool array, True = include; broadcasts to `x`.
      keepdims: keep reduced axes with length 1.

    Returns:
      Array of the dtype of `x`.

    Raises:
      TypeError: `x` is not floating.
      ValueError: `x` has no such axis.

    Examples:
      >>> logmeanexp(jnp.asarray([1000.0, 1000.0]))
      Array(1000., dtype=float32)

    References:
      Blanchard, Higham & Higham, IMA J. Numer. Anal. 41(4), 2021.
    """
    core = _masked_logmeanexp
    return reduction("ops.logmeanexp", core, axis, where=where, keepdims=keepdims, x=x)


def cumlogsumexp(
    operand: ArrayLike,
    axis: int = 0,
    reverse: bool = False,
    *,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Running logarithm of the sum of exponentials along `axis`.

    Value: logsumexp of the entries so far; -inf while there are none.
    Gradient: softmax of the entries so far; 0 while there are none; several +inf
      share it.
    NaN in: NaN from its place on; never from where `where` is False.
    Error: float32 1.6 ulp, gradient 7.2; bfloat16 and float16 0.51; the value in ulp of
      max(|value|, |largest so far|, 1).

    Args:
      operand: floating array.
      axis: axis to run along.
      reverse: run from the end.
      where: bool array, True = include; broadcasts to `operand`.

    Returns:
      Array of the shape and dtype of `operand`.

    Raises:
      TypeError: `operand` is not floating.
      ValueError: `operand` has no such axis.

    Examples:
      >>> cumlogsumexp(jnp.asarray([-jnp.inf, 1000.0, 1000.0]))
      Array([     -inf, 1000.    , 1000.6932], dtype=float32)

    References:
      Blanchard, Higham & Higham, IMA J. Numer. Anal. 41(4), 2021.
    """
    core = _from_end if reverse else _from_start
    return reduction("ops.cumlogsumexp", core, axis, where=where, operand=operand)


def _masked_logmeanexp(
    x: jax.Array, axes: tuple[int, ...], where: jax.Array | None
) -> jax.Array:
    included = None if where is None else jnp.broadcast_to(where, x.shape)
    return _logmeanexp(only(x, where, -_INF), included, axes)


def _from_start(
    x: jax.Array, axes: tuple[int, ...], where: jax.Array | None
) -> jax.Array:
    return _running(only(x, where, -_INF), axes[0])


def _from_end(
    x: jax.Array, axes: tuple[int, ...], where: jax.Array | None
) -> jax.Array:
    flipped = jnp.flip(only(x, where, -_INF), axes)
    return jnp.flip(_running(flipped, axes[0]), axes)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _logmeanexp(
    x: jax.Array, included: jax.Array | None, axes: tuple[int, ...]
) -> jax.Array:
    row = shifted(x, axes)
    count = jnp.asarray(math.prod(x.shape[axis] for axis in axes))
    if included is not None:
        count = jnp.sum(included, axes, keepdims=True, dtype=jnp.int32)
    count = jnp.maximum(count, 1).astype(x.dtype)
    # The mean minus 1, entry by entry.
    off = in_two.expm1(row.gap, row.lost)
    off = in_two.rounded_total(only(off, included), axes) / count
    near = off > -0.5
    weight = jnp.where(row.empty, 0, 1 + row.rest) / count
    log_mean = jnp.where(near, log1p(jnp.where(near, off, 0)), jnp.log(weight))
    return row.peak + jnp.where(row.empty, 0, log_mean)


@_logmeanexp.defjvp
def _logmeanexp_jvp(axes: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    (x, included), (dx, _) = primals, tangents
    weighted = softmax_core(x, axes) * dx
    return _logmeanexp(x, included, axes), total(weighted, axes)


def _running(x: jax.Array, axis: int) -> jax.Array:
    def join(left: Any, right: Any) -> Any:
        peak = jnp.maximum(left[0], right[0])
        weight, other = (w * _power(p, peak) for p, w in (left, right))
        return peak, weight + other

    start = lax.stop_gradient(x), _unit(x)
    peak, weight = lax.associative_scan(join, start, axis=axis)
    empty = weight == 0
    return jnp.where(empty, -_INF, peak + jnp.log(jnp.where(empty, 1, weight)))


@jax.custom_jvp
def _unit(x: jax.Array) -> jax.Array:
    """Exp of `x` measured from itself, which stays where it is as `x` moves."""
    return jnp.where(jnp.isnan(x), x, jnp.where(x == -_INF, 0, 1).astype(x.dtype))


@_unit.defjvp
def _unit_jvp(primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    return _unit(x), jnp.where(x == -_INF, 0, _unit(x) * dx)


def _power(x: jax.Array, peak: jax.Array) -> jax.Array:
    """exp(x - peak); 1 where both are the same infinity."""
    same = x == peak
    gap, lost = difference(jnp.where(same, 0, x), jnp.where(same, 0, peak))
    return jnp.exp(gap) * (1 + lost)


def _logmeanexp_oracle(mp: Any, x: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    weights, sum_ = powers(mp, x)
    return max(x) + mp.log(sum_ / len(x)), ([w / sum_ for w in weights],)


def _logmeanexp_size(mp: Any, x: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    value, gradient = _logmeanexp_oracle(mp, x)
    return max(abs(value), abs(max(x))), gradient


def _from_end_oracle(mp: Any, x: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    weights, sum_ = powers(mp, x)
    value = []
    for i in range(len(x)):
        peak = max(x[i:])
        value.append(peak + mp.log(powers(mp, x[i:])[1]))
    return value, ([w / sum_ for w in weights],)


def _from_end_size(mp: Any, x: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    value, gradient = _from_end_oracle(mp, x)
    peaks = [max(x[i:]) for i in range(len(x))]
    return [max(abs(v), abs(p), 1) for v, p in zip(value, peaks, strict=True)], gradient


def _rows(rng: Any) -> Iterator[tuple[Any]]:
    for n, scale in ((5, 1.0), (5, 1e-3), (60, 10.0), (60, 1.0)):
        yield (rng.standard_normal(n) * scale,)


_catalog.add(
    _catalog.Row(
        name="ops.logmeanexp",
        function=functools.partial(logmeanexp, axis=-1),
        naive=lambda x: jnp.log(jnp.mean(jnp.exp(x), axis=-1)),
        kind="reduction",
        domain=((-_INF, _INF),),
        edges=(
            Edge(args=((_INF, 1.0),), value=_INF, gradient=((1.0, 0.0),)),
            Edge(args=((-_INF, -_INF),), value=-_INF, gradient=((0.0, 0.0),)),
            Edge(args=((2.0, 2.0),), value=2.0, gradient=((0.5, 0.5),)),
            Edge(args=((0.0, _NAN),), value=_NAN, gradient=((_NAN, _NAN),)),
        ),
        ulp=_catalog.bounds(float32=(4, 4.3), float64=(4, 4.3)),
        oracle=_logmeanexp_oracle,
        size=_logmeanexp_size,
    )
)
_catalog.add(
    _catalog.Row(
        name="ops.cumlogsumexp",
        function=functools.partial(cumlogsumexp, axis=-1, reverse=True),
        naive=lambda x: jnp.log(jnp.cumsum(jnp.exp(x)[::-1])[::-1]),
        kind="whole",
        domain=((-_INF, _INF),),
        edges=(
            Edge(
                args=((1.0, _INF, 0.0),),
                value=(_INF, _INF, 0.0),
                gradient=((0.0, 1.0, 0.0),),
            ),
            Edge(
                args=((-_INF, -_INF),),
                value=(-_INF, -_INF),
                gradient=((0.0, 0.0),),
            ),
            Edge(
                args=((0.0, _NAN, 2.0),),
                value=(_NAN, _NAN, 2.0),
                gradient=((_NAN, _NAN, _NAN),),
            ),
        ),
        ulp=_catalog.bounds(float32=(1.6, 7.2), float64=(1.7, 5.3)),
        oracle=_from_end_oracle,
        size=_from_end_size,
        sample=_rows,
    )
)
