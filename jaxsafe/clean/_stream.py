"""Statistics of numeric data that streams by, on the device: pure, mergeable.

    start(columns) --update(chunk)--> ... --update(chunk)--> finish -> Cleaner

`update` runs inside jit, scan and shard_map; state has the same shapes and dtypes all
along. Two states are joined by `merge_statistics`, in any order.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsafe import _errors
from jaxsafe._errors import error
from jaxsafe.clean import _modes, _moments, _observe, _options, _select, _sketch
from jaxsafe.clean._build import build
from jaxsafe.clean._cleaner import Cleaner, Column
from jaxsafe.clean._modes import Modes
from jaxsafe.clean._observe import Seen
from jaxsafe.clean._options import Options
from jaxsafe.clean._sketch import BUCKETS, Sketch
from jaxsafe.ops._in_two import Two


class Statistics(NamedTuple):
    """What is known of numeric columns so far; `number` ends at 2**31 - 1.

    Attributes:
      number: int32[columns], observed entries.
      mean: float32[columns].
      mean_low: float32[columns], what `mean` lost by rounding.
      std: float32[columns], population standard deviation.
      std_low: float32[columns], what `std` lost by rounding.
      minimum: float32[columns].
      maximum: float32[columns].
      pivot: float32[columns], where the buckets of a column are centred.
      counts: int32[columns, buckets], for quantiles; no buckets without them.
      modes: the numbers seen most often, at most 256 a column; none without them.

    >>> from jaxsafe import clean
    >>> clean.start(2).number
    Array([0, 0], dtype=int32)
    """

    number: jax.Array
    mean: jax.Array
    mean_low: jax.Array
    std: jax.Array
    std_low: jax.Array
    minimum: jax.Array
    maximum: jax.Array
    pivot: jax.Array
    counts: jax.Array
    modes: Modes


def start(
    columns: int, *, quantiles: bool = False, most_frequent: bool = False
) -> Statistics:
    """Statistics of nothing yet.

    Args:
      columns: how many.
      quantiles: also count in buckets, 128 KiB a column, for medians and the like.
      most_frequent: also keep the numbers seen most often, 2 KiB a column; each chunk
        is then sorted.

    Returns:
      A `Statistics`.

    Raises:
      ValueError: `columns` is no whole number above 0.

    >>> start(3).mean.shape
    (3,)
    """
    _errors.check_count("clean.start", "columns", columns)
    buckets = BUCKETS if quantiles else 0
    number = jnp.zeros((columns,), jnp.int32)
    a, b, c, d, e, f, g = (jnp.zeros((columns,), jnp.float32) for _ in range(7))
    counts = jnp.zeros((columns, buckets), jnp.int32)
    modes = _modes.none(columns, _sketch.MOST if most_frequent else 0)
    return Statistics(number, a, b, c, d, e, f, g, counts, modes)


def update(
    statistics: Statistics,
    array: ArrayLike,
    *,
    where: ArrayLike | None = None,
    axis_name: Any = None,
) -> Statistics:
    """Add a chunk of rows; for use inside jit, scan and shard_map.

    NaN and infinite entries are missing and enter nothing.

    Args:
      statistics: so far; with `axis_name`, the same on every device.
      array: [rows, columns] of numbers, at least one row.
      where: bool[rows]; a row with False does not count.
      axis_name: mapped axes over which the rows are spread.

    Returns:
      The statistics with the chunk; with `axis_name`, with the chunks of all devices.

    Raises:
      ValueError: the shape is not [rows, columns].

    >>> import numpy as np
    >>> from jaxsafe import clean
    >>> seen = clean.update(clean.start(1), np.array([[1.0], [np.nan], [3.0]]))
    >>> seen.mean, seen.std
    (Array([2.], dtype=float32), Array([1.], dtype=float32))
    """
    x = jnp.asarray(array)
    columns = statistics.number.shape[0]
    if x.ndim != 2 or x.shape[1] != columns or x.shape[0] == 0:
        raise error(
            ValueError,
            "clean.update",
            f"array must have rows and {columns} columns",
            f"shape {x.shape}",
            "Pass the columns that clean.start was told of, and at least one row.",
        )
    mask = None if where is None else jnp.asarray(where)
    return _updated(statistics, x, mask, axis_name)


@functools.partial(jax.jit, static_argnums=3)
def _updated(
    statistics: Statistics, x: jax.Array, mask: jax.Array | None, axis_name: Any
) -> Statistics:
    columns = x.shape[1]
    x = _admitted(x)
    if mask is not None:
        x = jnp.where(mask[:, None], x, jnp.nan)
    seen, pivot = _observe.observe(x, _admitted)
    wanted = statistics.modes.values.shape[1] > 0
    modes = _modes.of_chunk(x) if wanted else _modes.none(columns, 0)
    chunk = _pack(seen, pivot, jnp.zeros((columns, 0), jnp.int32), modes)
    chunks = [chunk] if axis_name is None else _everywhere(chunk, axis_name)
    joined = statistics
    for one in chunks:
        joined = _joined(joined, one)
    if statistics.counts.shape[1]:
        # Zeros that differ between devices, as what is added to them does.
        empty = (jnp.isnan(x[0]) & False).astype(jnp.int32)[:, None]
        empty = jnp.broadcast_to(empty, statistics.counts.shape)
        added = _select.sketch(empty, x, joined.pivot, _admitted)
        if axis_name is not None:
            added = lax.psum(added, axis_name)
        joined = joined._replace(counts=statistics.counts + added)
    return joined


def merge_statistics(a: Statistics, b: Statistics) -> Statistics:
    """Statistics of the rows of both.

    Counts in buckets move to the pivots of `a`, which puts a quantile off by one more
    bucket at most.

    Args:
      a: from `clean.update`.
      b: of the same columns.

    Returns:
      A `Statistics`.

    Raises:
      ValueError: the two were started with different arguments.

    >>> import numpy as np
    >>> from jaxsafe import clean
    >>> a, b = (clean.update(clean.start(1), np.array([[x]])) for x in (1.0, 3.0))
    >>> merge_statistics(a, b).mean
    Array([2.], dtype=float32)
    """
    shapes = [jax.tree.map(jnp.shape, statistics) for statistics in (a, b)]
    if shapes[0] != shapes[1]:
        raise error(
            ValueError,
            "clean.merge_statistics",
            "the two were started differently",
            f"{shapes[0].number[0]} and {shapes[1].number[0]} columns, "
            f"{shapes[0].counts[1]} and {shapes[1].counts[1]} buckets, "
            f"{shapes[0].modes.counts[1]} and {shapes[1].modes.counts[1]} modes",
            "Pass the same arguments to clean.start.",
        )
    joined = _joined(a, b)
    if not a.counts.shape[1]:
        return joined
    middle = _sketch.middles()
    value = jnp.clip(b.pivot[:, None] + middle[None], -_sketch.LARGEST, _sketch.LARGEST)
    moved = _sketch.buckets(value, joined.pivot[:, None])
    same = (b.pivot == joined.pivot)[:, None]
    place = jnp.where(same, jnp.arange(BUCKETS, dtype=jnp.int32)[None], moved)
    row = jnp.arange(place.shape[0])[:, None]
    return joined._replace(counts=a.counts.at[row, place].add(b.counts))


def finish(
    statistics: Statistics, *, names: Sequence[str] | None = None, **options: Any
) -> Cleaner:
    """A cleaner from what streamed by; on the host.

    Args:
      statistics: from `clean.update`.
      names: of the columns; "x0", "x1", ... by default.
      options: as of `clean.fit`; quantiles come from the buckets, as with
        `quantiles="sketch"`. "most_frequent" is exact, or an error: it is known while
        a column has at most 256 different numbers, and beyond that where one leads by
        more than could have been missed. `missing`, `ranges` and `allowed` hold for
        what is cleaned; what was counted was counted without them.

    Returns:
      A `Cleaner`.

    Raises:
      ValueError: an option needs what was not counted, or a most frequent number that
        is not certain.

    >>> import numpy as np
    >>> from jaxsafe import clean
    >>> seen = clean.update(clean.start(1), np.array([[1.0], [3.0]]))
    >>> clean.apply(clean.finish(seen), np.array([[np.nan], [3.0]], np.float32))
    Array([[0.],
           [1.]], dtype=float32)
    """
    chosen = _options.check(**{**_DEFAULTS, **options, "quantiles": "sketch"})
    columns = statistics.number.shape[0]
    titles = tuple(names) if names else tuple(f"x{i}" for i in range(columns))
    _options.check_names(chosen, titles)
    _options.check_kinds(chosen, dict.fromkeys(titles, "number"))
    _check_counted(statistics, titles, chosen)
    facts = _moments.of_seen(_unpack(statistics))
    if chosen.probabilities:
        facts.sketch = Sketch(statistics.pivot, statistics.counts)
        _moments.from_sketch(facts, chosen)
    if "most_frequent" in chosen.imputes:
        facts.frequent = _modes.summary(statistics.modes)
    return build([Column(name, "number") for name in titles], facts, (), chosen)


def _check_counted(
    statistics: Statistics, titles: Sequence[str], chosen: Options
) -> None:
    """Raise ValueError if the options need what the statistics do not know."""
    columns, buckets = statistics.counts.shape
    kept = statistics.modes.values.shape[1]
    asked = [i for i, n in enumerate(titles) if chosen.impute_of(n) == "most_frequent"]
    lacks = (chosen.probabilities and not buckets) or (asked and not kept)
    if lacks or len(titles) != columns:
        raise error(
            ValueError,
            "clean.finish",
            "names or options do not fit the statistics",
            f"{columns} columns, {'with' if buckets else 'without'} quantiles, "
            f"{'with' if kept else 'without'} the most frequent",
            "Name every column; start with quantiles=True for medians and quartiles, "
            "with most_frequent=True for the most frequent number.",
        )
    if not asked:
        return
    known = _modes.certain(statistics.modes)
    unsure = [titles[i] for i in asked if not known[i]]
    if unsure:
        raise error(
            ValueError,
            "clean.finish",
            f"of more than {kept} different numbers none is surely the most frequent",
            f"columns {', '.join(unsure)}",
            "Impute these columns by mean or median, impute={'x0': 'median'}, or fit "
            "them in memory: clean.fit.",
        )


_DEFAULTS: dict[str, Any] = {
    "impute": "mean",
    "fill_value": 0.0,
    "scale": "standard",
    "outliers": None,
    "outlier_action": "clip",
    "ranges": None,
    "range_action": "mask",
    "allowed": None,
    "categories": "onehot",
    "missing": (),
    "indicator": False,
}


def _admitted(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return jnp.where(jnp.isfinite(x), x, jnp.nan)


def _pack(seen: Seen, pivot: jax.Array, counts: jax.Array, modes: Modes) -> Statistics:
    ends = seen.minimum, seen.maximum
    return Statistics(seen.number, *seen.mean, *seen.std, *ends, pivot, counts, modes)


def _unpack(s: Statistics) -> Seen:
    mean, std = Two(s.mean, s.mean_low), Two(s.std, s.std_low)
    return Seen(s.number, mean, std, s.minimum, s.maximum)


def _joined(a: Statistics, b: Statistics) -> Statistics:
    """All of both, except for the counts, which are those of `a`."""
    pivot = jnp.where(a.number > 0, a.pivot, b.pivot)
    seen = _observe.join(_unpack(a), _unpack(b))
    return _pack(seen, pivot, a.counts, _modes.join(a.modes, b.modes))


def _everywhere(chunk: Statistics, axis_name: Any) -> list[Statistics]:
    """The chunks of all devices, the same list on each."""
    size = lax.psum(1, axis_name)
    here = lax.axis_index(axis_name) == jnp.arange(size)

    def gather(x: jax.Array) -> jax.Array:
        mine = here.reshape((size,) + (1,) * x.ndim)
        return lax.psum(jnp.where(mine, x, jnp.zeros_like(x)), axis_name)

    every = jax.tree.map(gather, chunk)
    return [jax.tree.map(lambda x, i=i: x[i], every) for i in range(size)]
