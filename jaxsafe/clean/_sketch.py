"""What quantiles and modes are merged by, in a size that does not grow with the data.

`Sketch` counts the entries of a column in buckets on the ordered bits of their
distance from a pivot inside the column: sign, exponent and six digits, the relative
error scheme of Masson, Rim and Lee, "DDSketch: a fast and fully-mergeable quantile
sketch with relative-error guarantees", VLDB 2019, measured from the pivot and not from
0, so that a column around 1e6 with spread 1 keeps its digits. A quantile read from it
is off by at most 1/64 of its distance from the pivot.

`Frequent` is the summary of Misra and Gries (1982), merged as in Agarwal et al.,
"Mergeable summaries", PODS 2012: exact up to `MOST` different numbers, and beyond that
no number more frequent than rows / MOST is lost.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsafe.clean._table import HostArray

LARGEST = 3.4028234663852886e38
_SHIFT = 17  # of 32 bits, the low ones that a bucket does not tell apart
BUCKETS = 1 << (32 - _SHIFT)
MOST = 256
_CACHED = 2**17  # entries of a column that are counted at a time
# At most this share of its distance from the pivot is a quantile off.
ERROR = 2.0 ** (_SHIFT - 23)


class Sketch(NamedTuple):
    """Counts of the numeric columns of a cleaner.

    Attributes:
      pivot: float32[columns].
      counts: int32[columns, BUCKETS].
    """

    pivot: Any
    counts: Any


class Frequent(NamedTuple):
    """The most frequent numbers of each numeric column; unused places count 0.

    Attributes:
      values: float32[columns, MOST].
      counts: int32[columns, MOST].
    """

    values: Any
    counts: Any


def ordered(x: jax.Array) -> jax.Array:
    """int32 that is ordered as the float32 numbers are; 0.0 and -0.0 alike."""
    bits = lax.bitcast_convert_type(x + 0.0, jnp.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def buckets(x: jax.Array, pivot: jax.Array) -> jax.Array:
    """int32: the bucket of each number; meaningless for a NaN."""
    largest = jnp.finfo(jnp.float32).max
    return (
        ordered(
            jnp.clip(
                x - (pivot if pivot.ndim == x.ndim else pivot[None]), -largest, largest
            )
        )
        >> _SHIFT
    ) + BUCKETS // 2


def count_block(counts: jax.Array, x: jax.Array, pivot: jax.Array) -> jax.Array:
    """`counts` [columns, BUCKETS] with the entries of x [rows, columns] added."""
    observed = jnp.isfinite(x)
    column = jnp.arange(x.shape[1], dtype=jnp.int32)
    place = jnp.where(observed, buckets(x, pivot), 0) + (column * BUCKETS)[None]
    flat = counts.ravel().at[place.ravel()]
    added = flat.add(observed.ravel().astype(jnp.int32), mode="promise_in_bounds")
    return added.reshape(counts.shape)


def codes(x: jax.Array, pivot: jax.Array) -> jax.Array:
    """uint16[columns, rows]: the bucket of each number; `BUCKETS` if it is missing."""
    found = jnp.where(jnp.isfinite(x), buckets(x, pivot), BUCKETS)
    return found.astype(jnp.uint16).T


def count_codes(found: HostArray) -> HostArray:
    """int32[columns, BUCKETS]: what is in `codes` of many blocks, [blocks, ...].

    On a CPU bincount takes a fourth of the time of a scatter of XLA.
    """
    import numpy as np

    blocks, columns, rows = found.shape
    counts = np.zeros((columns, BUCKETS + 1), np.int64)
    size = max(1, _CACHED // rows)
    for i in range(columns):
        for start in range(0, blocks, size):
            part = found[start : start + size, i].ravel()
            counts[i] += np.bincount(part, minlength=BUCKETS + 1)
    return counts[:, :BUCKETS].astype(np.int32)


def count_on_host(x: HostArray, pivot: HostArray) -> Sketch:
    """The sketch of x [rows, columns] with NaN where nothing was observed."""
    import numpy as np

    counts = np.zeros((x.shape[1], BUCKETS), np.int32)
    for i in range(x.shape[1]):
        observed = x[np.isfinite(x[:, i]), i]
        counts[i] = np.bincount(_host_buckets(observed, pivot[i]), minlength=BUCKETS)
    return Sketch(np.asarray(pivot, np.float32), counts)


def _host_buckets(x: HostArray, pivot: Any) -> HostArray:
    import numpy as np

    largest = np.finfo(np.float32).max
    with np.errstate(over="ignore"):
        far = np.clip(x - np.float32(pivot), -largest, largest).astype(np.float32)
    bits = (far + np.float32(0)).view(np.int32)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (key >> _SHIFT) + BUCKETS // 2


def _edges() -> HostArray:
    """float64[BUCKETS + 1]: where each bucket begins, as a distance from the pivot."""
    import numpy as np

    key = (np.arange(BUCKETS + 1, dtype=np.int64) - BUCKETS // 2) << _SHIFT
    bits = np.where(key < 0, key ^ 0x7FFFFFFF, key).astype(np.int64)
    bits &= 0xFFFFFFFF
    largest = float(np.finfo(np.float32).max)
    with np.errstate(invalid="ignore"):
        value = bits.astype(np.uint32).view(np.float32).astype(np.float64)
    key_infinite = 0x7F800000
    value = np.where(key >= key_infinite, largest, value)
    return np.where(key <= -key_infinite, -largest, value)


def quantile(
    sketch: Sketch, p: float, minimum: HostArray, maximum: HostArray
) -> HostArray:
    """float64[columns]: a quantile of each column, NaN where nothing was observed."""
    import numpy as np

    counts, pivot = np.asarray(sketch.counts), np.asarray(sketch.pivot, np.float64)
    edges = _edges()
    found = np.full(len(counts), np.nan)
    for i, column in enumerate(counts):
        total = int(column.sum(dtype=np.int64))
        if total:
            distance = _at_rank(column, edges, p * (total - 1))
            found[i] = np.clip(pivot[i] + distance, minimum[i], maximum[i])
    return found


def deviation(sketch: Sketch, median: HostArray) -> HostArray:
    """float64[columns]: median distance from the median, NaN for an empty column."""
    import numpy as np

    counts, pivot = np.asarray(sketch.counts), np.asarray(sketch.pivot, np.float64)
    edges = _edges()
    middle = (edges[:-1] + edges[1:]) / 2
    found = np.full(len(counts), np.nan)
    for i, column in enumerate(counts):
        used = np.flatnonzero(column)
        if used.size:
            distance = np.abs(pivot[i] + middle[used] - median[i])
            order = np.argsort(distance)
            below = np.cumsum(column[used][order], dtype=np.int64)
            place = np.searchsorted(below, (below[-1] + 1) // 2)
            found[i] = distance[order][place]
    return found


def _at_rank(counts: HostArray, edges: HostArray, rank: float) -> float:
    """The distance at a rank from 0, as if a bucket's entries stood evenly in it."""
    import numpy as np

    upto = np.cumsum(counts, dtype=np.int64)
    place = int(np.searchsorted(upto, rank, side="right"))
    inside = (rank - (upto[place] - counts[place]) + 0.5) / counts[place]
    low, high = float(edges[place]), float(edges[place + 1])
    return low + (high - low) * min(max(inside, 0.0), 1.0)


