"""The study of the learning rate: its measure, its stressors, its files."""

import json

import numpy as np
import pytest

from experiments import lr_sensitivity as study

NAN = float("nan")


def row(losses, arm="AdamW", stressor="none"):
    return study.Row(arm=arm, stressor=stressor, losses=losses, initial=5.0)


class TestSensitivity:
    def test_it_is_that_of_the_paper(self):
        # min(final, initial) is 3, 2, 5; their mean 10 / 3, the best 2
        assert row((3.0, 2.0, 9.0)).sensitivity == pytest.approx(10 / 3 - 2)

    def test_a_rate_that_ends_in_nan_counts_as_untrained(self):
        one = row((3.0, NAN, float("inf")))
        assert one.sensitivity == pytest.approx(13 / 3 - 3)
        assert (one.finite, one.best) == (1, 3.0)

    def test_all_nan_is_no_robustness(self):
        rows = [row((NAN,) * 3), row((3.0, 4.0, 5.0), arm="clip 1.0")]
        assert [arm for arm, _ in study.ranking(rows)] == ["clip 1.0", "AdamW"]

    def test_excess_is_against_the_best_arm(self):
        rows = [row((3.0, 4.0)), row((2.0, 6.0), arm="clip 1.0")]
        assert study.excess(rows, "AdamW") == pytest.approx(3.5 - 2)
        assert study.excess(rows, "clip 1.0") == pytest.approx(3.5 - 2)


def test_the_bars():
    ours = [row((3.0, 2.01), arm=study.GUARDED, stressor=s) for s in study.STRESSORS]
    met = study.bars([*ours, row((3.0, 2.0))])
    assert met["always_finite"]
    assert met["worst_ratio"] == pytest.approx(1.005)
    assert not study.bars([row((3.0, NAN), arm=study.GUARDED), row((3.0, 2.0))])[
        "always_finite"
    ]


class TestStressors:
    @pytest.fixture
    def batches(self):
        rng = np.random.default_rng(0)
        return rng.integers(0, 90, (300, 8, 32)), rng.integers(0, 90, (300, 8, 32))

    def test_noise_labels_come_every_two_hundred_steps(self, batches):
        x, y = batches
        same, labels, weights = study._stressed("noise labels", x, y, 90)
        assert np.flatnonzero((labels != y).any((1, 2))).tolist() == [199]
        assert same is x
        assert (weights == 1).all()

    def test_one_batch_is_scaled(self, batches):
        weights = study._stressed("scaled batch", *batches, 90)[2]
        assert np.flatnonzero((weights == 1e4).all(1)).tolist() == [100]
        assert (np.delete(weights, 100, axis=0) == 1).all()

    def test_one_sample_is_nan(self, batches):
        weights = study._stressed("NaN sample", *batches, 90)[2]
        assert np.isnan(weights).sum() == 1


@pytest.mark.slow
def test_the_command_writes_table_numbers_and_picture(tmp_path, capsys):
    study.main(["--quick", "--out", str(tmp_path)])
    page = (tmp_path / "lr_sensitivity.md").read_text("utf-8")
    told = json.loads((tmp_path / "lr_sensitivity.json").read_text("utf-8"))
    assert "<svg" in (tmp_path / "lr_sensitivity.svg").read_text("utf-8")
    count = len(study.ARMS) * len(study.STRESSORS)
    assert len(told["rows"]) == count
    assert all(f"| {arm} |" in page for arm in study.ARMS)
    ours = [r for r in told["rows"] if r["arm"] == study.GUARDED]
    assert all(None not in r["losses"] for r in ours)
    plain = {r["stressor"]: r for r in told["rows"] if r["arm"] == "AdamW"}
    assert plain["NaN sample"]["losses"] == [None] * len(study.RATES)
    assert study.GUARDED in capsys.readouterr().out
