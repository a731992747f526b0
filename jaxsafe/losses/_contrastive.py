"""Contrastive losses: NT-Xent over labels, and InfoNCE over pairs.

The idea: with m the log-sum-exp of the negatives, the loss of a positive pair of
logit p is log(1 + exp(m - p)), a softplus, whose slope is bounded at any temperature.
The textbook form takes the logarithm of a sum that underflows to 0, and its gradient
is NaN from a temperature of 0.01 down.

Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual
Representations", arXiv:2002.05709.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe._errors import check_positive, error
from jaxsafe.losses._inputs import matching, not_infinite, wide_floating
from jaxsafe.losses._mean import masked_mean
from jaxsafe.ops._norm import direction
from jaxsafe.ops._sigmoid import softplus_core
from jaxsafe.ops._softmax import logsumexp_core

_INF = float("inf")


def ntxent(
    embeddings: ArrayLike,
    labels: ArrayLike,
    temperature: ArrayLike = 0.07,
    *,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Normalised temperature-scaled cross-entropy: equal labels attract.

    Value: mean over the pairs of equal labels of log(1 + exp(m - p)), p the pair's
      cosine over the temperature, m the log-sum-exp of those of other labels; 0 without
      such a pair.
    Gradient: finite at any temperature; 0 for an embedding of length 0.
    NaN in: NaN out; never from where `where` is False.
    Error: float32 2.5 ulp of max(|true|, 1), gradient 4.4 of the sum of what may
      cancel, for vectors of length 1 to 4 at a temperature of 1/2, by which the
      rounding of a cosine is divided too; bfloat16 and float16 give a float32 loss
      within 2.5 ulp and gradients within 0.51 ulp.

    Args:
      embeddings: floating array [batch, features] of any lengths.
      labels: array [batch].
      temperature: positive number.
      where: bool array [batch], True = include the embedding.

    Returns:
      A number; float32 for half precision.

    Raises:
      TypeError: `embeddings` is not floating.
      ValueError: the batch is empty, the shapes do not fit, or the temperature is not
        positive.

    Examples:
      >>> x = jnp.asarray([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
      >>> ntxent(x, jnp.asarray([0, 0, 1, 1]), temperature=1.0)
      Array(0.5514447, dtype=float32)

    References:
      Chen et al., arXiv:2002.05709.
    """
    name = "losses.ntxent"
    x = _rows(name, "embeddings", wide_floating(name, "embeddings", embeddings))
    group = jnp.asarray(labels)
    if group.shape != x.shape[:1]:
        raise error(
            ValueError,
            name,
            f"labels must have shape {x.shape[:1]}",
            group.shape,
            "Pass one label per embedding.",
        )
    check_positive(name, "temperature", temperature)
    keep = jnp.broadcast_to(True if where is None else where, group.shape)
    return _ntxent(x, group, keep, temperature)


@jax.jit
def _ntxent(
    x: jax.Array, group: jax.Array, keep: jax.Array, temperature: ArrayLike
) -> jax.Array:
    logits = _logits(x, x, keep, temperature)
    both = keep[:, None] & keep[None]
    equal = group[:, None] == group[None]
    positive = equal & both & ~jnp.eye(group.size, dtype=bool)
    negative = logsumexp_core(jnp.where(~equal & both, logits, -_INF), (1,))
    return masked_mean(softplus_core(negative - logits), positive)


def info_nce(
    queries: ArrayLike,
    keys: ArrayLike,
    *,
    temperature: ArrayLike = 0.07,
    where: ArrayLike | None = None,
) -> jax.Array:
    """InfoNCE: a query is to find its own key among the keys of all.

    Value: one loss per query, log(1 + exp(m - p)), p the cosine with its own key over
      the temperature, m the log-sum-exp of those with the other keys; 0 where excluded
      and for a single pair.
    Gradient: finite at any temperature; 0 for a vector of length 0.
    NaN in: NaN out; never from where `where` is False.
    Error: float32 3.2 ulp of max(|true|, 1), gradient 6.2 of the sum of what may
      cancel, for vectors of length 1 to 4 at a temperature of 1/2, by which the
      rounding of a cosine is divided too; bfloat16 and float16 give a float32 loss
      within 3.2 ulp and gradients within 0.51 ulp.

    Args:
      queries: floating array [batch, features] of any lengths.
      keys: array of the shape of `queries`; row i is the key of query i.
      temperature: positive number.
      where: bool array [batch], True = include the query and its key.

    Returns:
      Array [batch]; float32 for half precision.

    Raises:
      TypeError: `queries` is not floating.
      ValueError: the batch is empty, the shapes differ, or the temperature is not
        positive.

    Examples:
      >>> info_nce(jnp.eye(2), jnp.eye(2), temperature=1.0)
      Array([0.3132617, 0.3132617], dtype=float32)

    References:
      van den Oord, Li & Vinyals, arXiv:1807.03748.
    """
    name = "losses.info_nce"
    x = _rows(name, "queries", wide_floating(name, "queries", queries))
    y = matching(name, "keys", keys, x)
    check_positive(name, "temperature", temperature)
    keep = jnp.broadcast_to(True if where is None else where, x.shape[:1])
    return _info_nce(x, y, keep, temperature)


