"""Losses of one prediction and one target: sigmoid cross-entropy and Huber.

The idea: every value is a sum of non-negative terms and every slope is written with
sigma(x) and sigma(-x), each accurate where it is small; nothing is 1 - sigma.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe._errors import check_positive
from jaxsafe._pin import pinned
from jaxsafe.losses._inputs import finite, matching, where_included, wide_floating
from jaxsafe.ops._sigmoid import sigmoid_below, sigmoid_core

_INF, _NAN = float("inf"), float("nan")


def sigmoid_binary_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """Cross-entropy of independent yes/no labels, from logits.

    Value: (1 - y) max(x, 0) + y max(-x, 0) + log1p(exp(-|x|)); 0 where excluded.
    Gradient: (1 - y) sigmoid(x) - y sigmoid(-x), to the labels -x; 0 where excluded.
    NaN in: NaN out; never from where `where` is False.
    Error: float32 3 ulp, gradient 5 (soft labels: 6.5 ulp of max(|true|, 1/16));
      bfloat16 and float16 logits give a float32 loss within 3 ulp and gradients within
      0.51 ulp (soft labels 0.6).

    Args:
      logits: floating array.
      labels: array of the shape of `logits`, or one number; 0, 1, bool or between.
      where: bool array, True = include; broadcasts to `logits`.

    Returns:
      Array of the shape of `logits`; float32 for half-precision logits.

    Raises:
      TypeError: `logits` is not floating.
      ValueError: the batch is empty, or the shapes differ.

    Examples:
      >>> sigmoid_binary_cross_entropy(jnp.asarray([20.0, -3.0]), jnp.asarray([1, 0]))
      Array([2.0612e-09, 4.8587e-02], dtype=float32)

    References:
      Martin Mächler, "Accurately computing log(1 - exp(-|a|))", 2012.
    """
    name = "losses.sigmoid_binary_cross_entropy"
    x = wide_floating(name, "logits", logits)
    return where_included(_binary, where, x, matching(name, "labels", labels, x))


@jax.custom_jvp
def _binary(x: jax.Array, y: jax.Array) -> jax.Array:
    return binary_far(x, y) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def binary_far(x: jax.Array, y: jax.Array) -> jax.Array:
    """The binary cross-entropy where |x| is large or infinite."""
    weight = jnp.where(x >= 0, 1 - y, y)
    # A label of exactly 0 or 1 switches one side off; 0 * inf would be NaN.
    return jnp.where(weight == 0, 0, weight * jnp.abs(x))


@_binary.defjvp
def _binary_jvp(primals: Any, tangents: Any) -> Any:
    (x, y), (dx, dy) = primals, tangents
    slope = (1 - y) * sigmoid_core(x) - y * sigmoid_below(x)
    # An infinite slope times the tangent 0 of a constant label would be NaN.
    return _binary(x, y), slope * dx - finite(x) * dy


def huber_loss(
    predictions: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    delta: float = 1.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Half the squared error near 0, `delta` times the error beyond `delta`.

    Value: e**2 / 2 for |e| <= delta, else delta (|e| - delta / 2), with e the
      difference; 0 where excluded.
    Gradient: e clipped to [-delta, delta]; 0 where excluded; none to `delta`.
    NaN in: NaN out; never from where `where` is False.
    Error: float32 2.2 ulp, gradient 0.6; bfloat16 and float16 give a float32 loss
      within 2.2 ulp and gradients within 0.51 ulp.

    Args:
      predictions: floating array.
      targets: array of the shape of `predictions`, or one number; 0 by default.
      delta: where the parabola turns into a line, above 0.
      where: bool array, True = include; broadcasts to `predictions`.

    Returns:
      Array of the shape of `predictions`; float32 for half precision.

    Raises:
      TypeError: `predictions` is not floating.
      ValueError: the batch is empty, the shapes differ, or `delta` is not a positive
        number.

    Examples:
      >>> huber_loss(jnp.asarray([0.5, -3.0]), delta=1.0)
      Array([0.125, 2.5  ], dtype=float32)

    References:
      Huber, "Robust estimation of a location parameter", Ann. Math. Stat. 35(1), 1964.
    """
    name = "losses.huber_loss"
    x = wide_floating(name, "predictions", predictions)
    check_positive(name, "delta", delta)
    y = matching(name, "targets", 0 if targets is None else targets, x)
    turn = jnp.broadcast_to(jnp.asarray(delta, x.dtype), x.shape)
    return where_included(_huber, where, x, y, turn)


