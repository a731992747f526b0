"""Every experiment breaks where it says, and its cure reaches its accuracy."""

import importlib
import pathlib

import pytest

from experiments import __main__ as command
from experiments import _page, _wide, bounded_loss

# name: (primitive, file, phase, cause, step)
BREAKS = {
    "input_data": ("(input)", "_models.py", "input", "input_data", 0),
    "learning_rate": (
        "dot_general",
        "_models.py",
        "forward",
        "learning_rate",
        6,
    ),
    "tune_rate": ("integer_pow", "tune_rate.py", "forward", "learning_rate", 18),
    "exploding_gradient": (
        "dot_general",
        "_models.py",
        "forward",
        "learning_rate",
        3,
    ),
    "activation": ("exp", "activation.py", "forward", "activation", 13),
    "masked_row": ("sub", "masked_row.py", "forward", "mask", 0),
    "flax_module": ("div", "flax_module.py", "backward", "norm", 0),
    "low_precision": ("div", "_train.py", "update", "precision", 0),
    "loss": ("log", "loss.py", "forward", "loss", 0),
    "bounded_loss": ("div", "bounded_loss.py", "backward", "mask", 0),
    "full_run": ("(input)", "_models.py", "input", "input_data", 0),
}


@pytest.fixture(scope="module")
def outcomes():
    return {}


@pytest.fixture
def outcome(request, outcomes):
    """The outcome of one experiment, run once for the whole module."""
    name = request.param
    if name not in outcomes:
        outcomes[name] = importlib.import_module(f"experiments.{name}").run()
    return outcomes[name]


def test_all_are_listed():
    folder = pathlib.Path(command.__file__).parent
    files = {path.stem for path in folder.glob("*.py") if path.stem[0] != "_"}
    assert files - STUDIES == set(command.NAMES) == set(BREAKS)
    assert files >= STUDIES


# Long, and run by a command of their own.
STUDIES = {"lr_sensitivity"}


# README's first line runs them all; these take ten to twenty-six seconds each.
HEAVY = {
    "activation",
    "bounded_loss",
    "exploding_gradient",
    "flax_module",
    "full_run",
    "input_data",
    "learning_rate",
    "low_precision",
    "masked_row",
    "tune_rate",
}


def outcome_of(*names):
    marked = [
        pytest.param(name, marks=pytest.mark.slow) if name in HEAVY else name
        for name in names
    ]
    return pytest.mark.parametrize("outcome", marked, indirect=True)


@outcome_of(*command.NAMES)
class TestEach:
    def test_it_breaks_where_it_says(self, outcome):
        primitive, file, phase, cause, step = BREAKS[outcome.name]
        finding = outcome.finding
        assert finding.primitive == primitive
        assert pathlib.Path(finding.file).name == file
        assert finding.source
        assert finding.phase == phase
        assert finding.cause == cause
        # Rounding differs between machines by a step or two where it grows slowly.
        assert abs(outcome.broken.broke_at - step) <= (2 if step else 0)
        assert outcome.broken.accuracy < 0.5

    def test_the_cure_reaches_its_accuracy(self, outcome):
        for run in outcome.cured:
            assert run.broke_at is None
            assert run.accuracy >= outcome.target, run.label
        assert outcome.reached

    def test_todays_tools_were_asked(self, outcome):
        tools = {verdict.tool: verdict for verdict in outcome.verdicts}
        assert set(tools) == {"jax_debug_nans", "checkify", "optax.apply_if_finite"}
        assert all(verdict.says for verdict in outcome.verdicts)

    def test_it_has_its_place_on_the_page(self, outcome, tmp_path):
        page = _page.write(tmp_path / "page.html", [outcome]).read_text("utf-8")
        assert outcome.title in page
        assert "<svg" in page
        (row,) = _page.table([outcome])
        assert f"{outcome.best.accuracy:.1%}" in row[4]


@outcome_of("learning_rate")
def test_four_cures_of_the_learning_rate_side_by_side(outcome):
    assert len(outcome.cured) == 4
    assert outcome.best.rejected > 0
    assert any("rolled back" in event for event in outcome.best.events)


