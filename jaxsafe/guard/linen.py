"""The step API for `flax.linen`'s TrainState.

`TrainState.apply_gradients` neither forwards the loss to the optimizer nor decides
anything. This one does both, and rolls back whatever else the step wrote, such as
BatchNorm statistics. (`guard.transaction` works on a TrainState as it is.)
"""

from typing import Any, TypeVar

from flax.training.train_state import TrainState

from jaxsafe import _tree
from jaxsafe._errors import error
from jaxsafe._tree import PyTree
from jaxsafe.guard import _apply
from jaxsafe.transforms._state import ControlState

__all__ = ["apply_gradients"]

State = TypeVar("State", bound=TrainState)


def apply_gradients(
    state: State,
    control: ControlState,
    *,
    grads: PyTree,
    value: Any,
    collections: dict[str, PyTree] | None = None,
    **options: Any,
) -> tuple[State, ControlState]:
    """Apply one step to a TrainState if it is finite; else change nothing in it.

    Value:     the state with step, params, opt_state and `collections` replaced, where
               `value` and every gradient and every new leaf is finite; else the state
               that came in, bitwise, its step count included.

    Args:
      state: a `flax.training.train_state.TrainState` or subclass.
      control: `transforms.init_control()` before the first step.
      grads: gradients, like `state.params`.
      value: the loss.
      collections: further fields of the state that this step computed, by name, such
        as `{"batch_stats": updates["batch_stats"]}`.
      **options: `max_norm` and the other options of `guard.apply_gradients`.

    Raises:
      ValueError: a name in `collections` is no field of the state.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from flax.training.train_state import TrainState
      >>> from jaxsafe import transforms
      >>> from jaxsafe.guard import linen as guard_linen
      >>> state = TrainState.create(
      ...     apply_fn=None, params={"w": jnp.ones(2)}, tx=optax.sgd(0.5))
      >>> state, control = guard_linen.apply_gradients(
      ...     state, transforms.init_control(),
      ...     grads={"w": jnp.array([jnp.nan, 1.0])}, value=jnp.asarray(1.0))
      >>> int(state.step), int(control.rejected)
      (0, 1)
    """
    collections = dict(collections or {})
    for name in collections:
        if not hasattr(state, name):
            raise error(
                ValueError,
                "linen.apply_gradients",
                "a collection is no field of the state",
                repr(name),
                "Declare it on your TrainState subclass.",
            )
    # All-finite is asked of the collections too: they are committed with the rest.
    params, opt_state, control = _apply.apply_gradients(
        state.tx,
        grads,
        state.params,
        state.opt_state,
        control,
        value=(value, collections) if collections else value,
        **options,
    )
    old = {name: getattr(state, name) for name in collections}
    kept = _tree.select(
        control.ok, {"step": state.step + 1, **collections}, {"step": state.step, **old}
    )
    return state.replace(params=params, opt_state=opt_state, **kept), control
