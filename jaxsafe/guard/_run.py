"""The host driver: it alone reads flags, replays, rolls back, notes and raises.

                  committed
                 +---------+
                 v         |            rejected: replay, tell, note in the ledger
    start --> healthy -----+------------------------> skipping --+
                 ^                                     |  ^      | rejected: tell, note;
                 +------------- committed -------------+  +------+ every roll_back_after
                                                       |           in a row: roll back
                              give_up_after in a row   v
                                                     halted --> raise Halted(finding)

Invariants:
  1. The device decides, the host only reads: `control.ok` and `control.halted` say
     which arrow was taken, so every process of a distributed run takes the same one.
  2. The state that a replay starts from is the state that the fault met: a rejected
     step left it untouched. (Read late, with `read_every` above 1, later steps may
     have moved it; then a replay may show nothing, and the finding is None.)
  3. A roll-back goes to a state that two later committed steps have shown to be good,
     and never touches control state: the rate stays lowered, the rejections counted.
  4. Nothing is saved unless the step before it was committed; so a run resumes in
     healthy, and all it has to know is in the checkpoint.
  5. A batch that is in the ledger is not tried again, unless the run has resumed before
     it: then it meets the batch as it did the first time, and goes on as if it had
     never been killed.

Transitions: `_Driver.read` takes the arrows of the steps it reads; `_replay`,
`_roll_back` and `_halt` are what happens on the way. `Records` is all that is on disk.
"""

import dataclasses
import enum
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsafe import _errors, _tree
from jaxsafe._errors import NonFiniteError, error
from jaxsafe._tree import PyTree
from jaxsafe.diagnose import Attribution, Finding
from jaxsafe.guard import _transaction, _verdict
from jaxsafe.guard._attribution import attributed
from jaxsafe.guard._bundles import bundle_path, diagnosed
from jaxsafe.guard._checkpoint import Checkpoints, check_checkpoints
from jaxsafe.guard._events import Event, Halted
from jaxsafe.guard._policy import Policy
from jaxsafe.guard._records import Records
from jaxsafe.guard._snapshot import Snapshots
from jaxsafe.guard._transaction import Guarded, Transaction
from jaxsafe.guard._verdict import Verdict
from jaxsafe.transforms import _control
from jaxsafe.transforms._state import ControlState


class _Mode(enum.Enum):
    HEALTHY = "healthy"
    SKIPPING = "skipping"
    HALTED = "halted"


def run(
    step: Callable[..., tuple[Guarded, PyTree]],
    carry: Guarded,
    batches: Iterable[Any] | Callable[[int], Iterable[Any]],
    *,
    policy: Policy | None = None,
    ledger: MutableMapping[int, str] | None = None,
    checkpoints: Checkpoints | None = None,
    snapshots: str = "device",
    on_event: Callable[[Event], None] | None = None,
    thorough: bool = False,
    bundles: str | os.PathLike[str] | None = None,
    replay_batches: int = 64,
) -> Guarded:
    """Drive a guarded step over batches; skip the bad ones, and say why they were bad.

    With `checkpoints` and a `Ledger` a script that was killed, at whatever moment, is
    started again as it is: it goes on from the newest checkpoint at the batch that
    follows it, and computes bit for bit what it would have computed.

    With several processes, each calls it with the same batches: all read the same
    flags, so all replay, roll back and raise alike.

    Args:
      step: a `guard.transaction`, usually jitted: `jax.jit(step, donate_argnums=0)`.
      carry: `step.init(state)` of the transaction.
      batches: any iterable over the batches of the whole run (chain the epochs), the
        same ones in the same order whenever the script is started; a tuple is passed as
        several arguments. Or a function from a position to an iterable that starts
        there: a resumed run then reads nothing twice.
      policy: None for the policy of the transaction. Reading and rolling back follow
        this one; counting and halting happen on the device, by the transaction's own.
      ledger: bad batches, position -> reason: a dict, or a `Ledger` on disk. Rejected
        ones are added, batches that are in it already are not tried.
      checkpoints: where to resume from and to save to, after committed steps only.
        With snapshots, the good one is saved too.
      snapshots: where the policy's snapshots are kept: "device", or "host" (pinned
        memory), which costs no memory on the device and a transfer for each.
      on_event: called on the host for every step that was read, in order.
      thorough: a rejected step is run again once, which tells a transient fault of the
        machine; True goes on to tell device, compiler and precision apart, see
        `reexecute`.
      bundles: a directory for `diagnose.save_bundle`: one file `batch-000012.zip` for
        each finding, which `python -m jaxsafe replay` reproduces elsewhere. It holds
        state and batch.
      replay_batches: with snapshots, the first roll-back or halt of a series replays
        the steps since the good one, a few times, to tell learning rate, data,
        activation and loss apart; see `diagnose.attribute`. For that their batches are
        kept, not copied (a loader must not overwrite them). If there are more than
        this, `attribution` is None; 0 keeps none.

    Returns:
      The last carry.

    Raises:
      Halted: `give_up_after` steps in a row were rejected; `finding` says why.
      TypeError: `step` is no transaction, or `checkpoints` no `Checkpoints`.
      ValueError: `replay_batches` is negative; `checkpoints` do not fit `carry`, would
        replace one that was trained elsewhere, lie behind the last batch, or have been
        run to their end by this process.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsafe import guard
      >>> def train_step(mean, x):
      ...     return 0.5 * mean + 0.5 * jnp.log(x), x
      >>> step = guard.transaction(train_step)
      >>> ledger = {}
      >>> carry = guard.run(
      ...     jax.jit(step), step.init(jnp.zeros(())),
      ...     [jnp.asarray(1.0), jnp.asarray(-1.0)], ledger=ledger)
      >>> int(carry.control.rejected), list(ledger)
      (1, [1])
    """
    transaction = _transaction_of(step)
    policy = policy or transaction.policy
    check_checkpoints(checkpoints)
    _errors.check_count("guard.run", "replay_batches", replay_batches, least=0)
    copies = Snapshots(
        policy.snapshot_every, carry.state, place=snapshots, keep=replay_batches
    )
    ledger = {} if ledger is None else ledger
    records = Records(checkpoints, ledger, copies, transaction.check)
    driver = _Driver(
        transaction,
        policy,
        records,
        copies,
        on_event or (lambda _: None),
        step=step,
        thorough=thorough,
        bundles=bundles,
    )
    carry, start = records.resume(carry)
    after = _look(carry)
    pending: list[_Step] = []
    for index, batch in enumerate(_from(batches, start), start):
        if records.skips(index):
            continue
        args = batch if isinstance(batch, tuple) else (batch,)
        carry, aux = step(carry, *args)
        before, after = after, _look(carry)
        pending.append(_Step(index, args, aux, after.flags, before.controls))
        if len(pending) == policy.read_every:
            carry, pending = driver.read(pending, carry), []
    carry = driver.read(pending, carry)
    records.finish(carry)
    return carry


