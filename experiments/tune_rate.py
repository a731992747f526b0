"""A rate that was guessed, and one that was looked for.

Broken: gradient descent with momentum on the squared error of digits, at a guessed
rate. Cured: `tune.lr_range_test` trains sixteen rates side by side on the first
batches, and a guarded run takes the one that it suggests.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments import _data, _tools
from experiments._models import MLP
from experiments._records import Outcome
from experiments._train import Task, cost, diagnosed, make_task, train, train_guarded
from jaxsafe import guard, transforms, tune

STEPS = 300
GUESS = 0.3
TARGET = 0.93


def loss(model: nnx.Module, x: jax.Array, y: jax.Array) -> jax.Array:
    """Squared distance of the scores from the one-hot label."""
    return jnp.sum((model(x / 16.0) - jax.nn.one_hot(y, 10)) ** 2, axis=-1).mean()


def descent(rate: float) -> optax.GradientTransformation:
    """Momentum, with the rate in its state, where a range test can set it."""
    tx = optax.inject_hyperparams(optax.sgd, static_args=("momentum",))
    return tx(learning_rate=rate, momentum=0.9)


def run() -> Outcome:
    """Train at the guessed rate, look for a better one, train with that."""
    data = _data.digits()
    batches = list(_data.batches(data.x_train, data.y_train, steps=STEPS))
    test = (data.x_test, data.y_test)
    guessed = _task(descent(GUESS))
    broken, crash = train(f"guessed rate {GUESS}", guessed, batches, test)
    crash, finding = diagnosed(broken, crash)

    found = tune.lr_range_test(
        guessed.step, guessed.state, batches[:60], low=1e-4, high=1.0
    )
    if found.suggested is None:
        raise RuntimeError(
            f"tune_rate: no rate was suggested (got {found!r}). Lower the range."
        )
    tuned = _task(transforms.guarded(descent(found.suggested), max_norm=10.0))
    label = f"suggested rate {found.suggested:.2g}"
    cured = train_guarded(label, tuned, batches, test)
    skipping = _task(_tools.skip_nonfinite(descent(GUESS)))
    step = guard.transaction(tuned.step)
    return Outcome(
        name="tune_rate",
        title="A rate that was guessed",
        action="learning rate",
        story=(
            "A rate copied from another model diverges at once. Sixty batches at "
            "sixteen rates, in one program, show which rates train and which diverge, "
            "and at which step."
        ),
        runs=(broken,),
        cured=(cured,),
        cure="tune.lr_range_test",
        target=TARGET,
        finding=finding,
        verdicts=_tools.ask_all(crash, finding, skipping, batches, test),
        cost=cost(step, (step.init(tuned.state), *batches[0]), crash),
        notes=(found.summary(),),
    )


def _task(tx: optax.GradientTransformation) -> Task:
    return make_task(MLP(64, 10, activation=nnx.leaky_relu), loss, tx)
