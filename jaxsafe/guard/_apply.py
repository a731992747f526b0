"""The step API that sees the gradients: decide first, then update and apply.

It owns the update *and* its application, so it never has to hand back `updates`, and a
rejected step on CPU costs neither. `transforms.guarded` offers the same decision to
code that wants an optax transformation; it has to write the updates out, which is
slower.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxsafe import _errors, _gate, _tree
from jaxsafe._tree import PyTree
from jaxsafe._varying import cond
from jaxsafe.transforms import _control
from jaxsafe.transforms._control import Rules
from jaxsafe.transforms._state import ControlState


def apply_gradients(
    tx: optax.GradientTransformation,
    grads: PyTree,
    params: PyTree,
    opt_state: PyTree,
    control: ControlState,
    *,
    value: Any,
    max_norm: float | None = None,
    check_state_every: int | None = None,
    backoff: float = 0.5,
    recovery_steps: int = 200,
    min_factor: float = 1e-3,
    give_up_after: int = 10,
    axis_name: Any = None,
) -> tuple[PyTree, PyTree, ControlState]:
    """Apply one optimizer step if loss and gradients are finite; else change nothing.

    Value:     (new params, new opt_state, control) where `value`, every gradient and,
               on checked attempts, every new parameter and moment is finite; else the
               old params and opt_state, bitwise. `control` advances either way; use
               `control.ok` with `guard.select` to roll back other collections, such as
               BatchNorm statistics.
    NaN in:    rejected and counted.

    Args:
      tx: an optax transformation without a guard of its own.
      grads: gradients, like `params`.
      params: parameters.
      opt_state: `tx.init(params)`.
      control: `transforms.init_control()` before the first step.
      value: the loss, or a pytree of numbers that must be finite; `tx` receives it too.
      max_norm: global norm to clip to first; None for no clipping.
      check_state_every: check the new parameters and moments too, every so many
        attempts; 0 never. None checks on every attempt where finite gradients can make
        a bad update (parameters in half precision, where an epsilon may vanish; no
        `max_norm`, so that moments may overflow), else never. A check reads them once
        more and keeps old and new side by side; above 1 it leaves a conditional in the
        program, which makes an accelerator wait for the host.
      backoff: factor on the update after a rejected step; 1 leaves it alone.
      recovery_steps: committed steps that undo one back-off.
      min_factor: the update is never multiplied by less.
      give_up_after: rejections in a row after which the guard halts: nothing is
        committed any more; see `transforms.raise_if_halted`.
      axis_name: mapped axes over which all devices must agree; the gradients must
        already be averaged over them.

    Raises:
      ValueError: an argument is out of range, or `tx` is guarded already.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jaxsafe import guard, transforms
      >>> tx, params = optax.adam(0.1), jnp.ones(2)
      >>> params, opt_state, control = guard.apply_gradients(
      ...     tx, jnp.array([jnp.inf, 0.0]), params, tx.init(params),
      ...     transforms.init_control(), value=1.0)
      >>> [float(p) for p in params], bool(control.ok)
      ([1.0, 1.0], False)
    """
    rules = Rules(
        backoff=backoff,
        recovery_steps=recovery_steps,
        min_factor=min_factor,
        give_up_after=give_up_after,
    ).check("apply_gradients")
    _check_arguments(opt_state, control, max_norm, check_state_every)
    tx = optax.with_extra_args_support(tx)
    verdict = _gate.judge(grads, value=value, axis_name=axis_name, also=~control.halted)
    factors, clipped = _gate.clip_factors(verdict, max_norm)

    def attempt() -> tuple[PyTree, PyTree]:
        # Clipped in here, the gradients are never written out on CPU.
        short = _gate.scale_by(grads, *factors)
        updates, new_opt_state = tx.update(short, opt_state, params, value=value)
        updates = _gate.scale_by(updates, _control.rate(control, rules))
        return optax.apply_updates(params, updates), new_opt_state

    def commit(check: Any) -> tuple[jax.Array, PyTree]:
        keep = (params, opt_state)
        return _gate.commit(verdict.ok, attempt, keep, check=check, axis_name=axis_name)

    every = check_state_every
    if every is None:
        every = 1 if max_norm is None or _has_half_precision(params) else 0
    if every <= 1:
        ok, (params, opt_state) = commit(_tree.all_finite if every else None)
    else:
        ok, (params, opt_state) = cond(
            control.attempts % every == 0,
            lambda: commit(_tree.all_finite),
            lambda: commit(None),
        )
    control = _control.advance_by(
        control,
        rules,
        verdict,
        ok=ok,
        clipped=clipped,
        value=value,
        axis_name=axis_name,
    )
    return params, opt_state, control


def _has_half_precision(params: PyTree) -> bool:
    inexact = [x for x in jax.tree.leaves(params) if _tree.is_inexact(x)]
    return any(jnp.finfo(jnp.result_type(x)).bits < 32 for x in inexact)


def _check_arguments(
    opt_state: PyTree, control: Any, max_norm: Any, check_state_every: int | None
) -> None:
    if max_norm is not None:
        _errors.check_positive("apply_gradients", "max_norm", max_norm)
    if check_state_every is not None:
        _errors.check_count(
            "apply_gradients", "check_state_every", check_state_every, least=0
        )
    if not _control.is_control(control):
        raise _errors.error(
            TypeError,
            "apply_gradients",
            "control must be a ControlState",
            type(control).__name__,
            "Start from `transforms.init_control()`.",
        )
    if _control.find_controls(opt_state):
        raise _errors.error(
            ValueError,
            "apply_gradients",
            "the optimizer has a guard of its own",
            jax.tree.structure(opt_state),
            "Pass the optimizer without `guarded` and `adapt_learning_rate`.",
        )
