"""Faults inside every kind of program: calls, loops, branches, models, train steps."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax
from jax.experimental import pallas as pl

from jaxsafe.diagnose import first_nonfinite
from tests.cases.base import marked_line


def test_line_inside_nested_jit():
    @jax.jit
    def inner(x):
        return jnp.log(x)  # root

    @jax.jit
    def outer(x):
        return jnp.sum(inner(x) * 2.0)

    finding = first_nonfinite(outer, jnp.array([1.0, 0.0]))
    assert (finding.primitive, finding.line) == ("log", marked_line(inner.__wrapped__))
    assert finding.function.endswith("inner")
    assert (finding.result.num_inf, finding.result.first_index) == (1, (1,))


def test_both_calls_of_one_function_are_told_apart():
    def f(x):
        a = jnp.linalg.norm(x)
        b = jnp.linalg.norm(x - x)  # root
        return a + b

    finding = first_nonfinite(jax.grad(f), jnp.array([3.0, 4.0]))
    assert finding.line == marked_line(f)
    assert finding.cause == "norm"


def test_custom_jvp_of_a_user():
    @jax.custom_jvp
    def f(x):
        return x * 1.0

    @f.defjvp
    def _(primals, tangents):
        (x,), (t,) = primals, tangents
        return f(x), t / x  # root

    finding = first_nonfinite(jax.grad(f), jnp.zeros(()))
    assert (finding.primitive, finding.phase) == ("div", "backward")
    assert finding.source.endswith("# root")


def test_custom_vjp_of_a_user():
    @jax.custom_vjp
    def f(x):
        return x * 1.0

    def backward(x, g):
        return (g * jnp.log(x),)

    def loss(x):
        return 2.0 * f(x)  # root

    f.defvjp(lambda x: (x, x), backward)
    finding = first_nonfinite(jax.grad(loss), -jnp.ones(()))
    assert (finding.primitive, finding.phase) == ("log", "backward")
    # JAX keeps the line of the forward call only, not that of the rule.
    assert finding.line == marked_line(loss)
    forward = first_nonfinite(lambda x: f(jnp.log(x)), -jnp.ones(()))
    assert (forward.primitive, forward.phase) == ("log", "forward")


def test_remat_recomputation():
    @jax.checkpoint
    def f(x):
        return jnp.sum(jnp.sin(jnp.exp(x)))  # root

    finding = first_nonfinite(jax.grad(f), jnp.array([1.0, 200.0]))
    assert (finding.primitive, finding.phase) == ("exp", "forward")
    assert finding.line == marked_line(f.__wrapped__)


def test_iteration_of_a_scan():
    def body(c, x):
        return jnp.exp(c) * x, c  # root

    finding = first_nonfinite(
        lambda xs: lax.scan(body, jnp.ones(()), xs)[0], jnp.ones((6,))
    )
    assert (finding.primitive, finding.iteration) == ("exp", (3,))
    assert finding.line == marked_line(body)
    # exp(exp(e)); an ulp of exp(e) = 15 is 15 ulp of its exponential.
    assert finding.operands[0].maximum == pytest.approx(3814279.0, rel=3e-6)


def test_backward_scan_counts_like_the_forward_one():
    def f(xs):
        def body(c, x):
            return c + jnp.sqrt(x), None  # root

        return lax.scan(body, jnp.zeros(()), xs)[0]

    finding = first_nonfinite(jax.grad(f), jnp.array([1.0, 4.0, 0.0, 1.0]))
    assert (finding.iteration, finding.phase) == ((2,), "backward")
    assert finding.line == marked_line(f)


def test_scan_in_reverse():
    def body(c, x):
        return c, jnp.log(x)

    finding = first_nonfinite(
        lambda xs: lax.scan(body, jnp.zeros(()), xs, reverse=True)[1],
        jnp.array([1.0, 0.0, 1.0]),
    )
    assert finding.iteration == (1,)


def test_nested_loops_give_one_index_per_level():
    def f(x):
        def inner(i, c):
            return c / (x - c)  # root

        def outer(i, c):
            return lax.fori_loop(0, 3, inner, c + 1.0)

        return lax.fori_loop(0, 2, outer, jnp.zeros(()))

    finding = first_nonfinite(f, jnp.asarray(1.0))
    assert (finding.primitive, finding.iteration) == ("div", (0, 0))


def test_while_loop_of_unknown_length():
    def f(x):
        def body(s):
            return s[0] + 1, 1.0 / (3.0 - s[0].astype(jnp.float32)) + 0.0 * s[1]  # root

        return lax.while_loop(lambda s: s[0] < 8, body, (jnp.asarray(0), x))[1]

    finding = first_nonfinite(f, jnp.ones(()))
    assert (finding.primitive, finding.iteration) == ("div", (3,))
    assert finding.line == marked_line(f)


def test_branch_of_a_conditional():
    def good(x):
        return x * 2.0

    def bad(x):
        return jnp.log(-x)  # root

    def f(i, x):
        return lax.switch(i, [good, good, bad], x)

    finding = first_nonfinite(f, jnp.asarray(2), jnp.ones(3))
    assert (finding.branch, finding.line) == (2, marked_line(bad))
    assert first_nonfinite(f, jnp.asarray(1), jnp.ones(3)) is None


def test_conditional_inside_a_scan():
    def bad(x):
        return jnp.sqrt(x - 2.0)  # root

    def f(xs):
        def body(c, x):
            return c, lax.cond(x > 1.0, bad, lambda x: x, x)

        return lax.scan(body, jnp.zeros(()), xs)[1]

    finding = first_nonfinite(f, jnp.array([0.0, 0.5, 1.5, 3.0]))
    assert (finding.iteration, finding.branch) == ((2,), 1)
    assert finding.line == marked_line(bad)


def test_vmap_keeps_the_line_and_names_the_row():
    def f(x):
        return jnp.sum(jnp.log(x))  # root

    finding = first_nonfinite(jax.vmap(f), jnp.array([[1.0, 2.0], [3.0, -1.0]]))
    assert finding.line == marked_line(f)
    assert finding.result.first_index == (1, 1)
    assert (finding.result.num_nan, finding.operands[0].minimum) == (1, -1.0)


class _Encoder(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 4, rngs=rngs)

    def __call__(self, x):
        return jnp.sqrt(nnx.relu(self.linear(x)) * 0.0)  # root


class _Net(nnx.Module):
    def __init__(self, rngs):
        self.encoder = _Encoder(rngs)

    def __call__(self, x):
        return jnp.sum(self.encoder(x))


def test_nnx_model_names_its_module():
    def loss(model, x):
        return model(x)

    finding = first_nonfinite(
        nnx.value_and_grad(loss), _Net(nnx.Rngs(0)), jnp.ones((2, 3))
    )
    assert (finding.module, finding.phase) == ("_Net/encoder", "backward")
    assert finding.line == marked_line(_Encoder.__call__)
    assert (finding.primitive, finding.cause) == ("div", "gradient")
    assert _Encoder.__call__.__name__ == "__call__"  # the class is as it was


class _Head(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.log(nn.Dense(2, name="proj")(x) * 0.0)  # root


class _LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.sum(_Head(name="head")(x))


def test_linen_model_names_its_module():
    model = _LinenNet()
    x = jnp.ones((2, 3))
    variables = model.init(jax.random.key(0), x)
    finding = first_nonfinite(jax.value_and_grad(model.apply), variables, x)
    assert (finding.module, finding.phase) == ("_LinenNet/head", "forward")
    assert finding.source.endswith("# root")


def _train_step(tx):
    def loss(params, x):
        return jnp.sum(params["used"] * x) + 0.0 * jnp.sum(params["idle"])

    def step(params, state, x):
        grads = jax.grad(loss)(params, x)
        updates, state = tx.update(grads, state, params)  # root
        return optax.apply_updates(params, updates), state

    return step


def test_update_of_an_optimizer_in_a_whole_train_step():
    tx = optax.chain(optax.scale_by_rms(eps=0.0), optax.scale(-0.1))
    step = _train_step(tx)
    params = {"used": jnp.ones(3), "idle": jnp.ones(2)}
    donating = jax.jit(step, donate_argnums=(0, 1))
    finding = first_nonfinite(donating, params, tx.init(params), jnp.ones(3))
    assert (finding.phase, finding.line) == ("update", marked_line(step))
    # Nothing was donated: the arguments are still there.
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


def test_infinity_first_then_nan_in_the_chain():
    def f(x):
        e = jnp.exp(x)  # root
        return e / jnp.sum(e)

    finding = first_nonfinite(f, jnp.array([1.0, 100.0]))
    line = marked_line(f)
    assert finding.chain == (
        f"exp -> inf at test_programs.py:{line}",
        f"div -> nan at test_programs.py:{line + 1}",
    )
    assert (finding.cause, finding.operands[0].maximum) == ("activation", 100.0)


def test_where_trap_names_the_forward_function():
    def f(x):
        y = jnp.sqrt(x)  # root
        return jnp.sum(jnp.where(x > 0.0, y, 0.0))

    finding = first_nonfinite(jax.grad(f), jnp.array([4.0, 0.0]))
    assert (finding.cause, finding.phase) == ("mask", "backward")
    assert "guard the input of this `sqrt`, not its output" in finding.summary()


def test_argument_with_a_nan():
    batch = {"x": jnp.ones((4, 3)).at[2, 1].set(jnp.nan), "y": jnp.ones(4)}

    def loss(w, batch):
        return jnp.mean((batch["x"] @ w - batch["y"]) ** 2)  # root

    finding = first_nonfinite(jax.grad(loss), jnp.ones(3), batch=batch)
    assert (finding.phase, finding.primitive) == ("input", "(input)")
    assert finding.result.name == "batch['x']"
    assert finding.result.first_index == (2, 1)
    assert finding.line == marked_line(loss)


NAN = float("nan")


@pytest.mark.parametrize(
    "number", [NAN, complex(0, NAN), np.float32(NAN), np.float64(NAN), np.array(NAN)]
)
@pytest.mark.parametrize("use", [lambda x: x, lambda x: jnp.ones(3) * x])
def test_number_that_is_nan(number, use):
    def loss(batch, scale):
        return use(batch["x"]) * scale

    finding = first_nonfinite(loss, {"x": number, "y": 2}, 0.5)
    assert (finding.phase, finding.primitive) == ("input", "(input)")
    assert (finding.result.name, finding.result.num_nan) == ("batch['x']", 1)
    assert (finding.cause, finding.result.shape) == ("input_data", ())


def test_infinite_number_that_gets_into_a_sum():
    finding = first_nonfinite(lambda x, r: jnp.sum(x * r), jnp.ones(2), math.inf)
    assert (finding.phase, finding.result.name) == ("input", "r")


def test_number_that_a_function_needs_as_it_is():
    def f(x, order, rate):
        y = jnp.linalg.norm(jnp.log(x), order)
        return y * rate if rate > 1 else y

    finding = first_nonfinite(f, jnp.zeros(2), math.inf, 2.0)
    assert finding.primitive == "log"
    assert first_nonfinite(f, jnp.ones(2), math.inf, 2.0) is None
    # It decides what is traced, so it is part of the program; still a finding.
    finding = first_nonfinite(lambda x, r: x if r > 1 else x * r, jnp.ones(2), NAN)
    assert finding.result.num_nan == 2


def test_nan_that_the_program_writes_down():
    finding = first_nonfinite(lambda x: (x, NAN, jnp.float32(NAN)), jnp.ones(2))
    assert (finding.phase, finding.result.name) == ("input", "constant")
    assert (finding.result.num_nan, finding.result.shape) == (1, ())


def test_infinite_argument_that_gets_into_a_sum():
    def loss(x):
        return jnp.sum(x * 2.0)

    finding = first_nonfinite(loss, jnp.array([1.0, jnp.inf]))
    assert (finding.phase, finding.cause) == ("input", "input_data")
    assert finding.result.num_inf == 1


def test_closed_over_constant_with_a_nan():
    table = jnp.array([1.0, jnp.nan])
    finding = first_nonfinite(lambda x: jnp.sum(x * table), jnp.ones(2))
    assert (finding.phase, finding.result.num_nan) == ("input", 1)
    assert "closed-over" in finding.chain[0]


def test_nan_literal_of_an_empty_variance():
    def f(x):
        return jnp.var(x)  # root

    finding = first_nonfinite(f, jnp.ones((0,)))
    assert (finding.line, finding.cause) == (marked_line(f), "mask")


def test_index_out_of_range():
    finding = first_nonfinite(lambda x: jnp.take(x, jnp.array([7])), jnp.ones(3))
    assert (finding.primitive, finding.cause) == ("gather", "input_data")
    assert "indices reach 7, the shape is [3]" in finding.summary()


def test_unknown_primitives_are_opaque():
    def kernel(x_ref, o_ref):
        o_ref[...] = jnp.log(x_ref[...])

    def f(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return pl.pallas_call(kernel, out_shape=shape, interpret=True)(x)  # root

    finding = first_nonfinite(f, jnp.array([1.0, -1.0]))
    assert (finding.primitive, finding.line) == ("pallas_call", marked_line(f))


def test_a_kernel_is_not_blamed_for_what_stands_around_it():
    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...] * 2.0

    def f(x, y):
        x = jnp.log(x)
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        x = pl.pallas_call(kernel, out_shape=shape, interpret=True)(x)
        return jnp.sqrt(x - y)

    finding = first_nonfinite(jax.jit(f), jnp.array([1.0, -1.0]), 0.0)
    assert (finding.primitive, finding.source) == ("log", "x = jnp.log(x)")
    finding = first_nonfinite(jax.jit(f), jnp.array([1.0, 2.0]), 9.0)
    assert (finding.primitive, finding.source) == ("sqrt", "return jnp.sqrt(x - y)")


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_overflow(dtype):
    finding = first_nonfinite(lambda x: x * x, jnp.array([1.0, 1e4], dtype))
    if dtype == jnp.float16:
        assert (finding.primitive, finding.cause) == ("mul", "precision")
        assert finding.result.dtype == "float16"
    else:
        assert finding is None


def test_complex_values():
    def f(x):
        return jnp.abs(jnp.fft.rfft(x * 1e30) * 1e30)  # root

    finding = first_nonfinite(f, jnp.ones(4))
    assert (finding.line, finding.result.num_inf > 0) == (marked_line(f), True)


def test_diverging_training_loop():
    def loss(w, x):
        return jnp.mean((x @ w) ** 2)  # root

    def train(w, xs):
        def step(w, x):
            value, grad = jax.value_and_grad(loss)(w, x)
            return w - 100.0 * grad, value

        return lax.scan(step, w, xs)

    xs = jnp.ones((30, 4, 3))
    finding = first_nonfinite(train, jnp.ones(3), xs)
    assert (finding.phase, finding.cause) == ("update", "learning_rate")
    assert finding.line == marked_line(loss)
    assert finding.iteration[0] > 3
    # A NaN in batch 5 is the fault of the data, not of the rate.
    spoiled = first_nonfinite(train, jnp.ones(3), xs.at[5, 1, 2].set(jnp.nan))
    assert (spoiled.phase, spoiled.cause) == ("input", "input_data")
    assert spoiled.result.first_index == (5, 1, 2)


def test_bad_label_of_a_loss_that_answers_with_nan():
    def loss(logits, labels):
        is_label = labels[:, None] == jnp.arange(10)[None]
        value = -jnp.sum(jnp.where(is_label, jax.nn.log_softmax(logits), 0.0), -1)
        bad = ~is_label.any(-1)
        return jnp.mean(jnp.where(bad, jnp.nan, value))  # root

    labels = jnp.array([3, 10])
    finding = first_nonfinite(loss, jnp.ones((2, 10)), labels)
    assert (finding.line, finding.cause) == (marked_line(loss), "input_data")
    assert "Label 10 of 10 classes" in finding.summary()
    # With a real NaN beside it, the picked literal is not to blame.
    finding = first_nonfinite(loss, jnp.full((2, 10), jnp.nan), jnp.array([3, 9]))
    assert finding.phase == "input"


def test_mask_as_an_argument_with_an_empty_row():
    def f(scores, mask):
        return jax.nn.softmax(scores + mask)  # root

    mask = jnp.array([[0.0, -jnp.inf], [-jnp.inf, -jnp.inf]], jnp.bfloat16)
    finding = first_nonfinite(f, jnp.ones((2, 2), jnp.bfloat16), mask)
    assert (finding.primitive, finding.cause) == ("sub", "mask")
    assert finding.result.first_index == (1, 0)


GRIST = {
    "CE": (lambda z, y: -jnp.sum(y * jnp.log(jax.nn.softmax(z))), "log", "loss"),
    "SMX": (
        lambda z, y: jnp.sum(jnp.exp(z) / jnp.sum(jnp.exp(z))),
        "exp",
        "activation",
    ),
    "RBM": (lambda z, y: jnp.sum(jnp.log(jnp.exp(z) + 1.0)), "exp", "activation"),
    "VAE": (lambda z, y: jnp.sum(jnp.sqrt(jnp.exp(z - 300.0))), "div", "gradient"),
    "KL": (lambda z, y: jnp.mean(1.0 + z - jnp.log(z)), "log", "domain"),
    "DIV": (lambda z, y: jnp.sum(y / jnp.sum(jnp.abs(z) * 0.0)), "div", "domain"),
}


@pytest.mark.parametrize("name", GRIST)
def test_loss_patterns_of_the_grist_study(name):
    fn, primitive, cause = GRIST[name]
    z = jnp.array([[300.0, -300.0], [5.0, 1.0]])
    finding = first_nonfinite(jax.value_and_grad(fn), z, jnp.eye(2))
    assert (finding.primitive, finding.cause) == (primitive, cause)
