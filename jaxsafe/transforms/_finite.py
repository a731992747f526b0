"""Non-finite updates: replace the entries, or skip the whole step.

`zero_nonfinite` is for gradients of which a few entries may be missing (a masked
simulation, a sparse embedding); `skip_nonfinite` for everything else. Neither ever
multiplies by 0, and the second never gives up by letting a NaN through, as
`optax.apply_if_finite` does.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsafe import _errors, _tree
from jaxsafe._tree import PyTree
from jaxsafe.transforms import _state
from jaxsafe.transforms._control import Rules
from jaxsafe.transforms._guarded import Guard, GuardedState, guard_update
from jaxsafe.transforms._state import ControlState


class ZeroNonfiniteState(NamedTuple):
    """What was replaced.

    Attributes:
      zeroed: int32[], entries of the last update that were replaced.
      zeroed_leaf: int32[], index of its first leaf with such an entry, or -1.
      zeroed_counts: int32[leaves], entries replaced so far; see `nonfinite_report`.

    Example:
      >>> from jaxsafe import transforms
      >>> transforms.zero_nonfinite().init({"a": 0.0, "b": 0.0}).zeroed_counts.shape
      (2,)
    """

    zeroed: jax.Array
    zeroed_leaf: jax.Array
    zeroed_counts: jax.Array


def zero_nonfinite() -> optax.GradientTransformationExtraArgs:
    """Replace every NaN and infinity by 0, and count them leaf by leaf.

    Put it before anything that takes a norm: a norm spreads one NaN over all leaves.
    (`optax.zero_nans` leaves infinities in place and counts nothing.)

    Value:     g where g is finite (of a complex number both parts), else 0.
    NaN in:    0 out, counted.

    Returns:
      An optax transformation; its state is a `ZeroNonfiniteState`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsafe import transforms
      >>> tx = transforms.zero_nonfinite()
      >>> g = jnp.array([jnp.nan, jnp.inf, 2.0])
      >>> updates, state = tx.update(g, tx.init(g))
      >>> [float(u) for u in updates], int(state.zeroed)
      ([0.0, 0.0, 2.0], 2)
    """

    def init(params: PyTree) -> ZeroNonfiniteState:
        return ZeroNonfiniteState(
            zeroed=jnp.zeros((), jnp.int32),
            zeroed_leaf=jnp.asarray(-1, jnp.int32),
            zeroed_counts=_no_counts(params),
        )

    def update(
        updates: PyTree, state: Any, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, ZeroNonfiniteState]:
        del params, extra
        counts = [_tree.count_nonfinite(x) for x in jax.tree.leaves(updates)]
        if not counts:
            return updates, state
        bad = jnp.stack(counts)
        return _tree.zero_nonfinite(updates), ZeroNonfiniteState(
            zeroed=bad.sum(dtype=jnp.int32),
            zeroed_leaf=_tree.first_true(bad > 0),
            zeroed_counts=_raised(state.zeroed_counts, bad),
        )

    return optax.GradientTransformationExtraArgs(init, update)


class SkipNonfiniteState(NamedTuple):
    """State of `skip_nonfinite`.

    Attributes:
      inner_state: state of the wrapped optimizer; untouched by a bad step.
      control: counters; advances on every attempt.
      nonfinite_counts: int32[leaves], steps in which this leaf of the gradient was not
        finite; see `nonfinite_report`.

    Example:
      >>> import optax
      >>> from jaxsafe import transforms
      >>> state = transforms.skip_nonfinite(optax.sgd(0.1)).init({"w": 0.0})
      >>> state.nonfinite_counts.shape
      (1,)
    """

    inner_state: Any
    control: ControlState
    nonfinite_counts: jax.Array


def skip_nonfinite(
    inner: optax.GradientTransformation,
    *,
    give_up_after: int = 10,
    telemetry: int = 0,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Skip a step whole where anything in it is not finite; change nothing else.

    What `optax.apply_if_finite` is for. Looked at are the gradients, `value=` if the
    loss is passed, and the update that comes out. After `give_up_after` bad steps in a
    row all updates are 0 for good, and `raise_if_halted` raises on the host; a bad
    update is never accepted. `guarded` adds clipping and a rate that backs off.

    Value:     the update of `inner` where all of that is finite, else zeros, with
               `inner_state` bitwise as it was.
    NaN in:    zeros out, counted for the leaf.

    Args:
      inner: any optax transformation.
      give_up_after: bad steps in a row after which the guard halts.
      telemetry: attempts to remember in `control.history`.
      axis_name: mapped axes over which all devices must agree; the gradients must
        already be averaged over them.

    Returns:
      An optax transformation; its state is a `SkipNonfiniteState`. Extra arguments
      reach `inner`.

    Raises:
      ValueError: an argument is out of its range.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jaxsafe import transforms
      >>> tx = transforms.skip_nonfinite(optax.adam(0.1))
      >>> params = {"w": jnp.zeros(2), "b": jnp.zeros(1)}
      >>> grads = {"w": jnp.array([jnp.nan, 1.0]), "b": jnp.ones(1)}
      >>> updates, state = tx.update(grads, tx.init(params))
      >>> float(updates["b"][0]), transforms.nonfinite_report(state, params).first
      (0.0, "['w']")
    """
    rules = Rules(backoff=1.0, give_up_after=give_up_after).check("skip_nonfinite")
    guard = Guard(rules, None, axis_name)
    inner = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> SkipNonfiniteState:
        control = _state.init_control(telemetry=telemetry)
        return SkipNonfiniteState(inner.init(params), control, _no_counts(params))

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree = None,
        *,
        value: Any = None,
        **extra: Any,
    ) -> tuple[PyTree, SkipNonfiniteState]:
        before = GuardedState(state.inner_state, state.control)
        updates, after, verdict = guard_update(
            inner, guard, updates, before, params, value=value, **extra
        )
        counts = _raised(state.nonfinite_counts, verdict.bad_leaves.astype(jnp.int32))
        return updates, SkipNonfiniteState(*after, counts)

    return optax.GradientTransformationExtraArgs(init, update)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NonfiniteReport:
    """Which leaves have been non-finite, read on the host.

    Attributes:
      first: path of the first bad leaf of the last step, or None if it was fine.
      counts: path -> steps (`skip_nonfinite`) or entries (`zero_nonfinite`) so far, of
        the leaves that were bad at all.

    Example:
      >>> from jaxsafe import transforms
      >>> print(transforms.NonfiniteReport(first=None, counts={"['w']": 2}).summary())
      last step finite; so far ['w'] 2
    """

    first: str | None
    counts: dict[str, int]

    def summary(self) -> str:
        """One line for a log."""
        now = f"first bad leaf {self.first}" if self.first else "last step finite"
        if not self.counts:
            return f"{now}; none so far"
        return f"{now}; so far " + ", ".join(f"{k} {n}" for k, n in self.counts.items())


