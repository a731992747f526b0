"""Hinge and perceptron losses: a margin that is missed costs what is missing.

The idea: the margin is a difference of two scores plus 1, so what rounding the
difference lost is added back, and equal infinities differ by 0. Where several classes
come out on top they share the slope, as in `jnp.max`.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe.losses._inputs import (
    finite,
    included,
    matching,
    weighted,
    where_included,
    wide_floating,
)
from jaxsafe.losses._labels import Rows, labelled
from jaxsafe.ops._exact import difference

_INF, _NAN = float("inf"), float("nan")


def hinge_loss(
    predictor_outputs: ArrayLike,
    targets: ArrayLike,
    *,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Shortfall of the signed score below 1.

    Value: max(0, 1 - x * y); 0 where excluded.
    Gradient: -y below the margin, -y / 2 on it, 0 above; to the targets -x likewise.
    NaN in: NaN out; never from where `where` is False.
    Error: float32 0.51 ulp for targets of -1 and 1, gradient 0.51; bfloat16 and float16
      give a float32 loss within 0.51 ulp and gradients within 0.51 ulp.

    Args:
      predictor_outputs: floating array, the decision function.
      targets: array of that shape, or one number; -1 or 1.
      where: bool array, True = include; broadcasts to `predictor_outputs`.

    Returns:
      Array of the shape of `predictor_outputs`; float32 for half precision.

    Raises:
      TypeError: `predictor_outputs` is not floating.
      ValueError: the batch is empty, or the shapes differ.

    Examples:
      >>> hinge_loss(jnp.asarray([0.25, -2.0, 3.0]), jnp.asarray([1, 1, 1]))
      Array([0.75, 3.  , 0.  ], dtype=float32)

    References:
      Cortes & Vapnik, "Support-vector networks", Machine Learning 20, 1995.
    """
    return _signed("losses.hinge_loss", predictor_outputs, targets, where, _below_one)


