"""A hand-written softmax, and the cure that tutorials recommend, beside ours.

Three runs in which only the function inside the Flax module changes:
`exp(x) / sum(exp(x))`; the same with `+ 1e-8` in the denominator; `ops.softmax`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments import _data, _tools
from experiments._models import MLP
from experiments._records import Outcome
from experiments._train import Task, cost, diagnosed, make_task, train, train_guarded
from jaxsafe import ops

STEPS = 400
RATE = 3e-3
TARGET = 0.93


def naive_softmax(x: jax.Array) -> jax.Array:
    """The definition."""
    e = jnp.exp(x)
    return e / jnp.sum(e, axis=-1, keepdims=True)


def eps_softmax(x: jax.Array) -> jax.Array:
    """The definition, with the popular cure."""
    e = jnp.exp(x)
    return e / (jnp.sum(e, axis=-1, keepdims=True) + 1e-8)


def loss(model: nnx.Module, x: jax.Array, y: jax.Array) -> jax.Array:
    """Negative log-likelihood, our logarithm: it is the softmax that breaks here."""
    return -ops.log(jnp.take_along_axis(model(x), y[:, None], axis=-1)).mean()


def run() -> Outcome:
    """Train with each of the three."""
    data = _data.digits(brightest=64.0)
    batches = list(_data.batches(data.x_train, data.y_train, steps=STEPS))
    test = (data.x_test, data.y_test)
    broken, crash = train("exp(x) / sum(exp(x))", _task(naive_softmax), batches, test)
    with_eps, _ = train("+ 1e-8 in the denominator", _task(eps_softmax), batches, test)
    crash, finding = diagnosed(broken, crash)
    task = _task(ops.softmax)
    cured = train_guarded("ops.softmax", task, batches, test)
    skipping = _task(naive_softmax, skip=True)
    return Outcome(
        name="activation",
        title="Hand-written softmax",
        action="activation",
        story=(
            "exp overflows float32 above 88.7, and inf / inf is NaN. An epsilon in the "
            "denominator does not help: the overflow is in the numerator too. "
            "Subtracting the maximum does, and changes nothing else."
        ),
        runs=(broken, with_eps),
        cured=(cured,),
        cure="ops.softmax(x)",
        target=TARGET,
        finding=finding,
        verdicts=_tools.ask_all(crash, finding, skipping, batches, test),
        cost=cost(task.step, (task.state, *batches[0]), crash),
    )


def _task(head: Callable[[jax.Array], jax.Array], *, skip: bool = False) -> Task:
    tx = optax.adam(RATE)
    model = MLP(64, 10, head=head)
    return make_task(model, loss, _tools.skip_nonfinite(tx) if skip else tx)
