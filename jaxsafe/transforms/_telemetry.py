"""The last n steps, kept in the optimizer's state for the post-mortem."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsafe import _errors, _gate
from jaxsafe._tree import PyTree
from jaxsafe.transforms import _control, _state
from jaxsafe.transforms._state import ControlState, History


class TelemetryState(NamedTuple):
    """State of `telemetry`.

    Attributes:
      inner_state: state of the wrapped transformation.
      telemetry_steps: int32[], steps so far; step k stands at position k % n.
      history: `History` of the last n steps.

    Example:
      >>> import optax
      >>> from jaxsafe import transforms
      >>> transforms.telemetry(8, optax.sgd(0.1)).init({}).history.loss.shape
      (8,)
    """

    inner_state: Any
    telemetry_steps: jax.Array
    history: History


def telemetry(
    n: int, inner: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Record the last `n` steps of `inner` in a ring buffer; change nothing.

    It stays on the device, is written inside `scan`, and is read with `read_history`.
    `guarded(telemetry=n)` keeps the same record without this wrapper.

    Value:     the updates and the state of `inner`.
    NaN in:    recorded as it is.

    Args:
      n: steps to remember.
      inner: the whole chain. What its guards, clips and loss scale did is found in
        their states; the norm is that of the gradient as it came in, or, below a loss
        scale, without the scale.

    Returns:
      An optax transformation; its state is a `TelemetryState`. The loss is recorded if
      it is passed as `value=`.

    Raises:
      ValueError: `n` is no positive integer.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jaxsafe import transforms
      >>> tx = transforms.telemetry(2, transforms.guarded(optax.sgd(0.1)))
      >>> state = tx.init(jnp.zeros(1))
      >>> for g in (0.5, 7.0, jnp.nan):
      ...     _, state = tx.update(jnp.array([g]), state, value=g)
      >>> last = transforms.read_history(state)
      >>> [int(k) for k in last["step"]], [bool(ok) for ok in last["ok"]]
      ([1, 2], [True, False])
    """
    _errors.check_count("telemetry", "n", n)
    inner = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> TelemetryState:
        return TelemetryState(
            inner.init(params), jnp.zeros((), jnp.int32), _state.init_history(n)
        )

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree = None,
        *,
        value: Any = None,
        **extra: Any,
    ) -> tuple[PyTree, TelemetryState]:
        if value is not None:
            extra["value"] = value
        old = _control.find_controls(state.inner_state)
        new_updates, inner_state = inner.update(
            updates, state.inner_state, params, **extra
        )
        new = _control.find_controls(inner_state)
        history = _control.recorded(
            state.history,
            state.telemetry_steps,
            value=value,
            grad_norm=new[0].grad_norm if new else _gate.judge(updates).norm,
            rate_factor=_product([c.rate_factor for c in old]),
            loss_scale=_product([c.loss_scale for c in old]),
            ok=_all([c.ok for c in new]),
            clipped=_was_clipped(old, new, inner_state),
            update_ratio=_control.update_ratio(new_updates, params),
        )
        steps = optax.safe_increment(state.telemetry_steps)
        return new_updates, TelemetryState(inner_state, steps, history)

    return optax.GradientTransformationExtraArgs(init, update)


def read_history(opt_state: PyTree) -> dict[str, Any]:
    """The recorded steps on the host, the oldest first.

    Args:
      opt_state: a pytree with a `telemetry` or a guard with `telemetry=n` in it; the
        outermost is read.

    Returns:
      A dict of NumPy arrays of one length: "step", counted from 0, and the fields of
      `History`.

    Raises:
      ValueError: nothing in `opt_state` keeps a history.

    Example:
      >>> import optax
      >>> from jaxsafe import transforms
      >>> state = transforms.telemetry(3, optax.sgd(0.1)).init({})
      >>> transforms.read_history(state)["loss"].shape
      (0,)
    """
    import numpy as np

    count, history = _find_history(opt_state)
    steps, n = int(count), history.ok.shape[0]
    kept = np.arange(max(0, steps - n), steps)
    fields = jax.device_get(history).columns()
    return {"step": kept} | {k: np.asarray(v)[kept % n] for k, v in fields.items()}


def _find_history(opt_state: PyTree) -> tuple[Any, History]:
    def is_one(node: Any) -> bool:
        return isinstance(node, TelemetryState | ControlState)

    for node in jax.tree.leaves(opt_state, is_leaf=is_one):
        if isinstance(node, TelemetryState):
            return node.telemetry_steps, node.history
        if isinstance(node, ControlState) and isinstance(node.history, History):
            return node.attempts, node.history
    raise _errors.error(
        ValueError,
        "read_history",
        "nothing in this state keeps a history",
        jax.tree.structure(opt_state),
        "Wrap the optimizer in transforms.telemetry(n, tx), or pass telemetry=n.",
    )


def _product(factors: list[jax.Array]) -> jax.Array:
    return jnp.prod(jnp.stack(factors)) if factors else jnp.ones((), jnp.float32)


def _all(flags: list[jax.Array]) -> jax.Array:
    return jnp.stack(flags).all() if flags else jnp.asarray(True)


def _was_clipped(
    old: list[ControlState], new: list[ControlState], state: PyTree
) -> jax.Array:
    """Whether a guard or a clip inside shortened anything in this step."""
    flags = [n.clipped > o.clipped for o, n in zip(old, new, strict=True)]
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = getattr(path[-1], "name", "") if path else ""
        if name.endswith("_clipped"):  # as the states of all clips call it
            flags.append(leaf > 0)
    return jnp.stack(flags).any() if flags else jnp.asarray(False)
