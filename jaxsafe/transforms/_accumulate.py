"""Gradient accumulation that one bad micro-batch cannot stop.

    micro-batch finite         added to the sum; good + 1
    micro-batch not finite     left out; dropped + 1
    after `every` of them      good > 0: the mean of the good ones goes to the optimizer
                               good = 0: the optimizer is not called, the update is 0
                               either way the sum starts again from 0

Invariants: the sum is finite unless finite numbers add up beyond the range; it is reset
by writing zeros, never by multiplying (`optax.MultiSteps` resets with 0 * NaN, after
which it never steps again); `good + dropped_now == micro_step`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsafe import _errors, _gate, _tree
from jaxsafe._tree import PyTree
from jaxsafe.transforms._control import counted


class AccumulateState(NamedTuple):
    """State of `accumulate`.

    Attributes:
      inner_state: state of the wrapped optimizer.
      accumulated: sum of the good gradients so far, in float32 or better.
      accumulated_value: float32[], sum of their `value=`.
      micro_step: int32[], micro-batches since the last step, below `every`.
      micro_good: int32[], of them the finite ones.
      micro_dropped: int32[], micro-batches dropped in the whole run.
      empty_steps: int32[], steps without any good micro-batch.

    Example:
      >>> import optax
      >>> from jaxsafe import transforms
      >>> state = transforms.accumulate(optax.sgd(0.1), 4).init({})
      >>> int(state.micro_step)
      0
    """

    inner_state: Any
    accumulated: Any
    accumulated_value: jax.Array
    micro_step: jax.Array
    micro_good: jax.Array
    micro_dropped: jax.Array
    empty_steps: jax.Array


def accumulate(
    inner: optax.GradientTransformation, every: int, *, axis_name: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Collect the gradients of `every` micro-batches, then take one step.

    Wrap the whole optimizer: `accumulate(guarded(adamw), 8)`.

    Value:     zeros on all but every `every`-th call, then the update of `inner` for
               the mean of the finite gradients, accumulated in float32 or better and
               handed on in their own dtype.
    NaN in:    a micro-batch with a non-finite gradient or `value=` is left out, and the
               mean is over the others; without any, `inner` is not called.

    Args:
      inner: any optax transformation. `value=` reaches it as the mean of the good
        micro-batches, other extra arguments as in the last call.
      every: micro-batches per step.
      axis_name: mapped axes over which all devices must drop alike; the gradients must
        already be averaged over them.

    Returns:
      An optax transformation; its state is an `AccumulateState`.

    Raises:
      ValueError: `every` is no positive integer.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jaxsafe import transforms
      >>> tx = transforms.accumulate(optax.sgd(1.0), 3)
      >>> state = tx.init(jnp.zeros(()))
      >>> for g in (1.0, jnp.nan, 2.0):
      ...     updates, state = tx.update(jnp.asarray(g), state)
      >>> float(updates), int(state.micro_dropped)
      (-1.5, 1)
    """
    _errors.check_count("accumulate", "every", every)
    inner = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> AccumulateState:
        # A buffer of its own for every field: one shared buffer cannot be donated.
        counts = (jnp.zeros((), jnp.int32) for _ in range(4))
        zero = jnp.zeros((), jnp.float32)
        return AccumulateState(inner.init(params), _zeros(params), zero, *counts)

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree = None,
        *,
        value: Any = None,
        **extra: Any,
    ) -> tuple[PyTree, AccumulateState]:
        ok = _gate.judge(updates, value=value, axis_name=axis_name).ok
        loss = jnp.zeros((), jnp.float32) if value is None else _tree.scalar(value)
        grads = _tree.select(ok, _plus(state.accumulated, updates), state.accumulated)
        loss = jnp.where(ok, state.accumulated_value + loss, state.accumulated_value)
        good = counted(state.micro_good, ok)
        full = state.micro_step == every - 1

        def step() -> tuple[PyTree, Any]:
            if value is not None:
                extra["value"] = loss / good
            mean = jax.tree.map(lambda s, g: _mean(s, g, good), grads, updates)
            return inner.update(mean, state.inner_state, params, **extra)

        steps = full & (good > 0)
        _, (new, inner_state) = _gate.commit_update(
            steps, step, state.inner_state, checked=False
        )
        return new, AccumulateState(
            inner_state=inner_state,
            accumulated=_tree.select(full, _zeros(updates), grads),
            accumulated_value=jnp.where(full, 0, loss),
            micro_step=jnp.where(full, 0, state.micro_step + 1),
            micro_good=jnp.where(full, 0, good),
            micro_dropped=counted(state.micro_dropped, ~ok),
            empty_steps=counted(state.empty_steps, full & (good == 0)),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _zeros(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.zeros_like, _tree.widen(tree))


def _plus(total: PyTree, updates: PyTree) -> PyTree:
    return jax.tree.map(
        lambda t, x: t + x.astype(t.dtype) if _tree.is_inexact(x) else t, total, updates
    )


def _mean(total: Any, like: Any, count: jax.Array) -> Any:
    if not _tree.is_inexact(like):
        return like
    return (total / count.astype(total.real.dtype)).astype(jnp.result_type(like))
