"""Cross-entropy with integer labels, accurate for confident rows, loud on bad labels.

The idea: with `rest` the weight of all entries but the largest (see `ops._softmax`),
the loss is log(1 + rest) minus the label's distance from the maximum, a sum of two
non-negative numbers, and the own-class slope is minus the sum of the other
probabilities, never p - 1. The label is found by comparison, not by gathering: a
gather out of range would clamp or wrap to a wrong class without a word.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe._errors import check_axis, check_floating, check_not_empty, error
from jaxsafe.ops._exact import total
from jaxsafe.ops._softmax import log1p_rest, powers, shifted, softmax_core

_INF, _NAN = float("inf"), float("nan")
_NAME = "losses.softmax_cross_entropy_with_integer_labels"


def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int = -1,
    where: ArrayLike | None = None,
    *,
    ignore_index: int | None = None,
) -> jax.Array:
    """Minus the log-probability of the label, one loss per row.

    Value: logsumexp(logits) - logits[label]; 0 for a row that `where` empties or whose
      label is `ignore_index`; NaN for a label that names no included class.
    Gradient: softmax(logits) - onehot(label), own class from the sum of the others;
      0 where the loss is 0 or NaN by the rule above.
    NaN in: NaN for the row; never from where `where` is False or the row is ignored.
    Error: float32 3 ulp for any margin, gradient 7, up to 100,000 classes; bfloat16 and
      float16 logits give a float32 loss within 3 ulp and gradients within 0.51 ulp.

    Args:
      logits: floating array [..., classes, ...].
      labels: integer array of the shape of `logits` without `axis`.
      axis: axis of the classes.
      where: bool array, True = include the class; broadcasts to `logits`.
      ignore_index: rows with this label are left out; the only way to mask a label.

    Returns:
      Array of the shape of `labels`; float32 for half-precision logits.

    Raises:
      TypeError: `logits` is not floating or `labels` is not integer.
      ValueError: the batch is empty, the shapes do not fit, or a concrete label is out
        of range (a traced one gives NaN: a device program must not raise).

    Examples:
      >>> logits = jnp.asarray([[18.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
      >>> softmax_cross_entropy_with_integer_labels(logits, jnp.asarray([0, 2]))
      Array([3.046e-08, 1.0986e+00], dtype=float32)

    References:
      Blanchard, Higham & Higham, IMA J. Numer. Anal. 41(4), 2021.
    """
    x = check_floating(_NAME, "logits", logits)
    check_not_empty(_NAME, "logits", x)
    axis = check_axis(_NAME, axis, x.ndim)
    classes = x.shape[axis]
    index, ignored = _check_labels(labels, x.shape, axis, ignore_index)
    dtype = _floats.wide(x.dtype)
    is_label = lax.broadcasted_iota(index.dtype, x.shape, axis) == index
    bad = (index < 0) | (index >= classes)
    empty = ignored
    x = x.astype(dtype)
    if where is not None:
        included = jnp.broadcast_to(where, x.shape)
        empty = empty | ~included.any(axis, keepdims=True)
        bad = bad | ~(included & is_label).any(axis, keepdims=True)
        x = jnp.where(included, x, -_INF)
    # A row without a loss computes that of harmless logits, selected away below.
    x = jnp.where(empty | bad, 0, x)
    loss = _loss(x, is_label, axis)
    loss = jnp.where(empty, 0, jnp.where(bad, _NAN, loss))
    return jnp.squeeze(loss, axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _loss(x: jax.Array, is_label: jax.Array, axis: int) -> jax.Array:
    row = shifted(x, (axis,))
    gap = jnp.sum(jnp.where(is_label, row.gap, 0), axis, keepdims=True)
    return jnp.where(row.empty, _INF, log1p_rest(row) - gap)


@_loss.defjvp
def _loss_jvp(axis: int, primals: Any, tangents: Any) -> Any:
    (x, is_label), (dx, _) = primals, tangents
    p = softmax_core(x, (axis,))
    others = total(jnp.where(is_label, 0, p), (axis,))
    slope = jnp.where(is_label, -others, p)
    return _loss(x, is_label, axis), total(slope * dx, (axis,))


def _check_labels(
    labels: Any, shape: tuple[int, ...], axis: int, ignore_index: int | None
) -> tuple[jax.Array, jax.Array]:
    """(labels, which are ignored), both with `axis` put back."""
    index = jnp.asarray(labels)
    if not jnp.issubdtype(index.dtype, jnp.integer):
        raise error(
            TypeError,
            _NAME,
            "labels must be integers",
            index.dtype,
            "For one-hot labels pass jnp.argmax(labels, axis=-1).",
        )
    if index.dtype.itemsize < 4:  # must be able to count the classes
        index = index.astype(jnp.int32)
    expected = shape[:axis] + shape[axis + 1 :]
    if index.shape != expected:
        raise error(
            ValueError,
            _NAME,
            f"labels must have shape {expected}, that of logits without the classes",
            index.shape,
            "Check the axis of the classes, or add or squeeze a dimension.",
        )
    ignored = jnp.zeros(index.shape, bool)
    if ignore_index is not None:
        ignored = index == jnp.asarray(ignore_index).astype(index.dtype)
    _check_range(labels, shape[axis], ignore_index)
    return jnp.expand_dims(index, axis), jnp.expand_dims(ignored, axis)


def _check_range(labels: Any, classes: int, ignore_index: int | None) -> None:
    traced = isinstance(labels, jax.core.Tracer)
    if traced or not getattr(labels, "is_fully_addressable", True):
        return
    values = np.asarray(labels)
    bad = (values < 0) | (values >= classes)
    if ignore_index is not None:
        bad &= values != ignore_index
    if bad.any():
        raise error(
            ValueError,
            _NAME,
            f"a label is not one of the {classes} classes 0 to {classes - 1}",
            f"label {values[bad].flat[0]}",
            "Fix the labels, or pass ignore_index= to leave such rows out.",
        )


def _oracle(mp: Any, x: list[Any], label: int) -> tuple[Any, tuple[Any, ...]]:
    weights, total = powers(mp, x)
    p = [w / total for w in weights]
    gap = x[label] - max(x)
    slope = list(p)
    slope[label] = -mp.fsum(q for i, q in enumerate(p) if i != label)
    # total - 1 without cancellation: leave one maximum out of the sum.
    top = x.index(max(x))
    rest = mp.fsum(w for i, w in enumerate(weights) if i != top)
    return mp.log1p(rest) - gap, (slope,)


def _naive(logits: jax.Array, labels: jax.Array) -> jax.Array:
    power = jnp.exp(logits)
    p = power / jnp.sum(power, axis=-1, keepdims=True)
    index = jnp.expand_dims(labels, -1)
    return -jnp.log(jnp.take_along_axis(p, index, axis=-1)).squeeze(-1)


_catalog.add(
    _catalog.Row(
        name=_NAME,
        function=softmax_cross_entropy_with_integer_labels,
        naive=_naive,
        kind="labelled",
        domain=((-_INF, _INF),),
        edges=(
            Edge(args=((_INF, 0.0), 0), value=0.0, gradient=((0.0, 0.0),)),
            Edge(args=((_INF, 0.0), 1), value=_INF, gradient=((1.0, -1.0),)),
            Edge(args=((0.0, -_INF), 0), value=0.0, gradient=((0.0, 0.0),)),
            Edge(args=((0.0, -_INF), 1), value=_INF, gradient=((1.0, -1.0),)),
            Edge(args=((3e38, -3e38), 0), value=0.0, gradient=((0.0, 0.0),)),
            Edge(args=((0.0, _NAN), 0), value=_NAN, gradient=((_NAN, _NAN),)),
        ),
        ulp=_catalog.bounds(float32=(3, 7), float64=(3, 7), half=(3, 0.51)),
        oracle=_oracle,
        result=_floats.wide,
    )
)
