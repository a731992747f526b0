"""What a guarded run tells: one event for each step, and the error that ends it."""

import dataclasses
from typing import Any

from jaxsafe._errors import NonFiniteError
from jaxsafe.diagnose import Attribution, Finding
from jaxsafe.guard._transaction import Guarded
from jaxsafe.guard._verdict import Verdict


class Halted(NonFiniteError):
    """The run has given up: too many rejected steps in a row.

    Attributes:
      finding: what made the last rejected steps fail, or None where nothing was
        non-finite, or the replay showed nothing.
      carry: state and control state; the state is the last committed one.
      attribution: learning rate, data, activation or loss, found out by replaying the
        steps since the last good snapshot; None without one.

    Example:
      >>> from jaxsafe import guard
      >>> issubclass(guard.Halted, FloatingPointError)
      True
    """

    def __init__(
        self,
        message: str,
        finding: Finding | None,
        carry: Guarded,
        *,
        attribution: Attribution | None = None,
    ) -> None:
        super().__init__(message)
        self.finding = finding
        self.carry = carry
        self.attribution = attribution


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One step, as the host saw it.

    Attributes:
      kind: "committed", "rejected", "rolled_back" (after the rejection that led to it)
        or "halted" (for the last step of a run that gave up).
      batch: position of its batch in `batches`.
      aux: what the step returned, NaN included.
      finding: the diagnosis of a rejected step; None where nothing was non-finite (the
        check said no), or where the replay did not show the fault again.
      verdict: of a rejected step that was run again, see `reexecute`; None where a
        later step had moved the state on.
      attribution: of a roll-back or a halt, and of what is rejected after a roll-back:
        what the replays since the last good snapshot have shown, made once for a
        series of rejections; else None.

    Example:
      >>> from jaxsafe import guard
      >>> guard.Event(kind="committed", batch=0, aux=0.5).kind
      'committed'
    """

    kind: str
    batch: int
    aux: Any
    finding: Finding | None = None
    verdict: Verdict | None = None
    attribution: Attribution | None = None
