"""Everything wrong at once: holes, an infinite cell, a naive loss, a rate far too high.

Unguarded, the run dies on its first batch. Whoever cures one cause meets the next; the
page shows each in turn. With jaxsafe the same table trains to its accuracy.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
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
    data = _data.penguins()
    table = data.x_train.copy()
    table.iloc[7, table.columns.get_loc("flipper_length_mm")] = np.inf  # a bad sensor
    raw, raw_test = _data.as_numbers(table), _data.as_numbers(data.x_test)
    cleaner = clean.fit(table, impute="mean")

    def cleaned(frame: pd.DataFrame) -> np.ndarray:
        return np.asarray(clean.apply(cleaner, clean.encode(cleaner, frame)))

    x_train = cleaned(table)
    width = x_train.shape[1]
    batches = list(_data.batches(raw, data.y_train, steps=STEPS))
    clean_batches = list(_data.batches(x_train, data.y_train, steps=STEPS))
    test, clean_test = (raw_test, data.y_test), (cleaned(data.x_test), data.y_test)
    stable_loss = losses.softmax_cross_entropy_with_integer_labels
    descent = optax.sgd(RATE)

    broken, crash = train(
        "everything wrong", _task(raw.shape[1], naive_loss, descent), batches, test
    )
    second, second_crash = train(
        "data cleaned", _task(width, naive_loss, descent), clean_batches, clean_test
    )
    third, third_crash = train(
        "data and loss cured",
        _task(width, stable_loss, descent),
        clean_batches,
        clean_test,
    )
    task = _task(
        width,
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
    _, second_finding = diagnosed(second, second_crash)
    _, third_finding = diagnosed(third, third_crash)
    skipping = _task(raw.shape[1], naive_loss, _tools.skip_nonfinite(descent))
    step = guard.transaction(task.step)
    return Outcome(
        name="full_run",
        title="Everything wrong at once",
        action="all of them",
        story=(
            "The input poisons the first batch. With the data cleaned, the loss "
            "overflows. With the loss cured too, the rate drives the weights out of "
            "reach. The guard notices, goes back and lowers it."
        ),
        runs=(broken, second, third),
        cured=(cured,),
        cure="clean, losses, guard",
        target=TARGET,
        finding=finding,
        verdicts=_tools.ask_all(crash, finding, skipping, batches, test),
        cost=cost(step, (step.init(task.state), *clean_batches[0]), crash),
        notes=(clean.audit(table, cleaner).summary(), _timeline(cured)),
        further=(
            ("once the data is clean", second_finding),
            ("once the loss is cured too", third_finding),
        ),
    )


def _timeline(cured: Run) -> str:
    steps = len(cured.losses)
    lines = [f"step 0: loss {cured.losses[0]:.4g}", *cured.events]
    end = f"step {steps - 1}: loss {cured.losses[-1]:.4g}, "
    return "\n".join([*lines, end + f"test accuracy {cured.accuracy:.1%}"])


def _task(features: int, per_example: Loss, tx: optax.GradientTransformation) -> Task:
    def loss(model: nnx.Module, x: jax.Array, y: jax.Array) -> jax.Array:
        return per_example(model(x), y).mean()

    model = MLP(features, len(_data.SPECIES), activation=nnx.leaky_relu)
    return make_task(model, loss, tx)
