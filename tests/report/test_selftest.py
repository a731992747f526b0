"""The selftest tells the truth about this backend, and notices what is broken."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsafe import _gate, _tree, diagnose, guard, ops, report
from jaxsafe.report import _backend, _reliance


@pytest.fixture(scope="module")
def result():
    return report.selftest()


def answer(result, name):
    return next(check for check in result.checks if check.name == name)


def test_jaxsafe_works_here(result):
    assert result.ok
    assert [c.name for c in result.checks if c.relied_on and not c.ok] == []


def test_nothing_failed_to_run_and_every_answer_has_its_words(result):
    for check in result.checks:
        assert not check.seen.startswith("not run"), check
        assert check.seen
        if not check.relied_on:
            assert check.means.endswith(".")
            assert check.remedy.endswith(".")
    names = [check.name for check in result.checks]
    assert len(names) == len(set(names)) >= 20


def test_it_agrees_with_the_backend_asked_in_other_words(result):
    x = jnp.ones(_backend.LARGE).at[17].set(jnp.nan)
    if not jnp.isnan(x.max()):
        assert not answer(result, "NaN in max and min").ok
        assert "float32 max" in answer(result, "NaN in max and min").seen
    kept = jax.jit(lambda x: jnp.isnan(jnp.sum(jnp.maximum(x, 0))))(x)
    assert answer(result, "NaN in relu and sum").ok is bool(kept)
    tiny = jnp.asarray([1e-40])
    flushed = float((tiny * 1e10)[0]) == 0
    assert (
        "float32" in answer(result, "Subnormals that come in").seen.split(";")[0]
    ) is (flushed)
    big = jnp.full(3, 2e38)
    halves = jax.jit(lambda a, b: a * 0.5 + b * 0.5)(big, big)
    assert answer(result, "x * 0.5 + y * 0.5").ok is bool(jnp.isfinite(halves).all())


def test_text_fits_a_frame_and_says_each_answer(result):
    text = result.summary()
    assert text.startswith("jaxsafe works here: ")
    assert max(map(len, text.splitlines())) <= 76
    for check in result.checks:
        assert f"  {check.name}" in text
    assert f"jax {jax.__version__}" in text


def test_json_has_all_of_it(result):
    plain = json.loads(result.to_json())
    assert plain["ok"] is True
    assert plain["versions"]["jax"] == jax.__version__
    assert [c["name"] for c in plain["checks"]] == [c.name for c in result.checks]


class Blind:
    """A transaction that commits whatever comes."""

    init = guard.transaction(lambda state, x: (state, x)).init

    def __init__(self, train_step):
        self.train_step = train_step

    def __call__(self, carry, x):
        state, aux = self.train_step(carry.state, x)
        return carry._replace(state=state), aux


BREAKS = {
    "one NaN or Inf in 100,000 is seen": (
        _tree,
        "all_finite",
        lambda x: jnp.isfinite(jnp.max(x)) | (jnp.zeros(()) == 0),
    ),
    "the gate sees a bad gradient and the norm does not overflow": (
        _gate,
        "judge",
        lambda g: _gate.Verdict(
            jnp.asarray(True), jnp.sqrt((g["w"] ** 2).sum()), jnp.ones(()), None
        ),
    ),
    "select lets no NaN through": (_tree, "select", lambda ok, new, old: new),
    "a rejected, donated step leaves the state as it was": (
        guard,
        "transaction",
        Blind,
    ),
    "diagnose names the equation": (diagnose, "first_nonfinite", lambda *_: None),
    "ops hand a NaN on, also where they use a maximum": (
        ops,
        "softmax",
        lambda x: jnp.nan_to_num(x),
    ),
    "ops are finite at their edges": (ops, "log", jnp.log),
    "pinned arithmetic is computed as written": (
        ops,
        "standardize",
        lambda x, epsilon: (
            (x - x.mean())
            / jnp.sqrt((x.astype(jnp.float16) ** 2).mean() - x.mean() ** 2)
        ),
    ),
}


@pytest.mark.parametrize("reliance", _reliance.RELIANCES, ids=lambda r: r.name)
def test_a_broken_foundation_is_noticed(monkeypatch, reliance):
    module, name, broken = BREAKS[reliance.name]
    monkeypatch.setattr(module, name, broken)
    ok, _ = reliance.ask()
    assert not ok


def test_what_fails_or_cannot_run_is_told(monkeypatch):
    def fails():
        raise RuntimeError("no such instruction\nat all")

    monkeypatch.setattr(
        _reliance, "RELIANCES", (_reliance.Reliance("the ground", fails),)
    )
    monkeypatch.setattr(_backend, "EXPERIMENTS", ())
    result = report.selftest()
    assert not result.ok
    assert result.summary().startswith("jaxsafe does not work here: 0 of 1 ")
    text = result.summary()
    assert "the ground: not run: RuntimeError: no such instruction\n" in text + "\n"


NUMPY = ("max", "min", "sort", "argmax", "median", "matmul")
WITHOUT_JAX = (
    "NaN in max and min",
    "NaN in relu and sum",
    "NaN in sort, argmax, median",
    "Subnormals that come in",
    "Subnormals that come out",
    "x * 0.5 + y * 0.5",
    "(x + c) - c",
    "array / scalar",
    "a * b - c",
    "inf * mask",
    "Half precision between operations",
    "Matrix products of float32",
)


def test_a_machine_that_does_what_is_written_is_called_so(monkeypatch):
    # numpy in place of the compiler: no rewriting, no flush, every NaN kept.
    for name in NUMPY:
        monkeypatch.setattr(jnp, name, getattr(np, name))
    monkeypatch.setattr(jax.nn, "relu", lambda x: np.maximum(x, 0))

    def in_numpy(fn, *args):
        with np.errstate(all="ignore"):
            return np.asarray(fn(*args)).astype(np.float64)

    monkeypatch.setattr(_backend, "compiled", in_numpy)
    experiments = {e.name: e for e in _backend.EXPERIMENTS}
    answers = {name: experiments[name].ask() for name in WITHOUT_JAX}
    assert {name: seen for name, (ok, seen) in answers.items() if not ok} == {}
