"""Focal and poly loss: cross-entropy that weighs examples by how wrong they are.

The idea: the chance m of the wrong answer is a sum of non-negative numbers, never
1 - p, and its relative slope is a quotient that stays bounded where m vanishes.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe.losses._inputs import (
    finite,
    included,
    matching,
    where_included,
    wide_floating,
)
from jaxsafe.losses._pointwise import binary_far, sigmoid_binary_cross_entropy
from jaxsafe.losses._soft_cross_entropy import (
    cross_entropy,
    masked,
    others,
    soft_oracle,
    soft_sample,
    soft_size,
)
from jaxsafe.ops._entrywise import chain
from jaxsafe.ops._power import quotient
from jaxsafe.ops._reduction import Axes, Axis, axis_tuple
from jaxsafe.ops._sigmoid import bell_core, sigmoid_below, sigmoid_core
from jaxsafe.ops._softmax import softmax_core

_INF, _NAN = float("inf"), float("nan")


def sigmoid_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike | None = None,
    gamma: ArrayLike = 2.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Binary cross-entropy times the chance of the wrong answer to the power `gamma`.

    Value: alpha_y * m**gamma * sigmoid_binary_cross_entropy(x, y) with m = (1 - y)
      sigmoid(x) + y sigmoid(-x) and alpha_y = alpha y + (1 - alpha) (1 - y); 0 where
      excluded.
    Gradient: that of the value; at an infinite logit that of a large finite one.
    NaN in: NaN out; never from where `where` is False.
    Error: float32 7.2 ulp, gradient 8.2 (of the sum of its terms); bfloat16 and float16
      logits give a float32 loss within 7.2 ulp and gradients within 0.6 ulp.

    Args:
      logits: floating array.
      labels: array of the shape of `logits`, or one number; 0, 1, bool or between.
      alpha: weight of label 1 against label 0, in (0, 1); none by default.
      gamma: how much easy examples are weighed down; 0 or more.
      where: bool array, True = include; broadcasts to `logits`.

    Returns:
      Array of the shape of `logits`; float32 for half-precision logits.

    Raises:
      TypeError: `logits` is not floating.
      ValueError: the batch is empty, or the shapes differ.

    Examples:
      >>> sigmoid_focal_loss(jnp.asarray([9.0], jnp.float16), jnp.asarray([1]))
      Array([1.8789e-12], dtype=float32)

    References:
      Lin et al., "Focal loss for dense object detection", arXiv:1708.02002.
    """
    name = "losses.sigmoid_focal_loss"
    x = wide_floating(name, "logits", logits)
    y = matching(name, "labels", labels, x)
    given = [gamma] if alpha is None else [gamma, alpha]
    options = (jnp.broadcast_to(jnp.asarray(v, x.dtype), x.shape) for v in given)
    mask = None if where is None else included(name, where, x.shape, ())
    return where_included(_focal, mask, x, y, *options)


def _focal(
    x: jax.Array, y: jax.Array, gamma: jax.Array, alpha: jax.Array | None = None
) -> jax.Array:
    bounded = _bounded(x)
    loss = _weight(bounded, y, gamma) * sigmoid_binary_cross_entropy(bounded, y)
    if alpha is not None:
        loss = (alpha * y + (1 - alpha) * (1 - y)) * loss
    limit = lax.stop_gradient(binary_far(x, y))
    return loss + jnp.where(jnp.isinf(x), limit, 0)


