"""The core of cross-entropy with one label per row, in the passes that nobody can save.

Two ideas. (1) One sum serves all, that of the weights of the *others* (see
`ops._softmax`). Where the label is the largest, it is the `rest` of log(1 + rest), and
minus the slope of the label; where it is not, it is at least 1, so log(others + own)
and the distance of the label from the maximum add up without loss. (2) A row without a
loss is hidden where its entries are used, so that the maximum reads the logits as they
are: XLA on CPU writes out whatever a reduction does not read as it is.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsafe.losses._labels import is_label
from jaxsafe.ops import _in_two as in_two
from jaxsafe.ops._exact import total
from jaxsafe.ops._reduction import Axes
from jaxsafe.ops._softmax import below, log1p, low_of_peak, softmax_core

_INF = float("inf")
# Label and whether the row is without a loss, both with the axis of the classes.
Label = tuple[jax.Array, jax.Array]


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def label_entropy(
    x: jax.Array, label: Label, axes: Axes, low: jax.Array | None = None
) -> jax.Array:
    """-log_softmax(x) of the label, the one reduced axis is kept.

    Anything may stand in a row without a loss. `low` is what the rounding of `x` lost.
    """
    row = _measured(x, label, axes, low)
    # With the label on top only the others count; else the sum is not near 1.
    size = jnp.where(row.on_top, row.others, row.others + (row.own - 1))
    return (log1p(size) - row.lost) - row.gap


@label_entropy.defjvp
def _label_entropy_jvp(axes: Axes, primals: Any, tangents: Any) -> Any:
    (x, label, low), (dx, _, _) = primals, tangents
    change = total(_slope(x, label, axes, low) * dx, axes)
    return label_entropy(x, label, axes, low), change


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _slope(x: jax.Array, label: Label, axes: Axes, low: jax.Array | None) -> jax.Array:
    row = _measured(x, label, axes, low)
    own = is_label(label[0], x.shape, *axes)
    slope = jnp.where(own, -row.others, row.weight) / (row.others + row.own)
    return jnp.where(label[1], 0, slope)


@_slope.defjvp
def _slope_jvp(axes: Axes, primals: Any, tangents: Any) -> Any:
    (x, label, low), (dx, _, _) = primals, tangents
    x = jnp.where(label[1], 0, x)

    def softmax(x: jax.Array) -> jax.Array:
        return softmax_core(x, axes, low)

    _, change = jax.jvp(softmax, (x,), (dx,))
    return _slope(x, label, axes, low), jnp.where(label[1], 0, change)


class _Measured(NamedTuple):
    """A row measured from its maximum.

    Attributes:
      gap: label - maximum; 0 on top also if that is infinite.
      lost: what rounding took off the gap.
      on_top: bool, no other class is above the label.
      own: weight of the label.
      weight: of all other classes, exp of the exact distance; 0 for the label.
      others: their sum.
    """

    gap: jax.Array
    lost: jax.Array
    on_top: jax.Array
    own: jax.Array
    weight: jax.Array
    others: jax.Array


def _measured(
    x: jax.Array, label: Label, axes: Axes, low: jax.Array | None
) -> _Measured:
    (axis,) = axes
    index, skipped = label
    peak = jnp.max(x, axes, keepdims=True, initial=-_INF)
    peak = jnp.where(skipped, 0, peak)
    own = jnp.where(skipped, 0, jnp.take_along_axis(x, index, axis))
    x = jnp.where(skipped, 0, x)
    own_low = None
    if low is not None:
        low = low - low_of_peak(x, peak, low, axes)
        own_low = jnp.take_along_axis(low, index, axis)
    gap, lost, own_weight = below(own, peak, own_low)
    _, _, weight = below(x, peak, low)
    weight = jnp.where(is_label(index, x.shape, axis), 0, weight)
    others = in_two.rounded_total(weight, axes)
    return _Measured(gap, lost, gap == 0, own_weight, weight, others)
