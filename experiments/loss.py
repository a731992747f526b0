"""The logarithm of a probability that has rounded to 0.

Broken: `-log(softmax(scores)[label])`, right on paper. The softmax is jax's own, stable
one; as soon as one wrong answer is 104 below the best, its probability is 0, the loss
infinite and its gradient NaN. Cured: the loss of the scores themselves.
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
from jaxsafe import losses

STEPS = 400
RATE = 3e-3
TARGET = 0.93

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def naive_loss(scores: jax.Array, y: jax.Array) -> jax.Array:
    """Negative log-likelihood, as it is written in a textbook."""
    probabilities = jax.nn.softmax(scores)
    picked = jnp.take_along_axis(probabilities, y[:, None], axis=-1)
    return -jnp.log(picked)


def clipped_loss(scores: jax.Array, y: jax.Array) -> jax.Array:
    """The same with the probability clipped, the popular cure."""
    probabilities = jnp.clip(jax.nn.softmax(scores), 1e-7, 1.0)
    return -jnp.log(jnp.take_along_axis(probabilities, y[:, None], axis=-1))


def run() -> Outcome:
    """Train with the naive loss, with the clipped one and with ours."""
    data = _data.digits(brightest=64.0)
    batches = list(_data.batches(data.x_train, data.y_train, steps=STEPS))
    test = (data.x_test, data.y_test)
    broken, crash = train("-log(softmax(x)[y])", _task(naive_loss), batches, test)
    clipped, _ = train("probability clipped", _task(clipped_loss), batches, test)
    crash, finding = diagnosed(broken, crash)
    task = _task(losses.softmax_cross_entropy_with_integer_labels)
    cured = train_guarded("cross-entropy of the scores", task, batches, test)
    skipping = _task(naive_loss, skip=True)
    return Outcome(
        name="loss",
        title="Logarithm of a probability of 0",
        action="loss",
        story=(
            "The probability of the right class rounds to 0 for one example of one "
            "batch: its loss is infinite, and 0 * inf in the gradient is NaN. Clipping "
            "the probability keeps it finite, but takes away the gradient of exactly "
            "the examples that are most wrong."
        ),
        runs=(broken, clipped),
        cured=(cured,),
        cure="losses: cross-entropy of scores",
        target=TARGET,
        finding=finding,
        verdicts=_tools.ask_all(crash, finding, skipping, batches, test),
        cost=cost(task.step, (task.state, *batches[0]), crash),
    )


def _task(per_example: Loss, *, skip: bool = False) -> Task:
    def loss(model: nnx.Module, x: jax.Array, y: jax.Array) -> jax.Array:
        return per_example(model(x), y).mean()

    tx = optax.adam(RATE)
    return make_task(MLP(64, 10), loss, _tools.skip_nonfinite(tx) if skip else tx)
