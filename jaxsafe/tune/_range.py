"""Train at many rates side by side, in one vmapped program, and look where it breaks.

    lane 0               rate 0, which trains nothing: what the loss is without training
    lane k               one rate, the same batches

    training -> diverged at step k        the state is not finite, or the loss above
                                          `limit` times the one it began with
    diverged: the lane keeps its last good state, the others go on

Lanes never meet: a lane that ends is left out by a select, so its NaN stays its own.

Source: Smith, Cyclical learning rates for training neural networks, 2017,
https://arxiv.org/abs/1506.01186.
"""

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsafe import _errors, _tree
from jaxsafe._tree import PyTree
from jaxsafe.transforms import _control
from jaxsafe.tune._curve import RangeTest, RatePoint
from jaxsafe.tune._sharpness import Sharpness

_NAME = "lr_range_test"
_HYPERPARAMETER = "learning_rate"
# Steps whose losses count as the final one.
_WINDOW = 10


class _Lane(NamedTuple):
    """What a rate carries: its state, the step it diverged at or -1, its first loss."""

    state: PyTree
    diverged_at: jax.Array
    first: jax.Array


def lr_range_test(
    step: Callable[..., tuple[PyTree, PyTree]],
    state: PyTree,
    batches: Iterable[Any],
    *,
    low: float = 1e-5,
    high: float = 10.0,
    count: int = 16,
    growing: bool = False,
    limit: float = 4.0,
    sharpness: Sharpness | None = None,
) -> RangeTest:
    """Train from one state at `count` rates side by side, and say which of them train.

    Each rate trains with every batch; a rate that diverges ends as "diverged at step
    k", and the others go on. One more lane has the rate 0, so that "trains" means lower
    than without training on the very same batches. With `growing=True` there is one run
    whose rate grows from batch to batch instead (Smith's sweep): cheaper, rougher.

    Value:     the suggested rate is the lowest that attains 95 % of the best gain, one
               below it where the next one diverges; of a growing rate a tenth of the
               rate with the lowest loss.
    NaN in:    a batch that is not finite for a step without a guard ends every rate.

    Args:
      step: `step(state, *batch, rate=rate) -> (state, aux)`, pure; aux or aux["loss"]
        is the loss. Without an argument `rate` in it, the state must hold one of
        `optax.inject_hyperparams` with a `learning_rate`.
      state: to start from; it is copied, once for each rate.
      batches: what to train on; a tuple is several arguments. Some tens are enough.
      low: the lowest rate.
      high: the highest rate; rates are spaced evenly in their logarithm.
      count: how many rates; each costs the memory of one state.
      growing: one run with a growing rate in place of `count` runs.
      limit: a loss so many times the first one counts as diverged, although finite.
      sharpness: a `Sharpness` to set beside the result.

    Returns:
      A `RangeTest`.

    Raises:
      ValueError: an argument is out of its range, there are fewer than two batches,
        the rate changes nothing, or the loss is not finite before any training.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsafe import tune
      >>> def step(w, x, *, rate):
      ...     loss, slope = jax.value_and_grad(lambda w: jnp.mean((w * x) ** 2))(w)
      ...     return w - rate * slope, loss
      >>> batches = [jnp.ones(8)] * 30
      >>> result = tune.lr_range_test(step, jnp.ones(()), batches, high=100.0)
      >>> round(result.largest_stable, 2), round(result.suggested, 2)
      (0.46, 0.05)
    """
    _check(low, high, count, limit)
    every = list(batches)
    if len(every) < 2:
        raise _errors.error(
            ValueError,
            _NAME,
            "there must be at least two batches",
            len(every),
            "Pass a list of some tens of batches.",
        )
    if growing:
        rates = np.geomspace(low, high, len(every))[:, None]
    else:
        rates = np.broadcast_to(np.geomspace(low, high, count), (len(every), count))
    losses, diverged = _run(step, state, every, rates, limit)
    _check_run(losses, rates)
    read = _growing if growing else _side_by_side
    return read(losses, diverged, rates, sharpness)


