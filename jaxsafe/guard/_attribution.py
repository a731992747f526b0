"""The cause of a series of rejections, by replaying what led there."""

import functools
import warnings
from typing import Any

from jaxsafe._tree import PyTree
from jaxsafe.diagnose import Attribution, Finding
from jaxsafe.diagnose._attribute import replayed
from jaxsafe.guard import _transaction
from jaxsafe.guard._snapshot import Snapshots
from jaxsafe.guard._transaction import Guarded, Transaction


def attributed(
    step: Any,
    transaction: Transaction,
    carry: Guarded,
    batch: tuple[Any, ...],
    *,
    snapshots: Snapshots,
    finding: Finding | None,
) -> Attribution | None:
    """Replay the steps since the last good snapshot, the last one on `batch`.

    Args:
      step: the step that is driven, around `transaction`.
      transaction: holds the step of the user.
      carry: with the control states that the rejected step met.
      batch: of the first rejected step of a series.
      snapshots: holds the good state and the batches since.
      finding: the diagnosis of that step.

    Returns:
      None where there is nothing to replay, or the replay failed.
    """
    known = snapshots.replayable(carry)
    if known is None:
        return None
    good, batches = known
    batches = [*batches, batch]
    # A replay needs memory for one state more, and must not end the run.
    try:
        if transaction.axis_name is not None:
            # It lives inside a shard_map, and cannot be taken out of it; its own
            # control state says what it thinks of a step.
            return replayed(step, good, batches, judge=_as_it_says, known=finding)
        judge = functools.partial(_transaction.examine, check=transaction.check)
        return replayed(
            transaction.train_step, good.state, batches, judge=judge, known=finding
        )
    except Exception as reason:
        warnings.warn(
            f"guard.run: the cause was not found out (got {reason}). The run goes on.",
            stacklevel=2,
        )
        return None


def _as_it_says(new_state: PyTree, aux: PyTree) -> tuple[PyTree, bool]:
    del new_state, aux
    return (), True
