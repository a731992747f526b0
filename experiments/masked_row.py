"""A row in which everything is masked: the two penguins that nobody measured.

A model attends over the measurements that a penguin has. Broken: the masked scores
are -inf before the softmax, so that a penguin without any is 0 / 0. Also broken: its
row set to zero afterwards, the value fine, the gradient NaN. Cured:
`ops.softmax(where=mask)`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments import _data, _tools
from experiments._records import Outcome
from experiments._train import Task, cost, diagnosed, make_task, train, train_guarded
from jaxsafe import clean, losses, ops

STEPS = 400
RATE = 1e-2
TARGET = 0.93
WIDTH = 16

Attention = Callable[[jax.Array, jax.Array], jax.Array]


def naive_attention(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Weights over the unmasked entries of every row."""
    return jax.nn.softmax(scores + jnp.where(mask, 0.0, -jnp.inf), axis=-1)


def zeroed_attention(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """The same, with the empty rows set to zero afterwards."""
    weights = jax.nn.softmax(scores + jnp.where(mask, 0.0, -jnp.inf), axis=-1)
    return jnp.where(mask.any(axis=-1, keepdims=True), weights, 0.0)


def safe_attention(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Ours: an empty row has no weights, and a gradient of zero."""
    return ops.softmax(scores, axis=-1, where=mask)


class MeasurementPool(nnx.Module):
    """One token per measurement; a missing one is NaN in the input, and masked."""

    def __init__(self, attention: Attention) -> None:
        rngs = nnx.Rngs(0)
        tokens = len(_data.MEASUREMENTS)
        self.names = nnx.Param(0.1 * jax.random.normal(rngs.params(), (tokens, WIDTH)))
        self.slopes = nnx.Param(jax.random.normal(rngs.params(), (tokens, WIDTH)))
        self.score = nnx.Linear(WIDTH, 1, rngs=rngs)
        self.last = nnx.Linear(WIDTH, len(_data.SPECIES), rngs=rngs)
        self.attention = attention

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scores[rows, species] of measurements x[rows, tokens]."""
        mask = jnp.isfinite(x)
        x = jnp.where(mask, x, 0.0)[..., None]  # [rows, tokens, 1]
        tokens = jnp.tanh(self.names[...] + self.slopes[...] * x)
        weights = self.attention(self.score(tokens)[..., 0], mask)
        return self.last(jnp.einsum("rt,rtw->rw", weights, tokens))


def loss(model: nnx.Module, x: jax.Array, y: jax.Array) -> jax.Array:
    """Cross-entropy, stable: it is the mask that breaks."""
    return losses.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


def run() -> Outcome:
    """Train with each of the three ways to mask."""
    data = _data.penguins(_data.MEASUREMENTS)
    cleaner = clean.fit(data.x_train)

    def scaled(table: object) -> np.ndarray:
        raw = clean.encode(cleaner, table)
        return np.where(np.isfinite(raw), clean.apply(cleaner, raw), np.nan)

    x_train, test = scaled(data.x_train), (scaled(data.x_test), data.y_test)
    batches = list(_data.batches(x_train, data.y_train, steps=STEPS))
    broken, crash = train(
        "-inf before the softmax", _task(naive_attention), batches, test
    )
    zeroed, _ = train("empty rows zeroed after", _task(zeroed_attention), batches, test)
    crash, finding = diagnosed(broken, crash)
    task = _task(safe_attention)
    cured = train_guarded("ops.softmax(where=mask)", task, batches, test)
    skipping = _task(naive_attention, skip=True)
    return Outcome(
        name="masked_row",
        title="A row with nothing left in it",
        action="activation",
        story=(
            "The softmax of a row of -inf is inf - inf. Setting the row to zero "
            "afterwards mends the value only: its derivative still multiplies 0 by "
            "NaN."
        ),
        runs=(broken, zeroed),
        cured=(cured,),
        cure="ops.softmax(x, where=mask)",
        target=TARGET,
        finding=finding,
        verdicts=_tools.ask_all(crash, finding, skipping, batches, test),
        cost=cost(task.step, (task.state, *batches[0]), crash),
    )


def _task(attention: Attention, *, skip: bool = False) -> Task:
    tx = optax.adam(RATE)
    model = MeasurementPool(attention)
    return make_task(model, loss, _tools.skip_nonfinite(tx) if skip else tx)