def perceptron_loss(
    predictor_outputs: ArrayLike,
    targets: ArrayLike,
    *,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Shortfall of the signed score below 0.

    Value: max(0, -x * y); 0 where excluded.
    Gradient: -y for a wrong sign, -y / 2 at 0, else 0; to the targets -x likewise.
    NaN in: NaN out; never from where `where` is False.
    Error: float32 0.51 ulp, gradient 0.51; bfloat16 and float16 give a float32 loss
      within 0.51 ulp and gradients within 0.51 ulp.

    Args:
      predictor_outputs: floating array, the score.
      targets: array of that shape, or one number; -1 or 1.
      where: bool array, True = include; broadcasts to `predictor_outputs`.

    Returns:
      Array of the shape of `predictor_outputs`; float32 for half precision.

    Raises:
      TypeError: `predictor_outputs` is not floating.
      ValueError: the batch is empty, or the shapes differ.

    Examples:
      >>> perceptron_loss(jnp.asarray([0.25, -2.0]), 1)
      Array([0., 2.], dtype=float32)

    References:
      Rosenblatt, "The perceptron", Psychological Review 65(6), 1958.
    """
    return _signed(
        "losses.perceptron_loss", predictor_outputs, targets, where, _below_zero
    )


def multiclass_hinge_loss(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Largest excess of another class, plus 1, over the score of the label.

    Value: max(0, max over the others of 1 + score - score[label]); 0 for a row that
      `where` empties; NaN for a label that names no included class.
    Gradient: 1 at the winning class and -1 at the label, 0 if the label wins; classes
      that tie share it; 0 where the loss is 0 or NaN by the rule above.
    NaN in: NaN for the row; never from where `where` is False.
    Error: float32 0.88 ulp, gradient 0.51; bfloat16 and float16 give a float32 loss
      within 0.88 ulp and gradients within 0.51 ulp.

    Args:
      scores: floating array [..., classes, ...]; -inf leaves a class out.
      labels: integer array of the shape of `scores` without `axis`.
      axis: axis of the classes.
      where: bool array, True = include the class; broadcasts to `scores`, or has one
        entry per row.

    Returns:
      Array of the shape of `labels`; float32 for half precision.

    Raises:
      TypeError: `scores` is not floating or `labels` is not integer.
      ValueError: the batch is empty, the shapes do not fit, or a concrete label is out
        of range (a traced one gives NaN).

    Examples:
      >>> multiclass_hinge_loss(jnp.asarray([[1.0, 0.5]]), jnp.asarray([0]))
      Array([0.5], dtype=float32)

    References:
      Crammer & Singer, JMLR 2, 2001.
    """
    name = "losses.multiclass_hinge_loss"
    rows = labelled(name, "scores", scores, labels, axis, where)
    return rows.loss(_beyond_one)


def multiclass_perceptron_loss(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Excess of the largest score over that of the label.

    Value: max(scores) - scores[label]; 0 for a row that `where` empties; NaN for a
      label that names no included class.
    Gradient: 1 at the largest score and -1 at the label, 0 if that is the label;
      classes that tie share it; 0 where the loss is 0 or NaN by the rule above.
    NaN in: NaN for the row; never from where `where` is False.
    Error: float32 0.6 ulp, gradient 0.51; bfloat16 and float16 give a float32 loss
      within 0.6 ulp and gradients within 0.51 ulp.

    Args:
      scores: floating array [..., classes, ...]; -inf leaves a class out.
      labels: integer array of the shape of `scores` without `axis`.
      axis: axis of the classes.
      where: bool array, True = include the class; broadcasts to `scores`, or has one
        entry per row.

    Returns:
      Array of the shape of `labels`; float32 for half precision.

    Raises:
      TypeError: `scores` is not floating or `labels` is not integer.
      ValueError: the batch is empty, the shapes do not fit, or a concrete label is out
        of range (a traced one gives NaN).

    Examples:
      >>> multiclass_perceptron_loss(jnp.asarray([[1.0, 2.5]]), jnp.asarray([0]))
      Array([1.5], dtype=float32)

    References:
      Collins, "Discriminative training methods for hidden Markov models", EMNLP 2002.
    """
    name = "losses.multiclass_perceptron_loss"
    rows = labelled(name, "scores", scores, labels, axis, where)
    return rows.loss(_beyond_zero)


def _signed(
    name: str, outputs: ArrayLike, targets: ArrayLike, where: Any, loss: Any
) -> jax.Array:
    x = wide_floating(name, "predictor_outputs", outputs)
    y = matching(name, "targets", targets, x)
    mask = None if where is None else included(name, where, x.shape, ())
    return where_included(loss, mask, x, y)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _shortfall(margin: float, x: jax.Array, y: jax.Array) -> jax.Array:
    missing = margin - weighted(y, x)
    return jnp.where(missing < 0, 0, missing)  # written so that NaN stays


@_shortfall.defjvp
def _shortfall_jvp(margin: float, primals: Any, tangents: Any) -> Any:
    (x, y), (dx, dy) = primals, tangents
    missed = 0.5 + 0.5 * jnp.sign(margin - weighted(y, x))
    return _shortfall(margin, x, y), -missed * (y * dx + finite(x) * dy)


def _of_rows(margin: float, rows: Rows, axis: int) -> jax.Array:
    return _margin(margin, rows.scores, rows.is_label(axis), axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 3))
def _margin(margin: float, x: jax.Array, is_label: jax.Array, axis: int) -> jax.Array:
    return jnp.max(_excess(margin, x, is_label, axis), axis, keepdims=True) + _nan(
        x, axis
    )


@_margin.defjvp
def _margin_jvp(margin: float, axis: int, primals: Any, tangents: Any) -> Any:
    (x, is_label), (dx, _) = primals, tangents
    excess = _excess(margin, x, is_label, axis)
    top = excess == jnp.max(excess, axis, keepdims=True)
    ties = jnp.sum(top, axis, keepdims=True)
    share = jnp.where(top, 1, 0).astype(x.dtype) / jnp.maximum(ties, 1).astype(x.dtype)
    slope = share - is_label.astype(x.dtype) + _nan(x, axis)
    change = jnp.sum(slope * dx, axis, keepdims=True)
    return _margin(margin, x, is_label, axis), change


_below_one = functools.partial(_shortfall, 1.0)
_below_zero = functools.partial(_shortfall, 0.0)
_beyond_one = functools.partial(_of_rows, 1.0)
_beyond_zero = functools.partial(_of_rows, 0.0)


def _excess(margin: float, x: jax.Array, is_label: jax.Array, axis: int) -> jax.Array:
    """Score + margin - score of the label; 0 at the label."""
    own = jnp.sum(jnp.where(is_label, x, 0), axis, keepdims=True)
    gap, lost = difference(x, own)
    gap = jnp.where(x == own, 0, gap)
    return jnp.where(is_label, 0, (gap + margin) + lost)


def _nan(x: jax.Array, axis: int) -> jax.Array:
    """NaN for a row that has one, else 0: a maximum may lose it."""
    return jnp.where(jnp.isnan(x).any(axis, keepdims=True), _NAN, 0).astype(x.dtype)


def _signed_oracle(margin: int) -> Any:
    def oracle(_: Any, x: Any, y: Any) -> tuple[Any, tuple[Any, ...]]:
        missing = margin - x * y
        missed = (1 if missing > 0 else 0) if missing else 0.5
        return max(missing, 0), (-missed * y, -missed * x)

    return oracle


def _signed_sample(rng: Any) -> Iterator[tuple[Any, ...]]:
    x = rng.normal(size=400) * 2.0 ** rng.uniform(-30, 13, 400)
    x[-5:] = 0.5, -2.0, 3.0, -1.5, 2.5  # away from the kinks
    yield x, rng.choice([-1.0, 1.0], 400)


def _margin_oracle(margin: int) -> Any:
    def oracle(mp: Any, x: list[Any], label: int) -> tuple[Any, tuple[Any, ...]]:
        excess = [v + margin - x[label] for v in x]
        excess[label] = mp.mpf(0)
        top = [i for i, e in enumerate(excess) if e == max(excess)]
        slope = [mp.mpf(i in top) / len(top) - (i == label) for i in range(len(x))]
        return max(excess), (slope,)

    return oracle


def _naive_margin(margin: float) -> Any:
    def naive(x: jax.Array, labels: jax.Array) -> jax.Array:
        one_hot = jax.nn.one_hot(labels, x.shape[-1], dtype=x.dtype)
        own = jnp.sum(x * one_hot, -1)
        return jnp.max(x + margin * (1 - one_hot), -1) - own

    return naive


for _name, _loss, _space in (
    ("hinge_loss", hinge_loss, 1),
    ("perceptron_loss", perceptron_loss, 0),
):
    _catalog.add(
        _catalog.Row(
            name=f"losses.{_name}",
            function=_loss,
            naive=lambda x, y, space=_space: jnp.maximum(0, space - x * y),
            kind="entrywise",
            domain=((-_INF, _INF), (-_INF, _INF)),
            edges=(
                Edge(args=(_INF, 1.0), value=0.0, gradient=(0.0, 0.0)),
                Edge(
                    args=(-_INF, 1.0),
                    value=_INF,
                    gradient=(-1.0, _floats.largest("f4")),
                ),
                Edge(args=(_NAN, 1.0), value=_NAN, gradient=(_NAN, _NAN)),
            ),
            ulp=_catalog.bounds((0.51, 0.51), (0.51, 0.51)),
            oracle=_signed_oracle(_space),
            sample=_signed_sample,
            result=_floats.wide,
        )
    )
for _name, _rows, _space, _ulp in (
    ("multiclass_hinge_loss", multiclass_hinge_loss, 1, (0.88, 0.51)),
    ("multiclass_perceptron_loss", multiclass_perceptron_loss, 0, (0.6, 0.51)),
):
    _catalog.add(
        _catalog.Row(
            name=f"losses.{_name}",
            function=_rows,
            naive=_naive_margin(_space),
            kind="labelled",
            domain=((-_INF, _INF),),
            edges=(
                Edge(args=((_INF, 0.0), 0), value=0.0, gradient=((0.0, 0.0),)),
                Edge(args=((_INF, 0.0), 1), value=_INF, gradient=((1.0, -1.0),)),
                Edge(args=((3.0, -_INF), 0), value=0.0, gradient=((0.0, 0.0),)),
                Edge(args=((0.0, _NAN), 0), value=_NAN, gradient=((_NAN, _NAN),)),
            ),
            ulp=_catalog.bounds(_ulp, _ulp, half=_ulp),
            oracle=_margin_oracle(_space),
            result=_floats.wide,
        )
    )
