"""Attention in which nothing that is masked can be felt.

A weight of 0 does not silence a NaN: 0 * NaN is NaN, in the product with the values and
in every product of the backward pass. So the products see finite numbers only, and a
non-finite query, key or value is noted beside them: it makes NaN the logits of the
pairs that may see it, and of no other pair. Long queries and keys are scaled down by
powers of two first, so that a logit overflows only if it truly is out of range.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe._errors import check_floating, error
from jaxsafe.ops._exact import exponent_near, power_of_two
from jaxsafe.ops._softmax import softmax_core

_INF, _NAN = float("inf"), float("nan")
_NAME = "ops.dot_product_attention"


def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: int | tuple[int, int] | None = None,
) -> jax.Array:
    """Mean of the values, weighted by the softmax of query . key.

    Value: softmax(scale * query . key + bias) . value; 0 for a query that sees nothing;
      a logit beyond the range counts as its end.
    Gradient: that of the value; 0 for such a query, and for what no query sees.
    NaN in: NaN for every query that sees it, in all entries of the head; infinities
      count as NaN. What is masked never leaks, into value or gradient.
    Error: float32 2.2 ulp of the largest value times max(1, the largest logit), whose
      rounding moves all weights, gradient 2.9 likewise; bfloat16 and float16 0.51.

    Args:
      query: floating array [batch, queries, heads, size], or without batch.
      key: floating array [batch, keys, key heads, size]; heads are grouped if there are
        fewer key heads.
      value: floating array of the shape of `key`.
      bias: floating array that broadcasts to [batch, heads, queries, keys]; -inf masks.
      mask: bool array, True = include; broadcasts to [batch, heads, queries, keys].
      scale: factor of the logits, 1/sqrt(size) by default.
      is_causal: whether query i sees keys 0 to i only.
      query_seq_lengths: int array [batch], queries from there on see nothing.
      key_value_seq_lengths: int array [batch], keys from there on are masked.
      local_window_size: how many keys to the left and right of its own position a
        query sees; one number for both, or a pair.

    Returns:
      Array of the shape and dtype of `query`.

    Raises:
      TypeError: an array is not floating.
      ValueError: shapes do not fit together.

    Examples:
      >>> query, key = jnp.ones((1, 1, 2)), jnp.ones((2, 1, 2))
      >>> value = jnp.asarray([[[1.0, 2.0]], [[jnp.nan, 0.0]]])
      >>> seen = jnp.asarray([True, False])[None, None]
      >>> dot_product_attention(query, key, value, mask=seen)
      Array([[[1., 2.]]], dtype=float32)

    References:
      Vaswani et al., "Attention Is All You Need", 2017.
    """
    named = (("query", query), ("key", key), ("value", value))
    arrays = [check_floating(_NAME, name, x) for name, x in named]
    shape, dtype = arrays[0].shape, arrays[0].dtype
    q, k, v = (_with_batch(x.astype(_floats.wide(dtype))) for x in arrays)
    _check_shapes(q, k, v)
    lengths = query_seq_lengths, key_value_seq_lengths
    if bias is not None:
        bias = _with_batch(check_floating(_NAME, "bias", bias).astype(q.dtype))
    masks = _Masks(None if mask is None else jnp.asarray(mask), bias, *lengths)
    factor = q.shape[3] ** -0.5 if scale is None else scale
    out = _attend(q, k, v, masks, factor, is_causal, local_window_size)
    return out.reshape(shape).astype(dtype)


class _Masks(NamedTuple):
    """What keeps queries from keys, each an array or None."""

    mask: jax.Array | None
    bias: jax.Array | None
    query_lengths: ArrayLike | None
    key_lengths: ArrayLike | None


@functools.partial(jax.jit, static_argnums=(5, 6))
def _attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    masks: _Masks,
    scale: ArrayLike,
    is_causal: bool,
    window: int | tuple[int, int] | None,
) -> jax.Array:
    group = q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, group, axis=2), jnp.repeat(v, group, axis=2)
    full = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    seen = _seen(full, masks, is_causal, window)
    logits = _logits(q, k, scale) + _noted(q, k, v)
    if masks.bias is not None:
        wide = jnp.broadcast_to(masks.bias, full)
        seen = seen & (wide != -_INF)
        logits = logits + jnp.where(seen, wide, 0)
    # Below the range is not masked: a lone key gets all the weight.
    least = -_floats.largest(q.dtype)
    logits = jnp.where(seen, jnp.where(logits < least, least, logits), -_INF)
    weights = jnp.where(seen, softmax_core(logits, (3,)), 0)
    return _product("bnts,bsnh->btnh", weights, _finite(v))


def _with_batch(x: jax.Array) -> jax.Array:
    return x.reshape((1,) * (4 - x.ndim) + x.shape)


def _check_shapes(q: jax.Array, k: jax.Array, v: jax.Array) -> None:
    fits = k.shape == v.shape and q.shape[::3] == k.shape[::3]
    if not (fits and q.ndim == 4 and q.shape[2] % k.shape[2] == 0):
        raise error(
            ValueError,
            _NAME,
            "query [batch, queries, heads, size] does not fit key and value [batch, "
            "keys, key heads, size]",
            f"shapes {q.shape}, {k.shape}, {v.shape}",
            "Check the order of the axes; heads must be a multiple of key heads.",
        )


def _seen(
    full: tuple[int, int, int, int],
    masks: _Masks,
    is_causal: bool,
    window: int | tuple[int, int] | None,
) -> jax.Array:
    """bool[batch, heads, queries, keys]: which key a query sees."""
    seen = _positions(full[2:], is_causal, window)[None, None]
    seen = seen & _within(masks.query_lengths, full[2])[:, None, :, None]
    seen = seen & _within(masks.key_lengths, full[3])[:, None, None, :]
    if masks.mask is not None:
        seen = seen & _with_batch(masks.mask)
    return jnp.broadcast_to(seen, full)


def _positions(
    shape: tuple[int, ...], is_causal: bool, window: int | tuple[int, int] | None
) -> jax.Array:
    """bool[queries, keys]: which key a query sees by its position."""
    ahead = jnp.arange(shape[1])[None, :] - jnp.arange(shape[0])[:, None]
    seen = ahead <= 0 if is_causal else jnp.ones(shape, bool)
    if window is not None:
        left, right = (window, window) if isinstance(window, int) else window
        seen = seen & (-left <= ahead) & (ahead <= right)
    return seen


def _within(lengths: ArrayLike | None, count: int) -> jax.Array:
    """bool[batch or 1, count]: whether a position lies in the sequence."""
    if lengths is None:
        return jnp.ones((1, count), bool)
    return jnp.arange(count)[None, :] < jnp.asarray(lengths)[:, None]


def _product(axes: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(axes, x, y, precision=lax.Precision.HIGHEST)


def _finite(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(x), x, 0)


def _noted(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """NaN for the pairs of a non-finite query, key or value, else 0."""
    q_fine, k_fine, v_fine = (jnp.isfinite(x).all(3) for x in (q, k, v))
    both = jnp.moveaxis(k_fine & v_fine, 1, 2)[:, :, None, :]
    fine = jnp.moveaxis(q_fine, 1, 2)[..., None] & both
    return jnp.where(fine, 0, _NAN).astype(q.dtype)


def _logits(q: jax.Array, k: jax.Array, scale: ArrayLike) -> jax.Array:
    (q, q_power), (k, k_power) = _shortened(_finite(q)), _shortened(_finite(k))
    product = _product("btnh,bsnh->bnts", q, k) * jnp.asarray(scale, q.dtype)
    product = product * jnp.moveaxis(q_power, 1, 2)
    return product * jnp.transpose(k_power, (0, 2, 3, 1))


def _shortened(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(vectors short enough to be multiplied, the powers of two taken out)."""
    longest = int(jnp.finfo(x.dtype).maxexp) // 2 - 16
    exponent = exponent_near(jnp.max(jnp.abs(x), axis=3, keepdims=True, initial=0))
    exponent = jnp.where(exponent > longest, exponent, 0)
    return x * power_of_two(-exponent, x.dtype), power_of_two(exponent, x.dtype)


