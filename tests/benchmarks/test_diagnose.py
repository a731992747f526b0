"""The commands write one file together, and compare what they say they compare."""

import pytest

from benchmarks import _sections, diagnose


def test_every_command_replaces_its_own_part(tmp_path):
    path = tmp_path / "a.md"
    for text in (
        "# A\n\nold\n",
        "# B\n\n```\nb\n```\n",
        "# A\n\nnew\n\n## A\n\nmore\n",
    ):
        _sections.write(path, text)
    assert path.read_text() == "# A\n\nnew\n\n## A\n\nmore\n\n# B\n\n```\nb\n```\n"


def test_ratios_are_taken_within_a_sample():
    found = [{"a": 1.0, "b": 2.0}, {"a": 30.0, "b": 10.0}, {"a": 5.0, "b": 5.0}]
    bar = diagnose.Bar("a / b", "a", "b", 1.0)
    assert diagnose.ratio(found, bar) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", diagnose.MODELS)
def test_before_a_fault_the_program_is_the_same(name):
    assert diagnose.same_program(diagnose.MODELS[name])