def _check(low: float, high: float, count: int, limit: float) -> None:
    _errors.check_positive(_NAME, "low", low)
    _errors.check_positive(_NAME, "high", high)
    _errors.check_count(_NAME, "count", count, least=2)
    _errors.check_positive(_NAME, "limit", limit)
    if not low < high:
        raise _errors.error(
            ValueError, _NAME, "low must be below high", (low, high), "Swap them."
        )
    if not limit > 1:
        raise _errors.error(
            ValueError, _NAME, "limit must be above 1", limit, "Pass limit=4.0."
        )


def _run(
    step: Callable[..., Any],
    state: PyTree,
    batches: list[Any],
    rates: np.ndarray,
    limit: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Losses[steps, lanes], and the step at which each lane diverged, or -1.

    Lane 0 has the rate 0.
    """
    lanes = 1 + rates.shape[1]
    advance = _advance(_with_rate(step, state), limit)
    program = jax.jit(
        jax.vmap(advance, in_axes=(0, 0, None, None)), donate_argnums=(0,)
    )
    carry = jax.jit(jax.vmap(lambda _: _start(state)))(jnp.arange(lanes))
    losses = []
    for k, batch in enumerate(batches):
        now = np.concatenate([[0.0], rates[k]]).astype(np.float32)
        args = batch if isinstance(batch, tuple) else (batch,)
        carry, loss = program(carry, now, np.int32(k), args)
        losses.append(loss)
    return np.asarray(jax.device_get(losses)), np.asarray(carry.diverged_at)


def _start(state: PyTree) -> _Lane:
    state = jax.tree.map(_tree.strong, state)
    return _Lane(state, jnp.asarray(-1, jnp.int32), jnp.zeros((), jnp.float32))


def _advance(step: Callable[..., Any], limit: float) -> Callable[..., Any]:
    """One step of one lane: (lane, rate, number, batch) -> (lane, loss)."""

    def advance(
        lane: _Lane, rate: jax.Array, k: jax.Array, batch: Any
    ) -> tuple[_Lane, jax.Array]:
        new, aux = step(lane.state, batch, rate)
        loss = _loss_in(aux)
        first = jnp.where(k == 0, loss, lane.first)
        size = jnp.where(first == 0, 1, jnp.abs(first))
        # A loss that is not finite beside a state that is: a guard said no.
        near = (loss <= first + (limit - 1) * size) | ~jnp.isfinite(loss)
        ok = _tree.all_finite(_control.blanked(new)) & near
        alive = lane.diverged_at < 0
        kept = _tree.select(alive & ok, new, lane.state)
        ended = jnp.where(alive & ~ok, k, lane.diverged_at).astype(jnp.int32)
        return _Lane(kept, ended, first), jnp.where(alive, loss, jnp.nan)

    return advance


def _loss_in(aux: PyTree) -> jax.Array:
    loss = _control.loss_in(aux)
    if loss is None:
        raise _errors.error(
            ValueError,
            _NAME,
            "the step must return (state, aux) with the loss in it",
            jax.tree.structure(aux),
            'Return aux = loss, a scalar, or aux = {"loss": loss}.',
        )
    return jnp.asarray(loss, jnp.float32)


def _with_rate(step: Callable[..., Any], state: PyTree) -> Callable[..., Any]:
    """(state, batch, rate) -> (state, aux), however the step takes its rate."""
    kinds = inspect.signature(step).parameters
    takes = "rate" in kinds or any(p.kind == p.VAR_KEYWORD for p in kinds.values())
    if takes:
        return lambda state, batch, rate: step(state, *batch, rate=rate)
    try:
        old = optax.tree.get(state, _HYPERPARAMETER)
    except KeyError:
        old = None
    if old is None:
        raise _errors.error(
            ValueError,
            _NAME,
            "the step has no argument `rate`, and the state holds no learning rate",
            f"{getattr(step, '__name__', step)}{inspect.signature(step)}",
            "Write step(state, *batch, rate), or build the optimizer with "
            "optax.inject_hyperparams(optax.adam)(learning_rate=1e-3).",
        )
    dtype = jnp.result_type(old)

    def set_first(state: PyTree, batch: Any, rate: jax.Array) -> Any:
        value = {_HYPERPARAMETER: rate.astype(dtype)}
        return step(optax.tree.set(state, **value), *batch)

    return set_first


def _check_run(losses: np.ndarray, rates: np.ndarray) -> None:
    if not np.isfinite(losses[0, 0]):
        raise _errors.error(
            ValueError,
            _NAME,
            "the loss is not finite before any training",
            losses[0, 0],
            "Look at data and model first: jaxsafe.diagnose.first_nonfinite.",
        )
    if (losses[1:] == losses[1:, :1]).all():
        raise _errors.error(
            ValueError,
            _NAME,
            "the rate changes nothing",
            f"the same losses at {rates.min():g} and {rates.max():g}",
            "Use the argument `rate` in the step; a schedule inside "
            "inject_hyperparams overwrites it.",
        )


def _side_by_side(
    losses: np.ndarray,
    diverged: np.ndarray,
    rates: np.ndarray,
    sharpness: Sharpness | None,
) -> RangeTest:
    window = max(1, min(_WINDOW, len(losses) // 4))
    points = []
    for lane, rate in enumerate(rates[0], start=1):
        curve = losses[:, lane]
        at = int(diverged[lane])
        if at < 0:
            at = _silent_from(curve, window)
        end = _mean(curve[-window:]) if at < 0 else math.nan
        points.append(_point(rate, end, at, curve))
    untrained = _mean(losses[-window:, 0])
    stable = _stable(points, untrained)
    return RangeTest(
        points=tuple(points),
        untrained=untrained,
        steps=len(losses),
        growing=False,
        largest_stable=stable[-1].rate if stable else None,
        suggested=_suggested(stable, len(points), untrained),
        sharpness=sharpness,
    )


def _point(rate: Any, loss: float, at: int, curve: np.ndarray) -> RatePoint:
    return RatePoint(
        rate=float(rate),
        loss=loss,
        diverged_at=at if at >= 0 else None,
        losses=tuple(map(float, curve)),
    )


def _silent_from(curve: np.ndarray, window: int) -> int:
    """The step from which on no loss was finite, if it ends so; else -1."""
    finite = np.flatnonzero(np.isfinite(curve))
    last = int(finite[-1]) if finite.size else -1
    return last + 1 if last < len(curve) - window else -1


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean(dtype=np.float64)) if finite.size else math.nan


def _stable(points: list[RatePoint], untrained: float) -> list[RatePoint]:
    """The rates up to the first that diverged, or ended above an untrained model."""
    stable = []
    for point in points:
        # Rounding and a model that is trained already: a hundredth is no harm.
        if not point.loss <= untrained + 0.01 * abs(untrained):
            break
        stable.append(point)
    return stable


def _suggested(stable: list[RatePoint], count: int, untrained: float) -> float | None:
    gains = [untrained - point.loss for point in stable]
    if not gains or max(gains) <= 0:
        return None
    at = next(i for i, gain in enumerate(gains) if gain >= 0.95 * max(gains))
    next_fails = at == len(stable) - 1 and len(stable) < count
    return stable[max(at - 1, 0) if next_fails else at].rate


def _growing(
    losses: np.ndarray,
    diverged: np.ndarray,
    rates: np.ndarray,
    sharpness: Sharpness | None,
) -> RangeTest:
    """One run: what rate k did shows in loss k + 1, beside that of the rate 0."""
    untrained = _mean(losses[:, 0])
    gain = losses[1:, 1].astype(np.float64) - losses[1:, 0]
    width = max(1, len(losses) // 20)
    end = int(diverged[1]) if diverged[1] >= 0 else len(losses)
    points = []
    for k, rate in enumerate(rates[:-1, 0]):
        # The loss of step k + 1 is where it was seen, the rate before it the cause.
        gone = k + 1 >= end
        near = gain[max(0, k - width) : min(k + width + 1, end - 1)]
        loss = math.nan if gone else untrained + _mean(near)
        seen = losses[k + 1 : k + 2, 1]
        points.append(_point(rate, loss, k + 1 if gone else -1, seen))
    stable = _stable(points, untrained)
    best = min((p for p in stable), key=lambda p: p.loss, default=None)
    trains = best is not None and best.loss < untrained
    return RangeTest(
        points=tuple(points),
        untrained=untrained,
        steps=len(losses),
        growing=True,
        largest_stable=stable[-1].rate if stable else None,
        suggested=best.rate / 10 if best is not None and trains else None,
        sharpness=sharpness,
    )