@jax.custom_jvp
def _huber(x: jax.Array, y: jax.Array, delta: jax.Array) -> jax.Array:
    e = x - y
    parabola = (0.5 * e) * e
    # Half the difference fits where the difference does not.
    half = jnp.abs(pinned(0.5 * x) - pinned(0.5 * y))
    line = (2 * delta) * (half - 0.25 * delta)
    return jnp.where(jnp.abs(e) <= delta, parabola, line)


@_huber.defjvp
def _huber_jvp(primals: Any, tangents: Any) -> Any:
    (x, y, delta), (dx, dy, _) = primals, tangents
    e = x - y
    slope = jnp.where(jnp.abs(e) <= delta, e, delta * jnp.sign(e))
    return _huber(x, y, delta), slope * (dx - dy)


def _binary_oracle(mp: Any, x: Any, y: Any) -> tuple[Any, tuple[Any, ...]]:
    t = mp.exp(-abs(x))
    value = (1 - y) * max(x, 0) + y * max(-x, 0) + mp.log1p(t)
    up, down = (1 if x >= 0 else t) / (1 + t), (1 if x <= 0 else t) / (1 + t)
    return value, ((1 - y) * up - y * down, -x)


def _binary_size(mp: Any, x: Any, y: Any) -> tuple[Any, tuple[Any, ...]]:
    value, (slope, label_slope) = _binary_oracle(mp, x, y)
    if y not in (0, 1):  # two terms cancel
        slope = max(abs(slope), mp.mpf(1) / 16)
    return value, (slope, label_slope)


def _binary_sample(rng: Any) -> Iterator[tuple[Any, ...]]:
    x = np.concatenate([rng.normal(size=300) * 8, 2.0 ** rng.uniform(-100, 7, 200)])
    x *= rng.choice([-1, 1], x.size)
    yield (
        x,
        np.where(
            rng.random(x.size) < 0.7, rng.integers(0, 2, x.size), rng.random(x.size)
        ),
    )


def _huber_oracle(mp: Any, x: Any, y: Any) -> tuple[Any, tuple[Any, ...]]:
    e = x - y
    if abs(e) <= 1:
        return e * e / 2, (e, -e)
    return abs(e) - mp.mpf(1) / 2, (mp.sign(e), -mp.sign(e))


def _naive_binary(x: jax.Array, y: jax.Array) -> jax.Array:
    p = 1 / (1 + jnp.exp(-x))
    return -(y * jnp.log(p) + (1 - y) * jnp.log(1 - p))


_catalog.add(
    _catalog.Row(
        name="losses.sigmoid_binary_cross_entropy",
        function=sigmoid_binary_cross_entropy,
        naive=_naive_binary,
        kind="entrywise",
        domain=((-_INF, _INF), (0.0, 1.0)),
        edges=(
            Edge(args=(_INF, 1.0), value=0.0, gradient=(0.0, -_floats.largest("f4"))),
            Edge(args=(-_INF, 0.0), value=0.0, gradient=(0.0, _floats.largest("f4"))),
            Edge(args=(_INF, 0.0), value=_INF, gradient=(1.0, -_floats.largest("f4"))),
            Edge(args=(4.0, 0.5), value=2.0181499, gradient=(0.48201379, -4.0)),
            Edge(args=(_NAN, 1.0), value=_NAN, gradient=(_NAN, _NAN)),
        ),
        ulp=_catalog.bounds(float32=(3, 6.5), float64=(2.9, 5.7), half=(3, 0.6)),
        oracle=_binary_oracle,
        size=_binary_size,
        sample=_binary_sample,
        result=_floats.wide,
    )
)
_catalog.add(
    _catalog.Row(
        name="losses.huber_loss",
        function=huber_loss,
        naive=lambda x, y: jnp.where(
            jnp.abs(x - y) <= 1, 0.5 * (x - y) ** 2, jnp.abs(x - y) - 0.5
        ),
        kind="entrywise",
        domain=((-_INF, _INF), (-_INF, _INF)),
        edges=(
            Edge(args=(2.0, 2.0), value=0.0, gradient=(0.0, 0.0)),
            Edge(args=(1.0, 0.0), value=0.5, gradient=(1.0, -1.0)),
            Edge(args=(_INF, 0.0), value=_INF, gradient=(1.0, -1.0)),
            Edge(args=(_NAN, 0.0), value=_NAN, gradient=(_NAN, _NAN)),
        ),
        ulp=_catalog.bounds(float32=(2.2, 0.6), float64=(2.3, 0.6), half=(2.2, 0.51)),
        oracle=_huber_oracle,
        result=_floats.wide,
    )
)
