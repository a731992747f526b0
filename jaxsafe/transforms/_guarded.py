"""The recommended chain around any optimizer, in one call.

Order, and why: *check* first, because clipping would spread one NaN over every leaf;
*clip* before the optimizer, so that one finite gradient of 1e25 cannot drive a second
moment to infinity and freeze its parameter for ever; the *inner* optimizer; then the
*rate*, which scales the finished update of any optimizer alike; and last *select*, so
that a bad step leaves the inner state bitwise as it was.
"""

from typing import Any, NamedTuple

import optax

from jaxsafe import _errors, _gate
from jaxsafe._gate import Verdict
from jaxsafe._tree import PyTree
from jaxsafe.transforms import _control, _state
from jaxsafe.transforms._control import Rules
from jaxsafe.transforms._state import ControlState


class GuardedState(NamedTuple):
    """State of `guarded`.

    Attributes:
      inner_state: state of the wrapped optimizer; rolled back by a bad step.
      control: counters and factors; advances on every attempt.

    Example:
      >>> import optax
      >>> from jaxsafe import transforms
      >>> state = transforms.guarded(optax.sgd(0.1)).init({})
      >>> int(state.control.attempts)
      0
    """

    inner_state: Any
    control: ControlState


def guarded(
    inner: optax.GradientTransformation,
    *,
    max_norm: float | None = 1.0,
    backoff: float = 0.5,
    recovery_steps: int = 200,
    min_factor: float = 1e-3,
    give_up_after: int = 10,
    telemetry: int = 0,
    check_update: bool = True,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer so that nothing non-finite gets into its state or its update.

    Pass the loss as `value=` to have it checked too. A step is rejected when the loss,
    a gradient, or the update that comes out is not finite: the update is zero and
    `inner_state` stays bitwise as it was. After `give_up_after` rejections in a row
    the guard halts: it never accepts a bad update to make progress. Read that on the
    host with `raise_if_halted`.

    Args:
      inner: any optax transformation.
      max_norm: global norm to clip to, or None for no clipping; without it a finite
        gradient of 1e25 still overflows the moments of most optimizers.
      backoff: factor on the learning rate after a rejected step; 1 leaves it alone.
      recovery_steps: committed steps that undo one back-off.
      min_factor: the learning rate is never multiplied by less.
      give_up_after: rejections in a row after which the guard halts.
      telemetry: attempts to remember in `control.history`; the ratio of update to
        parameters, which takes two more passes, is kept by `transforms.telemetry`.
      check_update: look at the update that comes out as well. Without it, and with
        parameters in float32, a `max_norm` and a state that is finite to begin with,
        nothing non-finite comes out either, and the old state need not be kept beside
        the new one: on large trees half the memory traffic is saved.
      axis_name: mapped axes over which all devices must agree; the gradients must
        already be averaged over them.

    Returns:
      An optax transformation; its state is a `GuardedState`. Extra arguments reach
      `inner`.

    Raises:
      ValueError: an argument is out of its range.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jaxsafe import transforms
      >>> tx = transforms.guarded(optax.adam(0.1), max_norm=1.0)
      >>> state = tx.init(jnp.zeros(2))
      >>> updates, state = tx.update(jnp.array([jnp.nan, 1.0]), state)
      >>> [float(u) for u in updates], int(state.control.rejected)
      ([0.0, 0.0], 1)
    """
    if max_norm is not None:
        _errors.check_positive("guarded", "max_norm", max_norm)
    rules = Rules(
        backoff=backoff,
        recovery_steps=recovery_steps,
        min_factor=min_factor,
        give_up_after=give_up_after,
    ).check("guarded")
    inner = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> GuardedState:
        control = _state.init_control(telemetry=telemetry)
        return GuardedState(inner.init(params), control)

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree = None,
        *,
        value: Any = None,
        **extra: Any,
    ) -> tuple[PyTree, GuardedState]:
        return guard_update(
            inner,
            Guard(rules, max_norm, axis_name, check_update),
            updates,
            state,
            params,
            value=value,
            **extra,
        )[:2]

    return optax.GradientTransformationExtraArgs(init, update)


class Guard(NamedTuple):
    """How a guarding transformation decides and reacts."""

    rules: Rules
    max_norm: float | None
    axis_name: Any
    check_update: bool = True


def guard_update(
    inner: optax.GradientTransformationExtraArgs,
    guard: Guard,
    updates: PyTree,
    state: GuardedState,
    params: PyTree,
    *,
    value: Any,
    **extra: Any,
) -> tuple[PyTree, GuardedState, Verdict]:
    """One guarded update: check, clip, inner, rate, select."""
    control = state.control
    verdict = _gate.judge(
        updates, value=value, axis_name=guard.axis_name, also=~control.halted
    )
    factors, clipped = _gate.clip_factors(verdict, guard.max_norm)
    if value is not None:
        extra["value"] = value

    def attempt() -> tuple[PyTree, Any]:
        # Clipped in here, the gradients are never written out on CPU.
        short = _gate.scale_by(updates, *factors)
        new, inner_state = inner.update(short, state.inner_state, params, **extra)
        return _gate.scale_by(new, _control.rate(control, guard.rules)), inner_state

    ok, (new_updates, inner_state) = _gate.commit_update(
        verdict.ok,
        attempt,
        state.inner_state,
        checked=guard.check_update,
        axis_name=guard.axis_name,
    )
    control = _control.advance_by(
        control,
        guard.rules,
        verdict,
        ok=ok,
        clipped=clipped,
        value=value,
        axis_name=guard.axis_name,
    )
    return new_updates, GuardedState(inner_state, control), verdict
