"""From telemetry to advice: a few rules, each of which says what it saw.

The rules compare a run with itself (its beginning, its lowest loss, its own noise), so
that they hold for any loss. Medians stand for levels and differences of neighbours for
noise: one wild step moves neither.

    committed steps   loss        start, lowest, end, noise, slope of each half
                      update      norm of the update / norm of the parameters
                      clipped     share of steps
    all steps         skipped     share, and whether they come in a row
                      rate        factor that the guard has arrived at
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxsafe import _errors
from jaxsafe.tune._hint import Advice, Hint

_NAME = "advise"
_LEAST = 20
# Thresholds; what a healthy run shows is far from each, see the tests.
_LOST = 0.25  # share of the progress that was lost again
_CLIPPED = 0.95  # share of steps
_SLOW = 1e-3  # update-to-weight ratio of a typical step; 1e-3 to 1e-2 is usual
_TINY = 2e-4
_NOISE = 0.15  # noise of one batch over the progress of the whole run
_LOWERED = 0.5  # rate factor


class _Run(NamedTuple):
    """A history in numbers; losses and what belongs to them are of committed steps."""

    steps: int
    loss: np.ndarray
    number: np.ndarray
    level: np.ndarray
    noise: float
    scatter: float
    norm: float
    ratio: float
    clipped: float
    skipped: np.ndarray
    factor: float

    @property
    def start(self) -> float:
        return float(self.level[0])

    @property
    def end(self) -> float:
        return float(self.level[-1])

    @property
    def lowest_at(self) -> int:
        return int(np.argmin(self.level))

    @property
    def lowest(self) -> float:
        return float(self.level[self.lowest_at])


def advise(history: Mapping[str, Any]) -> Advice:
    """Say what is wrong with rate, batch size, schedule, clip or data, and what to try.

    It needs some tens of steps, and sees what the history holds: of a run that goes on,
    a ring of the last n steps has forgotten how it began.

    Value:     hints for the rules that apply, the worst first; none for a healthy run.
    NaN in:    a loss that is not finite is a skipped step; a field that is all NaN,
               such as "update_ratio" of a guard's own telemetry, is left out.

    Args:
      history: what `transforms.read_history` returns: arrays of one length, "loss" and,
        where known, "ok", "grad_norm", "update_ratio", "clipped", "rate_factor".

    Returns:
      An `Advice`.

    Raises:
      ValueError: there is no "loss", or the lengths differ.

    Example:
      >>> import numpy as np
      >>> from jaxsafe import tune
      >>> advice = tune.advise({"loss": 1.01 ** np.arange(100)})
      >>> advice.faults
      ('rate too high',)
    """
    fields = _checked(history)
    run = _read(fields)
    if len(run.loss) < _LEAST:
        hints = [hint for hint in (_skipped(run),) if hint]
        note = f"Too few committed steps to judge the loss: {len(run.loss)} of {_LEAST}"
        return Advice(steps=run.steps, hints=tuple(hints), note=f"{note} at least.")
    broken = _diverging_late(run) or _too_high(run)
    low = None if broken else _too_low(run)
    noisy = None if broken or low else _small_batch(run)
    rough = None if broken else _rough_start(run)
    found = (broken, rough, _skipped(run), _always_clipped(run), low, noisy)
    missing = [k for k in ("update_ratio", "grad_norm", "ok") if not _known(fields, k)]
    note = f"Not recorded, so not judged: {', '.join(missing)}." if missing else ""
    if "update_ratio" in missing:
        note += " transforms.telemetry(n, tx) records update_ratio."
    return Advice(
        steps=run.steps, hints=tuple(hint for hint in found if hint), note=note
    )


def _checked(history: Mapping[str, Any]) -> dict[str, np.ndarray]:
    if "loss" not in history:
        raise _errors.error(
            ValueError,
            _NAME,
            "the history holds no loss",
            sorted(history),
            "Pass transforms.read_history(opt_state).",
        )
    fields = {name: np.asarray(values) for name, values in history.items()}
    lengths = {name: values.shape for name, values in fields.items()}
    if len(set(lengths.values())) > 1 or fields["loss"].ndim != 1:
        raise _errors.error(
            ValueError,
            _NAME,
            "all fields must be vectors of one length",
            lengths,
            "Pass transforms.read_history(opt_state).",
        )
    return fields


def _known(fields: dict[str, np.ndarray], name: str) -> bool:
    return name in fields and not np.isnan(fields[name].astype(float)).all()


def _read(fields: dict[str, np.ndarray]) -> _Run:
    loss = fields["loss"].astype(np.float64)
    steps = len(loss)
    committed = fields.get("ok", np.ones(steps, bool)).astype(bool)
    good = committed & np.isfinite(loss)

    def median(name: str) -> float:
        values = fields.get(name, np.full(steps, np.nan))[good].astype(np.float64)
        values = values[np.isfinite(values)]
        return float(np.median(values)) if values.size else math.nan

    clipped = fields.get("clipped", np.zeros(steps))[good]
    factors = fields.get("rate_factor", np.ones(steps)).astype(np.float64)
    factors = factors[np.isfinite(factors)]
    kept = loss[good]
    return _Run(
        steps=steps,
        loss=kept,
        number=np.flatnonzero(good),
        level=_levels(kept),
        noise=_noise(kept[len(kept) // 2 :]),
        scatter=_scatter(kept[len(kept) // 2 :]),
        norm=median("grad_norm"),
        ratio=median("update_ratio"),
        clipped=float(np.mean(clipped)) if clipped.size else 0.0,
        skipped=np.flatnonzero(~good),
        factor=float(factors[-1]) if factors.size else 1.0,
    )


def _levels(loss: np.ndarray) -> np.ndarray:
    """Median of twenty stretches of the run, or of fewer for a short one."""
    if not len(loss):
        return np.full(1, np.nan)
    parts = np.array_split(loss, max(1, min(20, len(loss) // 5)))
    return np.array([np.median(part) for part in parts])


def _noise(loss: np.ndarray) -> float:
    """Deviation of one loss from the next, without the trend."""
    if len(loss) < 2:
        return math.nan
    return float(np.median(np.abs(np.diff(loss)))) / 0.954  # a normal one's deviation


def _scatter(loss: np.ndarray) -> float:
    """The same with rare large losses in it, which a small batch has."""
    if len(loss) < 2:
        return math.nan
    steps = np.sort(np.abs(np.diff(loss)))
    steps = steps[: max(1, int(0.98 * len(steps)))]
    return float(np.sqrt(np.mean(steps**2) / 2))


def _at(run: _Run, level: int) -> int:
    """The step at which a stretch begins."""
    return int(run.number[level * len(run.number) // len(run.level)])


def _diverging_late(run: _Run) -> Hint | None:
    """It trained, and then lost what it had."""
    gained, lost = run.start - run.lowest, run.end - run.lowest
    late = 0 < run.lowest_at < len(run.level) - 1 and gained > 3 * run.noise
    if not (late and lost > max(_LOST * gained, 3 * run.noise)):
        return None
    if run.lowest_at < 0.15 * len(run.level):
        return None  # it had hardly begun: the rate is too high from the start
    at = _at(run, run.lowest_at)
    return Hint(
        fault="diverging late",
        topic="schedule",
        evidence=(
            f"the loss fell from {run.start:.3g} to {run.lowest:.3g} until about step "
            f"{at}, and has risen to {run.end:.3g} since",
        ),
        remedies=(
            "a schedule that decays before that step, such as "
            "optax.warmup_cosine_decay_schedule",
            "if the rate was still climbing there: a lower peak",
            f"going back to the state of step {at} with half the rate",
        ),
    )


def _too_high(run: _Run) -> Hint | None:
    """The loss rises, or the guard had to lower the rate for good."""
    seen = []
    if run.end - run.start > max(3 * run.noise, 0.05 * abs(run.start)):
        seen.append(f"the loss rose from {run.start:.3g} to {run.end:.3g}")
    elif run.end - run.lowest > 0.5 * max(run.start - run.lowest, 3 * run.noise):
        seen.append(
            f"the loss went back from {run.lowest:.3g} to {run.end:.3g}, and began at "
            f"{run.start:.3g}"
        )
    peak, first = _peak(run), float(run.loss[0])
    ruined = run.end > first - 0.1 * abs(first)
    if not seen and ruined and peak - first > max(5 * run.noise, 0.2 * abs(first)):
        seen.append(
            f"the loss jumped from {first:.3g} to {peak:.3g} in the first steps, and "
            f"ended at {run.end:.3g}"
        )
    if run.factor < _LOWERED:
        seen.append(
            f"the guard has lowered the rate to {run.factor:.3g} of what it was"
        )
    if not seen:
        return None
    if run.ratio > 10 * _SLOW:
        seen.append(f"a typical update is {run.ratio:.2g} of the weights")
    scale = f"{run.factor:.2g}" if run.factor < _LOWERED else "a third"
    return Hint(
        fault="rate too high",
        topic="learning rate",
        evidence=tuple(seen),
        remedies=(
            f"{scale} of the rate" if scale == "a third" else f"{scale} times the rate",
            "tune.lr_range_test, which tries many rates at once",
            "a warm-up over the first tenth of the steps",
        ),
    )


def _peak(run: _Run) -> float:
    return float(np.max(run.loss[: max(5, len(run.loss) // 10)]))


def _rough_start(run: _Run) -> Hint | None:
    """The loss jumps right at the beginning, and comes back: no warm-up."""
    peak = _peak(run)
    jump, gained = peak - run.loss[0], run.loss[0] - run.lowest
    if not (gained > 0 and run.end < run.loss[0] and jump > max(gained, 5 * run.noise)):
        return None
    return Hint(
        fault="rough start",
        topic="schedule",
        evidence=(
            f"the loss jumped from {run.loss[0]:.3g} to {peak:.3g} at step "
            f"{run.number[int(np.argmax(run.loss == peak))]}, and fell to "
            f"{run.lowest:.3g} later",
        ),
        remedies=(
            "a warm-up: optax.warmup_cosine_decay_schedule(0.0, rate, steps // 10, "
            "steps)",
        ),
    )


def _skipped(run: _Run) -> Hint | None:
    """Steps that were not committed; in a run that falls, the batches are to blame."""
    count = len(run.skipped)
    if not count:
        return None
    shown = ", ".join(map(str, run.skipped[:5])) + (", ..." if count > 5 else "")
    in_a_row = bool((np.diff(run.skipped) == 1).sum() > count // 2)
    look = "clean.audit and diagnose.first_nonfinite on the batches of these steps"
    lower = "a lower rate: the steps come in a row, so the state is to blame"
    return Hint(
        fault="skipped steps",
        topic="learning rate" if in_a_row else "data",
        evidence=(f"{count} of {run.steps} steps were not finite: {shown}",),
        remedies=(lower, look) if in_a_row else (look,),
    )


def _always_clipped(run: _Run) -> Hint | None:
    """A clip that always bites has become part of the rate."""
    if run.clipped < _CLIPPED:
        return None
    norm = f"{2 * run.norm:.2g}" if math.isfinite(run.norm) else "twice the usual norm"
    seen = [f"{run.clipped:.0%} of the steps were clipped"]
    if math.isfinite(run.norm):
        seen.append(f"the usual gradient norm is {run.norm:.3g}")
    return Hint(
        fault="clip always active",
        topic="clip",
        evidence=tuple(seen),
        remedies=(
            f"max_norm={norm}, with the rate lowered to match",
            "transforms.clip_spikes(), which learns what is usual in this run",
        ),
    )


def _too_low(run: _Run) -> Hint | None:
    """Tiny steps that gain nothing, or a loss that falls to the end as it began."""
    middle = float(run.level[len(run.level) // 2])
    first, second = run.start - middle, middle - run.end
    steady = second > 0.5 * first > 0 and second > 2 * run.noise / len(run.loss) ** 0.5
    small = run.ratio < _SLOW or (math.isnan(run.ratio) and second > 0.8 * first)
    tiny = run.ratio < _TINY and run.start - run.lowest < 0.2 * abs(run.start)
    if not ((steady and small) or tiny) or run.factor < _LOWERED:
        return None
    seen = [
        f"the loss went from {run.start:.4g} over {middle:.4g} in the middle to "
        f"{run.end:.4g}"
    ]
    if math.isfinite(run.ratio):
        seen.append(
            f"a typical update is {run.ratio:.1g} of the weights; 1e-3 to 1e-2 is usual"
        )
    return Hint(
        fault="rate too low",
        topic="learning rate",
        evidence=tuple(seen),
        remedies=(
            "three to ten times the rate",
            "tune.lr_range_test, which tries many rates at once",
        ),
    )


def _small_batch(run: _Run) -> Hint | None:
    """What one batch adds to the loss is large beside all that training took away."""
    gained = run.start - run.lowest
    if not (gained > 0 and run.scatter > _NOISE * gained):
        return None
    return Hint(
        fault="batch too small",
        topic="batch size",
        evidence=(
            f"from step to step the loss scatters by {run.scatter:.2g}, "
            f"{run.scatter / gained:.0%} of what the whole run has gained",
        ),
        remedies=(
            "a batch four times as large, or transforms.accumulate(tx, 4)",
            "a lower rate, or a schedule that decays to 0: both average the noise out",
        ),
    )