@jax.jit
def _info_nce(
    x: jax.Array, y: jax.Array, keep: jax.Array, temperature: ArrayLike
) -> jax.Array:
    logits = _logits(x, y, keep, temperature)
    own = jnp.eye(x.shape[0], dtype=bool)
    others = jnp.where(keep[None] & ~own, logits, -_INF)
    negative = logsumexp_core(others, (1,))[:, 0]
    loss = softplus_core(negative - jnp.sum(jnp.where(own, logits, 0), 1))
    return jnp.where(keep, loss, 0)


def _logits(
    x: jax.Array, y: jax.Array, keep: jax.Array, temperature: ArrayLike
) -> jax.Array:
    """Cosines of all pairs over the temperature; those of excluded rows are 0."""
    kept = (not_infinite(jnp.where(keep[:, None], a, 0)) for a in (x, y))
    u, v = (direction(a, (1,))[0] for a in kept)
    cosines = jnp.matmul(u, v.T, precision=lax.Precision.HIGHEST)
    return cosines / jnp.asarray(temperature, x.dtype)


def _rows(name: str, argument: str, x: jax.Array) -> jax.Array:
    if x.ndim != 2:
        raise error(
            ValueError,
            name,
            f"{argument} must be an array [batch, features]",
            x.shape,
            "Reshape it, or map over further axes with jax.vmap.",
        )
    return x


def _ntxent_parts(mp: Any, x: Any, labels: Any, of: Any) -> tuple[Any, Any]:
    logits, pairs = _cosines(mp, x, x), []
    slope = [[mp.mpf(0)] * len(x) for _ in x]
    for i, row in enumerate(logits):
        others = [k for k, group in enumerate(labels) if group != labels[i]]
        pairs += [
            _pair(mp, row, j, others, slope[i])
            for j, group in enumerate(labels)
            if j != i and group == labels[i]
        ]
    count = len(pairs)
    both = zip(slope, zip(*slope, strict=True), strict=True)
    # A cosine moves with either of its vectors.
    moved = [[(a + b) / count for a, b in zip(*rows, strict=True)] for rows in both]
    return mp.fsum(pairs) / count, (_to_vectors(mp, x, x, moved, of),)


def _info_nce_parts(mp: Any, x: Any, y: Any, of: Any) -> tuple[Any, Any]:
    logits = _cosines(mp, x, y)
    slopes = [[mp.mpf(0)] * len(x) for _ in x]
    value = []
    for i, row in enumerate(logits):
        others = [k for k in range(len(x)) if k != i]
        value.append(_pair(mp, row, i, others, slopes[i]))
    first = [slopes[0], *[[mp.mpf(0)] * len(x) for _ in x[1:]]]
    turned = [list(column) for column in zip(*first, strict=True)]
    return value, (
        _to_vectors(mp, x, y, first, of),
        _to_vectors(mp, y, x, turned, of),
    )


def _truth(parts: Any, mp: Any, x: Any, y: Any) -> Any:
    return parts(mp, x, y, of=mp.mpf)


def _size(parts: Any, mp: Any, x: Any, y: Any) -> Any:
    """Values of at least 1; gradients as if none of their terms cancelled."""
    (value, gradient), one = parts(mp, x, y, of=abs), mp.mpf(1)
    if isinstance(value, list):
        return [max(v, one) for v in value], gradient
    return max(value, one), gradient


def _cosines(mp: Any, x: Any, y: Any) -> list[list[Any]]:
    """Cosines over a temperature of 1/2."""
    u, v = ([_unit(mp, row)[0] for row in rows] for rows in (x, y))
    return [[2 * _dot(mp, p, q) for q in v] for p in u]


def _pair(mp: Any, row: list[Any], own: int, others: list[int], slope: Any) -> Any:
    """Loss of one positive pair; adds its slope to that of the logits."""
    powers = [mp.exp(row[k] - row[own]) for k in others]
    below = mp.fsum(powers)
    slope[own] -= below / (1 + below)
    for k, power in zip(others, powers, strict=True):
        slope[k] += power / (1 + below)
    return mp.log1p(below)


