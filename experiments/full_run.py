"""Everything wrong at once: holes, an infinite cell, a naive loss, a rate far too high.

Unguarded, the run dies on its first batch. Whoever cures one cause meets the next; the
page shows each in turn. With jaxsafe the same table trains to its accuracy.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments import _data, _tools
from experiments._models import MLP
from experiments._records import Outcome, Run
from experiments._train import Task, cost, diagnosed, make_task, train, train_guarded
from jaxsafe import clean, guard, losses, transforms

STEPS = 400
RATE = 30.0
TARGET = 0.95
LIMIT = 20.0

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def naive_loss(scores: jax.Array, y: jax.Array) -> jax.Array:
    """The logarithm of a probability, as a textbook writes it."""
    e = jnp.exp(scores)
    p = e / jnp.sum(e, axis=-1, keepdims=True)
    return -jnp.log(jnp.take_along_axis(p, y[:, None], axis=-1))


def run() -> Outcome:
    """Cure one cause after the other, then all of them together."""
    data = _data.penguins(_data.MEASUREMENTS)
    raw = data.x_train.to_numpy(np.float32)
    raw[7, 2] = np.inf  # a sensor that returned its limit
    raw_test = data.x_test.to_numpy(np.float32)
    cleaner = clean.fit(raw, impute="mean")

    def cleaned(x: np.ndarray) -> np.ndarray:
        return np.asarray(clean.apply(cleaner, x))

    batches = list(_data.batches(raw, data.y_train, steps=STEPS))
    clean_batches = list(_data.batches(cleaned(raw), data.y_train, steps=STEPS))
    test, clean_test = (raw_test, data.y_test), (cleaned(raw_test), data.y_test)
    stable_loss = losses.softmax_cross_entropy_with_integer_labels
    descent = optax.sgd(RATE)

    broken, crash = train("everything wrong", _task(naive_loss, descent), batches, test)
    second, next_crash = train(
        "data cleaned", _task(naive_loss, descent), clean_batches, clean_test
    )
    third, _ = train(
        "data and loss cured", _task(stable_loss, descent), clean_batches, clean_test
    )
    task = _task(
        stable_loss,
        optax.chain(descent, transforms.adapt_learning_rate(recovery_steps=5000)),
    )
    cured = train_guarded(
        "with jaxsafe",
        task,
        clean_batches,
        clean_test,
        policy=guard.Policy(snapshot_every=5, roll_back_after=2, give_up_after=60),
        check=lambda _, aux: aux["loss"] < LIMIT,
    )
    crash, finding = diagnosed(broken, crash)
    _, next_finding = diagnosed(second, next_crash)
    skipping = _task(naive_loss, _tools.skip_nonfinite(descent))
    step = guard.transaction(task.step)
    return Outcome(
        name="full_run",
        title="Everything wrong at once",
        action="all of them",
        story=(
            "The input poisons the first batch. With the data cleaned, the loss takes "
            "the logarithm of 0. With the loss cured too, nothing is non-finite any "
            "more, and the rate still ruins the run. The guard notices, goes back and "
            "lowers it."
        ),
        runs=(broken, second, third),
        cured=(cured,),
        cure="clean, losses, guard",
        target=TARGET,
        finding=finding,
        verdicts=_tools.ask_all(crash, finding, skipping, batches, test),
        cost=cost(step, (step.init(task.state), *clean_batches[0]), crash),
        notes=(clean.audit(raw, cleaner).summary(), _timeline(cured)),
        further=(("once the data is clean", next_finding),),
    )


def _timeline(cured: Run) -> str:
    steps = len(cured.losses)
    lines = [f"step 0: loss {cured.losses[0]:.4g}", *cured.events]
    end = f"step {steps - 1}: loss {cured.losses[-1]:.4g}, "
    return "\n".join([*lines, end + f"test accuracy {cured.accuracy:.1%}"])


def _task(per_example: Loss, tx: optax.GradientTransformation) -> Task:
    def loss(model: nnx.Module, x: jax.Array, y: jax.Array) -> jax.Array:
        return per_example(model(x), y).mean()

    model = MLP(len(_data.MEASUREMENTS), len(_data.SPECIES), activation=nnx.leaky_relu)
    return make_task(model, loss, tx)
