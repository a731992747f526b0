"""The mean cross-entropy of the last layer, with the gradient made on the way forward.

Three ideas. (1) Whoever takes the mean knows the cotangent of every token's loss before
the backward pass: 1 / number of tokens. So the logits of a chunk of tokens are made
once, turned into their slopes on the spot and multiplied into both gradients: three
products of matrices, as many as a layer that stores its logits. (2) The gradient of the
kernel is added up in blocks of features, none larger than half of the chunk's logits.
(3) A chunk takes every n-th token, so that with tokens spread over devices each device
has its share of every chunk.

Source: Hsu et al., "Liger Kernel: Efficient Triton Kernels for LLM Training", 2024.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe._errors import check_count
from jaxsafe._varying import alike
from jaxsafe.losses import _linear_cross_entropy as per_token
from jaxsafe.losses._label_entropy import label_entropy
from jaxsafe.losses._last_layer import (
    Layer,
    block,
    checked,
    over_blocks,
    product,
    put,
)
from jaxsafe.losses._mean import masked_mean

_INF = float("inf")
_NAME = "losses.linear_softmax_cross_entropy_mean"


def linear_softmax_cross_entropy_mean(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    ignore_index: int | None = None,
    chunk_size: int = 1024,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """Mean cross-entropy of the logits `hidden @ kernel + bias`, never all stored.

    As `masked_mean(linear_softmax_cross_entropy(...))`, faster where many tokens share
    a kernel: three products of matrices, not four. With tokens spread over devices call
    it inside `shard_map`: the kernel's gradient is added up over them once. Under jit
    alone XLA does that for every chunk.

    Value: the mean over the tokens whose label is not `ignore_index`; 0 if there are
      none, NaN if a label names no class.
    Gradient: (softmax(logits) - onehot(label)) / number of those tokens, own class from
      the sum of the others, times kernel, hidden and 1. It is computed with the value
      and kept, in float32 for half precision. In reverse mode only: forward mode raises
      JAX's TypeError about custom_vjp.
    NaN in: NaN out; never from the hidden state of an ignored token.
    Error: given exact logits float32 3.2 ulp, gradient 6 of the sum of magnitudes;
      bfloat16 and float16 give a float32 loss within 3.2 ulp and gradients within 1.52:
      bfloat16 rounds the slopes too, as a layer of its own would. The matrix products,
      summed in float32, come on top.

    Args:
      hidden: floating array [..., features].
      kernel: floating array [features, vocabulary].
      labels: integer array [...].
      bias: floating array [vocabulary].
      ignore_index: tokens with this label are left out; the only way to mask.
      chunk_size: how many tokens to hold at a time; temporaries are one and a half
        arrays of chunk_size x vocabulary numbers, and for half precision the kernel's
        gradient in float32.
      precision: of the matrix products, as in `jax.lax.dot_general`. By default that of
        `jax.default_matmul_precision`: 10 binary digits of float32 on a GPU, 7 on a
        TPU, all of them with "highest".

    Returns:
      A number; float32 for half precision.

    Raises:
      TypeError: an argument is not floating, or `labels` is not integer.
      ValueError: the batch is empty, the shapes do not fit, `chunk_size` is below 1, or
        a concrete label is out of range.

    Examples:
      >>> hidden, kernel = jnp.ones((2, 1)), jnp.asarray([[18.0, 0.0, 0.0]])
      >>> linear_softmax_cross_entropy_mean(hidden, kernel, jnp.asarray([0, 1]))
      Array(9., dtype=float32)

    References:
      Hsu et al., arXiv:2410.10989, 2024.
    """
    check_count(_NAME, "chunk_size", chunk_size)
    layer = checked(_NAME, hidden, kernel, labels, bias, ignore_index)
    return _of_layer(layer, _near(chunk_size, layer.label.size), precision)


def _near(size: int, tokens: int) -> int:
    """Tokens to a chunk: a number that divides them if one is near, as padding copies.

    >>> _near(1024, 4096), _near(1000, 4096), _near(100, 997)
    (1024, 512, 100)
    """
    for n in range(min(size, tokens), size // 2, -1):
        if tokens % n == 0:
            return n
    return -(-tokens // -(-tokens // size))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _of_layer(layer: Layer, size: int, precision: Any) -> jax.Array:
    return _mean(alike(layer), size, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _mean(layer: Layer, size: int, precision: Any) -> jax.Array:
    """The mean of the losses, `size` tokens at a time."""
    hidden, label = _spread(layer.hidden, size, 0), _spread(layer.label, size, -1)

    def step(i: jax.Array, losses: jax.Array) -> jax.Array:
        x = _logits(_chunk(hidden, i), layer, precision)
        return _put_chunk(losses, _loss(_chunk(label, i), x), i)

    losses = jnp.zeros_like(label, _wide(layer))
    return _mean_of(layer, lax.fori_loop(0, label.shape[1], step, losses))


class _Sums(NamedTuple):
    """What a pass over the tokens adds up, in the dtype to compute in.

    Attributes:
      losses: [size, chunks].
      hidden: gradient, [size, chunks, features].
      kernel: gradient, [features, vocabulary].
      bias: gradient, [vocabulary], or None.
    """

    losses: jax.Array
    hidden: jax.Array
    kernel: jax.Array
    bias: jax.Array | None


def _with_gradient(layer: Layer, size: int, precision: Any) -> tuple[jax.Array, Any]:
    hidden, label = _spread(layer.hidden, size, 0), _spread(layer.label, size, -1)
    wide = _wide(layer)
    share = 1 / jnp.maximum(jnp.sum(~layer.ignored, dtype=wide), 1)

    def step(i: jax.Array, sums: _Sums) -> _Sums:
        h = _chunk(hidden, i)
        x = _logits(h, layer, precision)
        loss, pull = jax.vjp(functools.partial(_loss, _chunk(label, i)), x)
        (slope,) = pull(jnp.full_like(loss, share))
        d_h, d_kernel = _through(h, layer.kernel, slope, sums.kernel, precision)
        return _Sums(
            _put_chunk(sums.losses, loss, i),
            _put_chunk(sums.hidden, d_h, i),
            d_kernel,
            None if sums.bias is None else sums.bias + slope.sum(0),
        )

    sums = _Sums(
        jnp.zeros_like(label, wide),
        jnp.zeros_like(hidden, wide),
        jnp.zeros_like(layer.kernel, wide),
        None if layer.bias is None else jnp.zeros_like(layer.bias),
    )
    sums = lax.fori_loop(0, label.shape[1], step, sums)
    d_hidden = _joined(sums.hidden, layer.label.size)
    like = jnp.zeros_like(layer.kernel, shape=())
    return _mean_of(layer, sums.losses), (d_hidden, sums.kernel, sums.bias, like)


def _backward(_size: int, _precision: Any, saved: Any, cotangent: jax.Array) -> Any:
    d_hidden, d_kernel, d_bias, like = saved
    d_hidden = (d_hidden * cotangent).astype(like.dtype)
    d_kernel = (d_kernel * cotangent).astype(like.dtype)
    d_bias = None if d_bias is None else d_bias * cotangent
    nothing: Any = None
    return (Layer(d_hidden, d_kernel, d_bias, nothing, nothing, nothing),)


_mean.defvjp(_with_gradient, _backward)


def _through(
    h: jax.Array, kernel: jax.Array, slope: jax.Array, so_far: jax.Array, precision: Any
) -> tuple[jax.Array, jax.Array]:
    """(gradient of a chunk's hidden states, that of the kernel with the chunk added).

    bfloat16 multiplies as it is; float16 lacks the range of slopes.
    """
    wide = so_far.dtype
    dtype = wide if kernel.dtype == jnp.float16 else kernel.dtype
    h, kernel, slope = (a.astype(dtype) for a in (h, kernel, slope))

    def step(start: jax.Array, size: int, d_kernel: jax.Array) -> jax.Array:
        columns = block(h, start, size, 1)
        added = product(columns, slope, (0, 0), precision, wide)
        return put(d_kernel, block(d_kernel, start, size, 0) + added, start, 0)

    d_h = product(slope, kernel, (1, 1), precision, wide)
    # No block is larger than half of the chunk's logits.
    size = max(1, h.shape[0] // 2)
    return d_h, over_blocks(step, so_far, kernel.shape[0], size)


def _logits(h: jax.Array, layer: Layer, precision: Any) -> jax.Array:
    x = product(h, layer.kernel, (1, 0), precision, _wide(layer))
    return x if layer.bias is None else x + layer.bias[None]


def _wide(layer: Layer) -> Any:
    return _floats.wide(layer.kernel.dtype)


def _loss(label: jax.Array, x: jax.Array) -> jax.Array:
    index = jnp.maximum(label, 0)[:, None]
    return label_entropy(x, (index, (label < 0)[:, None]), (1,))[:, 0]


def _spread(x: jax.Array, size: int, fill: int) -> jax.Array:
    """Tokens as [size, chunks, ...], padded at the end."""
    chunks = -(-x.shape[0] // size)
    short = size * chunks - x.shape[0]
    if short:
        rest = jnp.full((short, *x.shape[1:]), fill, x.dtype)
        x = jnp.concatenate([x, rest])
    return x.reshape(size, chunks, *x.shape[1:])


def _joined(x: jax.Array, tokens: int) -> jax.Array:
    return x.reshape(-1, *x.shape[2:])[:tokens]


def _chunk(x: jax.Array, i: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(x, i, 1, keepdims=False)


def _put_chunk(x: jax.Array, part: jax.Array, i: jax.Array) -> jax.Array:
    return lax.dynamic_update_index_in_dim(x, part, i, 1)


def _mean_of(layer: Layer, losses: jax.Array) -> jax.Array:
    losses = layer.loss(_joined(losses, layer.label.size))
    return masked_mean(losses, ~layer.ignored)


def _parts(mp: Any, h: Any, k: Any, label: list[int], *, sizes: bool) -> Any:
    rows = per_token.rows(mp, h, k, label)
    slopes = [[g / len(h) for g in slope] for _, (slope,) in rows]
    if sizes:
        slopes, h, k = (_sizes(part) for part in (slopes, h, k))
    d_hidden = [[mp.fdot(s, w) for w in k] for s in slopes]
    tall = list(zip(*h, strict=True))
    d_kernel = [[mp.fdot(f, s) for s in zip(*slopes, strict=True)] for f in tall]
    return mp.fsum(value for value, _ in rows) / len(h), (d_hidden, d_kernel)


def _sizes(rows: Any) -> Any:
    return [[abs(v) for v in row] for row in rows]


def _naive(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(per_token.naive(hidden, kernel, labels))


_catalog.add(
    _catalog.Row(
        name=_NAME,
        function=functools.partial(
            linear_softmax_cross_entropy_mean, chunk_size=2, precision="highest"
        ),
        naive=_naive,
        kind="whole",
        domain=((-_INF, _INF), (-_INF, _INF)),
        edges=(
            Edge(
                args=(((1.0,),), ((3e4, -3e4, 0.0),), (0,)),
                value=0.0,
                gradient=(((0.0,),), ((0.0, 0.0, 0.0),)),
            ),
            Edge(
                args=(((1.0,), (1.0,)), ((1000.0, 0.0, 0.0),), (2, 0)),
                value=500.0,
                gradient=(((500.0,), (0.0,)), ((0.5, 0.0, -0.5),)),
            ),
        ),
        ulp=_catalog.bounds((3.2, 6), (3.2, 6), half=(3.2, 1.52)),
        oracle=functools.partial(_parts, sizes=False),
        size=functools.partial(_parts, sizes=True),
        sample=per_token.sample,
        result=_floats.wide,
        forward=False,
    )
)
