"""Clip unit by unit, in proportion to the parameters (AGC).

Norms are taken at a scale out of danger: `optax.adaptive_grad_clip` squares in the
dtype of the gradient, so that a finite 1e20 becomes an update of 0, and one infinity
zeroes its whole unit.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxsafe import _errors, _floats, _tree
from jaxsafe._tree import PyTree
from jaxsafe.ops._norm import length, scaled
from jaxsafe.ops._reduction import axis_tuple
from jaxsafe.transforms._clip import KEEP_OR_ZERO, blank, largest, look
from jaxsafe.transforms._control import counted

Axis = int | tuple[int, ...] | None
_NAME = "adaptive_grad_clip"


class AdaptiveGradClipState(NamedTuple):
    """What the adaptive clip did.

    Attributes:
      agc_ratio: float32[], largest ratio of the norm of a unit to the norm that it may
        have, in the last gradient; infinite if one is not finite.
      agc_clipped: int32[], units of it that were shortened.
      agc_count: int32[], gradients of which a unit was shortened so far.
      agc_nonfinite: int32[], non-finite entries in the last gradient.

    Example:
      >>> from jaxsafe import transforms
      >>> int(transforms.adaptive_grad_clip(0.01).init(None).agc_count)
      0
    """

    agc_ratio: jax.Array
    agc_clipped: jax.Array
    agc_count: jax.Array
    agc_nonfinite: jax.Array


def adaptive_grad_clip(
    clipping: float, *, eps: float = 1e-3, axis: Axis = None, nonfinite: str = "keep"
) -> optax.GradientTransformationExtraArgs:
    """Shorten each unit's gradient to `clipping` times the norm of its parameters.

    A unit is what feeds one output: a column of a matrix, the slice of a convolution
    kernel for its last axis; a vector or a scalar is one unit.

    Value:     g where |g| <= clipping * max(|p|, eps), else that norm in the direction
               of g; norms over one unit.
    NaN in:    a unit with a non-finite entry stays as it is ("keep"), or its non-finite
               entries become 0 first ("zero").

    Args:
      clipping: largest ratio of gradient norm to parameter norm; 0.01 is common.
      eps: parameters count as no shorter, so that zeros can learn.
      axis: axes of one unit, for parameters of more than five axes or another layout.
      nonfinite: "keep" or "zero", what becomes of non-finite entries.

    Returns:
      An optax transformation; its state is an `AdaptiveGradClipState`, and `update`
      needs the parameters.

    Raises:
      ValueError: an argument is out of its range, `params` is missing, or a parameter
        has more than five axes and no `axis` was given.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsafe import transforms
      >>> tx = transforms.adaptive_grad_clip(0.5)
      >>> p = jnp.array([3.0, 4.0])
      >>> updates, state = tx.update(jnp.array([6e30, 8e30]), tx.init(p), p)
      >>> [round(float(u), 6) for u in updates]
      [1.5, 2.0]

    References:
      Brock, De, Smith, Simonyan, High-performance large-scale image recognition without
      normalization, 2021, https://arxiv.org/abs/2102.06171
    """
    _errors.check_positive(_NAME, "clipping", clipping)
    _errors.check_positive(_NAME, "eps", eps)
    _errors.check_choice(_NAME, "nonfinite", nonfinite, KEEP_OR_ZERO)

    def init(params: PyTree) -> AdaptiveGradClipState:
        del params
        return blank(AdaptiveGradClipState)

    def update(
        updates: PyTree, state: Any, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, AdaptiveGradClipState]:
        del extra
        if params is None:
            raise _errors.error(
                ValueError,
                _NAME,
                "the parameters are needed",
                "params=None",
                "Call update(updates, state, params).",
            )
        updates, _, bad = look(updates, nonfinite)
        leaves, tree = jax.tree.flatten(updates)
        beside = jax.tree.leaves(jax.tree.map(lambda _, p: p, updates, params))
        clipped = [
            _clip_leaf(g, p, clipping, eps, axis) if _tree.is_inexact(g) else None
            for g, p in zip(leaves, beside, strict=True)
        ]
        cut = [c for c in clipped if c is not None]
        if not cut:
            return updates, blank(AdaptiveGradClipState)
        new = [
            g if c is None else c.updates for g, c in zip(leaves, clipped, strict=True)
        ]
        count = jnp.sum(jnp.stack([c.cut for c in cut]), dtype=jnp.int32)
        return jax.tree.unflatten(tree, new), AdaptiveGradClipState(
            agc_ratio=largest(jnp.stack([c.ratio for c in cut])),
            agc_clipped=count,
            agc_count=counted(state.agc_count, count > 0),
            agc_nonfinite=bad,
        )

    return optax.GradientTransformationExtraArgs(init, update)


class _Clipped(NamedTuple):
    """A leaf after clipping, its largest norm / limit, and how many units were cut."""

    updates: jax.Array
    ratio: jax.Array
    cut: jax.Array


def _clip_leaf(g: Any, p: Any, clipping: Any, eps: Any, axis: Axis) -> _Clipped:
    g, p = jnp.asarray(g), jnp.asarray(p)
    axes = _unit_axes(p.shape) if axis is None else axis_tuple(_NAME, axis, p.ndim)
    if jnp.iscomplexobj(g):
        axes = (*axes, g.ndim)
    parts = _real_parts(g)
    limit = clipping * jnp.maximum(length(_real_parts(p), axes), eps)
    limit = limit.astype(parts.dtype)
    near, power = scaled(parts, axes)
    size = length(near, axes)
    finite = jnp.isfinite(parts).all(axes, keepdims=True)
    cut = finite & (size > limit * power)
    shorter = near / jnp.where(cut, size, 1) * limit
    ratio = jnp.where(finite, size / limit / jnp.where(finite, power, 1), jnp.inf)
    return _Clipped(
        updates=_joined(jnp.where(cut, shorter, parts), g.dtype),
        ratio=largest(ratio),
        cut=jnp.sum(cut, dtype=jnp.int32),
    )


def _unit_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of one unit, by what layers of this many axes are."""
    if sum(n != 1 for n in shape) <= 1:
        return tuple(range(len(shape)))
    if len(shape) <= 3:
        return (0,)
    if len(shape) <= 5:
        return tuple(range(len(shape) - 1))
    raise _errors.error(
        ValueError,
        _NAME,
        "what a unit is, is known for up to 5 axes",
        f"shape {shape}",
        "Pass the axes of one unit as axis=.",
    )


def _real_parts(x: jax.Array) -> jax.Array:
    """`x` in a wide real dtype; complex numbers get a last axis for their two parts."""
    if jnp.iscomplexobj(x):
        return jnp.stack([x.real, x.imag], -1)
    return x.astype(_floats.wide(x.dtype))


def _joined(parts: jax.Array, dtype: Any) -> jax.Array:
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return lax.complex(parts[..., 0], parts[..., 1])
    return parts.astype(dtype)
