"""The record, its text, the allow list and the error messages."""

import importlib
import json
import re
import textwrap

import jax
import jax.numpy as jnp
import pytest

from jaxsafe.diagnose import CAUSES, Finding, Stats, first_nonfinite


@pytest.fixture(scope="module")
def finding():
    def softmax(x):
        e = jnp.exp(x)
        return e / jnp.sum(e, axis=-1, keepdims=True)

    return first_nonfinite(softmax, jnp.array([[0.0, 100.0], [1.0, 2.0]]))


def test_record_is_frozen_and_has_slots(finding):
    with pytest.raises(AttributeError):
        finding.line = 3
    assert not hasattr(finding, "__dict__")
    assert isinstance(finding, Finding)
    assert isinstance(finding.result, Stats)


def test_stats_of_operand_and_result(finding):
    (operand,) = finding.operands
    assert (operand.minimum, operand.maximum) == (0.0, 100.0)
    assert (operand.num_nan, operand.num_inf, operand.num_zero) == (0, 0, 1)
    assert (operand.first_index, operand.name) == (None, "x")
    result = finding.result
    assert (result.shape, result.dtype, result.num_inf) == ((2, 2), "float32", 1)
    assert result.first_index == (0, 1)
    # exp is 1 at its smallest argument and e**2 at its largest finite one.
    assert (result.minimum, result.maximum) == (1.0, pytest.approx(7.389056))


def test_summary_says_what_where_why_and_what_to_do(finding):
    text = finding.summary()
    assert text.startswith("Inf born in the forward pass, by exp\n")
    assert f"test_finding.py:{finding.line}, finding.softmax" in text
    assert "e = jnp.exp(x)" in text
    assert "exp of 100 does not fit into float32, which ends at exp(88.72)." in text
    assert "div -> nan at test_finding.py" in text
    assert CAUSES["activation"].remedies[0] in text
    places = [line for line in text.splitlines() if finding.file in line]
    others = [line for line in text.splitlines() if line not in places]
    assert max(map(len, others)) <= 80


def test_json_is_one_object_without_nan(finding):
    record = json.loads(finding.to_json())
    assert set(record) == set(Finding.__dataclass_fields__)
    assert record["operands"][0]["maximum"] == 100.0
    all_bad = first_nonfinite(jnp.log, -jnp.ones(2))
    assert json.loads(all_bad.to_json())["result"]["minimum"] is None


def test_repr_is_one_line(finding):
    expected = f"""
    Finding(exp -> inf at {finding.file}:{finding.line}, phase='forward',
    cause='activation', confidence=0.85)
    """
    assert repr(finding) == " ".join(textwrap.dedent(expected).split())


def test_remedy_that_fits_the_primitive_comes_first():
    by_zero = first_nonfinite(lambda x: x / (x - x), jnp.ones(3))
    assert by_zero.cause == "domain"
    assert by_zero.remedies[0] == "y = jaxsafe.ops.divide(x, y)"


@pytest.mark.parametrize("cause", CAUSES.values(), ids=lambda cause: cause.id)
def test_remedies_name_what_exists(cause):
    for text in cause.remedies:
        for path in re.findall(r"jaxsafe\.([\w.]+)", text):
            room, _, name = path.rpartition(".")
            module = importlib.import_module(f"jaxsafe.{room}")
            assert name in module.__all__, path


def test_allow_takes_arguments_outputs_and_primitives():
    x = jnp.array([0.0, jnp.nan])

    def f(batch):
        return batch["x"] * 2.0, jnp.log(batch["x"] * 0.0 + batch["y"])

    def found(y, allow):
        return first_nonfinite(f, {"x": x, "y": y}, allow=allow)

    assert found(jnp.ones(2), ()).phase == "input"
    assert found(jnp.ones(2), ("batch['x']",)) is None
    assert found(jnp.ones(2), ("result[0]", "result[1]")) is None
    assert found(jnp.ones(2), ("result[0]",)).phase == "input"
    log = first_nonfinite(jnp.log, jnp.zeros(2))
    assert log.primitive == "log"
    assert first_nonfinite(jnp.log, jnp.zeros(2), allow=("log",)) is None
    infinite = jnp.array([1.0, jnp.inf])
    assert first_nonfinite(jnp.sum, infinite, allow=("a",)) is None


def test_keyword_arguments_and_python_numbers_reach_the_function():
    def f(x, *, power, scale=1.0):
        return scale * x**power if power == 2 else jnp.log(x)

    assert first_nonfinite(f, jnp.zeros(2), power=2) is None
    finding = first_nonfinite(f, jnp.zeros(2), power=3)
    assert finding.primitive == "log"


def test_function_without_a_user_line():
    finding = first_nonfinite(jnp.log, jnp.zeros(2))
    assert (finding.primitive, finding.result.num_inf) == ("log", 2)
    assert finding.file == __file__  # the call is the nearest line of the user


def test_error_for_a_tracer():
    with pytest.raises(
        TypeError, match=r"first_nonfinite: argument x must be concrete"
    ):
        jax.jit(lambda x: first_nonfinite(jnp.log, x))(jnp.ones(2))


def test_error_for_a_function_that_cannot_be_traced():
    def f(x):
        return x if x.sum() > 0 else -x

    with pytest.raises(TypeError, match=r"first_nonfinite: f cannot be traced") as info:
        first_nonfinite(f, jnp.ones(2))
    assert isinstance(info.value.__cause__, jax.errors.TracerBoolConversionError)


def test_error_for_a_donated_argument():
    x = jnp.ones(3)
    x.delete()
    with pytest.raises(ValueError, match=r"argument x was donated and is gone"):
        first_nonfinite(lambda x: x, x)


def test_error_for_allow():
    with pytest.raises(TypeError, match=r"allow must be a tuple of strings"):
        first_nonfinite(jnp.log, jnp.ones(2), allow="log")


@pytest.mark.parametrize("layers", [1, 2])
def test_weights_out_of_range_point_at_the_learning_rate(layers):
    def loss(w, x):
        for _ in range(layers):
            x = x @ w
        return jnp.mean((x - 1.0) ** 2)

    finding = first_nonfinite(loss, jnp.full((4, 4), 1e22), jnp.ones((8, 4)))
    assert finding.cause == "learning_rate"
    tame = first_nonfinite(
        lambda w, x: loss(w, jnp.exp(x)), jnp.ones((4, 4)), jnp.full((8, 4), 80.0)
    )
    assert tame.cause != "learning_rate"
