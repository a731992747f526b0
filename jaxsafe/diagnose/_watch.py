"""Early warning: how far the numbers of a run are from overflow, and where they go.

On the device one row per step, the largest magnitude of each leaf, in a ring of the
last n steps. On the host, whenever somebody asks, a line through the logarithms of
those magnitudes: overflow is exponential growth that was not stopped.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsafe import _errors, _program, _tree
from jaxsafe._tree import PyTree
from jaxsafe.diagnose._headroom import Headroom, LeafHeadroom

# A slope counts if it is this many of its own standard errors above 0.
_SIGNIFICANT = 4.0
_LEAST_POINTS = 4


class WatchState(NamedTuple):
    """The last n steps of a `watch`.

    Attributes:
      watch_steps: int32[], steps so far; step k stands at position k % n.
      watch_peaks: float32[n, leaves], or float64 if a leaf is; largest magnitudes, NaN
        above all.

    >>> import jax.numpy as jnp
    >>> from jaxsafe import diagnose
    >>> state = diagnose.init_watch({"loss": 1.0, "w": jnp.zeros(3)}, n=8)
    >>> state.watch_peaks.shape
    (8, 2)
    """

    watch_steps: jax.Array
    watch_peaks: jax.Array


def init_watch(tree: PyTree, *, n: int = 64) -> WatchState:
    """Return the state of a watch that has seen nothing.

    Args:
      tree: what will be watched, or its shapes (`jax.eval_shape`): any pytree, such as
        `{"loss": loss, "logits": logits, "norm": norm, "opt": opt_state}`.
      n: steps to remember, which the trend is fitted to.

    Raises:
      ValueError: `n` is no positive integer.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsafe import diagnose
      >>> int(diagnose.init_watch({"loss": jnp.float32(0)}).watch_steps)
      0
    """
    _errors.check_count("init_watch", "n", n)
    leaves = _watched(tree)
    wide = any(jnp.finfo(dtype).bits >= 64 for _, dtype, _ in leaves)
    dtype = jnp.float64 if wide else jnp.float32
    peaks = jnp.zeros((n, len(leaves)), dtype)
    return WatchState(jnp.zeros((), jnp.int32), peaks)


def watch(state: WatchState, tree: PyTree) -> WatchState:
    """Note how large every leaf of `tree` is in this step.

    It reads each leaf once and writes one row; no callback, no conditional. Keep the
    state apart from what a guard rolls back, or rejected steps are missing in it.

    NaN in:    noted, as is an infinity: no maximum drops them.

    Args:
      state: from `init_watch` or the step before.
      tree: as it was given to `init_watch`. Integers, booleans and keys are ignored.

    Returns:
      The new state, of the same structure.

    Raises:
      ValueError: `tree` has another number of floating leaves.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsafe import diagnose
      >>> def body(carry, _):
      ...     w, state = carry
      ...     return (w * 2, diagnose.watch(state, {"w": w})), None
      >>> carry = jnp.ones(3), diagnose.init_watch({"w": jnp.ones(3)})
      >>> (w, state), _ = jax.lax.scan(body, carry, length=20)
      >>> diagnose.headroom(state, {"w": w}).nearest.overflow_step
      128
    """
    leaves = _watched(tree)
    _check_count("watch", state, leaves)
    if not leaves:
        return state._replace(watch_steps=_next(state.watch_steps))
    n, dtype = state.watch_peaks.shape[0], state.watch_peaks.dtype
    row = jnp.stack([_program.peak(leaf).astype(dtype) for _, _, leaf in leaves])
    return WatchState(
        _next(state.watch_steps),
        state.watch_peaks.at[state.watch_steps % n].set(row),
    )


def headroom(state: WatchState, tree: PyTree) -> Headroom:
    """Say how far every leaf is from the edge of its dtype, and when it will be there.

    It waits for the device, so call it now and then, not in every step. The trend is a
    line through the base-2 logarithms of the last n steps. It counts if it rises by
    more than four of its standard errors; otherwise no overflow is foretold.

    NaN in:    reported: the headroom of such a leaf is 0, its `bad_step` is set.

    Args:
      state: from `watch`.
      tree: what was watched, or its shapes; for the names and dtypes of the leaves.

    Raises:
      TypeError: called under a transformation.
      ValueError: `tree` has another number of floating leaves.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsafe import diagnose
      >>> tree = {"logits": jnp.float16([1.0, -32768.0]), "loss": jnp.float32(1)}
      >>> state = diagnose.watch(diagnose.init_watch(tree), tree)
      >>> nearest = diagnose.headroom(state, tree).nearest
      >>> nearest.path, round(nearest.headroom, 2)
      ("['logits']", 1.0)
    """
    if isinstance(state.watch_steps, jax.core.Tracer):
        raise _errors.error(
            TypeError,
            "headroom",
            "state must be concrete",
            "a tracer",
            "Call it outside jit, grad, vmap and scan, on what the step returned.",
        )
    leaves = _watched(tree)
    _check_count("headroom", state, leaves)
    count, ring = (np.asarray(x) for x in jax.device_get(state))
    n, total = ring.shape[0], int(count)
    steps = np.arange(max(0, total - n), total)
    peaks = ring[steps % n].astype(np.float64)
    found = [
        _leaf(path, dtype, steps, peaks[:, i])
        for i, (path, dtype, _) in enumerate(leaves)
    ]
    return Headroom(steps=total, leaves=tuple(sorted(found, key=lambda x: x.headroom)))


def _leaf(path: str, dtype: Any, steps: Any, peaks: Any) -> LeafHeadroom:
    edge = float(np.log2(float(jnp.finfo(dtype).max)))
    last = float(peaks[-1]) if len(peaks) else 0.0
    bad = steps[~np.isfinite(peaks)]
    room, slope = np.inf, 0.0
    if not np.isfinite(last):
        room = 0.0
    elif last > 0:
        room = edge - float(np.log2(last))
        good = np.isfinite(peaks) & (peaks > 0)
        slope = _slope(steps[good], np.log2(peaks[good]))
    ahead = None
    if slope > 0 and np.isfinite(last):
        ahead = int(steps[-1]) + max(1, int(np.ceil(room / slope)))
    return LeafHeadroom(
        path=path,
        dtype=str(jnp.dtype(dtype)),
        largest=last,
        headroom=room,
        slope=slope,
        overflow_step=ahead,
        bad_step=int(bad[0]) if len(bad) else None,
    )


def _slope(steps: Any, values: Any) -> float:
    """Slope of the line through the points; 0 unless it clearly rises or falls."""
    if len(steps) < _LEAST_POINTS:
        return 0.0
    x = steps - steps.mean()
    y = values - values.mean()
    square = float(x @ x)
    slope = float(x @ y) / square
    rest = y - slope * x
    error = float(np.sqrt(rest @ rest / (len(x) - 2) / square))
    return slope if abs(slope) > _SIGNIFICANT * error else 0.0


def _watched(tree: PyTree) -> list[tuple[str, Any, Any]]:
    """(path, dtype, leaf) of the leaves that can overflow."""
    found = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        shaped = isinstance(leaf, jax.ShapeDtypeStruct)
        if not shaped and not _tree.is_inexact(leaf):
            continue
        dtype = jnp.result_type(leaf)
        if jnp.issubdtype(dtype, jnp.inexact):
            name = jax.tree_util.keystr(path) or "(the value itself)"
            found.append((name, dtype, leaf))
    return found


def _check_count(function: str, state: WatchState, leaves: list[Any]) -> None:
    if state.watch_peaks.shape[1] != len(leaves):
        raise _errors.error(
            ValueError,
            function,
            "tree must have the floating leaves that init_watch saw",
            f"{len(leaves)} after {state.watch_peaks.shape[1]}",
            "Start again with init_watch(tree).",
        )


def _next(steps: jax.Array) -> jax.Array:
    last = np.int32(np.iinfo(np.int32).max)
    return jnp.where(steps < last, steps + np.int32(1), last)
