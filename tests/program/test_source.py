"""Names of arguments, lines of the user, call paths and module scopes."""

import json
import sysconfig

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxsafe import _program, ops
from jaxsafe._program import _source
from tests.cases.base import marked_line


@pytest.mark.parametrize("module", [jax, flax, optax, np, json, ops, _program])
def test_library_files_are_not_the_users(module):
    assert _source.user_frame([(module.__file__, 1, "f")]) is None


@pytest.mark.parametrize(
    "file",
    [
        __file__,
        "/home/me/train.py",
        "<doctest mine[0]>",
        "<stdin>",
        f"{sysconfig.get_paths()['purelib']}/my_model/net.py",
    ],
)
def test_other_files_are(file):
    frames = [(jax.__file__, 7, "bind"), (file, 3, "f.<locals>.g"), (__file__, 1, "h")]
    assert _source.user_frame(frames) == (file, 3, "f.g")


def test_optimizers_are_recognised():
    assert _source.in_optimizer([(optax.__file__, 1, "update")])
    assert not _source.in_optimizer([(__file__, 1, "update"), (jax.__file__, 1, "f")])


def test_where_a_function_is_defined():
    def f(x):
        return x

    assert _source.of_function(jax.jit(f)).function == "f"
    assert _source.of_function(jnp.sin).function == "test_where_a_function_is_defined"


def test_arguments_are_named_as_the_user_would():
    def f(params, *rest, rate, **more):
        return params["w"][0] * rate + rest[0] + more["extra"]

    x = jnp.ones(())
    traced = _program.trace("test", f, ({"w": [x]}, x), {"rate": x, "extra": x})
    labels = [node.label for node in traced.program.arguments]
    assert labels == ["params['w'][0]", "args[1]", "extra", "rate"]
    assert traced.outputs == ["result"]


def test_only_arrays_are_traced():
    def f(x, scale, flag, name, fn):
        assert (scale, flag, name) == (2.0, True, "sum")
        return {"y": fn(x) * scale, "name": name}

    args = (np.ones(3, np.float32), 2.0, True, "sum", jnp.sum)
    traced = _program.trace("test", f, args, {})
    assert [node.label for node in traced.program.arguments] == ["x"]
    assert traced.outputs == ["result['y']"]


def test_call_path_is_concatenated():
    @jax.jit
    def inner(x):
        with jax.named_scope("inside"):
            return jnp.sin(x)  # root

    def f(x):
        with jax.named_scope("outside"):
            return inner(x)

    program = _program.trace("test", jax.grad(f), (jnp.ones(()),), {}).program
    site = next(s.site for s in program.walk() if s.primitive == "cos")
    assert "outside" in site.stack
    assert site.stack.index("outside") < site.stack.index("inside")
    assert site.calls == ("inner",)
    assert (site.frame.file, site.frame.line) == (
        __file__,
        marked_line(inner.__wrapped__),
    )


class _Layer(nnx.Module):
    def __call__(self, x):
        return jnp.sin(x)


class _Wide(_Layer):
    def __call__(self, x):
        return super().__call__(x) * 2.0


class _Tower(nnx.Module):
    def __init__(self):
        self.layers = nnx.List([_Layer(), _Wide()])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_nnx_scopes_nest_and_are_taken_off_again():
    before = {cls: cls.__call__ for cls in (_Layer, _Wide, _Tower)}
    program = _program.trace("test", _Tower(), (jnp.ones(()),), {}).program
    stacks = [step.site.stack for step in program.walk()]
    assert stacks == ["_Tower/layers.0", "_Tower/layers.1", "_Tower/layers.1"]
    assert {cls: cls.__call__ for cls in before} == before


def test_nnx_scopes_are_taken_off_after_an_error():
    before, during = _Tower.__call__, []

    def broken(x):
        during.append(_Tower.__call__)
        raise ZeroDivisionError

    with pytest.raises(TypeError, match="broken cannot be traced"):
        _program.trace("test", broken, (jnp.ones(()),), {})
    assert during[0] is not before
    assert _Tower.__call__ is before
