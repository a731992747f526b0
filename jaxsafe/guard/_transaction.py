"""Any training step as a transaction: all of it is committed, or none of it.

    old state --- train_step ---> new state, aux
        |                             |
        |            every leaf finite, and no guard inside said no?
        |                 | yes                     | no
        |                 v                         v
        |             new state                 old state, bitwise
        +---------------------------------------------^
                 control state advances either way

Invariants:
  1. After a rejected step every leaf of the model state is bitwise what it was.
  2. Control state (any `ControlState`, ours or one inside the state) is never rolled
     back: it advances on every attempt.
  3. Old and new are selected, never mixed by arithmetic: 0 * NaN is NaN.
  4. A halted guard commits nothing.
  5. All devices take one decision: of sharded arrays each flag is a sum over the whole;
     inside shard_map and pmap, `axis_name` makes them ask each other.

The step is opaque here, so it is run and then judged. `apply_gradients` sees the
gradients and decides before the update, which is cheaper.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsafe import _gate, _tree
from jaxsafe._errors import error
from jaxsafe._tree import PyTree
from jaxsafe.guard._policy import Policy
from jaxsafe.transforms import _control, _state
from jaxsafe.transforms._state import ControlState

Check = Callable[[PyTree, PyTree], PyTree]


class Guarded(NamedTuple):
    """What a guarded step carries.

    Attributes:
      state: the user's state; rolled back by a bad step.
      control: what the guard remembers; advances on every attempt.

    Example:
      >>> from jaxsafe import guard
      >>> guard.Guarded._fields
      ('state', 'control')
    """

    state: Any
    control: ControlState


@dataclasses.dataclass(frozen=True)
class Transaction:
    """A guarded training step; made by `transaction`.

    Attributes:
      train_step: the user's step, as it was given.
      policy: what to do about a bad step.
      check: what has to be finite, or None for everything.
      axis_name: mapped axes over which all devices must agree.

    Example:
      >>> from jaxsafe import guard
      >>> step = guard.transaction(lambda state, x: (state + x, x))
      >>> carry, aux = step(step.init(0.0), float("inf"))
      >>> float(carry.state)
      0.0
    """

    train_step: Callable[..., tuple[PyTree, PyTree]]
    policy: Policy = dataclasses.field(default_factory=Policy)
    check: Check | None = None
    axis_name: Any = None

    def init(self, state: PyTree) -> Guarded:
        """Return the first carry.

        Raises:
          ValueError: a leaf of `state` is non-finite already, so that every step would
            be rejected.
        """
        bad = -1 if self.check else _first_bad_leaf_on_host(state)
        if bad >= 0:
            raise error(
                ValueError,
                "transaction",
                "the state to start from is not finite",
                f"leaf {_tree.leaf_path(state, bad)}",
                "Repair it, or say with `check=` which leaves have to be finite.",
            )
        control = _state.init_control(telemetry=self.policy.telemetry)
        # A model that holds functions has Python numbers as settings, which it reads
        # while tracing; anywhere else they are state, and jit wants arrays.
        if not any(map(_tree.is_fixed, jax.tree.leaves(state))):
            state = jax.tree.map(_tree.strong, state)
        return Guarded(state, control)

    def __call__(self, carry: Guarded, *batch: Any) -> tuple[Guarded, PyTree]:
        """Run the step once; commit it if everything that came out is finite."""
        result = self.train_step(carry.state, *batch)
        if not (isinstance(result, tuple) and len(result) == 2):
            raise error(
                TypeError,
                "transaction",
                "train_step must return (state, aux)",
                type(result).__name__,
                "Return the new state and what you want to look at, such as the loss.",
            )
        new_state, aux = result
        settled = settle(
            carry, new_state, aux, self.policy, self.check, axis_name=self.axis_name
        )
        return settled, aux


def transaction(
    train_step: Callable[..., tuple[PyTree, PyTree]],
    *,
    policy: Policy | None = None,
    check: Check | None = None,
    axis_name: Any = None,
) -> Transaction:
    """Make `train_step(state, *batch) -> (state, aux)` all or nothing.

    The result is pure and not jitted: write `jax.jit(step, donate_argnums=0)`, or scan
    over it. The batch is not donated, so that a rejected step can be replayed.

    Value:     carry as after `train_step` where every floating leaf of the new state
               and of aux is finite; else the old state, bitwise, and a control state
               that tells. aux is handed back as it is, NaN included.
    NaN in:    a NaN batch changes nothing but the counters.

    Args:
      train_step: any step, with its whole state as first argument: parameters,
        optimizer state, statistics, random key. Leaves that are no arrays, such as the
        functions in an equinox module, stay what they are (jit with
        `equinox.filter_jit` then).
      policy: what to do about a bad step; None for `Policy()`.
      check: function of (new state, aux). If it returns a boolean, that has to hold
        too, for example `lambda state, aux: aux["loss"] < 1e4`. If it returns a tuple,
        list or dict, its floating leaves have to be finite, and nothing else: name what
        matters where some infinity is there on purpose. None checks everything.
      axis_name: mapped axes over which all devices must agree, if the transaction
        itself runs inside `shard_map` or `pmap`. Nothing is needed under jit, whatever
        the shardings, nor for a `train_step` with a shard_map inside.

    Returns:
      `step`, with `carry = step.init(state)` and `carry, aux = step(carry, *batch)`;
      `carry.state` and `carry.control` can be read at any time.

    Raises:
      TypeError: `train_step` cannot be called, or returns something else (when traced).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsafe import guard
      >>> def train_step(mean, x):
      ...     return 0.9 * mean + 0.1 * x, {"loss": (x - mean) ** 2}
      >>> step = guard.transaction(train_step)
      >>> carry = step.init(jnp.asarray(1.0))
      >>> jitted = jax.jit(step, donate_argnums=0)
      >>> carry, aux = jitted(carry, jnp.asarray(jnp.nan))
      >>> float(carry.state), int(carry.control.rejected)
      (1.0, 1)
    """
    for name, value in (("train_step", train_step), ("check", check)):
        if not (callable(value) or (name == "check" and value is None)):
            raise error(
                TypeError,
                "transaction",
                f"{name} must be a function",
                type(value).__name__,
                "Pass the function itself.",
            )
    return Transaction(train_step, policy or Policy(), check, axis_name)


def settle(
    carry: Guarded,
    new_state: PyTree,
    aux: PyTree,
    policy: Policy,
    check: Check | None,
    *,
    axis_name: Any = None,
) -> Guarded:
    """Commit `new_state` or keep the old one; advance the control state."""
    looked_at, condition = examine(new_state, aux, check)
    old_inner = _control.find_controls(carry.state)
    new_inner = _control.find_controls(new_state)
    agreed = [control.ok for control in new_inner]
    bad_leaf = _tree.first_nonfinite_leaf(looked_at)
    if axis_name is not None:  # a device without a bad leaf says -1
        bad_leaf = lax.pmax(bad_leaf, axis_name)
    ok = jnp.stack([bad_leaf < 0, condition, ~carry.control.halted, *agreed]).all()
    ok = _gate.agree(ok, axis_name)

    control = _control.advance(
        carry.control,
        # The rate is for the optimizer's chain to scale: a step is opaque here.
        dataclasses.replace(policy, backoff=1.0),
        ok=ok,
        grad_norm=new_inner[0].grad_norm if new_inner else jnp.asarray(jnp.nan),
        bad_leaf=bad_leaf,
        clipped=_any_clipped(old_inner, new_inner),
        value=_control.loss_in(aux),
        axis_name=axis_name,
    )
    state = _roll_back(ok, new_state, carry.state, policy)
    return Guarded(state, control)


def examine(
    new_state: PyTree, aux: PyTree, check: Check | None
) -> tuple[PyTree, jax.Array]:
    """What has to be finite (`control.bad_leaf` counts its leaves), and bool[]."""
    everything, condition = (new_state, aux), jnp.asarray(True)
    answer = everything if check is None else check(new_state, aux)
    if _is_boolean(answer):
        answer, condition = everything, jnp.asarray(answer).all()
    return _control.blanked(answer), condition


def _is_boolean(answer: Any) -> bool:
    if isinstance(answer, tuple | list | dict):
        return False
    return bool(jnp.issubdtype(jnp.result_type(answer), jnp.bool_))


def _roll_back(ok: jax.Array, new: PyTree, old: PyTree, policy: Policy) -> PyTree:
    """`select`, but control state inside the state advances in any case."""
    is_control = _control.is_control

    def node(path: Any, n: Any, o: Any) -> Any:
        if not is_control(n):
            return _tree.select_leaf(ok, path, n, o)
        missed = _control.advance(
            o,
            policy,
            ok=jnp.asarray(False),
            grad_norm=n.grad_norm,
            bad_leaf=n.bad_leaf,
            clipped=jnp.asarray(False),
        )
        return _tree.select(ok | ~n.ok, n, missed)

    _tree.check_same_structure(new, old)
    return jax.tree_util.tree_map_with_path(node, new, old, is_leaf=is_control)


def _any_clipped(old: list[ControlState], new: list[ControlState]) -> jax.Array:
    flags = [n.clipped > o.clipped for o, n in zip(old, new, strict=False)]
    return jnp.stack(flags).any() if flags else jnp.asarray(False)


def _first_bad_leaf_on_host(state: PyTree) -> int:
    leaves = jax.tree.leaves(state)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return -1  # nothing can be read while tracing
    return int(_tree.first_nonfinite_leaf(_control.blanked(state)))
