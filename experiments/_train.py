"""The training loop of every experiment, once plain and once guarded.

A step is `train_step(state, x, y) -> (state, aux)` on a `State` of parameters and
optimizer state; the model is a flax module, nnx or linen, kept apart from its
parameters, so that the step is a pure function.
"""

import functools
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

from experiments import _progress
from experiments._records import Run
from jaxsafe import diagnose, guard, ops
from jaxsafe.diagnose import Finding
from jaxsafe.guard import Event

Batch = tuple[Any, Any]
Step = Callable[..., tuple[Any, dict[str, jax.Array]]]
Predict = Callable[[Any, Any], jax.Array]
Loss = Callable[[Any, jax.Array, jax.Array], jax.Array]


class State(NamedTuple):
    """What a step carries.

    Attributes:
      params: parameters of the model.
      opt_state: state of the optax chain.
    """

    params: Any
    opt_state: Any


class Task(NamedTuple):
    """A model, a loss and an optimizer, made into a step.

    Attributes:
      step: pure train step.
      state: the state to start from.
      predict: (params, x) -> scores[rows, classes].
    """

    step: Step
    state: State
    predict: Predict


class Crash(NamedTuple):
    """The step at which a plain run broke, ready to be run again.

    Attributes:
      step: the pure train step.
      args: (state, x, y) that it was called with.
    """

    step: Step
    args: tuple[Any, ...]


def make_task(model: nnx.Module, loss: Loss, tx: optax.GradientTransformation) -> Task:
    """Make a task of an nnx model, `loss(model, x, y) -> scalar` and an optax chain."""
    definition, params = nnx.split(model)
    return _make_task(functools.partial(nnx.merge, definition), params, loss, tx)


def make_linen_task(
    model: linen.Module,
    example: jax.Array,
    loss: Loss,
    tx: optax.GradientTransformation,
) -> Task:
    """The same of a linen model, initialised for inputs like `example`."""
    params = model.init(jax.random.key(0), example)
    return _make_task(model.bind, params, loss, tx)


def _make_task(
    bind: Callable[[Any], Any],
    params: Any,
    loss: Loss,
    tx: optax.GradientTransformation,
) -> Task:
    """`bind(params)` is the model, a function of x."""
    tx = optax.with_extra_args_support(tx)

    def loss_of(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return loss(bind(params), x, y)

    def step(state: State, x: jax.Array, y: jax.Array) -> tuple[State, dict[str, Any]]:
        value, grads = jax.value_and_grad(loss_of)(state.params, x, y)
        updates, opt_state = tx.update(
            grads, state.opt_state, state.params, value=value
        )
        params = optax.apply_updates(state.params, updates)
        return State(params, opt_state), {"loss": value, "grad_norm": tree_norm(grads)}

    def predict(params: Any, x: jax.Array) -> jax.Array:
        scores: jax.Array = bind(params)(x)
        return scores

    return Task(step, State(params, tx.init(params)), predict)


def tree_norm(tree: Any) -> jax.Array:
    """Global norm that overflows only where the true one does."""
    flat = [leaf.astype(jnp.float32).ravel() for leaf in jax.tree.leaves(tree)]
    return ops.norm(jnp.concatenate(flat))


def train(
    label: str, task: Task, batches: Iterable[Batch], test: Batch
) -> tuple[Run, Crash | None]:
    """Train without any guard; remember the step that broke."""
    step, state = jax.jit(task.step), task.state
    losses, norms = [], []
    crash: Crash | None = None
    for x, y in _progress.steps(label, batches):
        after, aux = step(state, x, y)
        losses.append(float(aux["loss"]))
        norms.append(float(aux["grad_norm"]))
        if crash is None and not _all_finite((after.params, aux)):
            crash = Crash(task.step, (state, x, y))
            broke_at = len(losses) - 1
        state = after
    run = Run(
        label=label,
        losses=tuple(losses),
        grad_norms=tuple(norms),
        accuracy=accuracy(task, state, test),
        broke_at=broke_at if crash else None,
    )
    return run, crash


def train_guarded(
    label: str,
    task: Task,
    batches: Iterable[Batch],
    test: Batch,
    *,
    policy: guard.Policy | None = None,
    check: Callable[[Any, Any], Any] | None = None,
) -> Run:
    """Train as a series of transactions, driven by `guard.run`."""
    losses, norms, events = [], [], []

    def on_event(event: Event) -> None:
        if event.kind in ("committed", "rejected"):
            losses.append(float(event.aux["loss"]))
            norms.append(float(event.aux["grad_norm"]))
        if event.kind != "committed":
            events.append(_in_words(event))

    step = guard.transaction(task.step, policy=policy, check=check)
    carry = guard.run(
        jax.jit(step, donate_argnums=0),
        step.init(jax.tree.map(jnp.copy, task.state)),
        _progress.steps(label, batches),
        on_event=on_event,
    )
    return Run(
        label=label,
        losses=tuple(losses),
        grad_norms=tuple(norms),
        accuracy=accuracy(task, carry.state, test),
        broke_at=None if _all_finite(carry.state.params) else len(losses) - 1,
        rejected=int(carry.control.rejected),
        events=tuple(events),
    )


def diagnosed(run: Run, crash: Crash | None) -> tuple[Crash, Finding]:
    """The step at which a run broke, and jaxsafe's word on it.

    Raises:
      RuntimeError: the run did not break, or nothing was found: then the experiment
        does not show what it says.
    """
    finding = crash and diagnose.first_nonfinite(crash.step, *crash.args)
    if crash is None or finding is None:
        raise RuntimeError(
            f"diagnosed: the run {run.label!r} had to break (got losses ending in "
            f"{run.losses[-3:]}). Raise its rate or its scale until it does."
        )
    return crash, finding


def accuracy(task: Task, state: State, test: Batch) -> float:
    """Share of test rows whose highest score is that of their label."""
    x, y = test
    scores = np.asarray(jax.jit(task.predict)(state.params, x))
    return float(np.mean(scores.argmax(-1) == y))


def cost(cured: Step, cured_args: tuple[Any, ...], crash: Crash) -> float:
    """Time of a cured step over that of the broken one: median of paired ratios."""
    ours, theirs = _Timed(cured, cured_args), _Timed(crash.step, crash.args)
    ratios = [ours.seconds() / theirs.seconds() for _ in range(40)]
    return float(np.median(ratios))


class _Timed:
    """A step that goes on from its own state, its buffers donated as in training."""

    def __init__(self, step: Step, args: tuple[Any, ...]) -> None:
        state, *self.batch = args
        self.state = jax.tree.map(jnp.copy, state)
        self.step = jax.jit(step, donate_argnums=0)
        self.seconds()  # compiles

    def seconds(self) -> float:
        start = time.perf_counter()
        for _ in range(5):
            self.state, _ = self.step(self.state, *self.batch)
        jax.block_until_ready(self.state)
        return time.perf_counter() - start


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def _in_words(event: Event) -> str:
    loss = float(event.aux["loss"])
    if event.kind == "rolled_back":
        return f"step {event.batch}: rolled back to the last good snapshot"
    if event.kind == "halted":
        return f"step {event.batch}: halted"
    why = "the loss is above its limit"
    if event.finding is not None:
        finding = event.finding
        why = f"{finding.primitive} at line {finding.line}, cause {finding.cause}"
    return f"step {event.batch}: rejected, loss {loss:.4g} ({why})"
