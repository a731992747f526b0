"""Control state: what a guard remembers, and how it moves on.

Model state (parameters, moments, statistics) is rolled back by a bad step. Control
state never is: it advances on *every* attempt, or a learning rate could not fall.

    attempt finite      rejected_in_a_row = 0, rate_factor climbs back towards 1
    attempt rejected    committed_in_a_row = 0, rate_factor * backoff (>= min_factor)
    give_up_after rejections in a row      halted, for good; nothing is committed again

Invariants: `attempts` counts every call; `rejected <= attempts`; one of the two counts
in a row is 0; `rate_factor` lies in [min_factor, 1], and if memory broke that, the next
step takes it for 1, see `rate`; `halted` never goes back to False; structure and dtypes
never change.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxsafe import _errors, _gate, _tree
from jaxsafe._errors import NonFiniteError
from jaxsafe._gate import Verdict
from jaxsafe._tree import PyTree
from jaxsafe.transforms._state import ControlState, History, pack_control, write_row


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How control state moves on; the arguments of every guarding function.

    Attributes:
      backoff: factor on the learning rate after a rejected step; 1 leaves it alone.
      recovery_steps: committed steps that undo one back-off.
      min_factor: the learning rate is never multiplied by less.
      give_up_after: rejections in a row after which the guard halts.
    """

    backoff: float = 0.5
    recovery_steps: int = 200
    min_factor: float = 1e-3
    give_up_after: int = 10

    def check(self, function: str) -> "Rules":
        """Raise ValueError, in the name of `function`, unless all values make sense."""
        _errors.check_fraction(function, "backoff", self.backoff)
        _errors.check_count(function, "recovery_steps", self.recovery_steps)
        _errors.check_fraction(function, "min_factor", self.min_factor)
        _errors.check_count(function, "give_up_after", self.give_up_after)
        return self

    def without_halting(self) -> "Rules":
        """The same, for a layer that decides by itself when to give up."""
        return dataclasses.replace(self, give_up_after=2**31 - 1)


def advance(
    control: ControlState,
    rules: Rules,
    *,
    ok: jax.Array,
    grad_norm: jax.Array,
    bad_leaf: jax.Array,
    clipped: jax.Array,
    value: Any = None,
    lower: jax.Array | bool = False,
    axis_name: Any = None,
) -> ControlState:
    """Return the control state after one attempt; `lower` backs off in any case."""
    in_a_row = jnp.where(ok, 0, counted(control.rejected_in_a_row, ~ok))
    fields = {
        "attempts": optax.safe_increment(control.attempts),
        "rejected": counted(control.rejected, ~ok),
        "rejected_in_a_row": in_a_row,
        "committed_in_a_row": jnp.where(ok, counted(control.committed_in_a_row, ok), 0),
        "clipped": counted(control.clipped, ok & clipped),
        "bad_leaf": jnp.where(ok, -1, bad_leaf),
        "ok": ok,
        "halted": control.halted | (in_a_row >= rules.give_up_after),
        "stalled": control.stalled,
        "rate_factor": _next_rate_factor(
            rate(control, rules), ok & ~jnp.asarray(lower), rules
        ),
        "loss_scale": control.loss_scale,
        "grad_norm": grad_norm,
    }
    history = control.history
    if isinstance(history, History):
        history = recorded(
            history,
            control.attempts,
            value=value,
            axis_name=axis_name,
            grad_norm=grad_norm,
            rate_factor=control.rate_factor,
            loss_scale=control.loss_scale,
            ok=ok,
            clipped=clipped,
            update_ratio=math.nan,
        )
    return pack_control(fields, history)


def advance_by(
    control: ControlState,
    rules: Rules,
    verdict: Verdict,
    *,
    ok: jax.Array,
    clipped: jax.Array,
    value: Any,
    axis_name: Any,
    lower: jax.Array | bool = False,
) -> ControlState:
    """`advance` for a layer that has looked at gradients."""
    return advance(
        control,
        rules,
        ok=ok,
        grad_norm=verdict.norm,
        bad_leaf=verdict.bad_leaf,
        clipped=clipped,
        value=value,
        lower=lower,
        axis_name=axis_name,
    )


def rate(control: ControlState, rules: Rules) -> jax.Array:
    """float32[]: the factor for this step; 1 where no step can have left it so.

    Nothing rolls control state back: a factor that became NaN would reject every step
    from then on.
    """
    factor = control.rate_factor
    known = (factor > 0) & (factor <= 1)
    return jnp.where(known, jnp.maximum(factor, rules.min_factor), 1.0)


