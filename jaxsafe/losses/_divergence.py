"""Kullback-Leibler divergences of a target from predicted log-probabilities.

The idea: a target of 0 contributes nothing, whatever is predicted there, and a
difference of two logarithms is only taken where both are numbers. The generalised
divergence is a sum of non-negative terms q (exp(r) - 1 - r) with r the logarithm of the
ratio; near r = 0 a series keeps their digits.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe.losses._inputs import finite, included, matching, weighted, wide_floating
from jaxsafe.ops._exact import is_zero
from jaxsafe.ops._reduction import Axis, axis_tuple, only

_INF, _NAN = float("inf"), float("nan")


def kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Kullback-Leibler divergence of the targets from the predictions.

    Value: sum(q * (log q - log p)); a target of 0 costs nothing; infinite for a target
      on a prediction of probability 0.
    Gradient: -q; to the targets log q + 1 - log p, at 0 the log of the smallest normal
      number - log p, bounded by the largest finite number.
    NaN in: NaN for the row; never from where `where` is False.
    Error: float32 3.1 ulp of the sum of |q log q| + |q log p|, gradient 1.2 (to the
      targets of the sum of its terms); bfloat16 and float16 give a float32 loss within
      3.1 ulp and gradients within 0.6 ulp.

    Args:
      log_predictions: floating array of log-probabilities.
      targets: array of that shape: probabilities.
      axis: axis or axes of the classes.
      where: bool array, True = include; broadcasts to `log_predictions`, or has one
        entry per row.

    Returns:
      One loss per row; float32 for half precision.

    Raises:
      TypeError: `log_predictions` is not floating.
      ValueError: the batch is empty, or the shapes differ.

    Examples:
      >>> kl_divergence(jnp.asarray([0.0, -jnp.inf]), jnp.asarray([1.0, 0.0]))
      Array(0., dtype=float32)

    References:
      Kullback & Leibler, "On information and sufficiency", 1951.
    """
    name = "losses.kl_divergence"
    return _total(name, "targets", _relative, log_predictions, targets, axis, where, 0)


