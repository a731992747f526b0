"""What a guard does about a bad step, as data."""

import dataclasses

from jaxsafe import _errors
from jaxsafe.transforms._control import Rules


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Policy(Rules):
    """How a guarded run reacts; checked when it is made.

    Attributes:
      backoff: factor on the learning rate after a rejected step, for an
        `adapt_learning_rate` in the optimizer's chain that did not see the fault
        itself; 1 leaves the rate alone.
      recovery_steps: committed steps that undo one back-off.
      min_factor: the learning rate is never multiplied by less.
      give_up_after: rejections in a row after which the guard halts.
      telemetry: attempts to remember in `control.history`; 0 for none.
      read_every: the host reads the flags every so many steps. 1 replays the exact
        step; more keeps an accelerator busy, and replays on the state of then.
      snapshot_every: keep a copy of the state after every so many committed steps, to
        roll back to; 0 for none. It costs one more state in memory, two for a moment.
      roll_back_after: rejections in a row after which the run goes back to the last
        good snapshot; the batches between are not tried again.

    Raises:
      ValueError: a value is out of its range.

    Example:
      >>> from jaxsafe import guard
      >>> guard.Policy(give_up_after=3).give_up_after
      3
    """

    telemetry: int = 0
    read_every: int = 1
    snapshot_every: int = 0
    roll_back_after: int = 3

    def __post_init__(self) -> None:
        self.check("Policy")
        _errors.check_count("Policy", "telemetry", self.telemetry, least=0)
        _errors.check_count("Policy", "read_every", self.read_every)
        _errors.check_count("Policy", "snapshot_every", self.snapshot_every, least=0)
        _errors.check_count("Policy", "roll_back_after", self.roll_back_after)
