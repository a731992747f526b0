"""Exact quantiles of every column, without a sort.

The bits of a float32, ordered as an int32, are halved 32 times: each pass counts the
entries up to a bound, one bound for each quantile and column. A pass reads the keys
once, at the speed of memory; a sort of the same column takes XLA on CPU 20 times as
long.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxsafe.clean import _sketch
from jaxsafe.clean._observe import Admit, over_blocks
from jaxsafe.clean._table import HostArray

_TILE = 200
LAST = 2**31 - 1  # the key of what is missing: behind every number


def keys(x: jax.Array, admit: Admit) -> jax.Array:
    """int32[tiles, rows of a tile, columns], ordered as the numbers are."""
    rows, columns = x.shape
    whole = -(-rows // _TILE) * _TILE
    values = admit(x)
    found = jnp.where(jnp.isfinite(values), _sketch.ordered(values), LAST)
    padded = jnp.pad(found, ((0, whole - rows), (0, 0)), constant_values=LAST)
    return padded.reshape(-1, _TILE, columns)


def neighbours(key: jax.Array, ranks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The entries at `ranks` (int32[quantiles, columns], from 0) and the next ones."""

    def step(bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)
        enough = _up_to(key, middle) > ranks
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    first = jnp.full_like(ranks, -LAST - 1), jnp.full_like(ranks, LAST)
    found, _ = lax.while_loop(lambda b: (b[0] < b[1]).any(), step, first)
    again = _up_to(key, found) > ranks + 1
    after = jnp.where(again, found, _least_above(key, found))
    return number(found), number(after)


def _up_to(key: jax.Array, bound: jax.Array) -> jax.Array:
    def step(carry: jax.Array, tile: jax.Array) -> tuple[jax.Array, None]:
        return carry + (tile[None] <= bound[:, None]).astype(jnp.int32), None

    start = jnp.zeros((bound.shape[0], *key.shape[1:]), jnp.int32)
    return lax.scan(step, start, key)[0].sum(axis=1, dtype=jnp.int32)


def _least_above(key: jax.Array, bound: jax.Array) -> jax.Array:
    def step(carry: jax.Array, tile: jax.Array) -> tuple[jax.Array, None]:
        return jnp.minimum(
            carry, jnp.where(tile[None] > bound[:, None], tile[None], LAST)
        ), None

    start = jnp.full((bound.shape[0], *key.shape[1:]), LAST, jnp.int32)
    return lax.scan(step, start, key)[0].min(axis=1)


def number(key: jax.Array) -> jax.Array:
    bits = key ^ ((key >> 31) & 0x7FFFFFFF)
    return lax.bitcast_convert_type(bits, jnp.float32)


def sketch(
    counts: jax.Array, x: jax.Array, pivot: jax.Array, admit: Admit
) -> jax.Array:
    """`counts` [columns, BUCKETS] with all entries of x added."""
    middle = (x.shape[1] + 1) // 2  # two scatters, because XLA on CPU runs one in turn
    parts = (slice(None, middle), slice(middle, None))

    def step(halves: Any, block: jax.Array) -> tuple[Any, None]:
        pairs = zip(halves, parts, strict=True)
        found = [_sketch.count_block(h, block[:, p], pivot[p]) for h, p in pairs]
        return tuple(found), None

    halves = tuple(counts[p] for p in parts)
    return jnp.concatenate(over_blocks(x, halves, step, admit)[0])


def codes(x: jax.Array, pivot: jax.Array, admit: Admit) -> jax.Array:
    """uint16[blocks, columns, rows of a block] for `_sketch.count_codes`."""

    def step(carry: None, block: jax.Array) -> tuple[None, jax.Array]:
        return carry, _sketch.codes(block, pivot)

    return over_blocks(x, None, step, admit)[1]


def interpolated(low: Any, high: Any, rank: HostArray) -> HostArray:
    """float64: between two neighbours, by the fraction of the rank."""
    import numpy as np

    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    part = rank - np.floor(rank)
    return np.where(part > 0, low + (high - low) * part, low)
