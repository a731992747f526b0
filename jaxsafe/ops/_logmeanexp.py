"""logmeanexp, accurate for nearly equal entries too.

A mean of exponentials near 1 is measured from 1, so that its logarithm keeps digits.

Source: Blanchard, Higham & Higham, "Accurately computing the log-sum-exp and softmax
functions", IMA J. Numer. Anal. 41(4), 2021.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog
from jaxsafe._catalog import Edge
from jaxsafe._errors import check_floating
from jaxsafe.ops._exact import total
from jaxsafe.ops._norm import Axis, axis_tuple
from jaxsafe.ops._softmax import excluded, powers, shifted, softmax_core

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
    Error: float32 4 ulp of max(|value|, |max(x)|), gradient 7, up to 100,000 entries;
      bfloat16 and float16 0.51.

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
    x = check_floating("ops.logmeanexp", "x", x)
    axes = axis_tuple("ops.logmeanexp", axis, x.ndim)
    included = jnp.broadcast_to(True if where is None else where, x.shape)
    out = _logmeanexp(excluded(x, where), included, axes)
    return (out if keepdims else jnp.squeeze(out, axes)).astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _logmeanexp(x: jax.Array, included: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    row = shifted(x, axes)
    count = jnp.sum(included, axes, keepdims=True, dtype=jnp.int32)
    count = jnp.maximum(count, 1).astype(x.dtype)
    # The mean minus 1, entry by entry.
    off = jnp.where(row.gap > -1, jnp.expm1(row.gap), row.weight - 1)
    off = total(jnp.where(included, off, 0), axes) / count
    near = off > -0.5
    weight = jnp.where(row.empty, 0, 1 + row.rest) / count
    log_mean = jnp.where(near, jnp.log1p(jnp.where(near, off, 0)), jnp.log(weight))
    return row.peak + jnp.where(row.empty, 0, log_mean)


@_logmeanexp.defjvp
def _logmeanexp_jvp(axes: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    (x, included), (dx, _) = primals, tangents
    weighted = softmax_core(x, axes) * dx
    return _logmeanexp(x, included, axes), total(weighted, axes)


def _logmeanexp_oracle(mp: Any, x: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    weights, sum_ = powers(mp, x)
    return max(x) + mp.log(sum_ / len(x)), ([w / sum_ for w in weights],)


def _logmeanexp_size(mp: Any, x: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    value, gradient = _logmeanexp_oracle(mp, x)
    return max(abs(value), abs(max(x))), gradient


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
        ulp=_catalog.bounds(float32=(4, 7), float64=(4, 7)),
        oracle=_logmeanexp_oracle,
        size=_logmeanexp_size,
    )
)
