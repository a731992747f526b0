"""The last layer and its cross-entropy in one, without ever holding the logits.

Three ideas. (1) The vocabulary is taken chunk by chunk. Each token carries the largest
logit so far, the weight `rest` of everything below it (see `ops._softmax`) and its
label's logit; a new maximum rescales `rest` by the exponential of the exact gap.
(2) `rest` is kept in two floats, so that neither adding a chunk nor rescaling rounds
it: the error does not grow with the number of chunks, however the logits are ordered.
Numbers per token cost nothing next to those per class. (3) The backward pass computes a
chunk's logits again: four products of matrices, not three, for temporaries that no
longer grow with the vocabulary. It needs the cotangent of the loss before it can start,
hence `custom_vjp`.

Source: Milakov & Gimelshein, "Online normalizer calculation for softmax", 2018.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe._errors import check_count
from jaxsafe._varying import alike
from jaxsafe.losses._cross_entropy import oracle
from jaxsafe.losses._labels import is_label
from jaxsafe.losses._last_layer import (
    Layer,
    block,
    checked,
    over_blocks,
    product,
    put,
)
from jaxsafe.ops._exact import difference
from jaxsafe.ops._in_two import (
    Two,
    exp,
    exp_in_two,
    log,
    normal,
    plus,
    single,
    times,
    total,
)

_INF = float("inf")
_NAME = "losses.linear_softmax_cross_entropy"


def linear_softmax_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    ignore_index: int | None = None,
    chunk_size: int = 1024,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """Cross-entropy of the logits `hidden @ kernel + bias`, which are never stored.

    Where only the mean is wanted `linear_softmax_cross_entropy_mean` takes less time.

    Value: as `softmax_cross_entropy_with_integer_labels`; 0 for a token whose label is
      `ignore_index`, NaN for a label that names no class.
    Gradient: softmax(logits) - onehot(label), own class from the sum of the others,
      times kernel, hidden and 1; 0 where the loss is 0 or NaN by the rule above. In
      reverse mode only: forward mode raises JAX's TypeError about custom_vjp.
    NaN in: NaN for the token, through `kernel` or `bias` for all; never from the
      hidden state of an ignored token.
    Error: given exact logits float32 1.8 ulp for any margin, order and number of
      chunks (3 with more than 64 classes to a chunk), gradient 4.6 of the sum of
      magnitudes; bfloat16 and float16 give a float32 loss within 1.8 ulp (3) and
      gradients within 0.51. The matrix products, summed in float32, come on top.

    Args:
      hidden: floating array [..., features].
      kernel: floating array [features, vocabulary].
      labels: integer array [...].
      bias: floating array [vocabulary].
      ignore_index: tokens with this label are left out; the only way to mask.
      chunk_size: how many classes to hold at a time; temporaries are a few arrays of
        tokens x chunk_size numbers.
      precision: of the matrix products, as in `jax.lax.dot_general`. By default that of
        `jax.default_matmul_precision`: 10 binary digits of float32 on a GPU, 7 on a
        TPU, all of them with "highest".

    Returns:
      Array of the shape of `labels`; float32 for half precision.

    Raises:
      TypeError: an argument is not floating, or `labels` is not integer.
      ValueError: the batch is empty, the shapes do not fit, `chunk_size` is below 1, or
        a concrete label is out of range.

    Examples:
      >>> hidden, kernel = jnp.ones((2, 1)), jnp.asarray([[18.0, 0.0, 0.0]])
      >>> linear_softmax_cross_entropy(hidden, kernel, jnp.asarray([0, 1]))
      Array([3.046e-08, 1.800e+01], dtype=float32)

    References:
      Milakov & Gimelshein, arXiv:1805.02867, 2018.
    """
    check_count(_NAME, "chunk_size", chunk_size)
    layer = checked(_NAME, hidden, kernel, labels, bias, ignore_index)
    size = min(chunk_size, layer.kernel.shape[1])
    return _losses(layer, size, precision).reshape(jnp.shape(labels))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _losses(layer: Layer, size: int, precision: Any) -> jax.Array:
    h, k, b, label, _, _ = layer = alike(layer)
    if b is None:
        b = jnp.zeros_like(k[0], _floats.wide(k.dtype))
    return layer.loss(_loss(h, k, b, label, size, precision))


class _Seen(NamedTuple):
    """What a token knows of the classes seen so far; see `ops._softmax.Shifted`.

    Attributes:
      peak: the largest logit.
      rest: sum of exp(logit - peak) without one maximum; -1 if nothing was seen.
      logit: that of the label, 0 before it is seen.
    """

    peak: jax.Array
    rest: Two
    logit: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _loss(
    hidden: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    label: jax.Array,
    size: int,
    precision: Any,
) -> jax.Array:
    """One loss per token; a label of -1 stands for none, its loss means nothing."""
    return _forward(hidden, kernel, bias, label, size, precision)[0]


def _forward(
    hidden: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    label: jax.Array,
    size: int,
    precision: Any,
) -> tuple[jax.Array, Any]:
    def step(start: jax.Array, size: int, seen: _Seen) -> _Seen:
        columns = block(kernel, start, size, 1)
        x = _logits(hidden, columns, bias, start, precision)
        return _extended(seen, x, label - start)

    zero = jnp.zeros_like(label, bias.dtype)
    seen = _Seen(zero - _INF, single(zero - 1), zero)
    seen = over_blocks(step, seen, kernel.shape[1], size)
    seen = seen._replace(rest=normal(seen.rest))
    return _value(seen), (hidden, kernel, bias, label, seen)


def _backward(size: int, precision: Any, saved: Any, cotangent: jax.Array) -> Any:
    hidden, kernel, bias, label, seen = saved
    wide = bias.dtype
    cotangent = jnp.where(label < 0, 0, cotangent)
    own = -_others(seen) * cotangent
    scale = cotangent / jnp.where(seen.rest.high < 0, _INF, 1 + seen.rest.high)
    tall = hidden.astype(wide)

    def step(start: jax.Array, size: int, gradients: Any) -> Any:
        d_hidden, d_kernel, d_bias = gradients
        columns = block(kernel, start, size, 1)
        x = _logits(hidden, columns, bias, start, precision)
        slope = _power(x, seen.peak[:, None]) * scale[:, None]
        is_own = is_label((label - start)[:, None], slope.shape, 1)
        slope = jnp.where(is_own, own[:, None], slope)
        slope = jnp.where((label < 0)[:, None], 0, slope)
        in_block = product(tall, slope, (0, 0), precision)
        d_kernel = put(d_kernel, in_block, start, 1)
        d_bias = put(d_bias, slope.sum(0), start, 0)
        columns = columns.astype(wide)
        d_hidden = d_hidden + product(slope, columns, (1, 1), precision)
        return d_hidden, d_kernel, d_bias

    zeros = (jnp.zeros_like(tall), jnp.zeros_like(kernel), jnp.zeros_like(bias))
    d_hidden, d_kernel, d_bias = over_blocks(step, zeros, kernel.shape[1], size)
    return d_hidden.astype(hidden.dtype), d_kernel, d_bias, None


_loss.defvjp(_forward, _backward)


def _extended(seen: _Seen, x: jax.Array, label: jax.Array) -> _Seen:
    """What is known with the logits of one more chunk; labels count from its start.

    A NaN passes through the tail, whatever the comparisons say.
    """
    peak = jnp.maximum(seen.peak, jnp.max(x, 1))
    top = x == peak[:, None]
    tail = total(jnp.where(top, 0, _power(x, peak[:, None])), (1,))
    tail = Two(tail.high[:, 0], tail.low[:, 0])
    ties = jnp.where(peak == -_INF, 0, jnp.sum(top.astype(x.dtype), 1))
    moved = seen.peak < peak
    power, scale = exp_in_two(*_gap(seen.peak, peak))
    below = times(plus(seen.rest, single(jnp.ones_like(peak))), power)
    kept = Two(
        jnp.where(moved, below.high * scale, seen.rest.high),
        jnp.where(moved, below.low * scale, seen.rest.low),
    )
    others = plus(single(jnp.where(moved, ties - 1, ties)), tail)
    here = jnp.take_along_axis(x, label[:, None], 1, mode="clip")[:, 0]
    logit = jnp.where((label >= 0) & (label < x.shape[1]), here, seen.logit)
    return _Seen(peak, plus(kept, others), logit)


def _gap(x: jax.Array, peak: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gap x - peak and what its rounding lost; 0 where equal, infinities included."""
    gap, lost = difference(x, peak)
    return jnp.where(x == peak, 0, gap), lost


