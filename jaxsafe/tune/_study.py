"""What a search found: frozen records of plain Python values."""

import dataclasses
from typing import Any

from jaxsafe import _text
from jaxsafe.tune._space import Settings


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One training run of a search.

    Attributes:
      number: its number in the study.
      settings: what it was trained with.
      loss: the last one it reported, if it ran to its end, else None.
      outcome: "finished", "pruned", "failed" (by an error) or "running" (or killed).
      why: what ended it early, in words; "" if nothing did.

    Example:
      >>> from jaxsafe import tune
      >>> chosen = tune.Settings(
      ...     learning_rate=9.0, batch_size=32, schedule="linear", clip=None)
      >>> print(tune.Trial(number=3, settings=chosen, loss=None, outcome="pruned",
      ...     why="not finite at report 2"))
      3: pruned, not finite at report 2 (rate 9, batch 32, linear, clip none)
    """

    number: int
    settings: Settings | None
    loss: float | None
    outcome: str
    why: str

    def __str__(self) -> str:
        said = self.outcome if self.loss is None else f"loss {self.loss:.4g}"
        why = f", {self.why}" if self.why else ""
        return f"{self.number}: {said}{why} ({self.settings})"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """All trials of a study.

    Attributes:
      name: of the study.
      storage: where it is kept.
      trials: in the order of their numbers.

    Example:
      >>> from jaxsafe import tune
      >>> tune.Search(name="search", storage="tune.db", trials=()).best is None
      True
    """

    name: str
    storage: str
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial | None:
        """The trial with the lowest loss; None if none has finished."""
        done = [(t.loss, t.number, t) for t in self.trials if t.loss is not None]
        return min(done)[2] if done else None

    def count(self, outcome: str) -> int:
        """How many trials ended so."""
        return sum(trial.outcome == outcome for trial in self.trials)

    def summary(self) -> str:
        """The outcome, the five best, and why others were cut, a line each."""
        ended = ("finished", "pruned", "failed", "running")
        counts = [f"{n} {kind}" for kind in ended if (n := self.count(kind))]
        lines = [f"Search({self.name!r}, {', '.join(counts) or 'no trials'})"]
        done = [t for t in self.trials if t.loss is not None]
        lines += [f"  {t}" for t in sorted(done, key=lambda t: (t.loss, t.number))[:5]]
        cut = [t for t in self.trials if t.why]
        lines += [f"  {t}" for t in cut[:5]]
        if len(cut) > 5:
            lines.append(f"  and {len(cut) - 5} more cut short")
        return "\n".join(lines)

    def to_json(self) -> str:
        """The search as one JSON object."""
        return _text.to_json(self)


def read(study: Any, storage: str) -> Search:
    """The records of an Optuna study."""
    outcomes = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
    return Search(
        name=study.study_name,
        storage=storage,
        trials=tuple(
            Trial(
                number=trial.number,
                settings=_settings(trial.params),
                loss=trial.value if trial.state.name == "COMPLETE" else None,
                outcome=outcomes.get(trial.state.name, "running"),
                why=str(trial.user_attrs.get("why", "")),
            )
            for trial in study.get_trials(deepcopy=False)
        ),
    )


def _settings(params: dict[str, Any]) -> Settings | None:
    names = {field.name for field in dataclasses.fields(Settings)}
    return Settings(**params) if set(params) == names else None
