"""What an experiment reports: plain frozen records, read by the table and the page."""

import dataclasses

from jaxsafe.diagnose import Finding


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run.

    Attributes:
      label: what distinguishes it.
      losses: the loss of every step, NaN included.
      grad_norms: global norm of every step's gradient.
      accuracy: share of right answers on the test set, at the end.
      broke_at: first step, from 0, with a non-finite loss, gradient or parameter.
      rejected: steps that a guard did not commit.
      events: what happened, a line each, for guarded runs.
    """

    label: str
    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    accuracy: float
    broke_at: int | None = None
    rejected: int = 0
    events: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one of today's tools says of the step that broke.

    Attributes:
      tool: its name.
      says: its words, shortened, or what it did.
      names_line: whether it named the line that finding.line names.
    """

    tool: str
    says: str
    names_line: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One experiment.

    Attributes:
      name: its file.
      title: what is wrong, in words.
      action: what to act on, a group of the causes table.
      story: what happens and why, for the page.
      runs: the broken run first; then others that do not work; the cure is `cured`.
      cured: the runs with a cure, the recommended one first.
      cure: the recommended cure, in a few words of code.
      target: accuracy that the cured run has to reach.
      finding: jaxsafe's diagnosis of the step that broke.
      verdicts: what today's tools say of the same step.
      cost: time of a cured step over that of a broken one.
      notes: further preformatted text for the page.
      further: what else broke: (where or when, finding).
    """

    name: str
    title: str
    action: str
    story: str
    runs: tuple[Run, ...]
    cured: tuple[Run, ...]
    cure: str
    target: float
    finding: Finding
    verdicts: tuple[Verdict, ...]
    cost: float
    notes: tuple[str, ...] = ()
    further: tuple[tuple[str, Finding], ...] = ()

    @property
    def broken(self) -> Run:
        """The run that shows the cause."""
        return self.runs[0]

    @property
    def best(self) -> Run:
        """The recommended cure's run."""
        return self.cured[0]

    @property
    def reached(self) -> bool:
        """Whether the cured run reached its accuracy."""
        return self.best.accuracy >= self.target and self.best.broke_at is None
