"""Bad input data: nineteen missing cells in 344 rows of penguins.

Broken: the table goes into the model as it is. Cured: `clean.fit` on the training rows,
`clean.apply` inside the step.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments import _data, _tools, _wide
from experiments._models import MLP
from experiments._records import Outcome
from experiments._train import Task, cost, diagnosed, make_task, train, train_guarded
from jaxsafe import clean, losses

STEPS = 300
RATE = 1e-2
TARGET = 0.97


def loss(model: nnx.Module, x: jax.Array, y: jax.Array) -> jax.Array:
    """Cross-entropy, stable: it is the data that is broken here."""
    return losses.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


def run() -> Outcome:
    """Train on the raw table, then on the cleaned one."""
    data = _data.penguins()
    raw_train, raw_test = _data.as_numbers(data.x_train), _data.as_numbers(data.x_test)
    batches = list(_data.batches(raw_train, data.y_train, steps=STEPS))
    test = (raw_test, data.y_test)
    broken, crash = train("raw table", _task(raw_train.shape[1]), batches, test)
    crash, finding = diagnosed(broken, crash)

    cleaner = clean.fit(data.x_train, impute="mean")
    x_train = clean.encode(cleaner, data.x_train)
    x_test = clean.encode(cleaner, data.x_test)

    def cleaned_loss(model: nnx.Module, x: jax.Array, y: jax.Array) -> jax.Array:
        return loss(model, clean.apply(cleaner, x), y)

    model = MLP(x_train.shape[1], len(_data.SPECIES))
    task = make_task(model, cleaned_loss, optax.adam(RATE))
    clean_test = (np.asarray(clean.apply(cleaner, x_test)), data.y_test)
    clean_batches = list(_data.batches(x_train, data.y_train, steps=STEPS))
    cured = train_guarded("cleaned table", task, clean_batches, clean_test)

    skipping = _task(raw_train.shape[1], skip=True)
    return Outcome(
        name="input_data",
        title="Missing cells in the input",
        action="input data",
        story=(
            "Two penguins were never measured and nine were never sexed. One missing "
            "cell makes the loss of its batch NaN, and one step later every parameter."
        ),
        runs=(broken,),
        cured=(cured,),
        cure="clean.fit, clean.apply",
        target=TARGET,
        finding=finding,
        verdicts=_tools.ask_all(crash, finding, skipping, batches, test),
        cost=cost(task.step, (task.state, *clean_batches[0]), crash),
        notes=(
            clean.audit(data.x_train).summary(),
            _small_table(),
            _wide.run().table(),
        ),
    )


def _task(features: int, *, skip: bool = False) -> Task:
    tx = optax.adam(RATE)
    model = MLP(features, len(_data.SPECIES))
    return make_task(model, loss, _tools.skip_nonfinite(tx) if skip else tx)


def _small_table() -> str:
    """Three cities: the sums before and after cleaning."""
    table = _data.cities()
    numbers = table[["rain", "wind"]].to_numpy(np.float32)
    rows = [float(v) for v in jnp.asarray(numbers).sum(axis=1)]
    cleaner = clean.fit(numbers, impute="mean", scale=None)
    after = clean.apply(cleaner, numbers)
    lines = ["city     rain  wind    row sum   after clean.apply"]
    for city, raw, total, filled in zip(
        table["city"], numbers, rows, after, strict=True
    ):
        lines.append(
            f"{city:7}{raw[0]:6.2f}{raw[1]:6.2f}{total:11.2f}"
            f"{filled[0]:8.2f}{filled[1]:6.2f}{filled.sum():7.2f}"
        )
    return "\n".join(lines)
