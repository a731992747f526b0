"""The transaction for `flax.nnx`: all Variables of the arguments roll back together.

Parameters, BatchNorm statistics, random-number counts, the optimizer's moments and its
step: whatever the step wrote into a Variable is undone when the step is bad. Only the
`Control` keeps what it learnt, and any `ControlState` inside the optimizer.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from jaxsafe._errors import error
from jaxsafe._tree import PyTree
from jaxsafe.guard import _transaction
from jaxsafe.guard._policy import Policy
from jaxsafe.guard._transaction import Check, Guarded
from jaxsafe.transforms import _control, _state
from jaxsafe.transforms._state import ControlState

__all__ = ["Control", "transaction"]


class Control(nnx.Variable[ControlState]):
    """What the guard remembers, as a Variable of its own; never rolled back.

    Read it on the host: `control.state.rejected`.

    Args:
      telemetry: attempts to remember in `control.state.history`.

    Example:
      >>> from jaxsafe.guard import nnx as guard_nnx
      >>> int(guard_nnx.Control().state.attempts)
      0
    """

    def __init__(self, *, telemetry: int = 0) -> None:
        super().__init__(_state.init_control(telemetry=telemetry))

    @property
    def state(self) -> ControlState:
        """The control state itself."""
        return self.get_value()


def transaction(
    train_step: Callable[..., PyTree],
    *,
    policy: Policy | None = None,
    check: Check | None = None,
    axis_name: Any = None,
) -> Callable[..., PyTree]:
    """Make `train_step(model, optimizer, *batch) -> aux` all or nothing.

    Value:     the Variables of all arguments as `train_step` left them where they and
               aux are finite; else as they were, bitwise. aux is handed back as it is.

    Args:
      train_step: updates its modules in place and returns aux; not jitted yet.
      policy: what to do about a bad step; None for `Policy()`.
      check: function of (state, aux), see `guard.transaction`; `state["variables"]` is
        a dict from path to array.
      axis_name: mapped axes over which all devices must agree, if the transaction
        itself runs inside `shard_map`; see `guard.transaction`.

    Returns:
      `step(control, model, optimizer, *batch) -> aux`, to be wrapped in `nnx.jit`.

    Raises:
      TypeError: `train_step` is no function, or the first argument is no `Control`.
      ValueError: the step added or removed Variables (when traced).

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from flax import nnx
      >>> from jaxsafe.guard import nnx as guard_nnx
      >>> def train_step(model, optimizer, x):
      ...     loss, grads = nnx.value_and_grad(lambda m: m(x).sum())(model)
      ...     optimizer.update(model, grads)
      ...     return loss
      >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
      >>> optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
      >>> control = guard_nnx.Control()
      >>> step = nnx.jit(guard_nnx.transaction(train_step))
      >>> loss = step(control, model, optimizer, jnp.full((1, 2), jnp.nan))
      >>> int(control.state.rejected), bool(jnp.isfinite(model.kernel[...]).all())
      (1, True)
    """
    policy = _transaction.transaction(train_step, policy=policy, check=check).policy

    def step(control: Control, *args: Any) -> PyTree:
        if not isinstance(control, Control):
            raise error(
                TypeError,
                "nnx.transaction",
                "the first argument must be a Control",
                type(control).__name__,
                "Call step(control, model, optimizer, *batch).",
            )
        old = _read(args)
        aux = train_step(*args)
        carry = Guarded(old, control.get_value())
        carry = _transaction.settle(
            carry, _read(args), aux, policy, check, axis_name=axis_name
        )
        _write(args, carry.state)
        control.set_value(carry.control)
        return aux

    return step


def _read(args: tuple[Any, ...]) -> dict[str, PyTree]:
    """The values of all Variables, with control state kept apart and in its type."""
    variables, controls = _variables(args)
    return {
        "variables": {name: v.get_value() for name, v in variables.items()},
        "controls": [_map_variables(lambda v: v.get_value(), c) for c in controls],
    }


def _write(args: tuple[Any, ...], state: dict[str, PyTree]) -> None:
    variables, controls = _variables(args)
    for name, variable in variables.items():
        variable.set_value(state["variables"][name])
    for control, values in zip(controls, state["controls"], strict=True):
        _map_variables(lambda v, x: v.set_value(x), control, values)


def _variables(
    args: tuple[Any, ...],
) -> tuple[dict[str, nnx.Variable[Any]], list[ControlState]]:
    """All Variables by path, and the control states made of some of them."""
    nodes = list(nnx.iter_graph(args))
    controls = [node for _, node in nodes if _control.is_control(node)]
    apart = {id(v) for c in controls for v in jax.tree.leaves(c, is_leaf=_is_variable)}
    variables = {
        "/".join(map(str, path)): node
        for path, node in nodes
        if _is_variable(node) and id(node) not in apart
    }
    return variables, controls


def _map_variables(f: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    return jax.tree.map(f, tree, *rest, is_leaf=_is_variable)


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)
