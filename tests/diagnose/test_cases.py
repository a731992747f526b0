"""The thirty public bug reports: root, line, iteration, phase and cause."""

import jax
import pytest

from jaxsafe.diagnose import CAUSES, first_nonfinite
from tests.cases import CASES, Case

# The report calls a division by sqrt(0) in a branch that `where` drops a domain error;
# the cure that helps is the one for masks.
_OTHER_CAUSE = {"quaternion_from_half_turn": "mask"}


# Whose fault is a rounding that a GPU does otherwise.
_ON_CPU = {"cdist_by_expansion"}
_PARAMS = [
    pytest.param(c, id=c.name, marks=[pytest.mark.cpu] * (c.name in _ON_CPU))
    for c in CASES
]


@pytest.mark.parametrize("case", _PARAMS)
def test_public_case_is_diagnosed(case: Case) -> None:
    # optax and flax mix dtypes in places, as do the programs of users.
    with jax.numpy_dtype_promotion("standard"):
        finding = first_nonfinite(case.failing, *case.arrays)
    assert finding is not None
    assert finding.primitive in case.accepted_roots
    assert (finding.file, finding.line) == (
        case.fn.__code__.co_filename,
        case.root_line,
    )
    assert finding.source.endswith("# root")
    assert finding.phase == ("input" if case.root == "(input)" else case.phase)
    innermost = finding.iteration[-1] if finding.iteration else None
    assert innermost == case.loop_index
    assert finding.cause == _OTHER_CAUSE.get(case.name, case.cause)
    assert sorted(finding.remedies) == sorted(CAUSES[finding.cause].remedies)


def test_there_are_thirty_cases_about_all_causes() -> None:
    assert len({case.name for case in CASES}) == 30
    assert {case.cause for case in CASES} == set(CAUSES)
