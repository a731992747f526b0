"""Cross-entropy with soft labels, and the options that integer labels share.

The idea: with `rest` the weight of all entries but the largest (see `ops._softmax`),
the loss is sum(q) log(1 + rest) plus q times the distance from the maximum, a sum of
non-negative numbers. Its slopes p sum(q) - q add up to 0, so that of an entry above
1/2 is minus the sum of the others: for a confident row these are small and accurate,
where p - 1 has no digits left.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe._errors import check_positive
from jaxsafe.losses._bound import soft_cap
from jaxsafe.losses._inputs import (
    check_weight,
    finite,
    given,
    included,
    matching,
    weighted,
    wide_floating,
)
from jaxsafe.ops._entrywise import chain
from jaxsafe.ops._exact import fast_total, total
from jaxsafe.ops._in_two import rounded_total
from jaxsafe.ops._logsumexp import logsumexp
from jaxsafe.ops._reduction import Axes, Axis, axis_tuple
from jaxsafe.ops._softmax import (
    from_winner,
    log1p_rest,
    log_softmax_core,
    powers,
    shifted,
    softmax_core,
)

_INF, _NAN = float("inf"), float("nan")


def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
) -> jax.Array:
    """Cross-entropy between a distribution over classes and the softmax of the logits.

    Value: -sum(labels * log_softmax(logits)); a zero label costs nothing, whatever its
      logit; infinite for a label on a class of -inf; 0 for a row that `where` empties.
      The labels need not sum to 1.
    Gradient: softmax(logits) * sum(labels) - labels, for a confident row from sums of
      the others; to the labels -log_softmax(logits), at most the largest finite number.
    NaN in: NaN for the row; never from where `where` is False.
    Error: float32 2.4 ulp, gradient 2.7 (of the sum of its two terms); bfloat16 and
      float16 logits give a float32 loss within 2.4 ulp and gradients within 0.51 ulp.

    Args:
      logits: floating array.
      labels: array of the shape of `logits`: probabilities or other weights.
      axis: axis or axes of the classes.
      where: bool array, True = include; broadcasts to `logits`, or has one entry per
        row.
      label_smoothing: share of the labels that is spread evenly over the classes whose
        logit is not -inf, in [0, 1).
      z_loss: weight of logsumexp(logits)**2, which keeps the logits from drifting.
      soft_cap: bound of the logits, cap * tanh(logits / cap); -inf stays.

    Returns:
      One loss per row; float32 for half-precision logits.

    Raises:
      TypeError: `logits` is not floating.
      ValueError: the batch is empty, the shapes differ, or an option is out of range.

    Examples:
      >>> logits = jnp.asarray([-jnp.inf, 0.0, 1.0])
      >>> softmax_cross_entropy(logits, jnp.asarray([0.0, 1.0, 0.0]))
      Array(1.3132617, dtype=float32)

    References:
      Blanchard, Higham & Higham, IMA J. Numer. Anal. 41(4), 2021. z_loss: Chowdhery
      et al., arXiv:2204.02311, section 5.
    """
    name = "losses.softmax_cross_entropy"
    x = wide_floating(name, "logits", logits)
    axes = axis_tuple(name, axis, x.ndim)
    x, q, empty = masked(name, x, matching(name, "labels", labels, x), where, axes)
    options = check_options(name, label_smoothing, z_loss, soft_cap)
    return _per_row(x, q, empty, options, axes)


class Options(NamedTuple):
    """Options of a cross-entropy; None for what is not asked for."""

    label_smoothing: ArrayLike | None
    z_loss: ArrayLike | None
    soft_cap: ArrayLike | None


@functools.partial(jax.jit, static_argnums=4)
def _per_row(
    x: jax.Array, q: jax.Array, empty: jax.Array, options: Options, axes: Axes
) -> jax.Array:
    loss = with_options(x, q, options, axes, cross_entropy)
    return jnp.squeeze(jnp.where(empty, 0, loss), axes)


safe_softmax_cross_entropy = softmax_cross_entropy


def masked(
    name: str, x: jax.Array, q: jax.Array, where: ArrayLike | None, axes: Axes
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(logits, labels, which rows are empty), without what is excluded."""
    if where is None:
        return x, q, jnp.zeros((), bool)
    mask = included(name, where, x.shape, axes)
    empty = ~mask.any(axes, keepdims=True)
    x = jnp.where(mask, x, -_INF)
    return jnp.where(empty, 0, x), jnp.where(mask, q, 0), empty


def check_options(
    name: str, label_smoothing: float, z_loss: float, soft_cap: float | None
) -> Options:
    """The options that do something; raise ValueError if one is out of range."""
    check_weight(name, "label_smoothing", label_smoothing, 1.0)
    check_weight(name, "z_loss", z_loss, _INF)
    if soft_cap is not None:
        check_positive(name, "soft_cap", soft_cap)
    return Options(given(label_smoothing), given(z_loss), soft_cap)


def with_options(
    x: jax.Array,
    q: Any,
    options: Options,
    axes: Axes,
    entropy: Callable[..., jax.Array],
) -> jax.Array:
    """`entropy(x, q, axes, low)` under these options."""
    low = None
    if options.soft_cap is not None:
        out = x == -_INF
        bounded, lost = soft_cap(x, jnp.asarray(options.soft_cap, x.dtype))
        x, low = jnp.where(out, x, bounded), jnp.where(out, 0, lost)
    if options.label_smoothing is not None:
        share = jnp.asarray(options.label_smoothing, x.dtype)
        q = _smoothed(q, x > -_INF, share, axes)
    loss = entropy(x, q, axes, low)
    if options.z_loss is not None:
        size = logsumexp(x, axes, keepdims=True)
        loss = loss + jnp.asarray(options.z_loss, x.dtype) * _square(size)
    return loss


