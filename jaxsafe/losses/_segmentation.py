"""Dice losses: the overlap of a prediction with its target, per class.

The idea: 1 - overlap / size cancels for a good prediction, so the loss is the quotient
of what is wrong (false positives and false negatives, sums of non-negative numbers) by
what is there. Where nothing is predicted and nothing is there, the two agree: 0 / 0 is
a loss of 0.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._errors import check_choice, error
from jaxsafe.losses import _segmentation_oracles as oracles
from jaxsafe.losses._inputs import included, matching, wide_floating
from jaxsafe.losses._soft_cross_entropy import others
from jaxsafe.ops._power import quotient
from jaxsafe.ops._reduction import Axis, axis_tuple
from jaxsafe.ops._sigmoid import sigmoid_below, sigmoid_core
from jaxsafe.ops._softmax import softmax_core

_INF = float("inf")


def dice_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    class_weights: ArrayLike | None = None,
    smooth: ArrayLike = 1.0,
    alpha: ArrayLike = 0.5,
    beta: ArrayLike = 0.5,
    apply_softmax: bool = True,
    reduction: str = "mean",
    ignore_background: bool = False,
    axis: Axis = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Dice (Tversky) loss of predicted regions, per class.

    Value: wrong / (wrong + overlap + smooth) with wrong = alpha * false positives +
      beta * false negatives; 0 where all of it is 0.
    Gradient: that of the value; 0 where all of it is 0.
    NaN in: NaN out; never from where `where` is False.
    Error: float32 2.9 ulp, gradient 4.8 of max(|true|, 1/16); bfloat16 and float16 give
      a float32 loss within 2.9 ulp and gradients within 0.51 ulp.

    Args:
      predictions: logits [batch, ..., classes]; [..., 1] or [...] for one class.
      targets: one-hot array of that shape; a missing last axis is added.
      class_weights: one weight per class.
      smooth: added to the overlap and the size.
      alpha: weight of false positives.
      beta: weight of false negatives.
      apply_softmax: False if the predictions are probabilities already.
      reduction: over the classes: "mean", "sum" or "none".
      ignore_background: leave class 0 out.
      axis: axes of the pixels; all but the first and the last by default.
      where: bool array, True = include the pixel; broadcasts to `predictions`.

    Returns:
      One loss per entry of the batch, with `reduction="none"` per class; float32 for
      half precision.

    Raises:
      TypeError: `predictions` is not floating.
      ValueError: the batch is empty, the shapes differ, `reduction` is unknown, or
        concrete probabilities of several classes do not sum to 1.

    Examples:
      >>> dice_loss(jnp.zeros((1, 4, 1)), jnp.zeros((1, 4, 1)), smooth=0.0)
      Array([1.], dtype=float32)

    References:
      Milletari, Navab & Ahmadi, "V-Net", arXiv:1606.04797; Salehi et al.,
      arXiv:1706.05721.
    """
    name = "losses.dice_loss"
    check_choice(name, "reduction", reduction, ("mean", "sum", "none"))
    x, t = _with_classes(name, predictions, targets)
    mask = jnp.ones(x.shape, bool)
    if where is not None:
        mask = included(name, where, x.shape, ())
        x, t = jnp.where(mask, x, 0), jnp.where(mask, t, 0)
    axes = (
        tuple(range(1, x.ndim - 1)) if axis is None else axis_tuple(name, axis, x.ndim)
    )
    if not apply_softmax:
        _check_sums(name, x)
    options = [jnp.asarray(v, x.dtype) for v in (smooth, alpha, beta)]
    loss = _per_class(x, t, mask, *options, axes, apply_softmax)
    if class_weights is not None:
        weights = jnp.asarray(class_weights, x.dtype)
        loss = loss * jnp.broadcast_to(weights, loss.shape)
    if ignore_background and x.shape[-1] > 1:
        loss = loss[..., 1:]
    if reduction == "none":
        return loss
    return jnp.mean(loss, -1) if reduction == "mean" else jnp.sum(loss, -1)


