"""What a range test found: frozen records of plain Python values, and their picture."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from jaxsafe import _errors, _text
from jaxsafe.tune._sharpness import Sharpness


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RatePoint:
    """What became of one rate.

    Attributes:
      rate: the learning rate.
      loss: at the end, averaged over the last steps; NaN if it diverged.
      diverged_at: the step, from 0, at which it did, or None.
      losses: the loss of every step, NaN after it diverged; of a growing rate the one
        loss after this rate.

    Example:
      >>> from jaxsafe import tune
      >>> print(tune.RatePoint(
      ...     rate=0.5, loss=float("nan"), diverged_at=7, losses=()).outcome)
      diverged at step 7
    """

    rate: float
    loss: float
    diverged_at: int | None
    losses: tuple[float, ...]

    @property
    def outcome(self) -> str:
        """In words."""
        if self.diverged_at is not None:
            return f"diverged at step {self.diverged_at}"
        return f"{self.loss:.4g}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RangeTest:
    """Which rates train.

    Attributes:
      points: the rates, the lowest first.
      untrained: the loss of the same batches at the rate 0.
      steps: batches seen.
      growing: whether it was one run with a growing rate.
      largest_stable: the largest rate that, like all below it, neither diverged nor
        ended above `untrained`; None if there is none.
      suggested: the rate to train with; None if no rate lowered the loss.
      sharpness: what was set beside, or None.

    Example:
      >>> from jaxsafe import tune
      >>> point = tune.RatePoint(rate=0.1, loss=0.5, diverged_at=None, losses=())
      >>> print(tune.RangeTest(
      ...     points=(point,), untrained=1.0, steps=20, growing=False,
      ...     largest_stable=0.1, suggested=0.1, sharpness=None).summary())
      RangeTest(1 rate, 20 steps, suggested 0.1, stable up to 0.1, the end)
      rate         loss at the end
      0.1                      0.5  suggested
      0 (untrained)              1
    """

    points: tuple[RatePoint, ...]
    untrained: float
    steps: int
    growing: bool
    largest_stable: float | None
    suggested: float | None
    sharpness: Sharpness | None

    @property
    def diverged(self) -> dict[float, int]:
        """The step at which it diverged, for each rate that did."""
        return {p.rate: p.diverged_at for p in self.points if p.diverged_at is not None}

    def summary(self) -> str:
        """The outcome and every rate, as text of at most 80 columns."""
        shown = self.points
        if len(shown) > 40:
            shown = shown[:: math.ceil(len(shown) / 40)]
        rows = [(f"{p.rate:.3g}", p.outcome, self._mark(p)) for p in shown]
        rows.append(("0 (untrained)", f"{self.untrained:.4g}", ""))
        lines = _text.table(("rate", "loss at the end", ""), rows).splitlines()
        if self.sharpness is not None:
            lines.append(self.sharpness.summary())
        return "\n".join([repr(self), *(line.rstrip() for line in lines)])

    def __repr__(self) -> str:
        """One line."""
        count = len(self.points)
        head = f"{count} rate{'' if count == 1 else 's'}, {self.steps} steps"
        if self.largest_stable is None:
            return f"RangeTest({head}, none trains: pass a lower low=)"
        if self.suggested is None:
            return f"RangeTest({head}, none lowers the loss)"
        end = self.largest_stable == self.points[-1].rate
        return (
            f"RangeTest({head}, suggested {self.suggested:.3g}, stable up to "
            f"{self.largest_stable:.3g}{', the end' if end else ''})"
        )

    def _mark(self, point: RatePoint) -> str:
        marks = {self.largest_stable: "largest stable", self.suggested: "suggested"}
        return marks.get(point.rate, "")

    def to_json(self) -> str:
        """The test as one JSON object; a number that is not finite is null."""
        return _text.to_json(self)

    def plot(self, where: Any) -> Any:
        """Draw loss over rate with matplotlib (extra `report`).

        Args:
          where: a path such as "rates.svg" to write, or matplotlib axes to draw on.

        Returns:
          The path, or the axes.

        Raises:
          ImportError: matplotlib is not installed.
        """
        if not isinstance(where, str | Path):
            _draw(self, where)
            return where
        try:
            from matplotlib.figure import Figure
        except ImportError as reason:
            raise _errors.error(
                ImportError,
                "plot",
                "matplotlib is missing",
                reason,
                "Install it: pip install 'jaxsafe[report]'.",
            ) from reason
        figure = Figure(figsize=(7.0, 4.0), layout="constrained")
        _draw(self, figure.add_subplot())
        figure.savefig(where)
        return Path(where)


def _draw(test: RangeTest, axes: Any) -> None:
    fine = [p for p in test.points if math.isfinite(p.loss)]
    style = "-" if test.growing else "o-"
    axes.plot([p.rate for p in fine], [p.loss for p in fine], style, label="loss")
    axes.set_xscale("log")
    axes.axhline(test.untrained, color="grey", linestyle=":", label="untrained")
    height = max([p.loss for p in fine] + [test.untrained])
    gone = list(test.diverged) if not test.growing else list(test.diverged)[:1]
    if gone:
        axes.plot(gone, [height] * len(gone), "x", color="tab:red", label="diverged")
    if test.suggested is not None:
        label = f"suggested {test.suggested:.3g}"
        axes.axvline(test.suggested, color="tab:green", linestyle="--", label=label)
    if test.sharpness is not None and 0 < test.sharpness.largest_rate < math.inf:
        label = f"2 / sharpness = {test.sharpness.largest_rate:.3g}"
        axes.axvline(
            test.sharpness.largest_rate, color="black", linestyle="-.", label=label
        )
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss" if test.growing else "loss at the end")
    axes.legend()
