"""Integer labels: found by comparison, loud when they name no class.

A gather out of range would clamp or wrap to a wrong class without a word. A concrete
bad label raises; a traced one makes the loss of its row NaN with zero gradient, because
a device program must not raise.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxsafe._errors import check_axis, check_floating, error
from jaxsafe.losses._inputs import included, wide_floating
from jaxsafe.ops._reduction import axis_tuple

_INF, _NAN = float("inf"), float("nan")


class Labelled(NamedTuple):
    """Rows of scores with their labels; the axis of the classes is kept.

    Attributes:
      scores: in the dtype to compute in, -inf where excluded; 0 in a row without a
        loss, whatever was there.
      is_label: bool, the class that the label names.
      empty: bool, the row is left out: its loss is 0.
      bad: bool, the label names no included class: the loss is NaN.
      axis: of the classes, counted from 0.
    """

    scores: jax.Array
    is_label: jax.Array
    empty: jax.Array
    bad: jax.Array
    axis: int

    def loss(self, loss: Callable[..., jax.Array], *options: Any) -> jax.Array:
        """`loss(scores, is_label, axis, *options)` of the rows that have one.

        It must be the same object at each call, or each call compiles.
        """
        return _per_row(loss, self.axis, self[:-1], *options)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _per_row(
    loss: Callable[..., jax.Array],
    axis: int,
    rows: tuple[jax.Array, ...],
    *options: Any,
) -> jax.Array:
    scores, is_label, empty, bad = rows
    value = loss(scores, is_label, axis, *options)
    return jnp.squeeze(jnp.where(empty, 0, jnp.where(bad, _NAN, value)), axis)


def labelled(
    function: str,
    name: str,
    scores: ArrayLike,
    labels: ArrayLike,
    axis: int,
    where: ArrayLike | None,
    ignore_index: int | None = None,
) -> Labelled:
    """Check scores and labels and mask what takes no part."""
    x = wide_floating(function, name, scores)
    axis = check_axis(function, axis, x.ndim)
    index, ignored = check_labels(function, name, labels, x.shape, axis, ignore_index)
    is_label = lax.broadcasted_iota(index.dtype, x.shape, axis) == index
    bad = (index < 0) | (index >= x.shape[axis])
    empty = ignored
    if where is not None:
        mask = included(function, where, x.shape, (axis,))
        empty = empty | ~mask.any(axis, keepdims=True)
        bad = bad | ~(mask & is_label).any(axis, keepdims=True)
        x = jnp.where(mask, x, -_INF)
    return Labelled(jnp.where(empty | bad, 0, x), is_label, empty, bad, axis)


def classes_last(
    function: str,
    name: str,
    scores: ArrayLike,
    where: ArrayLike | None,
    axes: tuple[int, ...],
) -> tuple[jax.Array, jax.Array | None]:
    """Scores and mask with several axes of classes made one, the last.

    Labels count along the axes in the order in which they are given.
    """
    x = check_floating(function, name, scores)
    last = tuple(range(x.ndim - len(axes), x.ndim))
    counted = axis_tuple(function, axes, x.ndim)

    def joined(a: jax.Array) -> jax.Array:
        a = jnp.moveaxis(a, counted, last)
        return a.reshape(*a.shape[: last[0]], -1)

    if where is None:
        return joined(x), None
    return joined(x), joined(included(function, where, x.shape, counted))


def check_labels(
    function: str,
    name: str,
    labels: Any,
    shape: tuple[int, ...],
    axis: int,
    ignore_index: int | None,
) -> tuple[jax.Array, jax.Array]:
    """(labels, which are ignored), both with `axis` put back."""
    index = jnp.asarray(labels)
    if not jnp.issubdtype(index.dtype, jnp.integer):
        raise error(
            TypeError,
            function,
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
            function,
            f"labels must have shape {expected}, that of {name} without the classes",
            index.shape,
            "Check the axis of the classes, or add or squeeze a dimension.",
        )
    ignored = jnp.zeros(index.shape, bool)
    if ignore_index is not None:
        ignored = index == jnp.asarray(ignore_index).astype(index.dtype)
    check_range(function, labels, shape[axis], ignore_index)
    return jnp.expand_dims(index, axis), jnp.expand_dims(ignored, axis)


def check_range(
    function: str, labels: Any, classes: int, ignore_index: int | None = None
) -> None:
    """Raise ValueError if a concrete label names no class."""
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
            function,
            f"a label is not one of the {classes} classes 0 to {classes - 1}",
            f"label {values[bad].flat[0]}",
            "Fix the labels, or pass ignore_index= to leave such rows out.",
        )