def binary_dice_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    smooth: ArrayLike = 1.0,
    apply_sigmoid: bool = True,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Dice loss of one class against its absence.

    Value: that of `dice_loss` with one class.
    Gradient: that of the value; 0 where prediction and target are both empty.
    NaN in: NaN out; never from where `where` is False.
    Error: float32 3 ulp, gradient 4.4 of max(|true|, 1/16); bfloat16 and float16 give
      a float32 loss within 3 ulp and gradients within 0.51 ulp.

    Args:
      predictions: logits [batch, ...] or [batch, ..., 1].
      targets: 0 or 1, array of that shape.
      smooth: added to the overlap and the size.
      apply_sigmoid: False if the predictions are probabilities already.
      where: bool array of the shape of `predictions`, True = include the pixel.

    Returns:
      One loss per entry of the batch; float32 for half precision.

    Raises:
      TypeError: `predictions` is not floating.
      ValueError: the batch is empty, or the shapes differ.

    Examples:
      >>> binary_dice_loss(jnp.zeros((1, 4)), jnp.ones((1, 4)), smooth=0.0)
      Array([0.33333334], dtype=float32)

    References:
      Milletari, Navab & Ahmadi, "V-Net", arXiv:1606.04797.
    """
    x, t = jnp.asarray(predictions), jnp.asarray(targets)
    mask = None if where is None else jnp.asarray(where, bool)
    if x.ndim == t.ndim and x.shape[-1:] != (1,):
        x, t = x[..., None], t[..., None]
        mask = mask[..., None] if mask is not None and mask.ndim else mask
    return dice_loss(x, t, smooth=smooth, apply_softmax=apply_sigmoid, where=mask)


def multiclass_generalized_dice_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    smooth: ArrayLike = 1.0,
    apply_softmax: bool = True,
    ignore_background: bool = False,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Mean Dice loss with classes weighted by the inverse square of their size.

    Value: mean over batch and classes of weight * `dice_loss`, weight proportional to
      1 / (size**2 + 1e-7).
    Gradient: that of the value.
    NaN in: NaN out; never from where `where` is False.
    Error: float32 4 ulp, gradient 7.2 of max(|true|, 1/16); bfloat16 and float16 give
      a float32 loss within 4 ulp and gradients within 0.51 ulp.

    Args:
      predictions: logits [batch, ..., classes].
      targets: one-hot array of that shape.
      smooth: added to the overlap and the size.
      apply_softmax: False if the predictions are probabilities already.
      ignore_background: leave class 0 out.
      where: bool array, True = include the pixel; broadcasts to `predictions`.

    Returns:
      One number; float32 for half precision.

    Raises:
      TypeError: `predictions` is not floating.
      ValueError: the batch is empty, or the shapes differ.

    Examples:
      >>> x = jnp.asarray([[[20.0, -20.0], [-20.0, 20.0]]])
      >>> multiclass_generalized_dice_loss(x, jnp.eye(2)[None]) < 1e-6
      Array(True, dtype=bool)

    References:
      Sudre et al., "Generalised Dice overlap", arXiv:1707.03237.
    """
    name = "losses.multiclass_generalized_dice_loss"
    x = wide_floating(name, "predictions", predictions)
    t = matching(name, "targets", targets, x)
    counted = t
    if where is not None:
        counted = jnp.where(included(name, where, x.shape, ()), t, 0)
    loss = dice_loss(
        x,
        t,
        class_weights=_by_size(counted),
        smooth=smooth,
        apply_softmax=apply_softmax,
        reduction="none",
        ignore_background=ignore_background,
        where=where,
    )
    return jnp.mean(loss)


