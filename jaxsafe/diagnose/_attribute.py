"""Which of the four causes was it? Decided by experiment, not by looks.

The last good state and the batches since then are all that is needed: the steps are run
again with one thing changed at a time, and whichever change keeps them finite names the
cause.

    replay as it was            finite: not reproduced
    no learning (rate 0)        finite: the learning rate; 1/2, 1/4 say how much less
    no learning, still bad:
      another batch instead     bad as well: the model or the loss, whatever the data
                                finite: that batch. Bad numbers in it: the data; numbers
                                like all the others: the model or the loss
    model or loss               whichever the first non-finite equation belongs to
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsafe import _errors, _program, _tree
from jaxsafe._causes import CAUSES
from jaxsafe._tree import PyTree
from jaxsafe.diagnose._diagnose import first_nonfinite
from jaxsafe.diagnose._finding import Finding
from jaxsafe.transforms import _control

# From (new state, aux): what has to be finite, and bool[] that has to be true.
Judge = Callable[[PyTree, PyTree], tuple[PyTree, Any]]

_NAME = "attribute"
# A batch with a number so many times larger than all in the others is bad data.
_WILD = 100.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One replay.

    Attributes:
      rate: what the learning rate was multiplied by.
      replaced: position of the batch that another one stood in for, or None.
      failed_at: position of the first batch that failed, or None if all went well.
      loss: of the last step that was run; NaN if it returned none.

    Example:
      >>> from jaxsafe import diagnose
      >>> print(diagnose.Trial(rate=0.5, replaced=None, failed_at=3, loss=1.0))
      rate x 0.5: failed at batch 3
    """

    rate: float
    replaced: int | None
    failed_at: int | None
    loss: float

    def __str__(self) -> str:
        change = "" if self.replaced is None else f", batch {self.replaced} replaced"
        end = (
            "finite" if self.failed_at is None else f"failed at batch {self.failed_at}"
        )
        return f"rate x {self.rate:g}{change}: {end}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """What the replays have shown; plain Python values only.

    Attributes:
      cause: "learning rate", "input data", "activation", "loss", or "not reproduced".
      rate: the largest factor on the learning rate that kept all steps finite, where
        that is the cause.
      trials: what was run, in order.
      finding: the first non-finite equation of the step that failed, or None where
        nothing was non-finite.

    Example:
      >>> from jaxsafe import diagnose
      >>> diagnose.Attribution(
      ...     cause="not reproduced", rate=None, trials=(), finding=None).summary()
      'not reproduced'
    """

    cause: str
    rate: float | None
    trials: tuple[Trial, ...]
    finding: Finding | None

    def summary(self) -> str:
        """The cause, and the replays that show it, as text of at most 80 columns."""
        head = self.cause
        if self.rate:
            head = f"{head}: {self.rate:g} times the rate stays finite"
        return "\n".join([head, *(f"  {trial}" for trial in self.trials)])

    def to_json(self) -> str:
        """The attribution as one JSON object; a number that is not finite is null."""
        plain = dataclasses.asdict(dataclasses.replace(self, finding=None))
        for trial in plain["trials"]:
            trial["loss"] = trial["loss"] if math.isfinite(trial["loss"]) else None
        plain["finding"] = self.finding and json.loads(self.finding.to_json())
        return json.dumps(plain, allow_nan=False)


def attribute(
    train_step: Callable[..., tuple[PyTree, PyTree]],
    state: PyTree,
    batches: Sequence[Any],
    *,
    rates: tuple[float, ...] = (0.5, 0.25),
    limit: float | None = None,
) -> Attribution:
    """Replay training steps with one thing changed at a time, and name the cause.

    A step fails if its new state or aux is not finite, or if a guard inside the state
    rejects it. A step is opaque, so a lower rate is tried by scaling the whole change
    of the state, its moments too; guards inside neither count nor back off meanwhile.

    Args:
      train_step: `train_step(state, *batch) -> (state, aux)`, pure, not jitted; of a
        `guard.transaction` its `.train_step`.
      state: the last state that is known to be good.
      batches: what was trained on since then, the last of which failed; a tuple is
        several arguments.
      rates: factors on the learning rate to try besides 1 and 0.
      limit: a loss (aux, or aux["loss"]) above it is a failure too.

    Returns:
      An `Attribution`.

    Raises:
      ValueError: there are no batches, or a rate is not between 0 and 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsafe import diagnose
      >>> def train_step(w, x):
      ...     loss, slope = jax.value_and_grad(lambda w: jnp.sum((w * x) ** 4))(w)
      ...     return w - 0.1 * slope, loss
      >>> found = diagnose.attribute(train_step, jnp.ones(3), [jnp.full(3, 3.0)] * 6)
      >>> found.cause
      'learning rate'
    """
    return replayed(train_step, state, batches, rates=rates, limit=limit)


def _everything(new_state: PyTree, aux: PyTree) -> tuple[PyTree, Any]:
    return (_control.blanked(new_state), aux), True


def replayed(
    train_step: Callable[..., tuple[PyTree, PyTree]],
    state: PyTree,
    batches: Sequence[Any],
    *,
    rates: tuple[float, ...] = (0.5, 0.25),
    limit: float | None = None,
    judge: Judge = _everything,
    known: Finding | None = None,
) -> Attribution:
    """`attribute` for a caller who judges steps by himself, and knows what failed.

    Args:
      train_step: as for `attribute`.
      state: as for `attribute`.
      batches: as for `attribute`.
      rates: as for `attribute`.
      limit: as for `attribute`.
      judge: says which steps are good.
      known: the diagnosis of the last step, which need not be made again.
    """
    _check(batches, rates)
    if any(map(callable, jax.tree.leaves(state))):
        train_step, state = _arrays_only(train_step, state)
    run = _Replay(train_step, state, [_as_args(b) for b in batches], limit, judge)
    first = run.trial(1.0)
    if first.failed_at is None:
        return Attribution(
            cause="not reproduced", rate=None, trials=(first,), finding=None
        )
    still = run.trial(0.0)
    if still.failed_at is None:
        slower = [run.trial(rate) for rate in sorted(rates, reverse=True)]
        fine = [t.rate for t in slower if t.failed_at is None]
        return Attribution(
            cause="learning rate",
            rate=fine[0] if fine else None,
            trials=(first, *slower, still),
            finding=known or run.finding(first.failed_at),
        )
    trials, finding = [first, still], known
    if finding is None or _is_of_learning(finding):
        finding = run.finding(still.failed_at, rate=0.0)
    stand_in = run.good_batch(besides=still.failed_at)
    if stand_in is not None:
        trials.append(run.trial(0.0, replaced=(still.failed_at, stand_in)))
    cause = "loss" if finding is None else _group(finding)
    if stand_in is not None and run.is_bad_data(still.failed_at, finding):
        cause = "input data"
    return Attribution(cause=cause, rate=None, trials=tuple(trials), finding=finding)


def _arrays_only(
    train_step: Callable[..., tuple[PyTree, PyTree]], state: PyTree
) -> tuple[Callable[..., tuple[PyTree, PyTree]], PyTree]:
    """The same step on a state without the functions and settings of a module."""

    def arrays(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x if hasattr(x, "dtype") else None, tree)

    @functools.wraps(train_step)
    def step(known: PyTree, *batch: Any) -> tuple[PyTree, PyTree]:
        whole = jax.tree.map(
            lambda a, x: x if a is None else a,
            known,
            state,
            is_leaf=lambda x: x is None,
        )
        new_state, aux = train_step(whole, *batch)
        return arrays(new_state), aux

    return step, arrays(state)


class _Outcome(NamedTuple):
    state: PyTree
    ok: jax.Array
    loss: jax.Array


@dataclasses.dataclass(frozen=True)
class _Replay:
    """The steps to run again."""

    train_step: Callable[..., tuple[PyTree, PyTree]]
    state: PyTree
    batches: list[tuple[Any, ...]]
    limit: float | None
    judge: Judge

    def trial(self, rate: float, *, replaced: tuple[int, int] | None = None) -> Trial:
        """Run all batches until one fails."""
        batches, at = list(self.batches), None
        if replaced:
            at, by = replaced
            batches[at] = batches[by]
        state, loss, failed = self.state, math.nan, None
        for i, batch in enumerate(batches):
            done = self._step(state, rate, batch)
            state, loss = done.state, float(done.loss)
            if not bool(done.ok):
                failed = i
                break
        return Trial(rate=rate, replaced=at, failed_at=failed, loss=loss)

    def finding(self, position: int, *, rate: float = 1.0) -> Finding | None:
        """Diagnosis of the step that fails at `position`."""
        state = self.state
        for batch in self.batches[:position]:
            state = self._step(state, rate, batch).state

        def looked_at(state: PyTree, *batch: Any) -> PyTree:
            new_state, aux = self.train_step(state, *batch)
            # A guard inside hides the fault, but not the norm of what it rejected.
            norms = [c.grad_norm for c in _control.find_controls(new_state)]
            return self.judge(new_state, aux)[0], norms

        clean = _control.map_controls(_tree.zero_nonfinite, state)
        return first_nonfinite(looked_at, clean, *self.batches[position])

    def good_batch(self, *, besides: int) -> int | None:
        """Position of a batch that goes well from the good state, if there is one."""
        for i, batch in enumerate(self.batches):
            if i != besides and bool(self._step(self.state, 0.0, batch).ok):
                return i
        return None

    def is_bad_data(self, position: int, finding: Finding | None) -> bool:
        """Whether the numbers of a batch are bad, or wild beside all the others."""
        if finding is not None and finding.cause == "input_data":
            return True
        sizes = [_size(batch) for batch in self.batches]
        others = [s for i, s in enumerate(sizes) if i != position and math.isfinite(s)]
        if not math.isfinite(sizes[position]):
            return True
        return sizes[position] > _WILD * max(others, default=math.inf)

    def _step(self, state: PyTree, rate: float, batch: tuple[Any, ...]) -> _Outcome:
        limit = math.inf if self.limit is None else self.limit
        rate = jnp.float32(rate)
        return _one_step(self.train_step, self.judge, limit, state, rate, *batch)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _one_step(
    train_step: Callable[..., tuple[PyTree, PyTree]],
    judge: Judge,
    limit: float,
    state: PyTree,
    rate: jax.Array,
    *batch: Any,
) -> _Outcome:
    new, aux = train_step(state, *batch)
    controls = _control.find_controls(new)
    loss = _control.loss_in(aux)
    loss = jnp.asarray(jnp.nan if loss is None else loss, jnp.float32)
    looked_at, condition = judge(new, aux)
    fine = [_tree.all_finite(looked_at), jnp.asarray(condition), ~(loss > limit)]
    ok = jnp.stack([*fine, *(c.ok for c in controls)]).all()
    # Back-off and recovery belong to the run, not to the experiment.
    old = iter(_control.find_controls(state))
    new = _control.map_controls(lambda _: next(old), new)
    new = jax.tree.map(lambda n, o: _part(n, o, rate), new, state)
    return _Outcome(new, ok, loss)


def _part(new: Any, old: Any, rate: jax.Array) -> Any:
    """The old value and this part of its change."""
    if not _tree.is_inexact(new):
        return new
    moved = old + (new - old) * rate.astype(jnp.asarray(new).real.dtype)
    # Selected: the change may be infinite where it is not wanted.
    return jnp.where(rate == 1, new, jnp.where(rate == 0, old, moved))


def _is_of_learning(finding: Finding) -> bool:
    return CAUSES[finding.cause].group == "learning rate"


def _group(finding: Finding) -> str:
    """Activation or loss; a slope that is infinite without learning is one of them."""
    learning = _is_of_learning(finding)
    return "activation" if learning else CAUSES[finding.cause].group


def _size(batch: tuple[Any, ...]) -> float:
    """Largest magnitude among the floating numbers of a batch; NaN if there is one."""
    leaves = [x for x in jax.tree.leaves(batch) if _tree.is_inexact(x)]
    sizes = [float(_program.peak(x)) for x in leaves]
    return math.nan if any(map(math.isnan, sizes)) else max(sizes, default=0.0)


def _as_args(batch: Any) -> tuple[Any, ...]:
    return batch if isinstance(batch, tuple) else (batch,)


def _check(batches: Sequence[Any], rates: tuple[float, ...]) -> None:
    if not len(batches):
        raise _errors.error(
            ValueError,
            _NAME,
            "there is no batch to replay",
            "batches=[]",
            "Pass the batches since the good state, the one that failed last.",
        )
    for rate in rates:
        _errors.check_fraction(_NAME, "a rate", rate)
