"""Clip leaf by leaf: one exploding layer does not shrink the gradients of the others.

Norms are taken at a scale out of danger. `optax.clip_by_block_rms` squares in the dtype
of the gradient: a finite 1e20 becomes an update of 0, one infinity zeroes its block.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsafe import _errors, _gate, _tree
from jaxsafe._tree import PyTree
from jaxsafe.transforms._clip import KEEP_OR_ZERO, blank, largest, look
from jaxsafe.transforms._control import counted


class ClipByBlockNormState(NamedTuple):
    """What the clip did.

    Attributes:
      clip_block_norm: float32[], largest norm of a leaf of the last gradient, before
        clipping; infinite or NaN if one is not finite.
      clip_block_clipped: int32[], leaves of it that were shortened.
      clip_block_count: int32[], gradients of which a leaf was shortened so far.
      clip_block_nonfinite: int32[], non-finite entries in the last gradient.

    Example:
      >>> from jaxsafe import transforms
      >>> int(transforms.clip_by_block_norm(1.0).init(None).clip_block_count)
      0
    """

    clip_block_norm: jax.Array
    clip_block_clipped: jax.Array
    clip_block_count: jax.Array
    clip_block_nonfinite: jax.Array


def clip_by_block_norm(
    max_norm: float, *, nonfinite: str = "keep"
) -> optax.GradientTransformationExtraArgs:
    """Shorten each leaf of the gradient to `max_norm` on its own.

    Value:     g where |g| <= max_norm, else g * max_norm / |g|; |g| over one leaf.
    NaN in:    a leaf with a non-finite entry stays as it is ("keep"), or its non-finite
               entries become 0 first ("zero"); the other leaves are clipped as always.

    Args:
      max_norm: positive number.
      nonfinite: "keep" or "zero", what becomes of non-finite entries.

    Returns:
      An optax transformation; its state is a `ClipByBlockNormState`.

    Raises:
      ValueError: `max_norm` is not positive, or `nonfinite` is neither word.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsafe import transforms
      >>> tx = transforms.clip_by_block_norm(1.0)
      >>> g = {"a": jnp.array([3e30, 4e30]), "b": jnp.array([0.5])}
      >>> updates, state = tx.update(g, tx.init(g))
      >>> [round(float(u), 6) for u in (*updates["a"], *updates["b"])]
      [0.6, 0.8, 0.5]
    """
    _errors.check_positive("clip_by_block_norm", "max_norm", max_norm)
    _errors.check_choice("clip_by_block_norm", "nonfinite", nonfinite, KEEP_OR_ZERO)

    def init(params: PyTree) -> ClipByBlockNormState:
        del params
        return blank(ClipByBlockNormState)

    def update(
        updates: PyTree, state: Any, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, ClipByBlockNormState]:
        del params, extra
        updates, _, bad = look(updates, nonfinite)
        parts = _tree.inexact_leaves(updates)
        if not parts:
            return updates, blank(ClipByBlockNormState)
        lengths, scales = _gate.leaf_lengths(parts)
        limits = jnp.full_like(lengths, max_norm)
        updates, clipped = _gate.clip_leaves(updates, lengths, scales, limits)
        return updates, ClipByBlockNormState(
            clip_block_norm=largest(_gate.norm_of(lengths, scales)),
            clip_block_clipped=jnp.sum(clipped, dtype=jnp.int32),
            clip_block_count=counted(state.clip_block_count, clipped.any()),
            clip_block_nonfinite=bad,
        )

    return optax.GradientTransformationExtraArgs(init, update)