def _from(
    batches: Iterable[Any] | Callable[[int], Iterable[Any]], start: int
) -> Iterator[Any]:
    if callable(batches) and not isinstance(batches, Iterable):
        return iter(batches(start))
    rest = iter(batches)
    passed = sum(1 for _ in itertools.islice(rest, start))
    if passed < start:
        raise error(
            ValueError,
            "guard.run",
            f"there are fewer batches than the {start} that the checkpoint has seen",
            passed,
            "Pass the batches of the whole run, from its beginning.",
        )
    return rest


@dataclasses.dataclass(frozen=True, slots=True)
class _Step:
    index: int
    args: tuple[Any, ...]
    aux: Any
    flags: Any
    before: list[ControlState]


class _Look(NamedTuple):
    """bool[2]: committed; something was non-finite. And a copy of all control state."""

    flags: jax.Array
    controls: list[ControlState]


def _look(carry: Guarded) -> _Look:
    """What the host may want to know of a carry. Not read yet."""
    # Values of their own: the carry is deleted when the next step donates it.
    return _copy_and_stack(_control.find_controls(carry))


@jax.jit
def _copy_and_stack(controls: list[ControlState]) -> _Look:
    *inner, outer = controls
    seen_inside = [~c.ok for c in inner]
    bad = jnp.stack([outer.bad_leaf >= 0, *seen_inside]).any()
    return _Look(jnp.stack([outer.ok, bad]), jax.tree.map(jnp.copy, controls))


