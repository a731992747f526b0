"""How unusual a number is among those before it: a z-score over running statistics.

    warming up (seen < warmup_steps)        remember the number; nothing is unusual yet
    seen == warmup_steps                    mean and deviation of those, without strays
    from then on                            exponential moving mean and deviation

Invariants: only finite numbers get in; `seen` counts them and stops at `warmup_steps`;
a number counts into the statistics only after it was scored.

Source: Kumar et al., ZClip, 2025, https://arxiv.org/abs/2504.02507. One thing is added:
a stray of the warm-up, more than ten times the median, is left out of the first
statistics, which it would ruin for good.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_STRAY = 10.0
# Added to the deviation, as in the authors' code.
_EPS = 1e-6


class Statistics(NamedTuple):
    """Running statistics of a number.

    Attributes:
      mean: float32[].
      std: float32[], root of the moving variance, which itself could overflow.
      seen: int32[], finite numbers so far, at most as many as `first` has.
      first: float32[warmup_steps], the numbers of the warm-up.
    """

    mean: jax.Array
    std: jax.Array
    seen: jax.Array
    first: jax.Array


def init_statistics(warmup_steps: int) -> Statistics:
    """Statistics of nothing."""
    zero = jnp.zeros((), jnp.float32)
    first = jnp.zeros((warmup_steps,), jnp.float32)
    return Statistics(zero, zero + 0, jnp.zeros((), jnp.int32), first)


def is_warm(statistics: Statistics) -> jax.Array:
    """bool[]: whether there is something to compare with."""
    return statistics.seen >= statistics.first.shape[0]


def score(statistics: Statistics, x: jax.Array) -> jax.Array:
    """float32[]: deviations above the mean; 0 while warming up."""
    z = (x - statistics.mean) / (statistics.std + _EPS)
    return jnp.where(is_warm(statistics), z, 0.0)


def observed(
    statistics: Statistics, x: jax.Array, ok: jax.Array, decay: float
) -> Statistics:
    """The statistics with one more number, if it is finite and `ok`."""
    x = x.astype(jnp.float32)
    counts = ok & jnp.isfinite(x)
    mean, std = statistics.mean, statistics.std
    new_mean = decay * mean + (1 - decay) * x
    off = jnp.abs(x - new_mean)
    moved = new_mean, jnp.hypot(decay**0.5 * std, (1 - decay) ** 0.5 * off)

    length = statistics.first.shape[0]
    first = statistics.first.at[statistics.seen].set(x, mode="drop")
    started = _start(first)
    warm, last = is_warm(statistics), statistics.seen == length - 1
    new_mean, new_std = (
        jnp.where(warm, a, jnp.where(last, b, c))
        for a, b, c in zip(moved, started, (mean, std), strict=True)
    )
    return Statistics(
        mean=jnp.where(counts, new_mean, mean),
        std=jnp.where(counts, new_std, std),
        seen=jnp.where(counts & ~warm, statistics.seen + 1, statistics.seen),
        first=jnp.where(counts, first, statistics.first),
    )


def _start(first: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and deviation of the warm-up, without its strays."""
    kept = jnp.abs(first) <= _STRAY * jnp.abs(jnp.median(first))
    # All of them where most are 0 and the rest are not.
    kept = kept | ~kept.any()
    count = jnp.sum(kept, dtype=jnp.int32).astype(jnp.float32)
    # Divided first: a sum of numbers of 1e38 would overflow.
    mean = jnp.sum(jnp.where(kept, first / count, 0))
    off = jnp.where(kept, first - mean, 0)
    largest = jnp.maximum(jnp.max(jnp.abs(off)), jnp.finfo(jnp.float32).tiny)
    return mean, largest * jnp.sqrt(jnp.sum(jnp.square(off / largest)) / count)