def _power(x: jax.Array, peak: jax.Array) -> jax.Array:
    return exp(*_gap(x, peak))


def _value(seen: _Seen) -> jax.Array:
    log_total = log(normal(plus(seen.rest, single(jnp.ones_like(seen.peak)))))
    gap, lost = _gap(seen.logit, seen.peak)
    return jnp.where(seen.rest.high < 0, _INF, (log_total - lost) - gap)


def _others(seen: _Seen) -> jax.Array:
    """Probability of all classes but the label: never 1 - p of a p near 1."""
    rest = seen.rest.high
    total = jnp.where(rest < 0, 1, 1 + rest)
    below = 1 - _power(seen.logit, seen.peak) / total
    others = jnp.where(seen.logit == seen.peak, rest / total, below)
    return jnp.where(rest < 0, 0, others)


def _logits(
    hidden: jax.Array,
    columns: jax.Array,
    bias: jax.Array,
    start: jax.Array,
    precision: Any,
) -> jax.Array:
    x = product(hidden, columns, (1, 0), precision, bias.dtype)
    return x + block(bias, start, columns.shape[1], 0)[None]


def rows(mp: Any, h: Any, k: Any, label: list[int]) -> list[tuple[Any, Any]]:
    """(loss, (slope in the logits,)) of every token."""
    columns = list(zip(*k, strict=True))
    logits = [[mp.fdot(t, c) for c in columns] for t in h]
    return [oracle(mp, x, y) for x, y in zip(logits, label, strict=True)]


