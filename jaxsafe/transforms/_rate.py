"""A learning rate that backs off when a step goes wrong, and recovers slowly."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsafe import _errors, _gate, _tree
from jaxsafe._tree import PyTree
from jaxsafe.transforms import _control, _state, _zscore
from jaxsafe.transforms._control import Rules, counted
from jaxsafe.transforms._state import ControlState


class AdaptLearningRateState(NamedTuple):
    """State of `adapt_learning_rate`.

    Attributes:
      control: the counters and the present `rate_factor`.
      rate_statistics: running statistics of the loss, or (), see `spike_threshold`.
      rate_spikes: int32[], spikes so far.

    Example:
      >>> from jaxsafe import transforms
      >>> state = transforms.adapt_learning_rate().init(None)
      >>> float(state.control.rate_factor)
      1.0
    """

    control: ControlState
    rate_statistics: Any
    rate_spikes: jax.Array


def adapt_learning_rate(
    *,
    backoff: float = 0.5,
    recovery_steps: int = 200,
    min_factor: float = 1e-3,
    give_up_after: int = 10,
    spike_threshold: float | None = None,
    telemetry: int = 0,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Multiply updates by a factor that falls after a bad step and climbs back.

    Put it last in a chain; it composes with any schedule, because it scales the
    finished update. A bad step is one whose update (or `value=`, the loss) is not
    finite: its update becomes zero, and the factor is multiplied by `backoff`. Every
    good step multiplies it by `backoff ** (-1 / recovery_steps)`, up to 1. A spike of
    the loss lowers the factor too, for the steps after it; its own update is kept.

    The states of the transformations before it have already seen the bad gradient;
    wrap the optimizer in `guarded`, or the step in `guard.transaction`, to protect
    those. Inside a transaction, this state hears of every rejected step.

    Args:
      backoff: factor after a bad step, in (0, 1].
      recovery_steps: good steps that undo one back-off.
      min_factor: the factor never falls below, in (0, 1].
      give_up_after: bad steps in a row after which all updates are zero; see
        `raise_if_halted`.
      spike_threshold: a loss (`value=`, or the norm of the update where no loss is
        passed) so many deviations above its moving average is a spike; None for none.
      telemetry: attempts to remember in `control.history`.
      axis_name: mapped axes over which all devices must agree.

    Returns:
      An optax transformation; its state is an `AdaptLearningRateState`.

    Raises:
      ValueError: an argument is out of its range.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jaxsafe import transforms
      >>> tx = optax.chain(optax.sgd(1.0), transforms.adapt_learning_rate())
      >>> state = tx.init(jnp.zeros(()))
      >>> _, state = tx.update(jnp.asarray(jnp.nan), state)
      >>> updates, state = tx.update(jnp.asarray(1.0), state)
      >>> float(updates)
      -0.5
    """
    rules = Rules(
        backoff=backoff,
        recovery_steps=recovery_steps,
        min_factor=min_factor,
        give_up_after=give_up_after,
    ).check("adapt_learning_rate")

    if spike_threshold is not None:
        _errors.check_positive(
            "adapt_learning_rate", "spike_threshold", spike_threshold
        )

    def init(params: PyTree) -> AdaptLearningRateState:
        del params
        watched = spike_threshold is not None
        return AdaptLearningRateState(
            control=_state.init_control(telemetry=telemetry),
            rate_statistics=_zscore.init_statistics(_WARMUP) if watched else (),
            rate_spikes=jnp.zeros((), jnp.int32),
        )

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree = None,
        *,
        value: Any = None,
        **extra: Any,
    ) -> tuple[PyTree, AdaptLearningRateState]:
        del params, extra
        control = state.control
        verdict = _gate.judge(
            updates, value=value, axis_name=axis_name, also=~control.halted
        )
        scaled = _gate.scale_by(updates, _control.rate(control, rules))
        zeros = jax.tree.map(jnp.zeros_like, updates)
        statistics, spike = state.rate_statistics, jnp.asarray(False)
        if spike_threshold is not None:
            seen = verdict.norm
            if value is not None:
                seen = _control.loss_of(value, axis_name)
            spike = _zscore.score(statistics, seen) > spike_threshold
            # Not the spike itself, which would hide the next one, and not nothing, or
            # a loss that stays at a higher level would be a spike for ever.
            usual = statistics.mean + spike_threshold * statistics.std
            seen = jnp.where(spike, usual, seen)
            statistics = _zscore.observed(statistics, seen, verdict.ok, _DECAY)
        control = _control.advance_by(
            control,
            rules,
            verdict,
            ok=verdict.ok,
            clipped=jnp.asarray(False),
            value=value,
            lower=spike,
            axis_name=axis_name,
        )
        picked = _tree.select(verdict.ok, scaled, zeros)
        spikes = counted(state.rate_spikes, spike & verdict.ok)
        return picked, AdaptLearningRateState(control, statistics, spikes)

    return optax.GradientTransformationExtraArgs(init, update)


# As published for norms (ZClip); see `_zscore`.
_WARMUP, _DECAY = 25, 0.97