class _Driver:
    """The state machine of the module docstring."""

    def __init__(
        self,
        transaction: Transaction,
        policy: Policy,
        records: Records,
        snapshots: Snapshots,
        on_event: Callable[[Event], None],
        *,
        step: Callable[..., tuple[Guarded, PyTree]],
        thorough: bool,
        bundles: str | os.PathLike[str] | None,
    ) -> None:
        self.step = step
        self.bundles = bundles
        self.thorough = thorough
        self.transaction = transaction
        self.policy = policy
        self.records = records
        self.snapshots = snapshots
        self.on_event = on_event
        self.mode = _Mode.HEALTHY
        self.finding: Finding | None = None
        self.verdict: Verdict | None = None
        self.replayed = False
        self.first_rejected: _Step | None = None  # of the series
        self.attribution: Attribution | None = None

    def read(self, steps: list[_Step], carry: Guarded) -> Guarded:
        """Wait for the device and take every step's arrow; return where to go on."""
        added = 0  # to the rejections in a row
        for step in steps:
            committed, nonfinite = jax.device_get(step.flags)
            if committed:
                added = 0
                self._commit(step)
            else:
                added += 1
                self._reject(step, carry, nonfinite)
        if not steps:
            return carry
        if self.mode is _Mode.HEALTHY:
            self.snapshots.note_committed(carry.state)
            self.records.offer(carry, steps[-1].index + 1, steps[-1].aux)
            return carry
        if bool(carry.control.halted):
            self._attribute(carry)
            self._halt(steps[-1], carry)
        in_a_row, often = (
            int(carry.control.rejected_in_a_row),
            self.policy.roll_back_after,
        )
        # Read late, the count may have jumped over a multiple.
        passed = in_a_row // often > (in_a_row - added) // often
        if self.policy.snapshot_every and passed:
            self._attribute(carry)
            return self._roll_back(steps[-1], carry)
        return carry

    def _commit(self, step: _Step) -> None:
        self.mode, self.replayed = _Mode.HEALTHY, False
        self.finding = self.verdict = self.attribution = self.first_rejected = None
        self.snapshots.note_batch(step.args)
        self.records.note_committed(step.index)
        self._tell("committed", step)

    def _reject(self, step: _Step, carry: Guarded, nonfinite: bool) -> None:
        self.verdict = _verdict.of_step(
            self.step, carry, step.before, step.args, step.aux, thorough=self.thorough
        )
        gone = self.verdict is not None and self.verdict.kind == "transient"
        if nonfinite and not gone and not self.replayed:
            self.finding, self.replayed = self._replay(step, carry), True
        if self.mode is _Mode.HEALTHY:
            self.first_rejected = step
        self.mode = _Mode.SKIPPING
        reason = _reason(self.finding, self.verdict, nonfinite)
        self.records.note_rejected(step.index, reason)
        self._tell("rejected", step)

    def _replay(self, step: _Step, carry: Guarded) -> Finding | None:
        transaction = self.transaction

        @functools.wraps(transaction.train_step)
        def judged(state: PyTree, *batch: Any) -> PyTree:
            new_state, aux = transaction.train_step(state, *batch)
            looked_at, _ = _transaction.examine(new_state, aux, transaction.check)
            # A guard inside the step hides the fault from the new state; the norm of
            # the gradient that it rejected still shows it.
            norms = [c.grad_norm for c in _control.find_controls(new_state)]
            return looked_at, norms

        # What control state recorded of earlier faults is no fault of this step.
        carry = _verdict.as_before(carry, _tree.zero_nonfinite(step.before))
        into = bundle_path(self.bundles, step.index)
        if transaction.axis_name is not None:
            # It lives inside a shard_map, and cannot be taken out of it.
            return diagnosed(self.step, carry, *step.args, into=into)
        return diagnosed(judged, carry.state, *step.args, into=into)

    def _attribute(self, carry: Guarded) -> None:
        """Find out the cause of a series of rejections, once."""
        step, self.first_rejected = self.first_rejected, None
        if step is not None:
            self.attribution = attributed(
                self.step,
                self.transaction,
                _verdict.as_before(carry, step.before),
                step.args,
                snapshots=self.snapshots,
                finding=self.finding,
            )

    def _roll_back(self, step: _Step, carry: Guarded) -> Guarded:
        self._tell("rolled_back", step)
        return self.snapshots.restore(carry)

    def _halt(self, step: _Step, carry: Guarded) -> None:
        self.mode = _Mode.HALTED
        self.records.halt()
        self._tell("halted", step)
        message = error(
            NonFiniteError,
            "guard.run",
            "too many rejected steps in a row",
            f"{int(carry.control.rejected_in_a_row)} of "
            f"{int(carry.control.attempts)} attempts, the last at batch {step.index}",
            "The state is the last committed one; see `.carry` and `.finding`.",
        )
        text = str(message)
        for record in (self.attribution, self.finding):
            text = f"{text}\n{record.summary()}" if record else text
        raise Halted(text, self.finding, carry, attribution=self.attribution)

    def _tell(self, kind: str, step: _Step) -> None:
        self.on_event(
            Event(
                kind=kind,
                batch=step.index,
                aux=step.aux,
                finding=self.finding,
                verdict=self.verdict,
                attribution=self.attribution,
            )
        )


def _reason(finding: Finding | None, verdict: Verdict | None, nonfinite: bool) -> str:
    if verdict is not None and verdict.kind == "transient":
        return "transient: gone when the step was run again"
    if finding is not None:
        why = f"{finding.cause}: {finding.primitive} at {finding.file}:{finding.line}"
    elif nonfinite:
        why = "non-finite, not reproduced"
    else:
        why = "finite, but the check said no"
    return f"{why} ({verdict.kind})" if verdict else why


def _transaction_of(step: Any) -> Transaction:
    """The transaction inside `step`, through any number of `jax.jit`."""
    while not isinstance(step, Transaction):
        if not hasattr(step, "__wrapped__"):
            raise error(
                TypeError,
                "guard.run",
                "step must be a guard.transaction, jitted or not",
                type(step).__name__,
                "Wrap your train step: guard.transaction(train_step).",
            )
        step = step.__wrapped__
    return step
