"""CTC: the likelihood of a label sequence, summed over its alignments.

The recursion is optax's. What is added is the care about its inputs and outputs: a
probability of 0 enters as `log_epsilon` instead of -inf, padding is put aside before
anything is computed from it, and a sequence that has no alignment keeps its large loss
but hands back no gradient, which would be one of noise.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._errors import error
from jaxsafe.losses._inputs import wide_floating
from jaxsafe.losses._labels import check_range
from jaxsafe.ops._softmax import log_softmax, powers

_INF, _NAN = float("inf"), float("nan")


def ctc_loss(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    *,
    blank_id: int = 0,
    log_epsilon: float = -1e5,
) -> jax.Array:
    """Connectionist temporal classification loss.

    Value: minus the log-probability of the labels; about `-log_epsilon` or more,
      but finite, for a sequence without an alignment (too few frames, or a class of
      -inf); NaN for a label that names no class.
    Gradient: that of the value; 0 above `-log_epsilon / 2`, where no alignment is left,
      for a bad label and for padding.
    NaN in: NaN for the sequence; never from padding.
    Error: float32 4 ulp of max(|true|, 1), gradient 7.4 of max(|true|, 1); bfloat16 and
      float16 logits give a float32 loss within 4 ulp and gradients within 0.51 ulp,
      likewise.

    Args:
      logits: floating array [batch, frames, classes].
      logit_paddings: [batch, frames], 1 = padding.
      labels: integers [batch, length].
      label_paddings: [batch, length], 1 = padding, on the right.
      blank_id: class of the blank.
      log_epsilon: stands for the logarithm of 0.

    Returns:
      One loss per sequence; float32 for half-precision logits.

    Raises:
      TypeError: `logits` is not floating; JAX's own under `shard_map` unless that has
        `check_vma=False`: optax's recursion starts from what varies on no device.
      ValueError: the batch is empty, the shapes do not fit, or a concrete label that is
        not padding is out of range.

    Examples:
      >>> zeros = jnp.zeros((1, 1))
      >>> ctc_loss(jnp.zeros((1, 1, 2)), zeros, jnp.asarray([[1]]), zeros)
      Array([0.6931472], dtype=float32)

    References:
      Graves et al., "Connectionist temporal classification", ICML 2006.
    """
    return ctc_loss_with_forward_probs(
        logits,
        logit_paddings,
        labels,
        label_paddings,
        blank_id=blank_id,
        log_epsilon=log_epsilon,
    )[0]


def ctc_loss_with_forward_probs(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    *,
    blank_id: int = 0,
    log_epsilon: float = -1e5,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Connectionist temporal classification loss and its forward probabilities.

    Value: that of `ctc_loss`, and the logarithms of the forward probabilities.
    Gradient: that of `ctc_loss`; the forward probabilities have their own.
    NaN in: NaN for the sequence; never from padding.
    Error: float32 4 ulp of max(|true|, 1), gradient 7.4 of max(|true|, 1); bfloat16 and
      float16 logits give a float32 loss within 4 ulp and gradients within 0.51 ulp,
      likewise.

    Args:
      logits: floating array [batch, frames, classes].
      logit_paddings: [batch, frames], 1 = padding.
      labels: integers [batch, length].
      label_paddings: [batch, length], 1 = padding, on the right.
      blank_id: class of the blank.
      log_epsilon: stands for the logarithm of 0.

    Returns:
      (one loss per sequence, log-probabilities [frames, batch, length + 1] of ending in
      a blank, [frames, batch, length] of ending in a label).

    Raises:
      TypeError: `logits` is not floating; JAX's own under `shard_map` unless that has
        `check_vma=False`: optax's recursion starts from what varies on no device.
      ValueError: the batch is empty, the shapes do not fit, or a concrete label that is
        not padding is out of range.

    Examples:
      >>> zeros = jnp.zeros((1, 1))
      >>> out = ctc_loss_with_forward_probs(
      ...     jnp.zeros((1, 1, 2)), zeros, jnp.asarray([[1]]), zeros
      ... )
      >>> [part.shape for part in out]
      [(1,), (1, 1, 2), (1, 1, 1)]

    References:
      Graves et al., "Connectionist temporal classification", ICML 2006.
    """
    name = "losses.ctc_loss"
    x = wide_floating(name, "logits", logits)
    index = jnp.asarray(labels)
    padded = _padding(name, "logit_paddings", logit_paddings, x.shape[:2])
    spare = _padding(name, "label_paddings", label_paddings, index.shape)
    if not isinstance(labels, jax.core.Tracer) and not isinstance(
        spare, jax.core.Tracer
    ):
        check_range(name, jnp.where(spare, blank_id, index), x.shape[-1])
    return _recursion(x, padded, index, spare, blank_id, float(log_epsilon))


