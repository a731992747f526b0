"""standardize: mean 0 and standard deviation 1, for rows of any offset and size.

The usual E[x**2] - E[x]**2 turns a row around 10,000 into +-500 or NaN, and squares of
1e20 overflow. `_moments` centers in two passes and scales by a power of two; epsilon is
scaled along, so it means the same for every row.

Source: Chan, Golub & LeVeque, "Algorithms for computing the sample variance", The
American Statistician 37(3), 1983.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog
from jaxsafe._catalog import Edge
from jaxsafe.ops._exact import total
from jaxsafe.ops._mean import mean_and_rest, spread_rows
from jaxsafe.ops._moments import Over, center, frame, standard
from jaxsafe.ops._power import quotient
from jaxsafe.ops._reduction import Axis, only, reduction
from jaxsafe.ops._root import sqrt

_NAN = float("nan")


def standardize(
    x: ArrayLike,
    axis: Axis = -1,
    mean: ArrayLike | None = None,
    variance: ArrayLike | None = None,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Shift and scale to mean 0 and standard deviation 1 along `axis`.

    Value: (x - mean) / sqrt(variance + epsilon); 0 for a constant row, where excluded,
      and where variance + epsilon is 0.
    Gradient: that of the value; 0 for a constant row if epsilon is 0.
    NaN in: NaN for the whole row; never from where `where` is False.
    Error: float32 4.4 ulp, gradient 4; bfloat16 and float16 0.51; for |mean| up to
      1e6 standard deviations, in ulp of max(|value|, 1) and of the largest slope's
      terms.

    Args:
      x: floating array.
      axis: axis or axes to take mean and variance over.
      mean: subtracted instead of the mean of `x`; broadcasts to `x`.
      variance: used instead of the variance of `x`; broadcasts to `x`. With `mean`
        alone, the mean square of x - mean is used.
      epsilon: added to the variance; a constant, it is not differentiated.
      where: bool array, True = include; broadcasts to `x`.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.
      ValueError: `x` has no such axis.

    Examples:
      >>> standardize(jnp.asarray([1e4, 1e4 + 2.0]))
      Array([-0.999995,  0.999995], dtype=float32)

    References:
      Chan, Golub & LeVeque, The American Statistician 37(3), 1983.
    """
    given = (None if v is None else jnp.asarray(v) for v in (mean, variance))
    core = _standardize
    return reduction("ops.standardize", core, axis, epsilon, *given, where=where, x=x)


def _standardize(
    x: jax.Array,
    axes: tuple[int, ...],
    where: jax.Array | None,
    epsilon: ArrayLike,
    *given: jax.Array | None,
) -> jax.Array:
    x, epsilon = only(x, where), jnp.asarray(epsilon, x.dtype)
    if all(v is None for v in given):
        over = Over(axes)
        row = frame(x, over, where, floor=jnp.sqrt(epsilon))
        return only(standard(x, row, epsilon, over)[1], where)
    wide = (None if v is None else v.astype(x.dtype) for v in given)
    return _with_given(x, axes, where, epsilon, *wide)


def _with_given(
    x: jax.Array,
    axes: tuple[int, ...],
    where: ArrayLike | None,
    epsilon: jax.Array,
    mean: jax.Array | None,
    variance: jax.Array | None,
) -> jax.Array:
    """`standardize` with a mean or a variance from elsewhere."""
    row = frame(x, Over(axes), where)
    if mean is None:
        mean = center(x, row, Over(axes))[0]
    rest = only(x - jnp.broadcast_to(mean, x.shape), where)
    if variance is None:
        variance = total(jnp.square(rest), axes) / row.number
    spread = sqrt(variance + epsilon)
    return quotient(rest, jnp.broadcast_to(spread, x.shape))


def _oracle(mp: Any, x: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    rest = mean_and_rest(mp, x)[1]
    spread = mp.sqrt(mp.fsum(v * v for v in rest) / len(x) + mp.mpf(1e-5))
    y = [v / spread for v in rest]
    slope = [((i == 0) - (1 + y[0] * v) / len(x)) / spread for i, v in enumerate(y)]
    return y, (slope,)


def _size(mp: Any, x: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    # Values are of size 1; the slopes sum to 0, and so do the terms of each.
    y, _ = _oracle(mp, x)
    rest = mean_and_rest(mp, x)[1]
    spread = mp.sqrt(mp.fsum(v * v for v in rest) / len(x) + mp.mpf(1e-5))
    largest = 1 + (1 + y[0] * y[0]) / len(x)
    return [max(abs(v), mp.one) for v in y], ([largest / spread] * len(x),)


def _shift_and_scale(x: jax.Array) -> jax.Array:
    rest = x - jnp.mean(x, axis=-1, keepdims=True)
    return rest / jnp.sqrt(jnp.mean(rest**2, axis=-1, keepdims=True) + 1e-5)


_catalog.add(
    _catalog.Row(
        name="ops.standardize",
        function=standardize,
        naive=_shift_and_scale,
        kind="reduction",
        domain=((-float("inf"), float("inf")),),
        edges=(
            Edge(args=((1e25, -1e25),), value=(1.0, -1.0), gradient=((0.0, 0.0),)),
            Edge(args=((1.0, _NAN),), value=(_NAN, _NAN), gradient=((_NAN, _NAN),)),
            Edge(
                args=((0.1, 0.1),),
                value=(0.0, 0.0),
                gradient=((158.11388, -158.11388),),
            ),
        ),
        ulp=_catalog.bounds(float32=(4.4, 4), float64=(4.4, 4)),
        oracle=_oracle,
        size=_size,
        sample=spread_rows,
    )
)