def _to_vectors(mp: Any, x: Any, y: Any, slope: Any, of: Any) -> list[list[Any]]:
    """Slopes of the rows of `x` from those of the logits; `of` every term."""
    others = [_unit(mp, row)[0] for row in y]
    out = []
    for row, weights in zip(x, slope, strict=True):
        u, length = _unit(mp, row)
        pull = [2 * _dot(mp, weights, c, of) for c in zip(*others, strict=True)]
        along = _dot(mp, pull, u, of)
        pairs = zip(pull, u, strict=True)
        out.append([(of(a) + of(-along * b)) / length for a, b in pairs])
    return out


def _unit(mp: Any, row: Any) -> tuple[list[Any], Any]:
    length = mp.sqrt(_dot(mp, row, row))
    return [a / length for a in row], length


def _dot(mp: Any, x: Any, y: Any, of: Any = lambda term: term) -> Any:
    return mp.fsum(of(a * b) for a, b in zip(x, y, strict=True))


def _ntxent_sample(rng: Any) -> Iterator[tuple[Any, ...]]:
    for _ in range(2):
        yield _vectors(rng, 4, 3), np.asarray([0, 0, 1, 1], np.int32)


def _info_nce_sample(rng: Any) -> Iterator[tuple[Any, ...]]:
    for _ in range(2):
        yield _vectors(rng, 3, 2), _vectors(rng, 3, 2)


def _vectors(rng: Any, count: int, features: int) -> Any:
    """Vectors of length 1 to 4."""
    x = rng.normal(size=(count, features))
    lengths = np.sqrt(np.sum(x * x, 1, keepdims=True))
    return x / lengths * rng.uniform(1, 4, (count, 1))


def _ntxent_at_half(embeddings: ArrayLike, labels: ArrayLike) -> jax.Array:
    return ntxent(embeddings, labels, 0.5)


def _info_nce_at_half(queries: ArrayLike, keys: ArrayLike) -> jax.Array:
    return info_nce(queries, keys, temperature=0.5)


def _naive_logits(x: jax.Array, y: jax.Array) -> jax.Array:
    u, v = (a / jnp.sqrt(jnp.sum(a * a, -1, keepdims=True)) for a in (x, y))
    return 2 * jnp.matmul(u, v.T)


def _naive_ntxent(x: jax.Array, labels: jax.Array) -> jax.Array:
    power = jnp.exp(_naive_logits(x, x))
    equal = labels[:, None] == labels[None]
    below = jnp.sum(jnp.where(equal, 0, power), 1, keepdims=True)
    positive = equal & ~jnp.eye(labels.size, dtype=bool)
    terms = jnp.where(positive, -jnp.log(power / (power + below)), 0)
    return jnp.sum(terms) / jnp.sum(positive.astype(x.dtype))


def _naive_info_nce(x: jax.Array, y: jax.Array) -> jax.Array:
    power = jnp.exp(_naive_logits(x, y))
    return -jnp.log(jnp.diagonal(power) / jnp.sum(power, 1))


_ANY = ((-_INF, _INF),)
_ZERO = ((0.0, 0.0), (0.0, 0.0))
_catalog.add(
    _catalog.Row(
        name="losses.ntxent",
        function=_ntxent_at_half,
        naive=_naive_ntxent,
        kind="whole",
        domain=_ANY,
        edges=(
            # No pair of equal labels.
            Edge(args=(((1.0, 0.0), (0.0, 1.0)), (0, 1)), value=0.0, gradient=(_ZERO,)),
            Edge(args=(_ZERO, (0, 0)), value=0.0, gradient=(_ZERO,)),
        ),
        ulp=_catalog.bounds(float32=(2.5, 4.4), float64=(2.5, 4.4), half=(2.5, 0.51)),
        oracle=functools.partial(_truth, _ntxent_parts),
        size=functools.partial(_size, _ntxent_parts),
        sample=_ntxent_sample,
        result=_floats.wide,
    )
)
_catalog.add(
    _catalog.Row(
        name="losses.info_nce",
        function=_info_nce_at_half,
        naive=_naive_info_nce,
        kind="whole",
        domain=_ANY * 2,
        edges=(
            Edge(
                args=(_ZERO, _ZERO),
                value=(0.6931471805599453,) * 2,
                gradient=(_ZERO, _ZERO),
            ),
        ),
        ulp=_catalog.bounds(float32=(3.2, 6.2), float64=(3.2, 6.2), half=(3.2, 0.51)),
        oracle=functools.partial(_truth, _info_nce_parts),
        size=functools.partial(_size, _info_nce_parts),
        sample=_info_nce_sample,
        result=_floats.wide,
    )
)
