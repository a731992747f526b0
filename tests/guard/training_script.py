"""A training script that may be killed at any moment; see test_resume.py.

`python training_script.py DIRECTORY [SECONDS]` starts it, or goes on where it was. Each
step appends its batch, what became of it and its loss, bit for bit, to `losses.txt`.
"""

import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsafe import guard, transforms

STEPS, BAD = 26, (5, 14, 15, 16)
TX = optax.chain(optax.adam(1e-2), transforms.adapt_learning_rate(recovery_steps=5))
POLICY = guard.Policy(snapshot_every=4, roll_back_after=3)


def make_batch(index):
    rng = np.random.default_rng(index)
    x = rng.normal(size=(16, 8)).astype(np.float32)
    y = np.sin(x.sum(1, keepdims=True))
    if index in BAD:
        x[3, 2] = np.nan
    return jnp.asarray(x), jnp.asarray(y)


def make_state():
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "hidden": jax.random.normal(keys[0], (8, 16)) * 0.3,
        "out": jax.random.normal(keys[1], (16, 1)) * 0.3,
    }
    return {"params": params, "opt": TX.init(params), "key": keys[2]}


def loss_fn(params, key, x, y):
    hidden = jnp.tanh(x @ params["hidden"])
    hidden = jnp.where(jax.random.bernoulli(key, 0.9, hidden.shape), hidden, 0.0)
    return jnp.mean((hidden @ params["out"] - y) ** 2)


def train_step(state, x, y):
    key, dropout = jax.random.split(state["key"])
    loss, grads = jax.value_and_grad(loss_fn)(state["params"], dropout, x, y)
    updates, opt = TX.update(grads, state["opt"], state["params"], value=loss)
    params = optax.apply_updates(state["params"], updates)
    return {"params": params, "opt": opt, "key": key}, {"loss": loss}


def main(directory, seconds=0.0, *, every=3):
    """Train to the end; wait `seconds` before each step, so that a kill can hit it."""
    directory = pathlib.Path(directory)
    step = guard.transaction(train_step, policy=POLICY)

    def batches(start):
        for index in range(start, STEPS):
            time.sleep(seconds)
            yield make_batch(index)

    with (
        open(directory / "losses.txt", "a", encoding="utf-8") as file,
        guard.Checkpoints(directory / "checkpoints", every=every) as checkpoints,
    ):

        def write(event):
            loss = float(event.aux["loss"]).hex()
            file.write(f"{event.batch} {event.kind} {loss}\n")
            file.flush()

        return guard.run(
            jax.jit(step, donate_argnums=0),
            step.init(make_state()),
            batches,
            ledger=guard.Ledger(directory / "ledger.json"),
            checkpoints=checkpoints,
            on_event=write,
        )


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