def join(a: Sketch, b: Sketch) -> Sketch:
    """Counts of both; those of `b` move to the pivots of `a`, one bucket more off."""
    import numpy as np

    counts = np.array(a.counts)
    pivot, other = (np.asarray(s.pivot, np.float32) for s in (a, b))
    empty = counts.sum(axis=1, dtype=np.int64) == 0
    pivot = np.where(empty, other, pivot)
    edges = _edges()
    middle = (edges[:-1] + edges[1:]) / 2
    largest = np.finfo(np.float32).max
    for i, column in enumerate(np.asarray(b.counts)):
        if pivot[i] == other[i]:
            counts[i] += column
            continue
        used = np.flatnonzero(column)
        moved = np.clip(float(other[i]) + middle[used], -largest, largest)
        place = _host_buckets(moved.astype(np.float32), pivot[i])
        np.add.at(counts[i], place, column[used])
    return Sketch(pivot, counts)


def count_frequent(x: HostArray) -> Frequent:
    """The summary of x [rows, columns] with NaN where nothing was observed."""
    import numpy as np

    pairs = []
    for i in range(x.shape[1]):
        observed = x[np.isfinite(x[:, i]), i]
        pairs.append(_shortened(*np.unique(observed, return_counts=True)))
    return _stacked(pairs)


def join_frequent(a: Frequent, b: Frequent) -> Frequent:
    """The summary of both."""
    import numpy as np

    pairs = []
    for i in range(len(np.asarray(a.values))):
        both = [np.concatenate([np.asarray(u[i]), np.asarray(v[i])])
                for u, v in zip(a, b, strict=True)]  # fmt: skip
        values, where = np.unique(both[0][both[1] > 0], return_inverse=True)
        counts = np.zeros(len(values), np.int64)
        np.add.at(counts, where, both[1][both[1] > 0])
        pairs.append(_shortened(values, counts))
    return _stacked(pairs)


def mode(frequent: Frequent) -> HostArray:
    """float64[columns]: the most frequent number, the smallest of several; or NaN."""
    import numpy as np

    values, counts = (np.asarray(part) for part in frequent)
    most = counts.max(axis=1, keepdims=True)
    tied = np.where((counts == most) & (most > 0), values.astype(np.float64), np.inf)
    found = tied.min(axis=1)
    return np.where(np.isfinite(found), found, np.nan)


def _shortened(values: HostArray, counts: HostArray) -> tuple[HostArray, HostArray]:
    """At most `MOST` of them, each count less by that of the first left out."""
    import numpy as np

    order = np.argsort(-counts, kind="stable")
    values, counts = values[order], counts[order]
    if len(counts) > MOST:
        counts = counts - counts[MOST]
    kept = min(MOST, int((counts[:MOST] > 0).sum()))
    # All of them equally rare: the first stands for the rest.
    kept = max(kept, min(1, len(counts)))
    return values[:kept], np.maximum(counts[:kept], 1)


def _stacked(pairs: list[tuple[HostArray, HostArray]]) -> Frequent:
    import numpy as np

    values = np.zeros((len(pairs), MOST), np.float32)
    counts = np.zeros((len(pairs), MOST), np.int32)
    for i, (value, count) in enumerate(pairs):
        values[i, : len(value)], counts[i, : len(count)] = value, count
    return Frequent(values, counts)


def middles() -> jax.Array:
    """float32[BUCKETS]: the middle of each bucket, as a distance from the pivot."""
    import numpy as np

    edges = _edges()
    return jnp.asarray(((edges[:-1] + edges[1:]) / 2).astype(np.float32))