def kl_divergence_with_log_targets(
    log_predictions: ArrayLike,
    log_targets: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Kullback-Leibler divergence with targets given as logarithms.

    Value: sum(exp(t) * (t - log p)); a log target of -inf is probability 0 and costs
      nothing; infinite for a target on a prediction of probability 0.
    Gradient: -exp(t); to the log targets exp(t) * (t + 1 - log p), 0 at -inf.
    NaN in: NaN for the row; never from where `where` is False.
    Error: float32 3.4 ulp of the sum of |t exp(t)| + |exp(t) log p|, gradient 2.4
      (to the log targets of the sum of its terms); bfloat16 and float16 give a float32
      loss within 3.4 ulp and gradients within 0.6 ulp.

    Args:
      log_predictions: floating array of log-probabilities.
      log_targets: array of that shape: log-probabilities.
      axis: axis or axes of the classes.
      where: bool array, True = include; broadcasts to `log_predictions`, or has one
        entry per row.

    Returns:
      One loss per row; float32 for half precision.

    Raises:
      TypeError: `log_predictions` is not floating.
      ValueError: the batch is empty, or the shapes differ.

    Examples:
      >>> log = jnp.asarray([0.0, -jnp.inf])
      >>> kl_divergence_with_log_targets(log, log)
      Array(0., dtype=float32)

    References:
      Kullback & Leibler, "On information and sufficiency", 1951.
    """
    name = "losses.kl_divergence_with_log_targets"
    return _total(
        name, "log_targets", _log_term, log_predictions, log_targets, axis, where, -_INF
    )


def generalized_kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Kullback-Leibler divergence of measures that need not sum to 1; never negative.

    Value: sum(q * (log q - log p) - q + p); p where the target is 0; infinite for a
      target on a prediction of probability 0.
    Gradient: p - q; to the targets log q - log p, at 0 with the log of the smallest
      normal number, bounded by the largest finite number.
    NaN in: NaN for the row; never from where `where` is False.
    Error: float32 1.2 ulp of the terms and of what rounding log q moves, gradient 2 of
      the sum of its two terms; bfloat16 and float16 give a float32 loss within 1.2 ulp
      and gradients within 0.6 ulp.

    Args:
      log_predictions: floating array of logarithms.
      targets: array of that shape, not negative.
      axis: axis or axes of the classes.
      where: bool array, True = include; broadcasts to `log_predictions`, or has one
        entry per row.

    Returns:
      One loss per row; float32 for half precision.

    Raises:
      TypeError: `log_predictions` is not floating.
      ValueError: the batch is empty, or the shapes differ.

    Examples:
      >>> generalized_kl_divergence(jnp.asarray([0.0, 1.0]), jnp.asarray([1.0, 0.0]))
      Array(2.7182817, dtype=float32)

    References:
      Bregman, USSR Comp. Math. and Math. Phys. 7(3), 1967.
    """
    name = "losses.generalized_kl_divergence"
    return _total(name, "targets", _bregman, log_predictions, targets, axis, where, 0)


convex_kl_divergence = generalized_kl_divergence


def _total(
    name: str,
    target: str,
    term: Any,
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: Axis,
    where: ArrayLike | None,
    nothing: float,
) -> jax.Array:
    x = wide_floating(name, "log_predictions", log_predictions)
    q = matching(name, target, targets, x)
    axes = axis_tuple(name, axis, x.ndim)
    mask = None if where is None else included(name, where, x.shape, axes)
    return _summed(x, q, mask, term, axes, nothing)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _summed(
    x: jax.Array,
    q: jax.Array,
    mask: jax.Array | None,
    term: Any,
    axes: tuple[int, ...],
    nothing: float,
) -> jax.Array:
    value = term(only(x, mask), only(q, mask, nothing))
    return jnp.sum(only(value, mask), axes)


def _log(q: jax.Array) -> jax.Array:
    least = _floats.tiny(q.dtype)
    return jnp.log(jnp.where(jnp.abs(q) < least, least, q))


def _relative(x: jax.Array, q: jax.Array) -> jax.Array:
    return weighted(q, _log(q) - x)


@jax.custom_jvp
def _log_term(x: jax.Array, t: jax.Array) -> jax.Array:
    gone = t == -_INF
    return weighted(jnp.exp(t), jnp.where(gone, 0, t) - x)


@_log_term.defjvp
def _log_term_jvp(primals: Any, tangents: Any) -> Any:
    (x, t), (dx, dt) = primals, tangents
    q, gap = jnp.exp(t), jnp.where(t == -_INF, 0, t) - x
    return _log_term(x, t), weighted(q, finite(gap + 1)) * dt - q * dx


@jax.custom_jvp
def _bregman(x: jax.Array, q: jax.Array) -> jax.Array:
    r = x - _log(q)
    near = jnp.abs(r) < 1
    small = jnp.where(near, r, 0)
    p = jnp.exp(x)
    far = (p - q) - weighted(q, r)
    absent = is_zero(q)
    return jnp.where(absent, p, jnp.where(near, q * _above_tangent(small), far))


@_bregman.defjvp
def _bregman_jvp(primals: Any, tangents: Any) -> Any:
    (x, q), (dx, dq) = primals, tangents
    slope = finite(jnp.exp(x)) - q
    return _bregman(x, q), slope * dx + finite(_log(q) - x) * dq


def _above_tangent(r: jax.Array) -> jax.Array:
    """exp(r) - 1 - r for |r| < 1, from its series."""
    count = 11 if r.dtype == jnp.float32 else 19
    total = jnp.zeros_like(r)
    for k in range(count, 1, -1):
        total = (total + 1) * (r / k) if k > 2 else (total + 1) * (r * (r / 2))
    return total


def _kl_oracle(mp: Any, x: list[Any], q: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    pairs = list(zip(x, q, strict=True))
    value = mp.fsum(b * (mp.log(b) - a) for a, b in pairs if b)
    return value, ([-b for b in q], [mp.log(b) + 1 - a for a, b in pairs])


def _kl_size(mp: Any, x: list[Any], q: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    pairs = list(zip(x, q, strict=True))
    value = mp.fsum(b * (abs(mp.log(b)) + abs(a)) for a, b in pairs)
    return value, (list(q), [abs(mp.log(b)) + 1 + abs(a) for a, b in pairs])


def _log_oracle(mp: Any, x: list[Any], t: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    pairs = list(zip(x, t, strict=True))
    value = mp.fsum(mp.exp(b) * (b - a) for a, b in pairs)
    slope = [mp.exp(b) * (b + 1 - a) for a, b in pairs]
    return value, ([-mp.exp(b) for b in t], slope)


def _log_size(mp: Any, x: list[Any], t: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    pairs = list(zip(x, t, strict=True))
    value = mp.fsum(mp.exp(b) * (abs(b) + abs(a)) for a, b in pairs)
    slope = [mp.exp(b) * (abs(b) + 1 + abs(a)) for a, b in pairs]
    return value, ([mp.exp(b) for b in t], slope)


def _bregman_oracle(mp: Any, x: list[Any], q: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    value, (_, slope) = _kl_oracle(mp, x, q)
    gap = [mp.exp(a) - b for a, b in zip(x, q, strict=True)]
    return value + mp.fsum(gap), (gap, [s - 1 for s in slope])


def _bregman_size(mp: Any, x: list[Any], q: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    value, _ = _bregman_oracle(mp, x, q)
    pairs = list(zip(x, q, strict=True))
    moved = (abs(mp.exp(a) - b) * (abs(mp.log(b)) + abs(a)) for a, b in pairs)
    slope = [abs(mp.log(b)) + abs(a) for a, b in pairs]
    return value + mp.fsum(moved), ([mp.exp(a) + b for a, b in pairs], slope)


def _sample(rng: Any, *, log: bool) -> Iterator[tuple[Any, ...]]:
    for n in (6, 3, 40):
        q = rng.dirichlet(np.full(n, 8.0), 8)
        x = np.log(rng.dirichlet(np.ones(n), 8))
        # Confident and wrong; all but certain; nearly equal. Tame ones last.
        x[0] *= 20
        q[1] = (1 - 2.0**-10) * np.eye(n)[0] + 2.0**-10 / n
        q[2] = np.exp(-rng.uniform(0, 12, n))
        x[3] = np.log(q[3]) + 1e-3 * rng.normal(size=n)
        yield x, np.log(q) if log else q


_MOST, _FLOOR = _floats.largest("f4"), float(np.log(_floats.tiny("f4")))


def _naive(x: jax.Array, q: jax.Array) -> jax.Array:
    return jnp.sum(q * jnp.log(q / jnp.exp(x)), -1)


def _naive_log(x: jax.Array, t: jax.Array) -> jax.Array:
    return _naive(x, jnp.exp(t))


def _naive_bregman(x: jax.Array, q: jax.Array) -> jax.Array:
    return _naive(x, q) + jnp.sum(jnp.exp(x) - q, -1)


# Names; function, naive twin, oracle, size, bounds; the targets (0, 1) and the slopes
# there at predictions of probability (1, 0).
_PROMISES: tuple[tuple[Any, ...], ...] = (
    (
        ("kl_divergence",),
        (kl_divergence, _naive, _kl_oracle, _kl_size, (3.1, 1.2)),
        ((0.0, 1.0), ((0.0, -1.0), (_FLOOR, _MOST))),
    ),
    (
        ("kl_divergence_with_log_targets",),
        (
            kl_divergence_with_log_targets,
            _naive_log,
            _log_oracle,
            _log_size,
            (3.4, 2.4),
        ),
        ((-_INF, 0.0), ((0.0, -1.0), (0.0, _MOST))),
    ),
    (
        ("generalized_kl_divergence", "convex_kl_divergence"),
        (
            generalized_kl_divergence,
            _naive_bregman,
            _bregman_oracle,
            _bregman_size,
            (1.2, 2),
        ),
        ((0.0, 1.0), ((1.0, -1.0), (_FLOOR, _MOST))),
    ),
)
for _names, (_function, _twin, _oracle, _size, _ulp), (_target, _slopes) in _PROMISES:
    for _name in _names:
        _catalog.add(
            _catalog.Row(
                name=f"losses.{_name}",
                function=_function,
                naive=_twin,
                kind="reduction",
                domain=((-_INF, _INF), (-_INF, _INF)),
                edges=(
                    Edge(args=((0.0, -_INF), _target), value=_INF, gradient=_slopes),
                ),
                ulp=_catalog.bounds(_ulp, _ulp, half=(_ulp[0], 0.6)),
                oracle=_oracle,
                size=_size,
                sample=functools.partial(_sample, log="log_targets" in _name),
                result=_floats.wide,
            )
        )