def nonfinite_report(opt_state: PyTree, params: PyTree) -> NonfiniteReport:
    """Name the leaves that `skip_nonfinite` or `zero_nonfinite` found non-finite.

    It reads from the device, so call it where the program waits anyway.

    Args:
      opt_state: an optax state with one of the two in it; the outermost is read.
      params: what the optimizer was initialised with, for the names of its leaves.

    Raises:
      ValueError: neither is in `opt_state`, or `params` has another number of leaves.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsafe import transforms
      >>> tx, g = transforms.zero_nonfinite(), {"w": jnp.array([jnp.nan])}
      >>> _, state = tx.update(g, tx.init(g))
      >>> transforms.nonfinite_report(state, g).counts
      {"['w']": 1}
    """
    kinds = (SkipNonfiniteState, ZeroNonfiniteState)
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kinds))
    found = [leaf for leaf in leaves if isinstance(leaf, kinds)]
    if not found:
        raise _errors.error(
            ValueError,
            "nonfinite_report",
            "nothing in this state counts non-finite leaves",
            jax.tree.structure(opt_state),
            "Pass the state of `skip_nonfinite` or `zero_nonfinite`.",
        )
    state = found[0]
    if isinstance(state, SkipNonfiniteState):
        first, counts = state.control.bad_leaf, state.nonfinite_counts
    else:
        first, counts = state.zeroed_leaf, state.zeroed_counts
    numbers, names = np.asarray(counts).tolist(), _tree.leaf_paths(params)
    if len(numbers) != len(names):
        raise _errors.error(
            ValueError,
            "nonfinite_report",
            f"params must have {len(numbers)} leaves",
            len(names),
            "Pass the parameters that the optimizer was initialised with.",
        )
    at = int(first)
    return NonfiniteReport(
        first=names[at] if at >= 0 else None,
        counts={k: n for k, n in zip(names, numbers, strict=True) if n},
    )


def _no_counts(params: PyTree) -> jax.Array:
    return jnp.zeros((len(jax.tree.leaves(params)),), jnp.int32)


def _raised(counts: jax.Array, by: jax.Array) -> jax.Array:
    """Sum that stays at its largest value instead of turning negative."""
    most = jnp.iinfo(jnp.int32).max
    return jnp.where(counts > most - by, most, counts + by)