def find_controls(tree: PyTree) -> list[ControlState]:
    """Every `ControlState` inside `tree`, in order."""
    leaves = jax.tree.leaves(tree, is_leaf=is_control)
    return [leaf for leaf in leaves if is_control(leaf)]


def is_control(node: Any) -> bool:
    """Whether `node` is control state, which is never rolled back."""
    return isinstance(node, ControlState)


def map_controls(change: Callable[[ControlState], Any], tree: PyTree) -> PyTree:
    """`tree` with every control state changed, all else as it is."""
    return jax.tree.map(
        lambda node: change(node) if is_control(node) else node,
        tree,
        is_leaf=is_control,
    )


def blanked(tree: PyTree) -> PyTree:
    """`tree` with control state blanked, leaf by leaf, so that positions stay.

    Control state may hold a NaN on purpose: the norm of the gradient it rejected.
    """
    return map_controls(lambda c: jax.tree.map(lambda _: 0, c), tree)


def loss_in(aux: PyTree) -> Any:
    """What of aux is the loss: aux itself, or aux["loss"], if that is a number."""
    loss = aux.get("loss") if isinstance(aux, Mapping) else aux
    numeric = isinstance(loss, jax.Array | float) and jnp.ndim(loss) == 0
    return loss if numeric else None


def raise_if_halted(opt_state: PyTree) -> None:
    """Raise on the host if any guard inside `opt_state` has given up.

    Call it where the program waits for the device anyway, such as when it logs: it
    reads one flag, and every process of a distributed run raises alike.

    Args:
      opt_state: any pytree, such as an optax state or a `ControlState`.

    Raises:
      NonFiniteError: a guard has halted.
      ValueError: there is no guard in `opt_state`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jaxsafe import transforms
      >>> tx = transforms.guarded(optax.sgd(0.1))
      >>> transforms.raise_if_halted(tx.init({"w": jnp.zeros(2)}))
    """
    controls = find_controls(opt_state)
    if not controls:
        raise _errors.error(
            ValueError,
            "raise_if_halted",
            "there is no guard in this state",
            jax.tree.structure(opt_state),
            "Pass the state of `transforms.guarded`, or a `ControlState`.",
        )
    for control in controls:
        if _number(control.halted):
            raise _errors.error(
                NonFiniteError,
                "raise_if_halted",
                "the guard has given up, nothing was committed any more",
                f"{_number(control.rejected_in_a_row)} rejected steps in a row, "
                f"{_number(control.rejected)} of {_number(control.attempts)} in all",
                "Replay the last batch with `jaxsafe.diagnose.first_nonfinite`.",
            )


def counted(counter: jax.Array, happened: jax.Array) -> jax.Array:
    """`counter`, one more if it happened; stays at its largest value."""
    return jnp.where(happened, optax.safe_increment(counter), counter)


def _number(field: Any) -> Any:
    """A field on the host; inside an nnx optimizer each is wrapped in a Variable."""
    return jnp.asarray(field).item()


def _next_rate_factor(factor: jax.Array, ok: jax.Array, rules: Rules) -> jax.Array:
    climb = rules.backoff ** (-1.0 / rules.recovery_steps)
    lower = jnp.maximum(factor * rules.backoff, rules.min_factor)
    higher = jnp.minimum(factor * climb, 1.0)
    return jnp.where(ok, higher, lower).astype(jnp.float32)


def recorded(
    history: History,
    step: jax.Array,
    *,
    value: Any,
    axis_name: Any = None,
    **fields: Any,
) -> History:
    """`history` with one more step, the one with this number."""
    loss = math.nan if value is None else loss_of(value, axis_name)
    return write_row(history, step, {"loss": loss, **fields})


def update_ratio(updates: PyTree, params: PyTree) -> jax.Array | float:
    """float32[]: norm of the update over that of the parameters, NaN if that is 0."""
    if params is None:
        return math.nan
    norm = _gate.judge(params).norm
    ratio = _gate.judge(updates).norm / jnp.where(norm > 0, norm, 1)
    return jnp.where(norm > 0, ratio, jnp.nan)


def loss_of(value: Any, axis_name: Any) -> jax.Array:
    """float32[]: one number that stands for the loss, the same on every device."""
    loss = _tree.scalar(value)
    return loss if axis_name is None else lax.pmean(loss, axis_name)
