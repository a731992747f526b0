"""Search rate, batch size, schedule and clip together, with Optuna (extra `tune`).

No search algorithm stands here: Optuna samples, and its pruner compares trials. What is
added is what it does not know of training: a loss that is not finite, a spike and a
halted guard end a trial at once, and the study says why.
"""

import contextlib
import math
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

from jaxsafe import _errors
from jaxsafe.tune import _study
from jaxsafe.tune._space import Settings, Space
from jaxsafe.tune._study import Search

_NAME = "search"
# Seconds that a worker waits for another one to write.
_PATIENCE = 120

Train = Callable[[Settings], Iterable[Any]]


class _Job(NamedTuple):
    """What a worker process needs to know; all of it can be pickled."""

    train: Train
    space: Space
    url: str
    name: str
    spike: float
    sampler: Any
    pruner: Any
    seed: int


def search(
    train: Train,
    *,
    space: Space | None = None,
    trials: int = 50,
    storage: str | os.PathLike[str] = "tune.db",
    name: str = "search",
    workers: int = 1,
    spike: float = 1.0,
    sampler: Any = None,
    pruner: Any = None,
    seed: int = 0,
) -> Search:
    """Try settings until `trials` have ended; resume if the storage has some already.

    `train` is a generator: it trains with the settings it is given and yields the loss
    to be judged by from time to time, the last one being the result. A trial is pruned
    the moment a yielded loss is not finite or spikes, when its guard halts, or when the
    pruner says so. What was cut off in the middle by a kill counts as not tried.

    Value:     the settings with the lowest last loss.
    NaN in:    the trial is pruned, and the report says at which loss.

    Args:
      train: `train(settings)` yields losses; with several workers a function that a
        new process can import, in a script with `if __name__ == "__main__":`.
      space: what to choose from; None for `Space()`.
      trials: ended trials that the study shall have, earlier ones included.
      storage: file of an SQLite database, or a URL that Optuna knows.
      name: of the study, several of which may share a storage.
      workers: processes that work on the study at the same time.
      spike: a loss so many times the size of the first one above the lowest so far is
        a spike.
      sampler: an Optuna sampler; None for its TPE sampler.
      pruner: an Optuna pruner; None for its median pruner.
      seed: of the default sampler.

    Returns:
      A `Search`.

    Raises:
      ImportError: Optuna is not installed.
      ValueError: an argument is out of its range, `train` cannot be sent to workers, or
        a trial yields nothing.

    Example:
      >>> from jaxsafe import tune
      >>> def train(settings):
      ...     loss = 1.0
      ...     for step in range(3):
      ...         loss = loss - settings.learning_rate
      ...         yield loss
      >>> import tempfile
      >>> result = tune.search(
      ...     train, trials=3, storage=tempfile.mkdtemp() + "/tune.db")
      >>> len(result.trials), result.best.outcome
      (3, 'finished')
    """
    _errors.check_count(_NAME, "trials", trials)
    _errors.check_count(_NAME, "workers", workers)
    _errors.check_positive(_NAME, "spike", spike)
    optuna = _optuna()
    text = os.fspath(storage)
    url = text if "://" in text else f"sqlite:///{text}"
    with _quiet(optuna):
        study = optuna.create_study(
            storage=_storage(optuna, url), study_name=name, load_if_exists=True
        )
        known = len(study.trials)
        job = _Job(
            train=train,
            space=space or Space(),
            url=url,
            name=name,
            spike=spike,
            sampler=sampler,
            pruner=pruner,
            # A study that goes on must not draw its first settings again.
            seed=seed + known,
        )
        _share(job, trials - _ended(study), workers)
        return _study.read(study, text)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as reason:
        raise _errors.error(
            ImportError,
            _NAME,
            "Optuna is missing",
            reason,
            "Install it: pip install 'jaxsafe[tune]'.",
        ) from reason
    return optuna


@contextlib.contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Without a line in the log for every trial: the record says it."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _storage(optuna: Any, url: str) -> Any:
    options = {}
    if url.startswith("sqlite"):
        options = {"connect_args": {"timeout": _PATIENCE}}
    return optuna.storages.RDBStorage(url, engine_kwargs=options)


def _ended(study: Any) -> int:
    ended = {"COMPLETE", "PRUNED", "FAIL"}
    return sum(trial.state.name in ended for trial in study.get_trials(deepcopy=False))


def _share(job: _Job, trials: int, workers: int) -> None:
    """Run so many trials, here or in other processes."""
    if trials <= 0:
        return
    if workers == 1:
        _work(job, trials)
        return
    try:
        pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError) as reason:
        raise _errors.error(
            ValueError,
            _NAME,
            "train, sampler and pruner must be such that another process can load them",
            reason,
            "Define train at the top of a module, or use workers=1.",
        ) from reason
    parts = [len(range(k, trials, workers)) for k in range(min(workers, trials))]
    # Never a fork: jax has threads, which a forked child would wait for.
    with ProcessPoolExecutor(len(parts), mp_context=get_context("spawn")) as pool:
        jobs = [job._replace(seed=job.seed + 1000 * k) for k in range(len(parts))]
        for _ in pool.map(_work, jobs, parts):
            pass


def _work(job: _Job, trials: int) -> None:
    """What one process does: `trials` trials of the study."""
    optuna = _optuna()
    with _quiet(optuna):
        study = optuna.load_study(
            study_name=job.name,
            storage=_storage(optuna, job.url),
            sampler=job.sampler or optuna.samplers.TPESampler(seed=job.seed),
            pruner=job.pruner or optuna.pruners.MedianPruner(),
        )
        study.optimize(lambda trial: _objective(optuna, job, trial), n_trials=trials)


def _objective(optuna: Any, job: _Job, trial: Any) -> float:
    """Train once; prune at the first sign that it leads nowhere."""

    def prune(why: str) -> Exception:
        trial.set_user_attr("why", why)
        pruned: Exception = optuna.TrialPruned(why)
        return pruned

    watch = _Watch(job.spike)
    reports = iter(job.train(job.space.draw(trial)))
    try:
        for step, loss in enumerate(reports):
            number = float(loss)
            if wrong := watch.wrong(number):
                raise prune(f"{wrong} at report {step}")
            trial.report(number, step)
            if trial.should_prune():
                raise prune(f"behind the others at report {step}")
    except FloatingPointError as halted:  # what a guard raises when it gives up
        raise prune(f"halted: {halted}") from halted
    finally:
        close = getattr(reports, "close", None)
        if close is not None:
            close()
    if watch.last is None:
        raise _errors.error(
            ValueError, _NAME, "train yields no loss", "nothing", "Yield at least one."
        )
    return watch.last


class _Watch:
    """The losses of one trial: is the next one still sound?"""

    def __init__(self, spike: float) -> None:
        self.spike = spike
        self.last: float | None = None
        self.margin = math.inf
        self.lowest = math.inf

    def wrong(self, loss: float) -> str:
        """What is wrong with the next loss; "" if nothing is."""
        if not math.isfinite(loss):
            return "not finite"
        if self.last is None:
            self.margin = self.spike * (abs(loss) or 1.0)
        if not loss - min(self.lowest, loss) <= self.margin:
            return f"spike, {loss:.4g} after {self.lowest:.4g},"
        self.last, self.lowest = loss, min(self.lowest, loss)
        return ""
