"""Exploding gradients in a recurrent model that reads an image four pixels at a time.

Broken: 16 steps of a rectified linear recurrence, gradient descent without a clip: the
gradient is a product of 16 Jacobians. Cured: `clip_by_global_norm`, same rate.
"""

import jax
import optax
from flax import nnx

from experiments import _data, _tools
from experiments._models import PixelRNN
from experiments._records import Outcome
from experiments._train import Task, cost, diagnosed, make_task, train, train_guarded
from jaxsafe import losses, transforms

STEPS = 600
RATE = 0.02
TARGET = 0.85


def loss(model: nnx.Module, x: jax.Array, y: jax.Array) -> jax.Array:
    """Cross-entropy, stable: it is the recurrence that explodes."""
    scores = model(x / 16.0)
    return losses.softmax_cross_entropy_with_integer_labels(scores, y).mean()


def run() -> Outcome:
    """Train without and with a clip."""
    data = _data.digits()
    batches = list(_data.batches(data.x_train, data.y_train, steps=STEPS))
    test = (data.x_test, data.y_test)
    broken, crash = train("no clip", _task(_descent()), batches, test)
    crash, finding = diagnosed(broken, crash)
    task = _task(optax.chain(transforms.clip_by_global_norm(1.0), _descent()))
    cured = train_guarded("clip_by_global_norm(1.0)", task, batches, test)
    skipping = _task(_tools.skip_nonfinite(_descent()))
    return Outcome(
        name="exploding_gradient",
        title="Exploding gradients in a recurrent model",
        action="learning rate",
        story=(
            "A recurrence multiplies the gradient by one Jacobian per tick. One step "
            "makes them a little larger than 1, and 16 of them multiply to a number "
            "that throws the weights out of reach."
        ),
        runs=(broken,),
        cured=(cured,),
        cure="clip_by_global_norm",
        target=TARGET,
        finding=finding,
        verdicts=_tools.ask_all(crash, finding, skipping, batches, test),
        cost=cost(task.step, (task.state, *batches[0]), crash),
    )


def _task(tx: optax.GradientTransformation) -> Task:
    return make_task(PixelRNN(10, pixels=4), loss, tx)


def _descent() -> optax.GradientTransformation:
    return optax.sgd(optax.cosine_decay_schedule(RATE, STEPS), momentum=0.9)