def _with_classes(
    name: str, predictions: ArrayLike, targets: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    x, t = wide_floating(name, "predictions", predictions), jnp.asarray(targets)
    if x.ndim == t.ndim - 1:
        x = x[..., None]
    elif t.ndim == x.ndim - 1:
        t = t[..., None]
    return x, matching(name, "targets", t, x)


def _check_sums(name: str, x: jax.Array) -> None:
    """Raise ValueError if concrete probabilities of several classes are none."""
    if x.shape[-1] == 1 or isinstance(x, jax.core.Tracer):
        return
    sums = np.asarray(jnp.sum(x, -1))
    if not np.allclose(sums, 1, rtol=1e-5, equal_nan=True):
        raise error(
            ValueError,
            name,
            "predictions must be valid probability distributions over the classes",
            f"sums from {sums.min():.6f} to {sums.max():.6f}",
            "Pass logits with apply_softmax=True, or normalise them.",
        )


@functools.partial(jax.jit, static_argnums=(6, 7))
def _per_class(
    x: jax.Array,
    t: jax.Array,
    mask: jax.Array,
    smooth: jax.Array,
    alpha: jax.Array,
    beta: jax.Array,
    axes: tuple[int, ...],
    logits: bool,
) -> jax.Array:
    p, rest = _probabilities(x) if logits else (x, 1 - x)

    def total(part: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(mask, part, 0), axes)

    wrong = alpha * total(p * (1 - t)) + beta * total(t * rest)
    return _share(wrong, total(p * t) + smooth)


def _probabilities(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(p, 1 - p) of logits, without cancellation."""
    if x.shape[-1] == 1:
        return sigmoid_core(x), sigmoid_below(x)
    p = softmax_core(x, (x.ndim - 1,))
    return p, _complement(p)


@jax.jit
def _by_size(counted: jax.Array) -> jax.Array:
    """Weights of the classes, of mean 1: inverse squares of their sizes."""
    size = jnp.sum(counted, tuple(range(counted.ndim - 1)))
    weights = 1 / (jnp.square(size) + 1e-7)
    return _share(weights, others(weights, (0,))) * weights.size


@jax.custom_jvp
def _complement(p: jax.Array) -> jax.Array:
    """1 - p as the sum of the other classes."""
    return others(p, (p.ndim - 1,))


@_complement.defjvp
def _complement_jvp(primals: Any, tangents: Any) -> Any:
    # The tangents of all classes sum to 0, up to a rounding that is not worth keeping.
    return _complement(*primals), -tangents[0]


@jax.custom_jvp
def _share(wrong: jax.Array, right: jax.Array) -> jax.Array:
    """Quotient wrong / (wrong + right); 0 where both are 0."""
    return quotient(wrong, wrong + right)


@_share.defjvp
def _share_jvp(primals: Any, tangents: Any) -> Any:
    (wrong, right), (dwrong, dright) = primals, tangents
    size = wrong + right
    by_wrong = quotient(quotient(right, size), size)
    by_right = quotient(quotient(wrong, size), size)
    return _share(wrong, right), by_wrong * dwrong - by_right * dright


_ANY = ((-_INF, _INF), (0.0, 1.0))
_PROMISES: tuple[tuple[Any, ...], ...] = (
    (
        dice_loss,
        oracles.naive_dice,
        oracles.dice_oracle,
        oracles.dice_sample,
        (2.9, 4.8),
    ),
    (
        binary_dice_loss,
        oracles.naive_binary,
        oracles.binary_oracle,
        oracles.binary_sample,
        (3, 4.4),
    ),
    (
        multiclass_generalized_dice_loss,
        oracles.naive_generalized,
        oracles.generalized_oracle,
        oracles.generalized_sample,
        (4, 7.2),
    ),
)
for _loss, _twin, _truth, _draw, _ulp in _PROMISES:
    _catalog.add(
        _catalog.Row(
            name=f"losses.{_loss.__name__}",
            function=_loss,
            naive=_twin,
            kind="whole",
            domain=_ANY,
            edges=(),
            ulp=_catalog.bounds(_ulp, _ulp, half=(_ulp[0], 0.51)),
            oracle=_truth,
            size=_catalog.at_least(_truth, 0, 1 / 16),
            sample=_draw,
            result=_floats.wide,
        )
    )