def poly_loss_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    epsilon: ArrayLike = 2.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Cross-entropy plus `epsilon` times the chance of the wrong answer.

    Value: softmax_cross_entropy(logits, labels) + epsilon * sum(labels * (1 - p)); 0
      for a row that `where` empties.
    Gradient: that of the value; to the labels -log p + epsilon (1 - p), at most the
      largest finite number.
    NaN in: NaN for the row; never from where `where` is False.
    Error: float32 3.1 ulp, gradient 2.9 (of the sum of its terms); bfloat16 and float16
      logits give a float32 loss within 3.1 ulp and gradients within 0.6 ulp.

    Args:
      logits: floating array.
      labels: array of the shape of `logits`: probabilities or other weights.
      epsilon: coefficient of the first polynomial term.
      axis: axis or axes of the classes.
      where: bool array, True = include; broadcasts to `logits`, or has one entry per
        row.

    Returns:
      One loss per row; float32 for half-precision logits.

    Raises:
      TypeError: `logits` is not floating.
      ValueError: the batch is empty, or the shapes differ.

    Examples:
      >>> poly_loss_cross_entropy(jnp.zeros((1, 2)), jnp.asarray([[1.0, 0.0]]))
      Array([1.6931472], dtype=float32)

    References:
      Leng et al., "PolyLoss", arXiv:2204.12511.
    """
    name = "losses.poly_loss_cross_entropy"
    x = wide_floating(name, "logits", logits)
    axes = axis_tuple(name, axis, x.ndim)
    x, q, empty = masked(name, x, matching(name, "labels", labels, x), where, axes)
    return _poly(x, q, empty, jnp.asarray(epsilon, x.dtype), axes)


@functools.partial(jax.jit, static_argnums=4)
def _poly(
    x: jax.Array, q: jax.Array, empty: jax.Array, epsilon: jax.Array, axes: Axes
) -> jax.Array:
    wrong = jnp.sum(q * others(softmax_core(x, axes), axes), axes, keepdims=True)
    loss = cross_entropy(x, q, axes) + epsilon * wrong
    return jnp.squeeze(jnp.where(empty, 0, loss), axes)


# A large finite number for an infinite one, so that slopes stay in range.
_bounded = chain(
    lambda x: jnp.where(jnp.isinf(x), 2.0**-10 * finite(x), x), jnp.ones_like
)


def _wrong(x: jax.Array, y: jax.Array) -> jax.Array:
    return (1 - y) * sigmoid_core(x) + y * sigmoid_below(x)


@jax.custom_jvp
def _weight(x: jax.Array, y: jax.Array, gamma: jax.Array) -> jax.Array:
    return jnp.power(_wrong(x, y), gamma)


@_weight.defjvp
def _weight_jvp(primals: Any, tangents: Any) -> Any:
    (x, y, gamma), (dx, dy, _) = primals, tangents
    wrong, weight = _wrong(x, y), _weight(x, y, gamma)
    by_x = (1 - 2 * y) * quotient(bell_core(x), wrong)
    by_y = quotient(sigmoid_below(x) - sigmoid_core(x), wrong)
    return weight, weight * gamma * (by_x * dx + by_y * dy)


def _focal_parts(mp: Any, x: Any, y: Any) -> tuple[Any, ...]:
    t = mp.exp(-abs(x))
    up, down = (1 if x >= 0 else t) / (1 + t), (1 if x <= 0 else t) / (1 + t)
    wrong = (1 - y) * up + y * down
    entropy = (1 - y) * max(x, 0) + y * max(-x, 0) + mp.log1p(t)
    return up, down, wrong, entropy, wrong**2


def _focal_oracle(mp: Any, x: Any, y: Any) -> tuple[Any, tuple[Any, ...]]:
    up, down, wrong, entropy, weight = _focal_parts(mp, x, y)
    slope = 2 * (1 - 2 * y) * up * down / wrong * entropy + (1 - y) * up - y * down
    label = 2 * (down - up) / wrong * entropy - x
    return weight * entropy, (weight * slope, weight * label)


def _focal_size(mp: Any, x: Any, y: Any) -> tuple[Any, tuple[Any, ...]]:
    up, down, wrong, entropy, weight = _focal_parts(mp, x, y)
    slope = 2 * abs(1 - 2 * y) * up * down / wrong * entropy + wrong
    label = 2 * (down + up) / wrong * entropy + abs(x)
    return weight * entropy, (weight * slope, weight * label)


def _focal_sample(rng: Any) -> Iterator[tuple[Any, ...]]:
    x = rng.normal(size=400) * 6
    x[-5:] = -2.0, -0.5, 0.25, 1.0, 3.0  # where the naive formula is right
    y = np.where(rng.random(400) < 0.7, rng.integers(0, 2, 400), rng.random(400))
    yield x, y


def _poly_oracle(mp: Any, x: list[Any], q: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    value, (slope, surprise) = soft_oracle(mp, x, q)
    p = [mp.exp(-s) for s in surprise]
    rest = [mp.fsum(p[:i] + p[i + 1 :]) for i in range(len(p))]
    mean = mp.fsum(a * b for a, b in zip(p, q, strict=True))
    value += 2 * mp.fsum(a * b for a, b in zip(q, rest, strict=True))
    slope = [s - 2 * a * (b - mean) for s, a, b in zip(slope, p, q, strict=True)]
    return value, (slope, [s + 2 * r for s, r in zip(surprise, rest, strict=True)])


def _poly_size(mp: Any, x: list[Any], q: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    value, (_, label) = _poly_oracle(mp, x, q)
    _, (size, _) = soft_size(mp, x, q)
    return value, ([3 * s for s in size], label)


def _naive_focal(x: jax.Array, y: jax.Array) -> jax.Array:
    p = 1 / (1 + jnp.exp(-x))
    wrong = (1 - y) * p + y * (1 - p)
    return -(wrong**2) * (y * jnp.log(p) + (1 - y) * jnp.log(1 - p))


def _naive_poly(x: jax.Array, q: jax.Array) -> jax.Array:
    p = jnp.exp(x) / jnp.sum(jnp.exp(x), -1, keepdims=True)
    return jnp.sum(q * (2 * (1 - p) - jnp.log(p)), -1)


_MOST = _floats.largest("f4")
_catalog.add(
    _catalog.Row(
        name="losses.sigmoid_focal_loss",
        function=sigmoid_focal_loss,
        naive=_naive_focal,
        kind="entrywise",
        domain=((-_INF, _INF), (0.0, 1.0)),
        edges=(
            Edge(args=(_INF, 1.0), value=0.0, gradient=(0.0, 0.0)),
            Edge(args=(_INF, 0.0), value=_INF, gradient=(1.0, -3 * 2.0**-10 * _MOST)),
            Edge(args=(0.0, 1.0), value=0.1732868, gradient=(-0.29828680, 0.0)),
            Edge(args=(_NAN, 1.0), value=_NAN, gradient=(_NAN, _NAN)),
        ),
        ulp=_catalog.bounds(float32=(7.2, 8.2), float64=(7.3, 9.3), half=(7.2, 0.6)),
        oracle=_focal_oracle,
        size=_focal_size,
        sample=_focal_sample,
        result=_floats.wide,
    )
)
_catalog.add(
    _catalog.Row(
        name="losses.poly_loss_cross_entropy",
        function=poly_loss_cross_entropy,
        naive=_naive_poly,
        kind="reduction",
        domain=((-_INF, _INF), (0.0, _INF)),
        edges=(
            Edge(
                args=((0.0, -_INF), (1.0, 0.0)),
                value=0.0,
                gradient=((0.0, 0.0), (0.0, _MOST)),
            ),
            Edge(
                args=((0.0, 0.0), (1.0, 0.0)),
                value=1.6931471805599453,
                gradient=((-1.0, 1.0), (1.6931471805599453,) * 2),
            ),
        ),
        ulp=_catalog.bounds(float32=(3.1, 2.9), float64=(3.1, 2.9), half=(3.1, 0.6)),
        oracle=_poly_oracle,
        size=_poly_size,
        sample=soft_sample,
        result=_floats.wide,
    )
)
