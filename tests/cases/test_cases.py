"""The cases themselves: they fail as described, and the wanted answers are right."""

import jax
import numpy as np
import pytest

from tests.cases import CASES, Case


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.oracle is not None], ids=lambda case: case.name
)
def test_wanted_answer_agrees_with_float64(case: Case) -> None:
    wanted = case.oracle()
    assert wanted.keys() == case.expected.keys()
    for key, value in wanted.items():
        np.testing.assert_allclose(
            case.expected[key], value, rtol=case.rtol, atol=case.atol
        )


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.phase == "backward"], ids=lambda case: case.name
)
def test_value_is_fine_and_gradient_is_not(case: Case) -> None:
    value, grad = jax.jit(case.failing)(*case.arrays)
    np.testing.assert_allclose(value, case.expected["value"], rtol=1e-4, atol=1e-6)
    assert not np.isfinite(grad).all()
