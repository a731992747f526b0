"""Low precision: Adam on float16 weights that never see a gradient.

The corner pixels of the digits are always black, so the gradient of their weights is
exactly 0. Broken: Adam divides it by `sqrt(0) + 1e-8`, and 1e-8 is 0 in float16. Also
tried: an epsilon that float16 can hold. Cured: compute in float16, keep the weights in
float32, and take the loss in float32, as ours returns it.
"""

from typing import Any

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


def loss(model: nnx.Module, x: jax.Array, y: jax.Array) -> jax.Array:
    """Cross-entropy; ours returns it in float32 for scores in float16."""
    scores = model(x / 16.0)
    return losses.softmax_cross_entropy_with_integer_labels(scores, y).mean()


def run() -> Outcome:
    """Train with weights in float16, then in float32."""
    data = _data.digits()
    batches = list(_data.batches(data.x_train, data.y_train, steps=STEPS))
    test = (data.x_test, data.y_test)
    adam = optax.adam(RATE)
    broken, crash = train("weights in float16", _task(jnp.float16, adam), batches, test)
    larger_eps = _task(jnp.float16, optax.adam(RATE, eps=1e-4))
    with_eps, _ = train("float16, eps=1e-4", larger_eps, batches, test)
    crash, finding = diagnosed(broken, crash)
    task = _task(jnp.float32, adam)
    cured = train_guarded("weights in float32", task, batches, test)
    skipping = _task(jnp.float16, _tools.skip_nonfinite(adam))
    return Outcome(
        name="low_precision",
        title="Epsilons that vanish in float16",
        action="activation",
        story=(
            "The gradient is finite, the loss is finite, and the update is 0 / 0: "
            "float16 loses everything below 6e-8, Adam's epsilon of 1e-8 included. "
            "Tools that look at gradients only see nothing."
        ),
        runs=(broken, with_eps),
        cured=(cured,),
        cure="param_dtype=jnp.float32",
        target=TARGET,
        finding=finding,
        verdicts=_tools.ask_all(crash, finding, skipping, batches, test),
        cost=cost(task.step, (task.state, *batches[0]), crash),
    )


def _task(param_dtype: Any, tx: optax.GradientTransformation) -> Task:
    model = MLP(64, 10, dtype=jnp.float16, param_dtype=param_dtype)
    return make_task(model, loss, tx)
