"""One example that the model is sure of and wrong about, under every kind of bound.

Broken: `jnp.minimum(-log(1 - sigmoid(z)), 10)`. The loss is infinite, the minimum makes
10 of it, and the gradient is 0 * inf. Also broken, without a NaN: a hard clip, a tanh
and a logarithm around the stable loss, under which the example learns nothing or next
to nothing. Cured: `losses.bound`, which caps the number and keeps the gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from experiments import _tools
from experiments._records import Outcome
from experiments._train import Task, cost, diagnosed, make_task, train, train_guarded
from jaxsafe import losses

STEPS = 2000
RATE = 0.1
MARGIN = 60.0
LIMIT = 10.0
TARGET = 1.0

Loss = Callable[[jax.Array, jax.Array], jax.Array]


class Margin(nnx.Module):
    """One weight: by how much the wrong answer is preferred."""

    def __init__(self) -> None:
        self.weight = nnx.Param(jnp.full((1,), MARGIN))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scores[rows, 2] of inputs x[rows, 1]."""
        return jnp.concatenate([jnp.zeros_like(x), x * self.weight[...]], axis=-1)


def naive_loss(z: jax.Array, y: jax.Array) -> jax.Array:
    """Cross-entropy of a probability, cut off at the limit."""
    p = jax.nn.sigmoid(z)
    return jnp.minimum(-jnp.log(jnp.where(y == 1, p, 1 - p)), LIMIT)


def stable_loss(z: jax.Array, y: jax.Array) -> jax.Array:
    """Cross-entropy of the score, without a bound."""
    return losses.sigmoid_binary_cross_entropy(z, y)


def clipped_loss(z: jax.Array, y: jax.Array) -> jax.Array:
    """Kind `clip`: no gradient beyond the limit."""
    return losses.bound(stable_loss(z, y), LIMIT, kind="clip")


def tanh_loss(z: jax.Array, y: jax.Array) -> jax.Array:
    """Kind `tanh`: a gradient that vanishes exponentially."""
    return losses.bound(stable_loss(z, y), LIMIT, kind="tanh")


def log_loss(z: jax.Array, y: jax.Array) -> jax.Array:
    """Kind `log`: a gradient that fades like 1 / loss."""
    return losses.bound(stable_loss(z, y), LIMIT, kind="log")


def reported_loss(z: jax.Array, y: jax.Array) -> jax.Array:
    """Kind `report`: the value is capped, the gradient is not."""
    return losses.bound(stable_loss(z, y), LIMIT)


KINDS: dict[str, Loss] = {
    "no bound": stable_loss,
    "report": reported_loss,
    "clip": clipped_loss,
    "tanh": tanh_loss,
    "log": log_loss,
}


def run() -> Outcome:
    """Train on the one example with each kind of bound."""
    x, y = np.ones((1, 1), np.float32), np.zeros(1, np.int32)
    batches = [(x, y)] * STEPS
    broken, crash = train("min(-log(1 - p), 10)", _task(naive_loss), batches, (x, y))
    stuck = [
        train(f"bound, kind {kind}", _task(KINDS[kind]), batches, (x, y))[0]
        for kind in ("clip", "tanh", "log")
    ]
    crash, finding = diagnosed(broken, crash)
    task = _task(reported_loss)
    cured = [
        train_guarded(label, _task(loss), batches, (x, y))
        for label, loss in (("losses.bound", reported_loss), ("no bound", stable_loss))
    ]
    skipping = _task(naive_loss, skip=True)
    return Outcome(
        name="bounded_loss",
        title="A loss kept in bounds",
        action="loss",
        story=(
            "Bounding a loss hides a number; it cannot repair a gradient, for 0 * inf "
            "is NaN. Around a stable loss a hard clip, a tanh or a logarithm does "
            "worse than nothing: the example that is most wrong stays wrong. A bound "
            "on what is reported, with the gradient left alone, costs nothing."
        ),
        runs=(broken, *stuck),
        cured=tuple(cured),
        cure="losses.bound(loss, limit)",
        target=TARGET,
        finding=finding,
        verdicts=_tools.ask_all(crash, finding, skipping, batches, (x, y)),
        cost=cost(task.step, (task.state, *batches[0]), crash),
        notes=(learned(),),
    )


def learned() -> str:
    """What each kind does to learning: a line each."""
    return "\n".join(f"{kind:9} {_in_words(margins(kind))}" for kind in KINDS)


def margins(kind: str) -> np.ndarray:
    """The margin after every step."""

    def step(z: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        z = z - RATE * jax.grad(KINDS[kind])(z, jnp.zeros(()))
        return z, z

    start = jnp.asarray(MARGIN)
    return np.asarray(jax.jit(lambda z: lax.scan(step, z, length=STEPS)[1])(start))


def _in_words(margin: np.ndarray) -> str:
    right = np.flatnonzero(margin < 0)
    if right.size:
        return f"right after {right[0] + 1} steps"
    return f"stuck: margin {margin[-1]:.1f} of {MARGIN:.1f} after {STEPS} steps"


def _task(per_example: Loss, *, skip: bool = False) -> Task:
    def loss(model: nnx.Module, x: jax.Array, y: jax.Array) -> jax.Array:
        return per_example(model(x)[:, 1], y).mean()

    tx = optax.sgd(RATE)
    return make_task(Margin(), loss, _tools.skip_nonfinite(tx) if skip else tx)