def _parts(mp: Any, h: Any, k: Any, label: list[int], *, sizes: bool) -> Any:
    """Losses, and the gradient of the first; with `sizes` without cancellation."""
    found = rows(mp, h, k, label)
    slope = found[0][1][0]
    if sizes:
        slope, k = [abs(s) for s in slope], [[abs(w) for w in row] for row in k]
    first = [mp.fdot(slope, row) for row in k]
    nothing = [[mp.mpf(0)] * len(k) for _ in h[1:]]
    d_kernel = [[t * s for s in slope] for t in h[0]]
    return [value for value, _ in found], ([first, *nothing], d_kernel)


def sample(rng: Any) -> Iterator[tuple[Any, ...]]:
    # The logits are exact, so that only the loss is measured: products of few bits, or
    # the rows of the kernel as they are.
    for scale in (0.25, 2.0):
        hidden = rng.integers(-7, 8, (3, 2)) * 0.25
        kernel = rng.integers(-7, 8, (2, 5)) * scale
        yield hidden, kernel, rng.integers(0, 5, 3).astype("int32")
    for scale in np.tile([0.3, 1.0, 3.0, 12.0], 30):
        kernel = rng.normal(size=(12, 9)) * scale
        kernel[:2, 0] += 15
        # Losses just below a power of two: what they come from is rounded to two ulp.
        loss = 2.0 ** -rng.integers(0, 5, 10)
        rest = loss * (1 + rng.uniform(0, 0.5, 10) * loss)
        kernel[2:, 0] = np.log(np.exp(kernel[2:, 1:]).sum(1) / rest)
        labels = rng.integers(0, 9, 12)
        labels[:10] = kernel[:10].argmax(1)
        yield np.eye(12), kernel, labels.astype("int32")


def naive(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    power = jnp.exp(hidden @ kernel)
    p = power / jnp.sum(power, axis=-1, keepdims=True)
    return -jnp.log(jnp.take_along_axis(p, labels[:, None], axis=-1)).squeeze(-1)


_catalog.add(
    _catalog.Row(
        name=_NAME,
        function=functools.partial(
            linear_softmax_cross_entropy, chunk_size=2, precision="highest"
        ),
        naive=naive,
        kind="whole",
        domain=((-_INF, _INF), (-_INF, _INF)),
        edges=(
            Edge(
                args=(((1.0,),), ((3e4, -3e4, 0.0),), (0,)),
                value=(0.0,),
                gradient=(((0.0,),), ((0.0, 0.0, 0.0),)),
            ),
            Edge(
                args=(((1.0,),), ((1000.0, 0.0, 0.0),), (2,)),
                value=(1000.0,),
                gradient=(((1000.0,),), ((1.0, 0.0, -1.0),)),
            ),
        ),
        ulp=_catalog.bounds((1.8, 4.6), (1.75, 4.3), half=(1.8, 0.51)),
        oracle=functools.partial(_parts, sizes=False),
        size=lambda mp, h, k, y: (
            _parts(mp, h, k, y, sizes=False)[0],
            tuple(
                [[abs(v) for v in row] for row in part]
                for part in _parts(mp, h, k, y, sizes=True)[1]
            ),
        ),
        sample=sample,
        result=_floats.wide,
        forward=False,
    )
)
