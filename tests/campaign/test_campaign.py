"""A short fault campaign; the whole one is `python -m tests.campaign`, or slow here."""

import pytest

from tests.campaign import __main__ as command
from tests.campaign import _harness, _peers, _tables, _workloads

STEPS = 2000


def run(workload):
    runs = _harness.run(workload, STEPS, seed=1)
    ours, *behind = ({workload.name: seen} for seen in runs)
    return ours, behind[0] if behind else {}


@pytest.mark.parametrize(
    "make",
    [
        lambda: _workloads.mlp("adam"),
        pytest.param(_workloads.cnn, marks=pytest.mark.slow),
        pytest.param(_workloads.transformer_float16, marks=pytest.mark.slow),
        pytest.param(_workloads.micro_batches, marks=pytest.mark.slow),
    ],
    ids=["adam", "cnn", "float16", "micro-batches"],
)
def test_nothing_is_poisoned_missed_or_rejected_in_health(make):
    ours, behind = run(make())
    assert command.failures(ours, behind) == []
    (seen,) = ours.values()
    counts = _tables.row(seen)
    assert counts["faults"] > 150
    assert counts["rejected"] + counts["gone"] == counts["non-finite"] > 60
    assert counts["clipped"] + counts["passed"] > 20


def test_a_peer_is_poisoned():
    # The campaign can see what it looks for.
    counts = _tables.row(_harness.run(_peers.all_of_them()[1](), STEPS)[0])
    assert counts["poisoned"] > 10
    assert counts["missed"] > 10
    assert counts["unhealed"] > 10


@pytest.mark.slow
def test_the_whole_campaign(tmp_path):
    out = tmp_path / "campaign.md"
    assert command.main(["--out", str(out)]) == 0
    assert "Nothing failed." in out.read_text("utf-8")
