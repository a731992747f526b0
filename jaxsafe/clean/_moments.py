"""What a fit has to know of the numeric columns: float64 on the host.

A matrix of `LARGE` entries or more is read on the device (`_observe`, `_select`), a
smaller one here, column by column, where nothing has to be compiled first. Both give
the same numbers up to float32 rounding; a test holds them together.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxsafe.clean import _rules, _select, _sketch
from jaxsafe.clean._observe import Seen, observe
from jaxsafe.clean._options import Options
from jaxsafe.clean._sketch import Frequent, Sketch
from jaxsafe.clean._table import HostArray

LARGE = 2**18


@dataclasses.dataclass(kw_only=True)
class Facts:
    """Statistics of the numeric columns; arrays are float64[columns].

    Attributes:
      count: observed entries; where it is 0, the rest means nothing.
      mean: of the observed entries.
      std: population standard deviation.
      minimum: smallest entry.
      maximum: largest entry.
      quantiles: by probability, those that the options need.
      deviation: median distance from the median, if the options need it.
      sketch: counts to merge quantiles by, if the options need any.
      frequent: counts to merge modes by, if the options need one.
      holes: bool, an entry was missing.
    """

    count: HostArray
    mean: HostArray
    std: HostArray
    minimum: HostArray
    maximum: HostArray
    quantiles: dict[float, HostArray]
    deviation: "HostArray | None" = None
    sketch: Sketch | None = None
    frequent: Frequent | None = None
    holes: "HostArray | None" = None


class Admission:
    """Which entries count: not those missing, equal to a sentinel or not allowed.

    Hashable, so that one compiled program serves every fit with the same options.
    """

    def __init__(
        self,
        names: Sequence[str],
        sentinels: Sequence[float],
        options: Options,
        *,
        dtype: Any = jnp.float32,
    ) -> None:
        import numpy as np

        self.sentinels = tuple(sentinels)
        self.mask = options.range_action == "mask"
        self.ranges = tuple(
            (i, *dict(options.ranges)[name])
            for i, name in enumerate(names)
            if name in dict(options.ranges)
        )
        self.rows: _rules.Rows = ()
        if options.allowed:
            self.rows = _rules.rows(names, options, dtype)
        self.low = np.full(len(names), -np.finfo(np.float32).max, np.float32)
        self.high = -self.low
        for i, low, high in self.ranges:
            self.low[i], self.high[i] = low, high

    def _key(self) -> Any:
        # As text, because a NaN is equal to nothing.
        return self.sentinels, self.mask, self.ranges, str(self.rows), len(self.low)

    def __hash__(self) -> int:
        return hash(self._key())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Admission) and self._key() == other._key()

    def __call__(self, x: Any, xp: Any = jnp) -> Any:
        """float32, NaN where an entry does not count."""
        x = x.astype(xp.float32)
        known = xp.isfinite(x)
        for value in self.sentinels:
            known &= x != xp.float32(value)
        if self.rows:
            known &= _rules.holds(xp, x, self.rows)
        if self.ranges and self.mask:
            known &= (x >= self.low[None]) & (x <= self.high[None])
        x = xp.where(known, x, xp.float32(xp.nan))
        if self.ranges and not self.mask:
            x = xp.where(known, xp.clip(x, self.low[None], self.high[None]), x)
        return x


def facts(x: Any, admit: Admission, options: Options) -> Facts:
    """Read a matrix [rows, columns] of numbers: NumPy or JAX, any real dtype."""
    import numpy as np

    if x.shape[0] * x.shape[1] >= LARGE:
        with np.errstate(over="ignore", invalid="ignore"):
            x = jnp.asarray(x, None if x.dtype.itemsize <= 4 else jnp.float32)
        found = _on_device(x, admit, options)
        if "most_frequent" in options.imputes:
            found.frequent = _sketch.count_frequent(admit(np.asarray(x), np))
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            found = _on_host(admit(np.asarray(x), np), options)
    found.holes = found.count < x.shape[0]
    return found


def _on_device(x: jax.Array, admit: Admission, options: Options) -> Facts:
    import numpy as np

    need = options.probabilities
    on_cpu = all(device.platform == "cpu" for device in x.devices())
    how = None if not need else "codes" if on_cpu else "counts"
    seen, pivot, counts = _read(x, admit, how)
    found = of_seen(seen)
    if not need:
        return found
    found.sketch = Sketch(np.asarray(pivot), _counted(counts))
    if options.quantiles == "sketch":
        from_sketch(found, options)
        return found
    rank = _ranks(need, found.count)
    low, high = _selected(x, admit, jnp.asarray(np.floor(rank), jnp.int32))
    values = _select.interpolated(low, high, rank)
    found.quantiles = dict(zip(need, values, strict=True))
    if needs_deviation(options):
        center = jnp.asarray(found.quantiles[0.5], jnp.float32)
        rank = _ranks((0.5,), found.count)
        whole = jnp.asarray(np.floor(rank), jnp.int32)
        low, high = _selected_distance(x, center, admit, whole)
        found.deviation = _select.interpolated(low, high, rank)[0]
    return found


@functools.partial(jax.jit, static_argnums=(1, 2))
def _read(x: jax.Array, admit: Admission, how: str | None) -> Any:
    """Statistics, pivots, and codes or counts of the buckets."""
    seen, pivot = observe(x, admit)
    if how is None:
        return seen, pivot, None
    if how == "codes":
        return seen, pivot, _select.codes(x, pivot, admit)
    empty = jnp.zeros((x.shape[1], _sketch.BUCKETS), jnp.int32)
    return seen, pivot, _select.sketch(empty, x, pivot, admit)


def _counted(found: jax.Array) -> HostArray:
    """Counts of buckets, int32; `found` has them, or the codes to count."""
    import numpy as np

    host: HostArray = np.asarray(found)
    return _sketch.count_codes(host) if host.dtype == np.uint16 else host


@functools.partial(jax.jit, static_argnums=1)
def _selected(x: jax.Array, admit: Admission, ranks: jax.Array) -> Any:
    return _select.neighbours(_select.keys(x, admit), ranks)


@functools.partial(jax.jit, static_argnums=2)
def _selected_distance(
    x: jax.Array, center: jax.Array, admit: Admission, ranks: jax.Array
) -> Any:
    far = jnp.finfo(jnp.float32).max

    def distance(block: jax.Array) -> jax.Array:
        return jnp.minimum(jnp.abs(admit(block) - center[None]), far)

    return _select.neighbours(_select.keys(x, distance), ranks)


def _ranks(probabilities: Sequence[float], count: HostArray) -> HostArray:
    """float64[quantiles, columns]: positions among the observed entries, from 0."""
    import numpy as np

    return np.asarray(probabilities)[:, None] * np.maximum(count - 1, 0)


def of_seen(seen: Seen) -> Facts:
    """From pairs of float32 to float64."""
    import numpy as np

    seen = jax.device_get(seen)

    def wide(high: Any, low: Any = 0.0) -> HostArray:
        return np.asarray(high, np.float64) + np.asarray(low, np.float64)

    return Facts(
        count=wide(seen.number),
        mean=wide(*seen.mean),
        std=wide(*seen.std),
        minimum=wide(seen.minimum),
        maximum=wide(seen.maximum),
        quantiles={},
    )


def _on_host(x: HostArray, options: Options) -> Facts:
    """From a float32 matrix with NaN for what is missing."""
    import numpy as np

    columns = [c[np.isfinite(c)].astype(np.float64) for c in x.T]
    rows = [_moments(c) for c in columns]
    moments = np.asarray(rows, np.float64).reshape(len(rows), 5)
    count, mean, std, minimum, maximum = moments.T
    found = Facts(
        count=count,
        mean=mean,
        std=std,
        minimum=minimum,
        maximum=maximum,
        quantiles={},
    )
    need = options.probabilities
    if need:
        found.sketch = _sketch.count_on_host(x, found.mean.astype(np.float32))
    if need and options.quantiles == "sketch":
        from_sketch(found, options)
    elif need:
        values = [
            np.quantile(c, need) if c.size else [0.0] * len(need) for c in columns
        ]
        table = np.asarray(values).reshape(-1, len(need))  # or there is no column
        found.quantiles = dict(zip(need, table.T, strict=True))
        if needs_deviation(options):
            found.deviation = np.asarray(
                [np.median(np.abs(c - np.median(c))) if c.size else 0 for c in columns]
            )
    if "most_frequent" in options.imputes:
        found.frequent = _sketch.count_frequent(x)
    return found


_NAMES = ("count", "mean", "std", "minimum", "maximum")


def _moments(x: HostArray) -> tuple[float, ...]:
    import numpy as np

    if x.size == 0:
        return (0.0,) * 5
    shifted = x - x[0]
    shift = shifted.mean()
    std = np.sqrt(np.mean(np.square(shifted - shift)))
    return x.size, x[0] + shift, std, x.min(), x.max()


def needs_deviation(options: Options) -> bool:
    """Whether the median distance from the median is asked for."""
    return options.outliers is not None and options.outliers[0] == "mad"


def from_sketch(found: Facts, options: Options) -> None:
    """Fill in what quantiles the options need from the counts."""
    import numpy as np

    assert found.sketch is not None
    ends = found.minimum, found.maximum
    found.quantiles = {
        p: np.nan_to_num(_sketch.quantile(found.sketch, p, *ends))
        for p in options.probabilities
    }
    if needs_deviation(options):
        far = _sketch.deviation(found.sketch, found.quantiles[0.5])
        found.deviation = np.nan_to_num(far)


def join(a: Facts, b: Facts, options: Options) -> Facts:
    """The statistics of both, by the pairwise formula in float64.

    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
    sample variances", Stanford STAN-CS-79-773, 1979: it needs the difference of the
    two means only, never a sum of squares around 0.
    """
    import numpy as np

    total = a.count + b.count
    share = b.count / np.maximum(total, 1)
    delta = b.mean - a.mean
    between = (delta * (1 - share)) * (delta * share)
    within = a.std**2 * (1 - share) + b.std**2 * share
    columns = {
        "count": total,
        "mean": a.mean + delta * share,
        "std": np.sqrt(within + between),
        "minimum": np.minimum(a.minimum, b.minimum),
        "maximum": np.maximum(a.maximum, b.maximum),
    }
    for name in _NAMES:
        one, two = getattr(a, name), getattr(b, name)
        columns[name] = np.where(
            a.count == 0, two, np.where(b.count == 0, one, columns[name])
        )
    found = Facts(**columns, quantiles={})
    if a.sketch is not None and b.sketch is not None:
        found.sketch = _sketch.join(a.sketch, b.sketch)
        from_sketch(found, options)
    if a.frequent is not None and b.frequent is not None:
        found.frequent = _sketch.join_frequent(a.frequent, b.frequent)
    return found
