"""mean, var and std: in range whenever the result is, and flat at a constant row.

The numbers come from `_moments`, which refines the mean and scales by powers of two;
their slopes are written out, so that the slope of std at a constant is 0, not 0 / 0.

Source: Chan, Golub & LeVeque, "Algorithms for computing the sample variance", The
American Statistician 37(3), 1983.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog
from jaxsafe._catalog import Edge
from jaxsafe._errors import error
from jaxsafe.ops._moments import Over, center, deviation, frame, variance
from jaxsafe.ops._reduction import Axis, only, reduction

_INF, _NAN = float("inf"), float("nan")


def mean(
    a: ArrayLike,
    axis: Axis = None,
    *,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Arithmetic mean of the entries along `axis`.

    Value: sum(a) / n, in range for any finite entries; 0 if `where` leaves nothing.
    Gradient: 1 / n; 0 where excluded.
    NaN in: NaN out; never from where `where` is False.
    Error: float32 1.2 ulp, gradient 0.6; bfloat16 and float16 0.51; the value in ulp
      of mean(|a|).

    Args:
      a: floating array.
      axis: axis or axes to reduce, all by default.
      keepdims: keep reduced axes with length 1.
      where: bool array, True = include; broadcasts to `a`.

    Returns:
      Array of the dtype of `a`.

    Raises:
      TypeError: `a` is not floating.
      ValueError: `a` has no such axis.

    Examples:
      >>> mean(jnp.asarray([3e38, 3e38]))
      Array(3.e+38, dtype=float32)

    References:
      Chan, Golub & LeVeque, The American Statistician 37(3), 1983.
    """
    return reduction("ops.mean", _mean, axis, where=where, keepdims=keepdims, a=a)


def var(
    a: ArrayLike,
    axis: Axis = None,
    *,
    ddof: float = 0,
    keepdims: bool = False,
    where: ArrayLike | None = None,
    correction: float | None = None,
) -> jax.Array:
    """Mean squared distance from the mean along `axis`.

    Value: sum((a - mean(a))**2) / (n - ddof); infinite only if that overflows; 0 if
      n - ddof is not positive.
    Gradient: 2 (a - mean(a)) / (n - ddof).
    NaN in: NaN out; never from where `where` is False.
    Error: float32 2.2 ulp, gradient 2.3; bfloat16 and float16 0.51; for |mean| up to
      1e6 standard deviations, the gradient in ulp of its root mean square.

    Args:
      a: floating array.
      axis: axis or axes to reduce, all by default.
      ddof: what to take off the number of entries; 1 for the unbiased estimate.
      keepdims: keep reduced axes with length 1.
      where: bool array, True = include; broadcasts to `a`.
      correction: another name of `ddof`.

    Returns:
      Array of the dtype of `a`.

    Raises:
      TypeError: `a` is not floating.
      ValueError: `a` has no such axis, or both `ddof` and `correction` are given.

    Examples:
      >>> var(jnp.asarray([10001.0, 10002.0, 10003.0]), ddof=1)
      Array(1., dtype=float32)

    References:
      Chan, Golub & LeVeque, The American Statistician 37(3), 1983.
    """
    less = _less("ops.var", ddof, correction)
    return reduction("ops.var", _var, axis, less, where=where, keepdims=keepdims, a=a)


def std(
    a: ArrayLike,
    axis: Axis = None,
    *,
    ddof: float = 0,
    keepdims: bool = False,
    where: ArrayLike | None = None,
    correction: float | None = None,
) -> jax.Array:
    """Standard deviation of the entries along `axis`.

    Value: sqrt(var(a)), right also where the variance is out of range; 0 if n - ddof
      is not positive.
    Gradient: (a - mean(a)) / ((n - ddof) std(a)); 0 for a constant row.
    NaN in: NaN out; never from where `where` is False.
    Error: float32 2 ulp, gradient 4.6; bfloat16 and float16 0.51; for |mean| up to
      1e6 standard deviations, the gradient in ulp of its root mean square.

    Args:
      a: floating array.
      axis: axis or axes to reduce, all by default.
      ddof: what to take off the number of entries; 1 for the unbiased estimate.
      keepdims: keep reduced axes with length 1.
      where: bool array, True = include; broadcasts to `a`.
      correction: another name of `ddof`.

    Returns:
      Array of the dtype of `a`.

    Raises:
      TypeError: `a` is not floating.
      ValueError: `a` has no such axis, or both `ddof` and `correction` are given.

    Examples:
      >>> std(jnp.asarray([1e25, -1e25]))
      Array(1.e+25, dtype=float32)
      >>> jax.grad(std)(jnp.ones(2))
      Array([0., 0.], dtype=float32)

    References:
      Chan, Golub & LeVeque, The American Statistician 37(3), 1983.
    """
    less = _less("ops.std", ddof, correction)
    return reduction("ops.std", _std, axis, less, where=where, keepdims=keepdims, a=a)


