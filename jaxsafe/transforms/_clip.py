"""Clip gradients to a global norm, without overflow and without hiding anything.

`optax.clip_by_global_norm` squares in the dtype of the gradients: finite entries of
1e20, or of 300 in float16, overflow, and the update comes out as all zeros, silently.
Here the squares are summed at float32 or better and at a scale out of danger.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsafe import _errors, _gate, _tree
from jaxsafe._tree import PyTree


class ClipByGlobalNormState(NamedTuple):
    """What the clip did.

    Attributes:
      clip_norm: float32[], global norm of the last gradient before clipping; of its
        finite entries with `nonfinite="zero"`.
      clip_count: int32[], gradients shortened so far.
      clip_nonfinite: int32[], non-finite entries in the last gradient.

    Example:
      >>> from jaxsafe import transforms
      >>> int(transforms.clip_by_global_norm(1.0).init(None).clip_count)
      0
    """

    clip_norm: jax.Array
    clip_count: jax.Array
    clip_nonfinite: jax.Array


def clip_by_global_norm(
    max_norm: float, *, nonfinite: str = "keep"
) -> optax.GradientTransformationExtraArgs:
    """Shorten the gradient to `max_norm`, keeping its direction, whatever its size.

    Value:     g where |g| <= max_norm, else g * max_norm / |g|; |g| over all leaves.
    NaN in:    kept as they are, the other entries too, so that a guard sees them
               ("keep"); or replaced by 0 before the norm is taken ("zero"). Counted in
               the state either way.
    Error:     the norm of the result exceeds `max_norm` by at most 1e-6 relative in
               float32; each half-precision entry is rounded once.

    Args:
      max_norm: positive number.
      nonfinite: "keep" or "zero", what becomes of non-finite entries.

    Returns:
      An optax transformation; its state is a `ClipByGlobalNormState`.

    Raises:
      ValueError: `max_norm` is not positive, or `nonfinite` is neither word.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsafe import transforms
      >>> tx = transforms.clip_by_global_norm(1.0)
      >>> g = jnp.array([3e30, 4e30])
      >>> updates, state = tx.update(g, tx.init(g))
      >>> [round(float(u), 6) for u in updates]  # optax gives [0, 0]
      [0.6, 0.8]

    References:
      Pascanu, Mikolov, Bengio, On the difficulty of training recurrent neural
      networks, 2013, https://arxiv.org/abs/1211.5063
    """
    _errors.check_positive("clip_by_global_norm", "max_norm", max_norm)
    _errors.check_choice(
        "clip_by_global_norm", "nonfinite", nonfinite, ("keep", "zero")
    )

    def init(params: PyTree) -> ClipByGlobalNormState:
        del params
        return ClipByGlobalNormState(
            clip_norm=jnp.zeros((), jnp.float32),
            clip_count=jnp.zeros((), jnp.int32),
            clip_nonfinite=jnp.zeros((), jnp.int32),
        )

    def update(
        updates: PyTree, state: Any, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, ClipByGlobalNormState]:
        del params, extra
        count = _tree.count_nonfinite(updates)
        if nonfinite == "zero":
            updates = _tree.zero_nonfinite(updates)
        verdict = _gate.judge(updates)
        updates, clipped = _gate.clip(updates, verdict, max_norm)
        raised = optax.safe_increment(state.clip_count)
        return updates, ClipByGlobalNormState(
            clip_norm=verdict.norm,
            clip_count=jnp.where(clipped, raised, state.clip_count),
            clip_nonfinite=count,
        )

    return optax.GradientTransformationExtraArgs(init, update)
