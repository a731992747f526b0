"""What a run's telemetry says, in words: frozen records of plain Python values."""

import dataclasses

from jaxsafe import _text


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """One thing that is wrong, how it shows, and what to try.

    Attributes:
      fault: in a few fixed words, such as "rate too high".
      topic: what to change: "learning rate", "batch size", "schedule", "clip", "data".
      evidence: what was seen, with its numbers.
      remedies: what to try, the first thing first.

    Example:
      >>> from jaxsafe import tune
      >>> print(tune.Hint(fault="rate too high", topic="learning rate",
      ...     evidence=("the loss rose",), remedies=("a third of it",)).summary())
      rate too high (learning rate)
        seen: the loss rose
        try: a third of it
    """

    fault: str
    topic: str
    evidence: tuple[str, ...]
    remedies: tuple[str, ...]

    def summary(self) -> str:
        """The fault, its evidence and remedies, a line each."""
        lines = [f"{self.fault} ({self.topic})"]
        for word, said in (("seen", self.evidence), ("try", self.remedies)):
            for text in said:
                lines += _text.wrap(f"{word}: {text}")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """All that the telemetry of a run shows.

    Attributes:
      steps: steps that were read.
      hints: what is wrong, the worst first; () if nothing is.
      note: what could not be judged, and why; "" if all could.

    Example:
      >>> from jaxsafe import tune
      >>> print(tune.Advice(steps=100, hints=(), note="").summary())
      Advice(100 steps: nothing to change)
    """

    steps: int
    hints: tuple[Hint, ...]
    note: str

    @property
    def ok(self) -> bool:
        """Whether there is nothing to change."""
        return not self.hints

    @property
    def faults(self) -> tuple[str, ...]:
        """The faults alone."""
        return tuple(hint.fault for hint in self.hints)

    def summary(self) -> str:
        """Every hint, as text of at most 80 columns."""
        lines = [repr(self), *(hint.summary() for hint in self.hints)]
        if self.note:
            lines.append(self.note)
        return "\n".join(lines)

    def __repr__(self) -> str:
        """One line."""
        said = ", ".join(self.faults) or "nothing to change"
        return f"Advice({self.steps} steps: {said})"

    def to_json(self) -> str:
        """The advice as one JSON object."""
        return _text.to_json(self)
