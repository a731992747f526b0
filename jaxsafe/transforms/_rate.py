"""A learning rate that backs off when a step goes wrong, and recovers slowly."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsafe import _gate, _tree
from jaxsafe._tree import PyTree
from jaxsafe.transforms import _control
from jaxsafe.transforms._control import ControlState, Rules


class AdaptLearningRateState(NamedTuple):
    """State of `adapt_learning_rate`.

    Attributes:
      control: the counters and the present `rate_factor`.

    Example:
      >>> from jaxsafe import transforms
      >>> state = transforms.adapt_learning_rate().init(None)
      >>> float(state.control.rate_factor)
      1.0
    """

    control: ControlState


def adapt_learning_rate(
    *,
    backoff: float = 0.5,
    recovery_steps: int = 200,
    min_factor: float = 1e-3,
    give_up_after: int = 10,
    telemetry: int = 0,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Multiply updates by a factor that falls after a bad step and climbs back.

    Put it last in a chain; it composes with any schedule, because it scales the
    finished update. A bad step is one whose update (or `value=`, the loss) is not
    finite: its update becomes zero, and the factor is multiplied by `backoff`. Every
    good step multiplies it by `backoff ** (-1 / recovery_steps)`, up to 1.

    The states of the transformations before it have already seen the bad gradient;
    wrap the optimizer in `guarded`, or the step in `guard.transaction`, to protect
    those. Inside a transaction, this state hears of every rejected step.

    Args:
      backoff: factor after a bad step, in (0, 1].
      recovery_steps: good steps that undo one back-off.
      min_factor: the factor never falls below, in (0, 1].
      give_up_after: bad steps in a row after which all updates are zero; see
        `raise_if_halted`.
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

    def init(params: PyTree) -> AdaptLearningRateState:
        del params
        return AdaptLearningRateState(_control.init_control(telemetry=telemetry))

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
        scaled = _gate.scale_by(updates, control.rate_factor)
        zeros = jax.tree.map(jnp.zeros_like, updates)
        control = _control.advance_by(
            control,
            rules,
            verdict,
            ok=verdict.ok,
            clipped=jnp.asarray(False),
            value=value,
        )
        picked = _tree.select(verdict.ok, scaled, zeros)
        return picked, AdaptLearningRateState(control)

    return optax.GradientTransformationExtraArgs(init, update)