@outcome_of("activation")
def test_the_eps_of_the_tutorials_does_not_help(outcome):
    assert outcome.runs[1].broke_at == outcome.broken.broke_at


@outcome_of("tune_rate")
def test_the_range_test_says_which_rates_diverge(outcome):
    assert "diverged at step" in outcome.notes[0]
    assert outcome.best.rejected == 0


@outcome_of("masked_row")
def test_zeroing_the_row_afterwards_does_not_help(outcome):
    assert outcome.runs[1].broke_at is not None


@outcome_of("flax_module")
def test_an_nnx_and_a_linen_module_are_one_to_the_diagnosis(outcome):
    ((_, in_linen),) = outcome.further
    in_nnx = outcome.finding
    assert [in_nnx.module, in_linen.module] == ["NnxColumns", "LinenColumns"]
    for name in ("primitive", "file", "line", "function", "phase", "cause"):
        assert getattr(in_linen, name) == getattr(in_nnx, name)
    assert in_nnx.function == "naive_normalize"
    assert "ops.normalize" in " ".join(in_nnx.remedies)


@outcome_of("flax_module")
def test_the_op_breaks_and_cures_both_kinds_of_module(outcome):
    assert [run.broke_at for run in outcome.runs] == [0, 0]
    assert all(run.accuracy < 0.2 for run in outcome.runs)
    # Nothing to reject: the op leaves no NaN for the guard to catch.
    assert [run.rejected for run in outcome.cured] == [0, 0]


@outcome_of("exploding_gradient")
def test_the_finding_in_a_scan_names_the_iteration(outcome):
    assert outcome.finding.iteration


@outcome_of("bounded_loss")
def test_only_a_bounded_report_lets_the_wrong_example_learn(outcome):
    assert [run.accuracy for run in outcome.runs] == [0.0] * 4
    assert [run.broke_at for run in outcome.runs] == [0, None, None, None]
    lines = outcome.notes[0].splitlines()
    assert ["stuck" in line for line in lines] == [False, False, True, True, True]


@outcome_of("bounded_loss")
def test_a_bounded_report_changes_the_number_and_not_the_training(outcome):
    reported, unbounded = outcome.cured
    assert max(reported.losses) == bounded_loss.LIMIT < max(unbounded.losses)
    assert reported.grad_norms == pytest.approx(unbounded.grad_norms)


@outcome_of("full_run")
def test_whoever_cures_one_cause_meets_the_next(outcome):
    assert [run.broke_at is not None for run in outcome.runs] == [True] * 3
    labels, findings = zip(*outcome.further, strict=True)
    assert labels == ("once the data is clean", "once the loss is cured too")
    assert [finding.cause for finding in findings] == ["activation", "learning_rate"]
    assert outcome.best.accuracy >= 0.95


def test_every_fault_of_a_wide_table_is_found_and_cleaned():
    wide = _wide.run()
    assert min(wide.injected.values()) > 100
    assert wide.found == wide.injected
    assert wide.accuracy["clean.apply"] >= 0.9
    assert wide.accuracy["raw"] < 0.2
    assert wide.accuracy["numpy.nan_to_num"] < 0.5
    assert "unit mix-up" in wide.table()


def test_the_recap_goes_from_cause_to_action():
    assert list(_page.ACTIONS)[:4] == [
        "input data",
        "learning rate",
        "activation",
        "loss",
    ]


def test_a_missing_package_is_named_with_its_extra(capsys, monkeypatch):
    monkeypatch.setattr(command, "NEEDS", ("no_such_package",))
    with pytest.raises(SystemExit):
        command.main([])
    assert "pip install -e '.[experiments]'" in capsys.readouterr().err


def test_a_typo_is_an_error_that_lists_the_names(capsys):
    with pytest.raises(SystemExit):
        command.main(["--only", "actvation"])
    assert "full_run" in capsys.readouterr().err
