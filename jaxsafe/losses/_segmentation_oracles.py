"""What the Dice losses truly give, in arbitrary precision, and what to try them on."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsafe.ops._softmax import powers


def dice_oracle(mp: Any, x: list[Any], t: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    """Of the first entry of the batch, alpha = beta = 1/2 and smooth = 1."""
    found = [_oracle_of_one(mp, rows, goals) for rows, goals in zip(x, t, strict=True)]
    zeros = [[[mp.mpf(0)] * len(row) for row in rows] for rows in x[1:]]
    value = [f[0] for f in found]
    return value, tuple([found[0][i], *zeros] for i in (1, 2))


def _oracle_of_one(mp: Any, rows: list[Any], goals: list[Any]) -> tuple[Any, ...]:
    pixels, classes = range(len(rows)), range(len(rows[0]))
    p = []
    for row in rows:
        weights, total = powers(mp, row)
        p.append([w / total for w in weights])
    value = mp.mpf(0)
    by_p, by_t = ([[mp.mpf(0)] * len(row) for row in p] for _ in range(2))
    for c in classes:
        both = mp.fsum(p[i][c] * goals[i][c] for i in pixels)
        wrong = mp.fsum(p[i][c] + goals[i][c] for i in pixels) / 2 - both
        size = wrong + both + 1
        value += wrong / size / len(classes)
        for i in pixels:
            for slopes, other in ((by_p, goals), (by_t, p)):
                own = mp.mpf(1) / 2 - other[i][c]
                slope = (own * size - wrong / 2) / size**2
                slopes[i][c] = slope / len(classes)
    by_x = []
    for row, slopes in zip(p, by_p, strict=True):
        mean = mp.fsum(a * b for a, b in zip(row, slopes, strict=True))
        by_x.append([a * (s - mean) for a, s in zip(row, slopes, strict=True)])
    return value, by_x, by_t


def dice_sample(rng: Any) -> Iterator[tuple[Any, ...]]:
    for scale in (1, 4):
        x = rng.normal(size=(2, 4, 3)) * scale
        yield x, np.eye(3)[rng.integers(3, size=(2, 4))]


def naive_dice(x: jax.Array, t: jax.Array) -> jax.Array:
    p = jnp.exp(x) / jnp.sum(jnp.exp(x), -1, keepdims=True)
    both, size = jnp.sum(p * t, 1), 0.5 * jnp.sum(p + t, 1)
    return jnp.mean(1 - (both + 1) / (size + 1), -1)


def binary_oracle(mp: Any, x: list[Any], t: list[Any]) -> tuple[Any, ...]:
    value, by_x, by_t = [], [], []
    for row, goals in zip(x, t, strict=True):
        p = [1 / (1 + mp.exp(-v)) for v in row]
        loss, to_p, to_t = _dice(mp, p, goals)
        value.append(loss)
        by_x.append([s * a * (1 - a) for s, a in zip(to_p, p, strict=True)])
        by_t.append(to_t)
    zeros = [[mp.mpf(0)] * len(row) for row in x[1:]]
    return value, ([by_x[0], *zeros], [by_t[0], *zeros])


def _dice(mp: Any, p: list[Any], t: list[Any]) -> tuple[Any, list[Any], list[Any]]:
    """Loss of one class with smooth = 1, slopes to p and to t."""
    both = mp.fsum(a * b for a, b in zip(p, t, strict=True)) + 1
    size = mp.fsum(p + t) / 2 + 1
    base = both / size**2 / 2
    return 1 - both / size, [base - b / size for b in t], [base - a / size for a in p]


def generalized_oracle(mp: Any, x: list[Any], t: list[Any]) -> tuple[Any, ...]:
    """Each class of the one entry of the batch, weighted by its size."""
    p, goals = [], list(zip(*t[0], strict=True))
    for row in x[0]:
        power, total = powers(mp, row)
        p.append([w / total for w in power])
    size = [mp.fsum(goal) for goal in goals]
    weights = [1 / (s**2 + mp.mpf(1e-7)) for s in size]
    whole, value, by_p, by_t = mp.fsum(weights), mp.mpf(0), [], []
    parts = [
        _dice(mp, list(a), list(b))
        for a, b in zip(zip(*p, strict=True), goals, strict=True)
    ]
    for w, (loss, _, _) in zip(weights, parts, strict=True):
        value += w / whole * loss
    for w, s, (loss, to_p, to_t) in zip(weights, size, parts, strict=True):
        by_weight = (value - loss) / whole * 2 * s * w**2
        by_p.append([w / whole * v for v in to_p])
        by_t.append([w / whole * v + by_weight for v in to_t])
    by_x = []
    for row, slopes in zip(p, zip(*by_p, strict=True), strict=True):
        mean = mp.fsum(a * b for a, b in zip(row, slopes, strict=True))
        by_x.append([a * (s - mean) for a, s in zip(row, slopes, strict=True)])
    return value, ([by_x], [[list(row) for row in zip(*by_t, strict=True)]])


def naive_binary(x: jax.Array, t: jax.Array) -> jax.Array:
    p = 1 / (1 + jnp.exp(-x))
    return 1 - (jnp.sum(p * t, -1) + 1) / (0.5 * jnp.sum(p + t, -1) + 1)


def naive_generalized(x: jax.Array, t: jax.Array) -> jax.Array:
    p = jnp.exp(x) / jnp.sum(jnp.exp(x), -1, keepdims=True)
    weights = 1 / (jnp.sum(t, (0, 1)) ** 2 + 1e-7)
    both, size = jnp.sum(p * t, (0, 1)), 0.5 * jnp.sum(p + t, (0, 1))
    return jnp.sum(weights * (1 - (both + 1) / (size + 1))) / jnp.sum(weights)


def binary_sample(rng: Any) -> Iterator[tuple[Any, ...]]:
    yield rng.normal(size=(2, 4)) * 3, rng.integers(2, size=(2, 4)).astype(float)


def generalized_sample(rng: Any) -> Iterator[tuple[Any, ...]]:
    yield rng.normal(size=(1, 4, 2)), np.eye(2)[[[0, 1, 0, 0]]]
