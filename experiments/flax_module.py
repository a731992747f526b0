"""One op inside a Flax module, swapped: all else is stock flax and optax.

A digit is eight columns of eight pixels, and the first column is nearly always empty.
The module embeds each column and takes the direction of what comes out, x / ||x||.
Broken: with 1e-8 added to the norm the value of an empty column is 0, but its gradient
NaN. Cured: `ops.normalize`. Once in an nnx module, once in a linen module.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen, nnx

from experiments import _data, _tools
from experiments._records import Outcome
from experiments._train import (
    Task,
    cost,
    diagnosed,
    make_linen_task,
    make_task,
    train,
    train_guarded,
)
from jaxsafe import ops

STEPS = 400
RATE = 0.5
TARGET = 0.93
SIDE = 8
WIDTH = 16
CLASSES = 10

Op = Callable[[jax.Array], jax.Array]


def naive_normalize(x: jax.Array) -> jax.Array:
    """The definition, with the popular cure."""
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-8)


class NnxColumns(nnx.Module):
    """Directions of a digit's embedded columns, and a linear layer on top."""

    def __init__(self, op: Op) -> None:
        rngs = nnx.Rngs(0)
        self.embed = nnx.Linear(SIDE, WIDTH, use_bias=False, rngs=rngs)
        self.last = nnx.Linear(SIDE * WIDTH, CLASSES, rngs=rngs)
        self.op = op

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scores[rows, classes] of images x[rows, pixels]."""
        directions = self.op(self.embed(columns(x)))
        return self.last(directions.reshape(x.shape[0], -1))


class LinenColumns(linen.Module):
    """The same as a linen module."""

    op: Op

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scores[rows, classes] of images x[rows, pixels]."""
        directions = self.op(linen.Dense(WIDTH, use_bias=False)(columns(x)))
        return linen.Dense(CLASSES)(directions.reshape(x.shape[0], -1))


def columns(x: jax.Array) -> jax.Array:
    """Images x[rows, pixels] as [rows, columns, pixels]."""
    return x.reshape(x.shape[0], -1, SIDE).swapaxes(1, 2)


def loss(model: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Cross-entropy, optax's own: between the runs only the op changes."""
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


def nnx_task(op: Op, *, skip: bool = False) -> Task:
    """The nnx module with this op inside."""
    return make_task(NnxColumns(op), loss, _optimizer(skip))


def linen_task(op: Op) -> Task:
    """The linen module with this op inside."""
    example = jnp.zeros((1, SIDE * SIDE))
    return make_linen_task(LinenColumns(op), example, loss, _optimizer())


def _optimizer(skip: bool = False) -> optax.GradientTransformation:
    tx = optax.sgd(RATE)
    return _tools.skip_nonfinite(tx) if skip else tx


def run() -> Outcome:
    """Train both modules with each op."""
    data = _data.digits()
    batches = list(_data.batches(data.x_train, data.y_train, steps=STEPS))
    test = (data.x_test, data.y_test)
    broken, crash = train(
        "nnx, x / (||x|| + 1e-8)", nnx_task(naive_normalize), batches, test
    )
    linen_broken, linen_crash = train(
        "linen, x / (||x|| + 1e-8)", linen_task(naive_normalize), batches, test
    )
    crash, finding = diagnosed(broken, crash)
    _, linen_finding = diagnosed(linen_broken, linen_crash)
    task = nnx_task(ops.normalize)
    cured = train_guarded("nnx, ops.normalize", task, batches, test)
    linen_cured = train_guarded(
        "linen, ops.normalize", linen_task(ops.normalize), batches, test
    )
    skipping = nnx_task(naive_normalize, skip=True)
    return Outcome(
        name="flax_module",
        title="One op inside a Flax module",
        action="activation",
        story=(
            "An empty column of pixels has no direction, and the root in its norm an "
            "infinite slope. An epsilon beside the norm mends the value only: the "
            "derivative still multiplies 0 by infinity. The module, nnx or linen, "
            "takes the op as an argument, and nothing else changes."
        ),
        runs=(broken, linen_broken),
        cured=(cured, linen_cured),
        cure="ops.normalize(x)",
        target=TARGET,
        finding=finding,
        verdicts=_tools.ask_all(crash, finding, skipping, batches, test),
        cost=cost(task.step, (task.state, *batches[0]), crash),
        further=(("in the linen module", linen_finding),),
    )
