"""Attention on plain arrays, for both flax APIs.

Two ideas. (1) Excluded scores are left out of the softmax instead of set to a very
negative number, so that a row without a key gives 0, not the mean of all values.
(2) 0 * NaN is NaN, so a NaN in a masked key or value would still spread through the
matrix products: a key position that holds one is blanked, and the scores of those rows
that do attend to it are made NaN instead.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import random

from jaxsafe import _floats
from jaxsafe._errors import error
from jaxsafe.ops._softmax import softmax

_NAN = float("nan")


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    bias: Any,
    mask: Any,
    change: Callable[[jax.Array], jax.Array],
    precision: Any,
) -> jax.Array:
    """Mean of the values [..., keys, heads, depth], weighted for each query.

    Args:
      query: [..., queries, heads, depth], of one dtype with `key` and `value`; half
        precision is computed in float32 and rounded once.
      key: [..., keys, key heads, depth]; each serves heads / key heads queries.
      value: [..., keys, key heads, value depth].
      bias: added to the scores [..., heads, queries, keys]; None for none.
      mask: True = attend, broadcasts to the scores; None for all.
      change: what to do to the weights, such as dropout.
      precision: of the matrix products.
    """
    _check_shapes(query, key, value)
    dtype = query.dtype
    q, k, v = (a.astype(_floats.wide(dtype)) for a in (query, key, value))
    heads, shared = q.shape[-2], k.shape[-2]
    shape = (*q.shape[:-3], heads, q.shape[-3], k.shape[-3])
    allowed = None if mask is None else _expanded(jnp.asarray(mask).astype(bool), shape)
    if allowed is not None:
        bad = ~(jnp.isfinite(k).all(-1) & jnp.isfinite(v).all(-1))
        k, v = (jnp.where(bad[..., None], 0, a) for a in (k, v))
        attends = jnp.swapaxes(allowed.any(-1), -1, -2)[..., None]
        q = jnp.where(attends, q, 0)
    q = (q / jnp.sqrt(jnp.asarray(q.shape[-1], q.dtype))).reshape(
        *q.shape[:-2], shared, heads // shared, q.shape[-1]
    )
    scores = jnp.einsum("...qhgd,...khd->...hgqk", q, k, precision=precision)
    scores = scores.reshape(shape)
    if bias is not None:
        scores = scores + _expanded(jnp.asarray(bias).astype(scores.dtype), shape)
    if allowed is not None:
        poisoned = jnp.repeat(jnp.swapaxes(bad, -1, -2), heads // shared, axis=-2)
        scores = jnp.where(allowed & poisoned[..., None, :], _NAN, scores)
    weights = change(softmax(scores, where=allowed))
    weights = weights.reshape(*shape[:-3], shared, heads // shared, *shape[-2:])
    out = jnp.einsum("...hgqk,...khd->...qhgd", weights, v, precision=precision)
    return out.reshape(*out.shape[:-3], heads, out.shape[-1]).astype(dtype)


def dropout(weights: jax.Array, rng: Any, rate: float, broadcast: bool) -> jax.Array:
    """Drop weights at random as flax does, with the same draws."""
    lead = (1,) * (weights.ndim - 2) if broadcast else weights.shape[:-2]
    keep = random.bernoulli(rng, 1 - rate, (*lead, *weights.shape[-2:]))
    return jnp.where(keep, weights / (1 - rate), 0)


def both(mask: Any, causal: jax.Array) -> jax.Array:
    """A mask of scores and a causal one, together."""
    mask = jnp.asarray(mask).astype(bool)
    return mask & causal.reshape((1,) * (mask.ndim - causal.ndim) + causal.shape)


def _expanded(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.broadcast_to(x.reshape((1,) * (len(shape) - x.ndim) + x.shape), shape)


def _check_shapes(query: jax.Array, key: jax.Array, value: jax.Array) -> None:
    same_batch = query.shape[:-3] == key.shape[:-3] == value.shape[:-3]
    same_keys = key.shape[-3:-1] == value.shape[-3:-1]
    shares = query.shape[-1] == key.shape[-1] and query.shape[-2] % key.shape[-2] == 0
    if not (same_batch and same_keys and shares):
        raise error(
            ValueError,
            "layers.MultiHeadAttention",
            "query, key and value must be [..., length, heads, depth] that fit",
            f"shapes {query.shape}, {key.shape} and {value.shape}",
            "Check the batch dimensions, the lengths of key and value, and the heads.",
        )
