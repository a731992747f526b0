"""Run a bad step again, in other ways, to tell what kind of fault it is.

A step is pure and a rejected one left the state untouched, so the same call can be made
again in place. Each way takes one suspect out of the game; the first one that comes out
good names the culprit:

    again        same program, same device       good: a transient fault of the machine
    elsewhere    same program, another device    good: this device
    op by op     same arithmetic, no compiler    good: the compiler rewrote it
    float64      same mathematics, more range    good: precision, range
    none of them                                 the mathematics, or the data

(A function that is not jitted is compiled in place of "op by op".)

Invariants:
  1. Every way gets buffers of its own, so a function may donate what it is given.
  2. On several processes all take the same way: what decides is a flag that the device
     computed, and `bitwise` decides nothing.
  3. A way that cannot be gone (another device for a sharded array, a dtype that the
     function insists on) is recorded as "not run" and decides nothing.
"""

import dataclasses
import json
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsafe import _tree
from jaxsafe._errors import error
from jaxsafe._tree import PyTree
from jaxsafe.guard._transaction import Guarded
from jaxsafe.transforms import _control
from jaxsafe.transforms._state import ControlState

_MEANING = {
    "finite": "Nothing is wrong with this call.",
    "transient": "The same program on the same numbers came out otherwise: a transient "
    "fault of the machine, or a program that is not deterministic.",
    "reproduced": "Bad again: the data, the program, or something that is always "
    "wrong here. reexecute with thorough=True tells which.",
    "device": "Bad on this device, good on another one: take this device out.",
    "compiler": "Compiled and op by op disagree: the compiler rewrote the arithmetic. "
    "jax.lax.optimization_barrier between the operations keeps them as written.",
    "precision": "Good in float64: too little range or precision. Find the line with "
    "jaxsafe.diagnose.first_nonfinite, and rescale, or use jaxsafe.ops there.",
    "program": "Bad in every way: the mathematics or the data. "
    "jaxsafe.diagnose.first_nonfinite names the line.",
}
# Which way clears the program, and whom it accuses by doing so.
_ACCUSED = {
    "again": "transient",
    "elsewhere": "device",
    "op by op": "compiler",
    "compiled": "compiler",
    "float64": "precision",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rerun:
    """One way of running the step again.

    Attributes:
      way: "again", "elsewhere", "op by op", "compiled" or "float64".
      outcome: "good", "bad" or "not run".
      note: which device, or why it was not run.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsafe import guard
      >>> verdict = guard.reexecute(jax.jit(jnp.log), jnp.asarray(-1.0))
      >>> verdict.reruns[0].way, verdict.reruns[0].outcome
      ('again', 'bad')
    """

    way: str
    outcome: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.way}: {self.outcome}" + (f" ({self.note})" if self.note else "")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What running a step again has shown; plain Python values only.

    Attributes:
      kind: "transient", "device", "compiler", "precision", "program"; "reproduced"
        where nobody looked further than the same call once more; "finite" where the
        call was good to begin with.
      bitwise: whether the same call gave the same bits. If not, and the fault came
        back, the program is not deterministic.
      reruns: what was run, in order.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsafe import guard
      >>> guard.reexecute(jax.jit(jnp.exp), jnp.asarray(100.0)).kind
      'precision'
    """

    kind: str
    bitwise: bool
    reruns: tuple[Rerun, ...]

    def summary(self) -> str:
        """The verdict as text of at most 80 columns."""
        bits = "the same bits" if self.bitwise else "other bits"
        first, *others = map(str, self.reruns)
        lines = [f"{first}, {bits}", *others, *textwrap.wrap(_MEANING[self.kind], 76)]
        return "\n".join([self.kind, *(f"  {line}"[:80] for line in lines)])

    def to_json(self) -> str:
        """The verdict as one JSON object."""
        return json.dumps(dataclasses.asdict(self))


class Outcome(NamedTuple):
    """What a run showed: whether it was bad, and what to compare bit by bit."""

    bad: bool
    shown: PyTree


def reexecute(
    fn: Callable[..., PyTree],
    *args: Any,
    observed: PyTree = None,
    thorough: bool = True,
) -> Verdict:
    """Run a bad step again, and tell the machine from the program.

    The same call is made once more; then, if `thorough` and the fault comes back, on
    another device if the arguments live on one and there is a second; op by op; and
    with every floating argument cast to float64 (random numbers of the default dtype
    are then other numbers). It stops at the first run that comes out good.

    Bad is a result that a guard in it rejected (`control.ok` is False); a result
    without control state, if it holds a NaN or an infinity. A guard among the arguments
    that has halted is asked as if it had not.

    Memory: one more copy of the arguments, and of the result, for a moment.

    Args:
      fn: the step, as it ran in training: a `guard.transaction` or any pure function,
        jitted or not. It may donate its arguments; they are copied first.
      *args: its arguments, such as `carry, *batch`. The carry that came out of a
        rejected step will do: its model state is the one that went in. (A loss scale
        in it has moved on; `guard.run` goes back to the one of the step.)
      observed: what `fn(*args)` returned in training; None calls it to see.
      thorough: False makes the same call again and leaves it at that.

    Returns:
      A `Verdict`.

    Raises:
      TypeError: `fn` cannot be called.
      ValueError: an argument was donated and is gone.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsafe import guard
      >>> x = jnp.full(3, 2e38)
      >>> verdict = guard.reexecute(jax.jit(lambda x, y: x * 0.5 + y * 0.5), x, x)
      >>> print(verdict.summary())  # XLA on CPU makes it (x + y) * 0.5
      compiler
        again: bad, the same bits
        elsewhere: ...
        op by op: good
        Compiled and op by op disagree: the compiler rewrote the arithmetic.
        jax.lax.optimization_barrier between the operations keeps them as written.
    """
    _check(fn, args)
    args = _control.map_controls(_awake, args)
    seen = _run(fn, args) if observed is None else _outcome(observed)
    return _judge(fn, args, seen, thorough=thorough)


def _awake(control: ControlState) -> ControlState:
    return control._replace(halted=jnp.zeros_like(control.halted))


def of_step(
    step: Callable[..., PyTree],
    carry: Guarded,
    before: list[ControlState],
    args: tuple[Any, ...],
    aux: PyTree,
    *,
    thorough: bool,
) -> Verdict | None:
    """The verdict on a step that `guard.run` saw rejected.

    Args:
      step: what the run calls.
      carry: the last carry that was read.
      before: the control states of the carry that the step met.
      args: its batch.
      aux: what it returned.
      thorough: see `reexecute`.

    Returns:
      None where a later step has moved the state on, or where the guard had halted
      already: then there is nothing to run again.
    """
    outer = before[-1]
    since = int(carry.control.attempts) - int(outer.attempts)
    if bool(outer.halted) or since > int(carry.control.rejected_in_a_row):
        return None
    seen = Outcome(bad=True, shown=_shown((carry, aux)))
    return _judge(step, (as_before(carry, before), *args), seen, thorough=thorough)


def as_before(carry: Guarded, before: list[ControlState]) -> Guarded:
    """`carry` with the control states that a rejected step met."""
    each = iter(before)
    return _control.map_controls(lambda _: next(each), carry)


def _judge(
    fn: Callable[..., PyTree], args: tuple[Any, ...], seen: Outcome, *, thorough: bool
) -> Verdict:
    again = _run(fn, args)
    bitwise = bool(_same_bits(_arrays(seen.shown), _arrays(again.shown)))
    reruns = [Rerun(way="again", outcome=_word(again))]
    if seen.bad != again.bad:
        kind = "transient"
    elif not again.bad:
        kind = "finite"
    elif not thorough:
        kind = "reproduced"
    else:
        kind = "program"
        for rerun in _other_ways(fn, args):
            reruns.append(rerun)
            if rerun.outcome == "good":
                kind = _ACCUSED[rerun.way]
                break
    return Verdict(kind=kind, bitwise=bitwise, reruns=tuple(reruns))


def _other_ways(fn: Callable[..., PyTree], args: tuple[Any, ...]) -> Iterator[Rerun]:
    yield _elsewhere(fn, args)
    if hasattr(fn, "lower"):  # jitted
        with jax.disable_jit():
            rerun = _try("op by op", fn, args)
        yield rerun
    else:
        yield _try("compiled", jax.jit(fn), args)
    with jax.enable_x64(True):
        wide = _map_nodes(lambda control: control, _widen, args)
        rerun = _try("float64", fn, wide)
    yield rerun


def _elsewhere(fn: Callable[..., PyTree], args: tuple[Any, ...]) -> Rerun:
    arrays = [x for x in jax.tree.leaves(args) if isinstance(x, jax.Array)]
    here = {device for x in arrays for device in x.devices()}
    if len(here) != 1:
        note = f"the arguments live on {len(here)} devices"
        return Rerun(way="elsewhere", outcome="not run", note=note)
    (device,) = here
    others = [d for d in jax.local_devices(backend=device.platform) if d != device]
    if not others:
        note = "there is no other device"
        return Rerun(way="elsewhere", outcome="not run", note=note)
    moved = _map_arrays(lambda x: jax.device_put(x, others[0]), args)
    return _try("elsewhere", fn, moved, note=f"{others[0]}, not {device}")


def _try(
    way: str, fn: Callable[..., PyTree], args: tuple[Any, ...], *, note: str = ""
) -> Rerun:
    # A step need not work in another dtype or place, and a verdict that fails in the
    # middle of a fault would hide the fault.
    try:
        outcome = _word(_run(fn, args))
    except Exception as reason:
        first_line = next(iter(str(reason).splitlines()), "")
        note = f"{type(reason).__name__}: {first_line}"
        outcome = "not run"
    return Rerun(way=way, outcome=outcome, note=note)


def _run(fn: Callable[..., PyTree], args: tuple[Any, ...]) -> Outcome:
    return _outcome(fn(*_map_arrays(jnp.copy, args)))


def _outcome(result: PyTree) -> Outcome:
    flags = [control.ok for control in _control.find_controls(result)]
    good = jnp.stack(flags).all() if flags else _tree.all_finite(_arrays(result))
    return Outcome(bad=not bool(good), shown=_shown(result))


def _shown(result: PyTree) -> PyTree:
    """`result` without carries: a rejected step hands the state back as it was."""

    def is_carry(node: Any) -> bool:
        return isinstance(node, Guarded)

    return jax.tree.map(
        lambda node: () if is_carry(node) else node, result, is_leaf=is_carry
    )


def _word(outcome: Outcome) -> str:
    return "bad" if outcome.bad else "good"


@jax.jit
def _same_bits(a: list[jax.Array], b: list[jax.Array]) -> jax.Array:
    # Compared on the device: a sharded result need not be here as a whole.
    if [(x.shape, x.dtype) for x in a] != [(x.shape, x.dtype) for x in b]:
        return jnp.asarray(False)
    same = [(_bits(x) == _bits(y)).all() for x, y in zip(a, b, strict=True)]
    return jnp.stack(same).all() if same else jnp.asarray(True)


def _bits(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(x)
    if jnp.iscomplexobj(x):
        return jnp.stack([_bits(x.real), _bits(x.imag)])
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jax.lax.bitcast_convert_type(x, f"uint{jnp.finfo(x.dtype).bits}")
    return x


def _widen(leaf: Any) -> Any:
    if not _is_array(leaf) or not _tree.is_inexact(leaf):
        return leaf
    return jnp.asarray(leaf).astype(
        jnp.complex128 if jnp.iscomplexobj(leaf) else jnp.float64
    )


def _arrays(tree: PyTree) -> list[jax.Array]:
    numbers = (bool, int, float, complex)
    leaves = jax.tree.leaves(tree)
    return [jnp.asarray(x) for x in leaves if _is_array(x) or isinstance(x, numbers)]


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind not in "OSUMm"
    return isinstance(leaf, jax.Array)


def _map_arrays(change: Callable[[jax.Array], jax.Array], tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: change(x) if isinstance(x, jax.Array) else x, tree)


def _map_nodes(
    at_control: Callable[[ControlState], ControlState],
    at_leaf: Callable[[Any], Any],
    tree: PyTree,
) -> PyTree:
    is_control = _control.is_control
    return jax.tree.map(
        lambda node: at_control(node) if is_control(node) else at_leaf(node),
        tree,
        is_leaf=is_control,
    )


def _check(fn: Any, args: tuple[Any, ...]) -> None:
    if not callable(fn):
        raise error(
            TypeError,
            "reexecute",
            "fn must be a function",
            type(fn).__name__,
            "Pass the step as it ran in training.",
        )
    for path, leaf in jax.tree_util.tree_flatten_with_path(args)[0]:
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise error(
                ValueError,
                "reexecute",
                "an argument was donated and is gone",
                f"args{jax.tree_util.keystr(path)}",
                "Pass the carry that the step returned, and never donate the batch.",
            )