@functools.partial(jax.jit, static_argnums=(4, 5))
def _recursion(
    x: jax.Array,
    padded: jax.Array,
    index: jax.Array,
    spare: jax.Array,
    blank_id: int,
    log_epsilon: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    bad = (~spare & ((index < 0) | (index >= x.shape[-1]))).any(1)
    x = jnp.where(padded[..., None] | bad[:, None, None], 0, x)
    log_p = log_softmax(x)
    log_p = jnp.where(log_p < log_epsilon, log_epsilon, log_p)
    # optax promotes dtypes, and its product with one-hot labels must not be rounded.
    with jax.numpy_dtype_promotion("standard"), jax.default_matmul_precision("highest"):
        loss, blank, label = optax.losses.ctc_loss_with_forward_probs(
            log_p,
            padded.astype(x.dtype),
            jnp.where(spare, blank_id, index),
            spare.astype(x.dtype),
            blank_id=blank_id,
            log_epsilon=log_epsilon,
        )
    hopeless = loss > -0.5 * log_epsilon
    loss = jnp.where(hopeless, jax.lax.stop_gradient(loss), loss)
    loss = jnp.where(bad, _NAN, loss)
    return loss.astype(x.dtype), blank.astype(x.dtype), label.astype(x.dtype)


def _padding(
    name: str, what: str, paddings: ArrayLike, shape: tuple[int, ...]
) -> jax.Array:
    array = jnp.asarray(paddings)
    if array.shape != shape:
        raise error(
            ValueError,
            name,
            f"{what} must have shape {shape}",
            array.shape,
            "Give one number per frame and per label, 1 for padding.",
        )
    return array != 0


def _oracle(mp: Any, x: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    """Every path of the first sequence, whose labels are 1, 2."""
    value, slopes = [], []
    for frames in x:
        p = []
        for row in frames:
            weights, total = powers(mp, row)
            p.append([w / total for w in weights])
        paths = _paths(len(frames), len(frames[0]))
        chosen = [(path, _product(p, path)) for path in paths if _reads(path) == [1, 2]]
        total = mp.fsum(weight for _, weight in chosen)
        value.append(-mp.log(total))
        seen = [[mp.mpf(0)] * len(row) for row in p]
        for path, weight in chosen:
            for t, k in enumerate(path):
                seen[t][k] += weight / total
        slopes.append(
            [
                [a - b for a, b in zip(one, other, strict=True)]
                for one, other in zip(p, seen, strict=True)
            ]
        )
    zero = [[[v * 0 for v in row] for row in frames] for frames in slopes[1:]]
    return value, ([slopes[0], *zero],)


def _paths(frames: int, classes: int) -> list[list[int]]:
    if frames == 0:
        return [[]]
    return [[k, *rest] for k in range(classes) for rest in _paths(frames - 1, classes)]


def _product(p: list[Any], path: list[int]) -> Any:
    out = 1
    for row, k in zip(p, path, strict=True):
        out = out * row[k]
    return out


def _reads(path: list[int]) -> list[int]:
    kept = [k for i, k in enumerate(path) if i == 0 or path[i - 1] != k]
    return [k for k in kept if k != 0]


def _of_logits(loss: Any, logits: jax.Array) -> jax.Array:
    count, frames = logits.shape[:2]
    labels = jnp.broadcast_to(jnp.asarray([[1, 2]]), (count, 2))
    zeros = jnp.zeros((count, frames)), jnp.zeros((count, 2))
    out = loss(logits, zeros[0], labels, zeros[1])
    return out[0] if isinstance(out, tuple) else out


def _twin(logits: jax.Array) -> jax.Array:
    with jax.numpy_dtype_promotion("standard"):
        return _of_logits(optax.ctc_loss, logits)


for _loss in (ctc_loss, ctc_loss_with_forward_probs):
    _catalog.add(
        _catalog.Row(
            name=f"losses.{_loss.__name__}",
            function=functools.partial(_of_logits, _loss),
            naive=_twin,
            kind="whole",
            domain=((-_INF, _INF),),
            edges=(),
            ulp=_catalog.bounds((4, 7.4), (4, 7.4), half=(4, 0.51)),
            oracle=_oracle,
            size=_catalog.at_least(_oracle, 1, 1),
            sample=lambda rng: iter([(rng.normal(size=(2, 4, 3)) * 2,)]),
            result=_floats.wide,
        )
    )
