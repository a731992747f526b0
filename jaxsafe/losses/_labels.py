"""Integer labels: loud when they name no class.

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


class Rows(NamedTuple):
    """Rows of scores with their labels; the axis of the classes is kept.

    Attributes:
      raw: in the dtype to compute in, -inf where excluded.
      label: a class, if only some class where the label names none.
      empty: bool, the row is left out: its loss is 0.
      bad: bool, the label names no included class: the loss is NaN.
    """

    raw: jax.Array
    label: jax.Array
    empty: jax.Array
    bad: jax.Array

    @property
    def skipped(self) -> jax.Array:
        """The row has no loss to compute."""
        return self.empty | self.bad

    @property
    def scores(self) -> jax.Array:
        """`raw`, but 0 in a row without a loss, whatever was there."""
        return jnp.where(self.skipped, 0, self.raw)

    def is_label(self, axis: int) -> jax.Array:
        """bool: the class that the label names."""
        return is_label(self.label, self.raw.shape, axis)


def is_label(label: jax.Array, shape: tuple[int, ...], axis: int) -> jax.Array:
    """Whether an entry is that of the class that the label names; bool of `shape`."""
    return lax.broadcasted_iota(label.dtype, shape, axis) == label


class Labelled(NamedTuple):
    """Rows and the axis of their classes, counted from 0."""

    rows: Rows
    axis: int

    def loss(self, loss: Callable[..., jax.Array], *options: Any) -> jax.Array:
        """`loss(rows, axis, *options)` of the rows that have one.

        It must be the same object at each call, or each call compiles.
        """
        return _per_row(loss, self.axis, self.rows, *options)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _per_row(
    loss: Callable[..., jax.Array], axis: int, rows: Rows, *options: Any
) -> jax.Array:
    value = loss(rows, axis, *options)
    value = jnp.where(rows.empty, 0, jnp.where(rows.bad, _NAN, value))
    return jnp.squeeze(value, axis)


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
    index, empty = check_labels(function, name, labels, x.shape, axis, ignore_index)
    bad = (index < 0) | (index >= x.shape[axis])
    index = jnp.where(bad, 0, index)
    if where is not None:
        mask = included(function, where, x.shape, (axis,))
        empty = empty | ~mask.any(axis, keepdims=True)
        bad = bad | ~jnp.take_along_axis(mask, index, axis)
        x = jnp.where(mask, x, -_INF)
    return Labelled(Rows(x, index, empty, bad), axis)


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