def _smoothed(
    q: jax.Array, open_: jax.Array, share: jax.Array, axes: Axes
) -> jax.Array:
    classes = jnp.sum(open_, axes, keepdims=True).astype(q.dtype)
    return (1 - share) * q + jnp.where(open_, share / jnp.maximum(classes, 1), 0)


# An infinite slope times a probability of 0 would be NaN.
_square = chain(jnp.square, lambda x: finite(2 * x))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def cross_entropy(
    x: jax.Array, q: jax.Array, axes: Axes, low: jax.Array | None = None
) -> jax.Array:
    """-sum(q * log_softmax(x)), reduced axes are kept; see `ops._softmax.shifted`."""
    row = shifted(x, axes, low)
    below = total(weighted(q, row.gap), axes)
    if low is not None:
        below = below + total(q * row.lost, axes)
    return total(q, axes) * log1p_rest(row) - below


@cross_entropy.defjvp
def _cross_entropy_jvp(axes: Axes, primals: Any, tangents: Any) -> Any:
    (x, q, low), (dx, dq, _) = primals, tangents
    p = softmax_core(x, axes, low)
    _, _, moved = from_winner(p, dx, axes)
    slope = p * total(q, axes) - q
    surprise = finite(-log_softmax_core(x, axes, low))
    change = fast_total(slope * moved, axes) + fast_total(surprise * dq, axes)
    return cross_entropy(x, q, axes, low), change


def others(weight: jax.Array, axes: Axes) -> jax.Array:
    """For every entry the sum of the others, of non-negative numbers without loss."""
    whole = rounded_total(weight, axes)
    winner = weight > 0.5 * whole
    small = rounded_total(jnp.where(winner, 0, weight), axes)
    return jnp.where(winner, small, whole - weight)


def soft_oracle(mp: Any, x: list[Any], q: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    """Oracle: value, slope, slope to the labels."""
    log_p, p, below = _surprises(mp, x)
    value = mp.fsum(a * b for a, b in zip(q, log_p, strict=True))
    slope = [p[i] * mp.fsum(_without(q, i)) - q[i] * below[i] for i in range(len(x))]
    return value, (slope, log_p)


def soft_size(mp: Any, x: list[Any], q: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    """Magnitudes of `soft_oracle`: the two terms of a slope may cancel."""
    value, (slope, log_p) = soft_oracle(mp, x, q)
    _, p, below = _surprises(mp, x)
    slope = [p[i] * mp.fsum(_without(q, i)) + q[i] * below[i] for i in range(len(x))]
    return value, (slope, log_p)


def _surprises(mp: Any, x: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """(-log p, p, 1 - p), nothing cancelled."""
    weights, total = powers(mp, x)
    p = [w / total for w in weights]
    top = x.index(max(x))
    size = mp.log1p(mp.fsum(_without(weights, top)))
    below = [mp.fsum(_without(p, i)) for i in range(len(x))]
    return [size - (v - max(x)) for v in x], p, below


def _without(values: list[Any], i: int) -> list[Any]:
    return values[:i] + values[i + 1 :]


def soft_sample(rng: Any) -> Iterator[tuple[Any, ...]]:
    """Logits of every scale; soft, one-hot and unnormalised labels."""
    for n in (6, 3):
        x = rng.normal(size=(4, n)) * np.asarray([[50], [10], [0.01], [1]])
        q = rng.dirichlet(np.ones(n), 4)
        q[1] = np.eye(n)[rng.integers(n)]
        q[2] *= 3
        yield x, q


def _naive(x: jax.Array, q: jax.Array) -> jax.Array:
    power = jnp.exp(x)
    return -jnp.sum(q * jnp.log(power / jnp.sum(power, -1, keepdims=True)), -1)


_MOST = _floats.largest("f4")
for _name in ("softmax_cross_entropy", "safe_softmax_cross_entropy"):
    _catalog.add(
        _catalog.Row(
            name=f"losses.{_name}",
            function=softmax_cross_entropy,
            naive=_naive,
            kind="reduction",
            domain=((-_INF, _INF), (0.0, _INF)),
            edges=(
                Edge(
                    args=((0.0, -_INF), (1.0, 0.0)),
                    value=0.0,
                    gradient=((0.0, 0.0), (0.0, _MOST)),
                ),
                Edge(
                    args=((0.0, -_INF), (0.0, 1.0)),
                    value=_INF,
                    gradient=((1.0, -1.0), (0.0, _MOST)),
                ),
                Edge(
                    args=((_INF, 0.0), (1.0, 0.0)),
                    value=0.0,
                    gradient=((0.0, 0.0), (0.0, _MOST)),
                ),
                Edge(
                    args=((0.0, 0.0), (0.5, 0.5)),
                    value=0.6931471805599453,
                    gradient=((0.0, 0.0), (0.6931471805599453,) * 2),
                ),
                Edge(
                    args=((0.0, _NAN), (1.0, 0.0)),
                    value=_NAN,
                    gradient=((_NAN, _NAN), (_NAN, _NAN)),
                ),
            ),
            ulp=_catalog.bounds((2.4, 2.7), (2.2, 3.2), half=(2.4, 0.51)),
            oracle=soft_oracle,
            size=soft_size,
            sample=soft_sample,
            result=_floats.wide,
        )
    )