def _less(name: str, ddof: float, correction: float | None) -> float:
    """What to take off the number of entries, under either name."""
    if correction is not None and ddof != 0:
        raise error(
            ValueError,
            name,
            "ddof and correction mean the same",
            f"ddof={ddof}, correction={correction}",
            "Give one of them.",
        )
    return ddof if correction is None else correction


def _mean(x: jax.Array, axes: tuple[int, ...], where: jax.Array | None) -> jax.Array:
    over = Over(axes)
    return center(only(x, where), frame(x, over, where), over)[0]


def _var(
    x: jax.Array, axes: tuple[int, ...], where: jax.Array | None, less: jax.Array
) -> jax.Array:
    over, less = Over(axes), jnp.asarray(less, x.dtype)
    return variance(only(x, where), frame(x, over, where), less, over)


def _std(
    x: jax.Array, axes: tuple[int, ...], where: jax.Array | None, less: jax.Array
) -> jax.Array:
    over, less = Over(axes), jnp.asarray(less, x.dtype)
    none = jnp.zeros((), x.dtype)
    return deviation(only(x, where), frame(x, over, where), less, none, over)


def mean_and_rest(mp: Any, x: list[Any]) -> tuple[Any, list[Any]]:
    """Oracle: the mean and what it leaves."""
    mean = mp.fsum(x) / len(x)
    return mean, [v - mean for v in x]


def _mean_oracle(mp: Any, x: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    return mp.fsum(x) / len(x), ([mp.mpf(1) / len(x)] * len(x),)


def _mean_size(mp: Any, x: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    return _mean_oracle(mp, [abs(v) for v in x])


def _var_oracle(mp: Any, x: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    rest = mean_and_rest(mp, x)[1]
    value = mp.fsum(v * v for v in rest) / len(x)
    return value, ([2 * v / len(x) for v in rest],)


def _std_oracle(mp: Any, x: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    value, (slope,) = _var_oracle(mp, x)
    root = mp.sqrt(value)
    return root, ([v / (2 * root) if root else mp.mpf(0) for v in slope],)


def of_root_mean_square(
    oracle: Callable[..., tuple[Any, ...]],
) -> Callable[..., tuple[Any, ...]]:
    """A `size`: slopes that sum to 0 have no digits of their own near it."""

    def size(mp: Any, x: list[Any]) -> tuple[Any, tuple[Any, ...]]:
        value, (slope,) = oracle(mp, x)
        typical = mp.sqrt(mp.fsum(v * v for v in slope) / len(x))
        return value, ([max(abs(v), typical) for v in slope],)

    return size


def spread_rows(rng: Any) -> Iterator[tuple[Any]]:
    """Rows whose mean is up to a million times their spread, the tame ones last."""
    spread = [[1e-6], [1e-4], [1e-3], [1.0], [1.0], [1.0]]
    mean = [[1.0], [1.0], [1.0], [3.0], [1.0], [0.0]]
    for n in (5, 60, 300):
        x = rng.standard_normal((6, n)) * spread + mean
        yield (x,)
        yield (x * 10.0 ** rng.uniform(-2, 2, (6, 1)),)


_catalog.add(
    _catalog.Row(
        name="ops.mean",
        function=functools.partial(mean, axis=-1),
        naive=lambda x: jnp.sum(x, axis=-1) / x.shape[-1],
        kind="reduction",
        domain=((-_INF, _INF),),
        edges=(
            Edge(args=((3e38, 3e38),), value=3e38, gradient=((0.5, 0.5),)),
            Edge(args=((_INF, 1.0),), value=_INF, gradient=((0.5, 0.5),)),
            Edge(args=((1.0, _NAN),), value=_NAN, gradient=((0.5, 0.5),)),
        ),
        ulp=_catalog.bounds(float32=(1.2, 0.6), float64=(1.2, 0.5)),
        oracle=_mean_oracle,
        size=_mean_size,
    )
)
for _function, _naive, _slope, _oracle, _ulp in (
    (var, jnp.var, 1.0, _var_oracle, _catalog.bounds((2.2, 2.3), (2.2, 2.5))),
    (std, jnp.std, 0.5, _std_oracle, _catalog.bounds((2, 4.6), (1.6, 4.2))),
):
    _catalog.add(
        _catalog.Row(
            name=f"ops.{_function.__name__}",
            function=functools.partial(_function, axis=-1),
            naive=functools.partial(_naive, axis=-1),
            kind="reduction",
            domain=((-_INF, _INF),),
            edges=(
                Edge(args=((0.1, 0.1, 0.1),), value=0.0, gradient=((0.0, 0.0, 0.0),)),
                Edge(args=((3.0, 1.0),), value=1.0, gradient=((_slope, -_slope),)),
                Edge(args=((1.0, _NAN),), value=_NAN, gradient=((_NAN, _NAN),)),
            ),
            ulp=_ulp,
            oracle=_oracle,
            size=of_root_mean_square(_oracle),
            sample=spread_rows,
        )
    )
