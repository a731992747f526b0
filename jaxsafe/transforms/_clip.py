"""Clip gradients by value and to a global norm, without hiding anything.

`optax.clip_by_global_norm` squares in the dtype of the gradients: finite entries of
1e20, or of 300 in float16, overflow, and the update comes out as all zeros, silently.
Here the squares are summed at float32 or better and at a scale out of danger.
`optax.clip` turns an infinity into an innocent bound; here it stays what it is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from jaxsafe import _errors, _floats, _gate, _tree
from jaxsafe._gate import Verdict
from jaxsafe._tree import PyTree
from jaxsafe.transforms._control import counted

Record = TypeVar("Record")
KEEP_OR_ZERO = ("keep", "zero")


class ClipState(NamedTuple):
    """What the clip by value did.

    Attributes:
      clip_value_norm: float32[], global norm of the last gradient before clipping.
      clip_value_clipped: bool[], whether an entry of it was cut.
      clip_value_count: int32[], gradients of which an entry was cut so far.
      clip_value_nonfinite: int32[], non-finite entries in the last gradient.

    Example:
      >>> from jaxsafe import transforms
      >>> int(transforms.clip(1.0).init(None).clip_value_count)
      0
    """

    clip_value_norm: jax.Array
    clip_value_clipped: jax.Array
    clip_value_count: jax.Array
    clip_value_nonfinite: jax.Array


def clip(
    max_delta: float, *, nonfinite: str = "keep"
) -> optax.GradientTransformationExtraArgs:
    """Cut every entry to [-max_delta, max_delta].

    Value:     min(max(g, -max_delta), max_delta) for finite g, in the dtype of g; the
               real and the imaginary part each.
    NaN in:    NaN and infinities stay, so that a guard sees them ("keep"), or become 0
               ("zero"). Counted in the state either way.

    Args:
      max_delta: positive number.
      nonfinite: "keep" or "zero", what becomes of non-finite entries.

    Returns:
      An optax transformation; its state is a `ClipState`.

    Raises:
      ValueError: `max_delta` is not positive, or `nonfinite` is neither word.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsafe import transforms
      >>> tx = transforms.clip(1.0)
      >>> g = jnp.array([3.0, jnp.inf, -0.5])
      >>> updates, state = tx.update(g, tx.init(g))
      >>> [float(u) for u in updates], int(state.clip_value_nonfinite)
      ([1.0, inf, -0.5], 1)
    """
    _errors.check_positive("clip", "max_delta", max_delta)
    _errors.check_choice("clip", "nonfinite", nonfinite, KEEP_OR_ZERO)

    def init(params: PyTree) -> ClipState:
        del params
        return blank(ClipState, clipped=False)

    def update(
        updates: PyTree, state: Any, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, ClipState]:
        del params, extra
        updates, verdict, bad = look(updates, nonfinite)
        bounded = jax.tree.map(lambda x: _bounded(x, max_delta), updates)
        clipped = _any_differs(updates, bounded)
        count = counted(state.clip_value_count, clipped)
        return bounded, ClipState(verdict.norm, clipped, count, bad)

    return optax.GradientTransformationExtraArgs(init, update)


def _bounded(x: Any, limit: Any) -> Any:
    if not _tree.is_inexact(x):
        return x
    x = jnp.asarray(x)
    if jnp.iscomplexobj(x):
        return jax.lax.complex(_bounded(x.real, limit), _bounded(x.imag, limit))
    limit = jnp.asarray(limit, x.dtype)
    return jnp.where(jnp.isfinite(x), jnp.clip(x, -limit, limit), x)


def _any_differs(old: PyTree, new: PyTree) -> jax.Array:
    pairs = zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
    # A NaN differs from itself, but nothing was done to it.
    flags = [
        (jnp.isfinite(a) & (a != b)).any() for a, b in pairs if _tree.is_inexact(a)
    ]
    return jnp.stack(flags).any() if flags else jnp.asarray(False)


class ClipByGlobalNormState(NamedTuple):
    """What the clip did.

    Attributes:
      clip_norm: float32[], global norm of the last gradient before clipping; of its
        finite entries with `nonfinite="zero"`.
      clip_clipped: bool[], whether it was shortened.
      clip_count: int32[], gradients shortened so far.
      clip_nonfinite: int32[], non-finite entries in the last gradient.

    Example:
      >>> from jaxsafe import transforms
      >>> int(transforms.clip_by_global_norm(1.0).init(None).clip_count)
      0
    """

    clip_norm: jax.Array
    clip_clipped: jax.Array
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
    _errors.check_choice("clip_by_global_norm", "nonfinite", nonfinite, KEEP_OR_ZERO)

    def init(params: PyTree) -> ClipByGlobalNormState:
        del params
        return blank(ClipByGlobalNormState, clipped=False)

    def update(
        updates: PyTree, state: Any, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, ClipByGlobalNormState]:
        del params, extra
        updates, verdict, bad = look(updates, nonfinite)
        updates, clipped = _gate.clip(updates, verdict, max_norm)
        count = counted(state.clip_count, clipped)
        return updates, ClipByGlobalNormState(verdict.norm, clipped, count, bad)

    return optax.GradientTransformationExtraArgs(init, update)


def look(updates: PyTree, nonfinite: str) -> tuple[PyTree, Verdict, jax.Array]:
    """(updates under the policy, the verdict on them, non-finite entries before)."""
    if nonfinite == "zero":
        bad = _gate.count_nonfinite(updates)
        updates = _tree.zero_nonfinite(updates)
        return updates, _gate.judge(updates), bad
    verdict = _gate.judge(updates)
    return updates, verdict, _gate.count_nonfinite(updates, verdict)


def largest(norms: jax.Array) -> jax.Array:
    """float32[]: the largest of some norms; not finite if one is not."""
    # A maximum may lose a NaN, a sum does not.
    fine = jnp.isfinite(norms)
    top = jnp.max(jnp.where(fine, norms, 0), initial=0)
    most = _floats.largest(jnp.float32)
    bad = jnp.sum(jnp.where(fine, 0, norms))
    return jnp.where(fine.all(), jnp.minimum(top, most), bad).astype(jnp.float32)


def blank(kind: Callable[..., Record], *, clipped: bool | int = 0) -> Record:
    """The state of a clip that has seen nothing: (norm, clipped, count, non-finite)."""
    # A buffer of its own for every field: one shared buffer cannot be donated.
    count, nonfinite = (jnp.zeros((), jnp.int32) for _ in range(2))
    dtype = bool if isinstance(clipped, bool) else jnp.int32
    none = jnp.asarray(clipped, dtype)
    return kind(jnp.zeros((), jnp.float32), none, count, nonfinite)
