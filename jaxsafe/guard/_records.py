"""What a run keeps outside the device: checkpoints, and the ledger beside them.

A batch that is in the ledger is not tried, with one exception: the run has resumed
before it, and noted it itself before it was killed. See `_ledger`.
"""

from collections.abc import MutableMapping

from jaxsafe._errors import error
from jaxsafe._tree import PyTree
from jaxsafe.guard import _transaction
from jaxsafe.guard._checkpoint import Checkpoints
from jaxsafe.guard._ledger import Ledger
from jaxsafe.guard._snapshot import Snapshots
from jaxsafe.guard._transaction import Check, Guarded


class Records:
    """Saves, resumes, notes; every part of it may be missing.

    Args:
      checkpoints: None for none.
      ledger: position -> reason.
      snapshots: saved and restored with a checkpoint, if there are any.
      check: the check of the transaction, which says what has to be finite.
    """

    def __init__(
        self,
        checkpoints: Checkpoints | None,
        ledger: MutableMapping[int, str],
        snapshots: Snapshots,
        check: Check | None,
    ) -> None:
        self.checkpoints = checkpoints
        self.ledger = ledger
        self.snapshots = snapshots
        self.check = check
        self.last: tuple[int, PyTree] | None = None  # unless it was rejected
        self.retry: frozenset[int] = frozenset()
        # Without checkpoints a run starts over: nothing has to happen once more.
        if checkpoints is not None and isinstance(ledger, Ledger):
            self.retry = ledger.tentative

    def resume(self, carry: Guarded) -> tuple[Guarded, int]:
        """The carry and the position to start from."""
        if self.checkpoints is None:
            return carry, 0
        if self.checkpoints.finished:
            raise error(
                ValueError,
                "guard.run",
                "these checkpoints belong to a run that has come to its end",
                self.checkpoints.latest(),
                "Chain all epochs into one iterable, or use a directory for each run.",
            )
        begun = int(carry.control.attempts)
        carry, start = self.checkpoints.restore(carry)
        if start and begun not in (0, int(carry.control.attempts)):
            raise error(
                ValueError,
                "guard.run",
                f"a carry that was trained would be lost to the checkpoint {start}",
                f"{begun} attempts",
                "Start from step.init(state) to resume, or use another directory.",
            )
        packed = self.snapshots.pack()
        if start and packed is not None:
            packed = self.checkpoints.restore_snapshot(packed, start)
            self.snapshots.unpack(packed, carry.state)
        return carry, start

    def skips(self, index: int) -> bool:
        """Whether the batch is known to be bad, and is not to be met once more."""
        return index in self.ledger and index not in self.retry

    def note_rejected(self, index: int, reason: str) -> None:
        """Put the batch into the ledger."""
        self.last = None
        if self.checkpoints is not None and isinstance(self.ledger, Ledger):
            self.ledger.note(index, reason)
        else:
            self.ledger[index] = reason

    def note_committed(self, index: int) -> None:
        """Take the batch out of the ledger, where it was good the second time."""
        if index in self.retry:
            self.ledger.pop(index, None)

    def offer(self, carry: Guarded, position: int, aux: PyTree) -> None:
        """Save what a committed step has left, if it is time for it."""
        self.last = (position, aux)
        if self.checkpoints is not None and self.checkpoints.is_due(position):
            self._save(self.checkpoints, carry, position, aux)

    def finish(self, carry: Guarded) -> None:
        """Save the end of the run, and wait until all is on disk."""
        if self.checkpoints is None:
            return
        if self.last is not None:
            self._save(self.checkpoints, carry, *self.last)
        self.checkpoints.wait()
        self.checkpoints.finished = True
        if isinstance(self.ledger, Ledger):
            self.ledger.settle(before=self.checkpoints.latest() or 0)

    def halt(self) -> None:
        """Wait until all is on disk that a run which starts again will need."""
        if isinstance(self.ledger, Ledger):
            # Met again they would halt the run again, however often it is started.
            self.ledger.settle()
        if self.checkpoints is not None:
            self.checkpoints.wait()

    def _save(
        self, checkpoints: Checkpoints, carry: Guarded, position: int, aux: PyTree
    ) -> None:
        looked_at, _ = _transaction.examine(carry.state, aux, self.check)
        checkpoints.save(
            carry,
            position,
            aux=aux,
            must_be_finite=looked_at,
            snapshot=self.snapshots.pack(),
        )
