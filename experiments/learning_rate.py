"""A learning rate far too high, and four cures side by side.

Broken: gradient descent on the squared error of digits, at five times the rate that
trains. Cured: the adaptive back-off with roll-back; a tuned rate; an optax schedule
with warm-up; gradient clipping.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments import _data, _tools
from experiments._models import MLP
from experiments._records import Outcome, Run
from experiments._train import Task, cost, diagnosed, make_task, train, train_guarded
from jaxsafe import guard, transforms

STEPS = 400
RATE = 0.5
TUNED = 0.1
TARGET = 0.93
LIMIT = 100.0


def loss(model: nnx.Module, x: jax.Array, y: jax.Array) -> jax.Array:
    """Squared distance of the scores from the one-hot label."""
    return jnp.sum((model(x / 16.0) - jax.nn.one_hot(y, 10)) ** 2, axis=-1).mean()


def run() -> Outcome:
    """Train at the wrong rate, then with each of the four cures."""
    data = _data.digits()
    batches = list(_data.batches(data.x_train, data.y_train, steps=STEPS))
    test = (data.x_test, data.y_test)
    broken, crash = train(f"rate {RATE}", _task(optax.sgd(RATE)), batches, test)
    crash, finding = diagnosed(broken, crash)

    adaptive = _task(
        optax.chain(
            optax.sgd(RATE), transforms.adapt_learning_rate(recovery_steps=2000)
        )
    )

    def plain(label: str, tx: optax.GradientTransformation) -> Run:
        return train(label, _task(tx), batches, test)[0]

    schedule = optax.warmup_cosine_decay_schedule(0.0, TUNED * 2, 50, STEPS)
    clipped = optax.chain(transforms.clip_by_global_norm(1.0), optax.sgd(RATE))
    cured = (
        train_guarded(
            "adaptive back-off",
            adaptive,
            batches,
            test,
            policy=guard.Policy(snapshot_every=5, roll_back_after=3, give_up_after=50),
            check=lambda _, aux: aux["loss"] < LIMIT,
        ),
        plain(f"tuned rate {TUNED}", optax.sgd(TUNED)),
        plain("warm-up schedule", optax.sgd(schedule)),
        plain("gradient clipping", clipped),
    )
    skipping = _task(_tools.skip_nonfinite(optax.sgd(RATE)))
    return Outcome(
        name="learning_rate",
        title="Learning rate far too high",
        action="learning rate",
        story=(
            "Every step overshoots further than the one before, until the numbers "
            "leave float32. The step that made the damage was finite; only the next "
            "one shows it, so the guard goes back to a state known to be good."
        ),
        runs=(broken,),
        cured=cured,
        cure="adapt_learning_rate, guard.run",
        target=TARGET,
        finding=finding,
        verdicts=_tools.ask_all(crash, finding, skipping, batches, test),
        cost=cost(
            guard.transaction(adaptive.step),
            (guard.transaction(adaptive.step).init(adaptive.state), *batches[0]),
            crash,
        ),
        notes=("\n".join(cured[0].events),),
    )


def _task(tx: optax.GradientTransformation) -> Task:
    return make_task(MLP(64, 10, activation=nnx.leaky_relu), loss, tx)
