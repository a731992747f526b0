"""The contract with JAX: what the adapter reads must mean the same on every version."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxsafe import _program
from jaxsafe._program import _adapter


def equations(fn, *args):
    jaxpr, _ = _adapter.open_jaxpr(jax.make_jaxpr(fn)(*args))
    return {eqn.primitive.name: eqn for eqn in jaxpr.eqns}


def test_open_jaxpr_gives_equations_and_constants():
    table = jnp.arange(3.0)
    jaxpr, consts = _adapter.open_jaxpr(jax.make_jaxpr(lambda x: x * table)(table))
    assert [eqn.primitive.name for eqn in jaxpr.eqns] == ["mul"]
    assert len(consts) == len(jaxpr.constvars) == 1
    assert len(jaxpr.invars) == 1


def test_scan_sizes():
    def f(c, xs, k):
        return lax.scan(lambda c, x: ((c[0] * k, c[1] + x), c[0]), (c, c), xs)

    eqn = equations(f, jnp.ones(()), jnp.ones(4), jnp.ones(()))["scan"]
    assert _adapter.scan_sizes(eqn) == (1, 2)
    assert len(eqn.invars) == 1 + 2 + 1


def test_scan_sizes_of_a_transposed_scan():
    def f(x):
        return lax.scan(lambda c, _: (jnp.sin(c * x), None), x, None, length=3)[0]

    jaxpr, _ = _adapter.open_jaxpr(jax.make_jaxpr(jax.grad(f))(jnp.ones(())))
    scans = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
    for eqn in scans:
        consts, carry = _adapter.scan_sizes(eqn)
        body, _ = _adapter.open_jaxpr(eqn.params["jaxpr"])
        carried = [v.aval.shape for v in body.invars[consts : consts + carry]]
        assert carried == [v.aval.shape for v in body.outvars[:carry]]
        assert len(body.invars) == len(eqn.invars)
    assert [eqn.params["reverse"] for eqn in scans] == [False, True]


def test_while_and_cond_parameters():
    def f(x):
        x = lax.while_loop(lambda s: s < x, lambda s: s + x * 2.0, x - 1.0)
        return lax.cond(x > 0.0, jnp.sin, jnp.cos, x)

    found = equations(f, jnp.ones(()))
    params = found["while"].params
    assert (params["cond_nconsts"], params["body_nconsts"]) == (1, 1)
    assert len(found["cond"].params["branches"]) == 2


@jax.custom_jvp
def _with_jvp(x):
    return jnp.sin(x)


@jax.custom_vjp
def _with_vjp(x):
    return jnp.sin(x)


_with_jvp.defjvp(lambda p, t: (_with_jvp(*p), t[0]))
_with_vjp.defvjp(lambda x: (x, x), lambda x, g: (g,))


@pytest.mark.parametrize(
    "fn", [jax.jit(jnp.sin), jax.checkpoint(jnp.sin), _with_jvp, _with_vjp]
)
def test_calls_are_entered(fn):
    traced = _program.trace("test", fn, (jnp.ones(2),), {})
    assert [step.primitive for step in traced.program.walk()] == ["sin"]


def test_bind_runs_one_equation():
    eqn = equations(lambda x: lax.top_k(x, 1), jnp.ones(3))["top_k"]
    values, indices = _adapter.bind(eqn, [jnp.array([1.0, 3.0, 2.0])])
    assert (float(values[0]), int(indices[0])) == (3.0, 1)


def test_printing_is_left_out():
    def f(x):
        jax.debug.print("x = {}", x)
        return x + 1.0

    traced = _program.trace("test", f, (jnp.ones(()),), {})
    assert [step.primitive for step in traced.program.walk()] == ["add"]


def test_name_stack_and_frames():
    def f(x):
        with jax.named_scope("here"):
            return jnp.sin(x)

    eqn = equations(jax.grad(f), jnp.ones(()))["cos"]
    assert "here" in _adapter.name_stack(eqn)
    assert "jvp" in _adapter.name_stack(eqn)
    assert any(file == __file__ for file, _, _ in _adapter.frames(eqn))


@pytest.mark.parametrize(
    ("value", "kind"),
    [(1.0, ""), (float("nan"), "nan"), (float("-inf"), "inf"), (3, ""), (True, "")],
)
def test_literal_kind(value, kind):
    assert _adapter.literal_kind(value) == kind


def test_only_plain_arrays_are_floating():
    assert _adapter.is_floating(jax.typeof(jnp.ones(2)))
    assert _adapter.is_floating(jax.typeof(jnp.ones(2, jnp.complex64)))
    assert not _adapter.is_floating(jax.typeof(jnp.ones(2, jnp.int32)))
    assert not _adapter.is_floating(jax.typeof(jax.random.key(0)))
