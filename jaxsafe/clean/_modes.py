"""The most frequent numbers of columns that stream by, on the device.

The summary of Misra and Gries, as in `_sketch.Frequent`, and with it what was taken off
all counts so far: the true count of a number, kept or not, is its count or up to `lost`
more. So the most frequent number is exact while a column has no more than `MOST`
different ones, and beyond that as long as it leads by more than `lost`; whether it does
is known, and `certain` says so.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsafe.clean import _select, _sketch
from jaxsafe.clean._sketch import MOST, Frequent
from jaxsafe.clean._table import HostArray


class Modes(NamedTuple):
    """The most frequent numbers of each column; unused places count 0.

    Attributes:
      values: float32[columns, MOST].
      counts: int32[columns, MOST].
      lost: int32[columns], how much more often any number may have been seen.
    """

    values: jax.Array
    counts: jax.Array
    lost: jax.Array


def none(columns: int, width: int) -> Modes:
    """Nothing seen yet; with a width of 0, nothing ever."""
    shape = (columns, width)
    counts, lost = jnp.zeros(shape, jnp.int32), jnp.zeros((columns,), jnp.int32)
    return Modes(jnp.zeros(shape, jnp.float32), counts, lost)


def of_chunk(x: jax.Array) -> Modes:
    """The summary of x [rows, columns] with NaN where nothing was observed."""
    return _shortened(x.T, jnp.isfinite(x).T.astype(jnp.int32))


def join(a: Modes, b: Modes) -> Modes:
    """The summary of both."""
    if not a.values.shape[1]:
        return a
    pairs = ((a.values, b.values), (a.counts, b.counts))
    joined = _shortened(*(jnp.concatenate(pair, axis=1) for pair in pairs))
    return joined._replace(lost=joined.lost + a.lost + b.lost)


def certain(modes: Modes) -> HostArray:
    """bool[columns]: the first of the most frequent numbers is the true one."""
    import numpy as np

    counts, lost = np.asarray(modes.counts), np.asarray(modes.lost, np.int64)
    second, first = np.sort(counts, axis=1)[:, -2:].T.astype(np.int64)
    return (lost == 0) | (first > second + lost)


def summary(modes: Modes) -> Frequent:
    """What a cleaner keeps of it."""
    return Frequent(modes.values, modes.counts)


def _shortened(values: jax.Array, counts: jax.Array) -> Modes:
    """Equal numbers made one; at most `MOST`, less the count of the first left out."""
    columns = values.shape[0]
    values = jnp.pad(values, ((0, 0), (0, MOST + 1)))
    counts = jnp.pad(counts, ((0, 0), (0, MOST + 1)))
    key = _sketch.ordered(values)
    key = jnp.where(key == -1, 0, key)  # -0.0, if XLA has dropped the sum with 0.0
    key = jnp.where(counts > 0, key, _select.LAST)
    key, counts = lax.sort((key, counts), num_keys=1)
    edge = jnp.ones((columns, 1), bool)
    change = key[:, 1:] != key[:, :-1]
    first, last = (
        jnp.concatenate(parts, axis=1) for parts in ((edge, change), (change, edge))
    )
    upto = jnp.cumsum(counts, axis=1, dtype=jnp.int32)
    before = lax.cummax(jnp.where(first, upto - counts, 0), axis=1)
    # Of equal counts top_k takes the first, which is the smallest number.
    totals, place = lax.top_k(jnp.where(last, upto - before, 0), MOST + 1)
    lost = totals[:, MOST]
    kept = jnp.maximum(totals[:, :MOST] - lost[:, None], 0)
    numbers = _select.number(jnp.take_along_axis(key, place[:, :MOST], axis=1))
    return Modes(jnp.where(kept > 0, numbers, 0), kept, lost)
