"""The search: what it prunes, that it resumes, several processes on one study."""

import json
import sys

import numpy as np
import optuna
import pytest

from jaxsafe import tune
from tests.tune import _runs

SPACE = tune.Space(learning_rate=(1e-3, 100.0), batch_size=(8, 16))


@pytest.fixture
def storage(tmp_path):
    return tmp_path / "tune.db"


def random_sampler(seed=0):
    return optuna.samplers.RandomSampler(seed=seed)


class TestPruning:
    @pytest.mark.parametrize(
        ("train", "why"),
        [
            (_runs.breaks, "not finite at report 2"),
            (_runs.spikes, "spike, 1.3 after 0.2, at report 3"),
            (_runs.halts, "halted: given up"),
        ],
    )
    def test_a_trial_ends_the_moment_it_goes_wrong(self, storage, train, why):
        result = tune.search(train, trials=2, storage=storage)
        assert [t.outcome for t in result.trials] == ["pruned"] * 2
        assert [t.why for t in result.trials] == [why] * 2
        assert result.best is None
        assert why in result.summary()

    def test_a_generator_that_is_pruned_is_closed(self, storage):
        closed = []

        def train(settings):
            try:
                yield float("nan")
            finally:
                closed.append(settings)

        tune.search(train, trials=1, storage=storage)
        assert len(closed) == 1

    def test_rates_that_diverge_are_cut_and_the_best_is_one_that_trains(self, storage):
        result = tune.search(
            _runs.bowl, space=SPACE, trials=15, storage=storage, pruner=Never()
        )
        for trial in result.trials:
            rate = trial.settings.learning_rate
            ends = [(1 - rate) ** (2 * k) / 2 for k in range(1, 9)]
            low = np.minimum.accumulate(ends)
            cut = any(end - best > ends[0] for end, best in zip(ends, low, strict=True))
            assert (trial.outcome == "pruned") == cut
            if not cut:
                assert trial.loss == pytest.approx(ends[-1])
        assert result.count("pruned") > 0
        finished = [t for t in result.trials if t.outcome == "finished"]
        assert result.best.loss == min(t.loss for t in finished)
        assert 0 < result.best.settings.learning_rate < 2

    def test_the_pruner_compares_trials(self, storage):
        losses = iter([1.0] * 5 + [2.0] * 5)

        def train(settings):
            level = next(losses)
            yield level
            yield level

        result = tune.search(
            train, trials=6, storage=storage, pruner=optuna.pruners.MedianPruner()
        )
        assert result.trials[5].why == "behind the others at report 0"


class Never(optuna.pruners.BasePruner):
    def prune(self, study, trial):  # noqa: ARG002
        return False


class TestResuming:
    def test_only_what_is_missing_is_run(self, storage):
        first = tune.search(_runs.bowl, space=SPACE, trials=4, storage=storage)
        again = tune.search(_runs.bowl, space=SPACE, trials=6, storage=storage)
        assert len(again.trials) == 6
        assert again.trials[:4] == first.trials
        drawn = {t.settings.learning_rate for t in again.trials}
        assert len(drawn) == 6
        assert tune.search(_runs.breaks, trials=6, storage=storage) == again

    def test_a_run_that_was_killed_is_made_up_for(self, storage):
        def train(settings):
            yield 1.0
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            tune.search(train, trials=3, storage=storage)
        result = tune.search(_runs.bowl, trials=3, storage=storage)
        assert result.count("finished") + result.count("pruned") >= 2

    def test_studies_share_a_file(self, storage):
        tune.search(_runs.breaks, trials=1, storage=storage, name="one")
        other = tune.search(_runs.bowl, trials=1, storage=storage, name="two")
        assert [t.number for t in other.trials] == [0]
        names = optuna.get_all_study_names(f"sqlite:///{storage}")
        assert sorted(names) == ["one", "two"]


def test_an_error_of_the_user_stays_an_error(storage):
    def train(settings):
        yield 1.0
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        tune.search(train, trials=1, storage=storage)


@pytest.mark.slow
def test_several_processes_work_on_one_study(storage, tmp_path, monkeypatch):
    log = tmp_path / "log"
    monkeypatch.setenv("TUNE_TEST_LOG", str(log))
    result = tune.search(
        _runs.in_which_process, space=SPACE, trials=12, storage=storage, workers=3
    )
    assert [t.number for t in result.trials] == list(range(12))
    assert result.count("finished") + result.count("pruned") == 12
    assert len(set(log.read_text("utf-8").split())) == 3
    assert len({t.settings.learning_rate for t in result.trials}) == 12


class TestErrors:
    def test_without_optuna_it_says_what_to_install(self, storage, monkeypatch):
        monkeypatch.setitem(sys.modules, "optuna", None)
        with pytest.raises(ImportError, match=r"jaxsafe\[tune\]"):
            tune.search(_runs.bowl, storage=storage)

    def test_workers_need_a_function_they_can_import(self, storage):
        with pytest.raises(ValueError, match="top of a module"):
            tune.search(lambda settings: [1.0], storage=storage, workers=2)

    def test_no_loss(self, storage):
        with pytest.raises(ValueError, match="yields no loss"):
            tune.search(lambda settings: [], trials=1, storage=storage)

    @pytest.mark.parametrize("options", [{"trials": 0}, {"workers": 0}, {"spike": -1}])
    def test_bad_options(self, storage, options):
        with pytest.raises(ValueError, match="must be"):
            tune.search(_runs.bowl, storage=storage, **options)

    @pytest.mark.parametrize(
        "options",
        [
            {"learning_rate": (1.0, 0.1)},
            {"learning_rate": (0.0, 0.1)},
            {"batch_size": ()},
            {"batch_size": (0,)},
            {"schedule": ("cosin",)},
            {"clip": (-1.0,)},
        ],
    )
    def test_bad_spaces(self, options):
        with pytest.raises(ValueError, match="Space: "):
            tune.Space(**options)


class TestRecords:
    def test_json(self, storage):
        result = tune.search(_runs.bowl, space=SPACE, trials=1, storage=storage)
        plain = json.loads(result.to_json())
        assert plain["trials"][0]["settings"]["schedule"] in tune.Space().schedule

    @pytest.mark.parametrize(
        ("schedule", "wanted"),
        [
            ("constant", [2, 2, 2]),
            ("linear", [2, 1, 0]),
            ("cosine", [2, 1, 0]),
            ("warmup_cosine", [0, 2 * 0.5868, 0]),
        ],
    )
    def test_schedules(self, schedule, wanted):
        chosen = tune.Settings(
            learning_rate=2.0, batch_size=1, schedule=schedule, clip=None
        )
        rate = chosen.rate(100)
        seen = [float(rate(k)) for k in (0, 50, 100)]
        np.testing.assert_allclose(seen, wanted, atol=1e-4)

    def test_an_optimizer_that_clips_and_follows_the_schedule(self):
        import jax.numpy as jnp
        import optax

        chosen = tune.Settings(
            learning_rate=0.5, batch_size=1, schedule="linear", clip=1.0
        )
        tx = chosen.optimizer(optax.sgd, 2)
        state = tx.init(jnp.zeros(2))
        seen = []
        for g in (jnp.array([30.0, 40.0]), jnp.array([0.3, 0.4])):
            update, state = tx.update(g, state)
            seen.append(np.asarray(update))
        np.testing.assert_allclose(seen, [[-0.3, -0.4], [-0.075, -0.1]], rtol=1e-6)
