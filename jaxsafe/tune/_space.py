"""What a search may vary, and one choice of it: frozen records of plain values."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxsafe import _errors, transforms

SCHEDULES = ("constant", "linear", "cosine", "warmup_cosine")
# Share of the steps over which `warmup_cosine` climbs.
_WARMUP = 0.1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One choice of learning rate, batch size, schedule and clip.

    Attributes:
      learning_rate: the peak of the schedule.
      batch_size: rows in a batch.
      schedule: one of "constant", "linear" (down to 0), "cosine" (down to 0),
        "warmup_cosine" (up over a tenth of the steps, then down to 0).
      clip: global norm to clip to, or None.

    Example:
      >>> from jaxsafe import tune
      >>> chosen = tune.Settings(
      ...     learning_rate=0.1, batch_size=32, schedule="linear", clip=None)
      >>> float(chosen.rate(100)(50))
      0.05
    """

    learning_rate: float
    batch_size: int
    schedule: str
    clip: float | None

    def rate(self, steps: int) -> Callable[[Any], jax.Array]:
        """The optax schedule over so many steps."""
        _errors.check_count("rate", "steps", steps)
        peak = self.learning_rate
        if self.schedule == "constant":
            return optax.constant_schedule(peak)
        if self.schedule == "linear":
            return optax.linear_schedule(peak, 0.0, steps)
        if self.schedule == "cosine":
            return optax.cosine_decay_schedule(peak, steps)
        warmup = max(1, int(_WARMUP * steps))
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(steps, 2))

    def optimizer(
        self,
        make: Callable[[Any], optax.GradientTransformation],
        steps: int,
    ) -> optax.GradientTransformationExtraArgs:
        """`transforms.guarded(make(rate))` with this schedule and this clip."""
        return transforms.guarded(make(self.rate(steps)), max_norm=self.clip)

    def __str__(self) -> str:
        clip = "none" if self.clip is None else f"{self.clip:g}"
        return (
            f"rate {self.learning_rate:.3g}, batch {self.batch_size}, "
            f"{self.schedule}, clip {clip}"
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What a search may choose from.

    Attributes:
      learning_rate: (low, high), searched in the logarithm.
      batch_size: sizes to choose from.
      schedule: names to choose from, see `Settings`.
      clip: global norms to choose from; None is no clipping.

    Example:
      >>> from jaxsafe import tune
      >>> tune.Space(batch_size=(16, 32)).clip
      (None, 0.3, 1.0, 3.0)
    """

    learning_rate: tuple[float, float] = (1e-5, 1e-1)
    batch_size: tuple[int, ...] = (32, 64, 128, 256)
    schedule: tuple[str, ...] = SCHEDULES
    clip: tuple[float | None, ...] = (None, 0.3, 1.0, 3.0)

    def __post_init__(self) -> None:
        low, high = self.learning_rate
        _errors.check_positive("Space", "learning_rate[0]", low)
        _errors.check_positive("Space", "learning_rate[1]", high)
        if low > high:
            raise _errors.error(
                ValueError,
                "Space",
                "learning_rate must be (low, high)",
                self.learning_rate,
                "Swap them.",
            )
        for name in ("batch_size", "schedule", "clip"):
            if not getattr(self, name):
                raise _errors.error(
                    ValueError, "Space", f"{name} must not be empty", (), "Name one."
                )
        for size in self.batch_size:
            _errors.check_count("Space", "batch_size", size)
        for schedule in self.schedule:
            _errors.check_choice("Space", "schedule", schedule, SCHEDULES)
        for norm in self.clip:
            if norm is not None:
                _errors.check_positive("Space", "clip", norm)

    def draw(self, trial: Any) -> Settings:
        """Let an Optuna trial choose."""
        low, high = self.learning_rate
        return Settings(
            learning_rate=trial.suggest_float("learning_rate", low, high, log=True),
            batch_size=trial.suggest_categorical("batch_size", self.batch_size),
            schedule=trial.suggest_categorical("schedule", self.schedule),
            clip=trial.suggest_categorical("clip", self.clip),
        )
