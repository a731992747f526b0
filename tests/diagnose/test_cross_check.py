"""Compiled and op by op, side by side."""

import json

import jax
import jax.numpy as jnp
import pytest

from jaxsafe import _program, diagnose

X = jnp.asarray([0.0, 1.0, 4.0])


def root_of_shifted(x):
    return jnp.sqrt(x - 1.0)


def test_both_agree():
    check = diagnose.cross_check(root_of_shifted, X)
    assert check.verdict == "both"
    assert check.compiled.line == check.op_by_op.line
    assert check.summary().startswith("both: Compiled and op by op agree.\nNaN born")


def test_neither():
    check = diagnose.cross_check(jnp.exp, X)
    assert (check.verdict, check.compiled, check.op_by_op) == ("neither", None, None)


def test_a_rewrite_that_overflows():
    # XLA on CPU makes it (x + y) / 2, unless the halves are looked at.
    big = jnp.full(3, 2e38)
    check = diagnose.cross_check(lambda x, y: x * 0.5 + y * 0.5, big, big)
    assert check.verdict == "compiled only"
    assert "optimization_barrier" in check.summary()


def test_a_rewrite_that_helps():
    # inf times a mask is a select to XLA, and NaN to the mathematics of floats.
    def masked(x, keep):
        return jnp.where(keep, 1.0, 0.0) * jnp.log(x)

    check = diagnose.cross_check(masked, X, X > 0)
    assert check.op_by_op is not None
    assert check.verdict in ("op by op only", "both")
    assert bool(jnp.isfinite(jax.jit(masked)(X, X > 0)).all()) == (
        check.verdict == "op by op only"
    )


def test_an_output_that_is_only_handed_on():
    for x, verdict in ((X, "both"), (X + 1, "neither")):
        check = diagnose.cross_check(lambda x: -jnp.log(x).reshape(3, 1), x)
        assert check.verdict == verdict


@pytest.mark.cpu
def test_a_nan_that_a_maximum_loses():
    def peak(x):
        return jnp.max(jnp.sqrt(x))

    x = jnp.ones(100_000).at[77_777].set(-1.0)
    assert not jnp.isnan(jax.jit(peak)(x))  # XLA on CPU; else there is nothing to say
    check = diagnose.cross_check(peak, x)
    (place,) = check.dropped
    assert place.startswith("reduce_max at ")
    assert place.split()[-1].startswith(f"{__file__.rsplit('/', 1)[1]}:")
    assert check.verdict == "neither"
    assert f"A NaN went into {place} and none came out" in check.summary()
    assert json.loads(check.to_json())["dropped"] == [place]
    assert diagnose.cross_check(peak, jnp.abs(x)).dropped == ()
    assert diagnose.cross_check(lambda x: jnp.nanmax(jnp.sqrt(x)), x).dropped == ()


def test_infinities_that_are_meant_are_no_difference():
    check = diagnose.cross_check(lambda x: jnp.where(x > 0, x, -jnp.inf), X)
    assert check.verdict == "neither"


def test_through_loops_and_gradients():
    def loss(x):
        def step(c, _):
            return jnp.sqrt(c), None

        return jax.lax.scan(step, x, None, 3)[0].sum()

    check = diagnose.cross_check(jax.value_and_grad(loss), X)
    assert check.verdict == "both"
    assert check.compiled.phase == check.op_by_op.phase == "backward"


@pytest.mark.parametrize("x", [X, X + 1.0])
def test_op_by_op_runs_once_and_once_more_for_the_operands(x, monkeypatch):
    seen, observe = [], _program.observe

    def counting(*args, compiled=True):
        seen.append(compiled)
        return observe(*args, compiled=compiled)

    monkeypatch.setattr(_program, "observe", counting)
    check = diagnose.cross_check(root_of_shifted, x)
    assert seen.count(False) == (2 if check.op_by_op else 1)


def test_json_and_errors():
    plain = json.loads(diagnose.cross_check(root_of_shifted, X).to_json())
    assert plain["verdict"] == "both"
    assert plain["op_by_op"]["primitive"] == "sqrt"
    with pytest.raises(TypeError, match="cross_check: allow must be a tuple"):
        diagnose.cross_check(root_of_shifted, X, allow="x")
