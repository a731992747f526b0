"""Clip gradients that are unusually long for this run, whatever is usual for it.

A fixed `max_norm` is either too loose or always active. These two rules learn what is
usual: one from the global norm, one leaf by leaf. Public trainers feed such statistics
with NaN, after which a whole window of good steps is thrown away, or with norms that a
fixed clip has already cut, so that they never see a spike. Here only finite norms get
in, as they arrive.

Sources: Kumar et al., ZClip, 2025, https://arxiv.org/abs/2504.02507; Wang et al.,
AdaGC, 2025, https://arxiv.org/abs/2502.11034.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsafe import _errors, _gate, _tree
from jaxsafe._tree import PyTree
from jaxsafe.transforms import _zscore
from jaxsafe.transforms._clip import KEEP_OR_ZERO, look
from jaxsafe.transforms._control import counted
from jaxsafe.transforms._zscore import Statistics

_NAME = "clip_spikes"
KINDS = ("zscore", "per_leaf")


class ClipSpikesState(NamedTuple):
    """What the spike clip did, and what it has learnt.

    Attributes:
      spike_norm: float32[], global norm of the last gradient, before clipping.
      spike_clipped: bool[], whether it, or a leaf of it, was shortened.
      spike_count: int32[], gradients shortened so far.
      spike_nonfinite: int32[], non-finite entries in the last gradient.
      spike_statistics: running statistics of the global norm ("zscore"), or
        float32[leaves], the usual norm of each leaf, 0 until there is one ("per_leaf").
      spike_steps: int32[], finite gradients seen, up to the end of the warm-up.

    Example:
      >>> from jaxsafe import transforms
      >>> int(transforms.clip_spikes().init(None).spike_count)
      0
    """

    spike_norm: jax.Array
    spike_clipped: jax.Array
    spike_count: jax.Array
    spike_nonfinite: jax.Array
    spike_statistics: Any
    spike_steps: jax.Array


def clip_spikes(
    kind: str = "zscore",
    *,
    threshold: float | None = None,
    decay: float | None = None,
    warmup_steps: int | None = None,
    max_norm: float | None = 1.0,
    nonfinite: str = "keep",
) -> optax.GradientTransformationExtraArgs:
    """Shorten a gradient that is a spike among the gradients of this run.

    Put it first in a chain, so that it sees norms that nothing has clipped.

    Value:     "zscore": with mean m and deviation s of the norms so far, a gradient
               with z = (|g| - m) / s > threshold gets the norm m + threshold**2 s / z,
               the smaller the larger the spike; that norm then counts as seen.
               "per_leaf": each leaf gets at most threshold times its usual norm, a
               moving average of its clipped norms.
               Before there are statistics, and with "zscore" also later, the global
               norm is at most `max_norm`.
    NaN in:    the entries stay, for a guard to see ("keep"), or become 0 first
               ("zero"); with "keep" the statistics do not hear of such a gradient.

    Args:
      kind: "zscore" (ZClip) or "per_leaf" (AdaGC).
      threshold: None for the published 2.5 deviations, or 1.05 times the usual norm.
      decay: of the moving averages; None for the published 0.97, or 0.98.
      warmup_steps: finite gradients before the rule begins; None for 25, or 100.
      max_norm: global norm to clip to as well, see above; None for none, which leaves
        the warm-up unprotected.
      nonfinite: "keep" or "zero", what becomes of non-finite entries.

    Returns:
      An optax transformation; its state is a `ClipSpikesState`.

    Raises:
      ValueError: an argument is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsafe import transforms
      >>> tx = transforms.clip_spikes(warmup_steps=2, max_norm=None)
      >>> state = tx.init(jnp.zeros(1))
      >>> for size in (1.0, 1.2, 1e30):
      ...     updates, state = tx.update(jnp.array([size]), state)
      >>> round(float(updates[0]), 3), int(state.spike_count)
      (1.1, 1)

    References:
      Kumar et al., ZClip, 2025, https://arxiv.org/abs/2504.02507
      Wang et al., AdaGC, 2025, https://arxiv.org/abs/2502.11034
    """
    _errors.check_choice(_NAME, "kind", kind, KINDS)
    _errors.check_choice(_NAME, "nonfinite", nonfinite, KEEP_OR_ZERO)
    published = (2.5, 0.97, 25) if kind == "zscore" else (1.05, 0.98, 100)
    threshold = published[0] if threshold is None else threshold
    decay = published[1] if decay is None else decay
    warmup_steps = published[2] if warmup_steps is None else warmup_steps
    _errors.check_positive(_NAME, "threshold", threshold)
    _errors.check_fraction(_NAME, "decay", decay)
    _errors.check_count(_NAME, "warmup_steps", warmup_steps)
    if max_norm is not None:
        _errors.check_positive(_NAME, "max_norm", max_norm)
    rule = _Rule(threshold, decay, warmup_steps, max_norm)
    apply = _zscore_rule if kind == "zscore" else _per_leaf_rule

    def init(params: PyTree) -> ClipSpikesState:
        usual = jnp.zeros((len(_tree.inexact_leaves(params)),), jnp.float32)
        return ClipSpikesState(
            spike_norm=jnp.zeros((), jnp.float32),
            spike_clipped=jnp.asarray(False),
            spike_count=jnp.zeros((), jnp.int32),
            spike_nonfinite=jnp.zeros((), jnp.int32),
            spike_statistics=(
                _zscore.init_statistics(warmup_steps) if kind == "zscore" else usual
            ),
            spike_steps=jnp.zeros((), jnp.int32),
        )

    def update(
        updates: PyTree, state: Any, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, ClipSpikesState]:
        del params, extra
        updates, verdict, bad = look(updates, nonfinite)
        new, clipped, statistics = apply(rule, updates, verdict, state)
        steps = jnp.where(verdict.ok, state.spike_steps + 1, state.spike_steps)
        return new, ClipSpikesState(
            spike_norm=verdict.norm,
            spike_clipped=clipped,
            spike_count=counted(state.spike_count, clipped),
            spike_nonfinite=bad,
            spike_statistics=statistics,
            spike_steps=jnp.minimum(steps, warmup_steps),
        )

    return optax.GradientTransformationExtraArgs(init, update)


class _Rule(NamedTuple):
    threshold: float
    decay: float
    warmup_steps: int
    max_norm: float | None


def _zscore_rule(
    rule: _Rule, updates: PyTree, verdict: _gate.Verdict, state: ClipSpikesState
) -> tuple[PyTree, jax.Array, Statistics]:
    statistics: Statistics = state.spike_statistics
    norm = verdict.norm
    z = _zscore.score(statistics, norm)
    spike = z > rule.threshold
    shorter = statistics.mean + rule.threshold * statistics.std / (z / rule.threshold)
    limit = jnp.where(spike, shorter, jnp.inf)
    counts_as = jnp.where(spike, shorter, norm)
    if rule.max_norm is not None:
        limit = jnp.minimum(limit, rule.max_norm)
    new, clipped = _gate.clip(updates, verdict, limit)
    statistics = _zscore.observed(statistics, counts_as, verdict.ok, rule.decay)
    return new, clipped, statistics


def _per_leaf_rule(
    rule: _Rule, updates: PyTree, verdict: _gate.Verdict, state: ClipSpikesState
) -> tuple[PyTree, jax.Array, jax.Array]:
    usual: jax.Array = state.spike_statistics
    parts = _tree.inexact_leaves(updates)
    if not parts:
        return updates, jnp.asarray(False), usual
    lengths, scales = _gate.leaf_lengths(parts)
    warm = state.spike_steps >= rule.warmup_steps
    limits = _leaf_limits(rule, lengths, scales, verdict, usual, warm=warm)
    updates, clipped = _gate.clip_leaves(updates, lengths, scales, limits)
    norms = _gate.norm_of(lengths, scales)
    learnt = _usual(rule, jnp.where(clipped, limits, norms), usual, warm=warm)
    return updates, clipped.any(), learnt


def _leaf_limits(
    rule: _Rule,
    lengths: jax.Array,
    scales: jax.Array,
    verdict: _gate.Verdict,
    usual: jax.Array,
    *,
    warm: jax.Array,
) -> jax.Array:
    """The norm that each leaf may have; while warming up its share of `max_norm`."""
    limits = jnp.where(usual > 0, rule.threshold * usual, jnp.inf)
    if rule.max_norm is None:
        return jnp.where(warm, limits, jnp.inf)
    # Its norm over the global one, as a quotient of two numbers out of danger.
    share = (lengths / verdict.length) * (verdict.scale / scales)
    too_long = verdict.length > rule.max_norm * verdict.scale
    together = jnp.isfinite(verdict.length) & too_long
    alone = jnp.where(together, rule.max_norm * share, jnp.inf)
    return jnp.where(warm, limits, alone).astype(lengths.dtype)


def _usual(
    rule: _Rule, norms: jax.Array, usual: jax.Array, *, warm: jax.Array
) -> jax.Array:
    """What is usual after this gradient; a leaf of 0 or NaN teaches nothing.

    The published rule lets a norm of 0 in: with a usual norm of 0 a leaf could never
    move again.
    """
    average = rule.decay * usual + (1 - rule.decay) * norms
    new = jnp.where(warm, average, jnp.minimum(usual, norms))
    new = jnp.where(usual > 0, new, norms)
    learns = jnp.isfinite(norms) & (norms > 0)
    return jnp.where(learns, new, usual).astype(jnp.float32)