def _oracle(mp: Any, q: Any, k: Any, v: Any) -> tuple[Any, tuple[Any, ...]]:
    """One batch entry, one head; the gradient is that of the first entry."""
    factor = 1 / mp.sqrt(len(q[0][0][0]))
    queries, keys, values = ([row[0] for row in x[0]] for x in (q, k, v))
    value, weights = [], []
    for row in queries:
        logits = [factor * mp.fdot(row, key) for key in keys]
        powers = [mp.exp(x - max(logits)) for x in logits]
        weights.append([p / mp.fsum(powers) for p in powers])
        value.append(
            [mp.fdot(weights[-1], column) for column in zip(*values, strict=True)]
        )
    first = zip(weights[0], values, strict=True)
    slopes = [factor * p * (row[0] - value[0][0]) for p, row in first]
    dq = [[mp.fdot(slopes, column) for column in zip(*keys, strict=True)]]
    dq += [[mp.mpf(0) for _ in row] for row in queries[1:]]
    dk = [[s * x for x in queries[0]] for s in slopes]
    dv = [
        [p, *(mp.mpf(0) for _ in row[1:])]
        for p, row in zip(weights[0], values, strict=True)
    ]
    return _four(value), (_four(dq), _four(dk), _four(dv))


def _size(mp: Any, q: Any, k: Any, v: Any) -> tuple[Any, tuple[Any, ...]]:
    """The largest of each array, times the largest logit, whose rounding moves it."""
    _, gradients = _oracle(mp, q, k, v)
    pairs = ((row[0], key[0]) for row in q[0] for key in k[0])
    logits = (abs(mp.fdot(row, key)) / mp.sqrt(len(row)) for row, key in pairs)
    most = max(1, *logits)

    def largest(x: Any) -> Any:
        top = most * max(abs(n) for rows in x[0] for n in rows[0])
        return [[[[top for _ in rows[0]]] for rows in x[0]]]

    return largest(v), tuple(largest(g) for g in gradients)


def _four(rows: list[Any]) -> list[Any]:
    return [[[row] for row in rows]]


def _sample(rng: Any) -> Iterator[tuple[Any, ...]]:
    for scale in (1.0, 0.1, 4.0):
        yield tuple(rng.standard_normal((3, 1, 2, 1, 2)) * scale)


def _naive(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    logits = jnp.einsum("btnh,bsnh->bnts", query, key) / query.shape[-1] ** 0.5
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(logits), value)


_NOTHING = ((((0.0, 0.0),),),)
_catalog.add(
    _catalog.Row(
        name=_NAME,
        function=dot_product_attention,
        naive=_naive,
        kind="whole",
        domain=((-_INF, _INF),) * 3,
        edges=(
            Edge(
                args=(
                    ((((1e19, 1e19),),),),
                    ((((1e19, -1e19),),),),
                    ((((1.0, 2.0),),),),
                ),
                value=((((1.0, 2.0),),),),
                gradient=(_NOTHING, _NOTHING, ((((1.0, 0.0),),),)),
            ),
        ),
        ulp=_catalog.bounds(float32=(2.2, 2.9), float64=(1.3, 3.4)),
        oracle=_oracle,
        size=_size,
        sample=_sample,
    )
)
