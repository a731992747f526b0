"""A loss scale that finds its size by itself, and says when it cannot.

    step finite                       committed; after growth_steps of them in a row
                                      the scale is multiplied by factor (<= max_scale)
    not finite, scale > min_scale     skipped; the scale is divided by factor
    not finite, scale = min_scale,    skipped and `stalled`: the scale is not to blame.
      or the loss itself is not       give_up_after such steps in a row: halted
    stalled, then finite              no longer stalled
    scale outside its range           the first scale again: memory was struck, or the
                                      range was changed

Invariants: the scale is a power of `factor` times the first one and lies in
[min_scale, max_scale]; gradients are divided by the scale that they were multiplied
with (the one in the state that came in), so nothing jumps where it grows; the scale is
control state, no transaction rolls it back.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from jaxsafe import _errors, _gate, _tree
from jaxsafe._tree import PyTree
from jaxsafe.transforms import _control, _state
from jaxsafe.transforms._control import Rules
from jaxsafe.transforms._precision import in_float32
from jaxsafe.transforms._state import ControlState

_NAME = "dynamic_loss_scale"


class DynamicLossScaleState(NamedTuple):
    """State of `dynamic_loss_scale`.

    Attributes:
      inner_state: state of the wrapped optimizer; untouched by a skipped step.
      control: counters, the present `loss_scale`, and `stalled`.

    Example:
      >>> import optax
      >>> from jaxsafe import transforms
      >>> state = transforms.dynamic_loss_scale(optax.sgd(0.1)).init({})
      >>> float(state.control.loss_scale)
      2048.0
    """

    inner_state: Any
    control: ControlState


def dynamic_loss_scale(
    inner: optax.GradientTransformation,
    *,
    initial_scale: float | None = None,
    growth_steps: int = 2000,
    factor: float = 2.0,
    min_scale: float = 1.0,
    max_scale: float | None = None,
    dtype: DTypeLike = jnp.float16,
    give_up_after: int = 10,
    telemetry: int = 0,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Undo the scale of the gradients, step if they are finite, and adapt the scale.

    Put it outermost, and take gradients with `transforms.value_and_grad`, which scales
    them: `dynamic_loss_scale(guarded(adamw))`. The division and `inner` run in float32,
    see `in_float32`: an unscaled gradient would underflow in float16 again.

    Value:     the update of `inner` for the gradients over the scale, or zeros with
               `inner_state` bitwise as it was.
    NaN in:    zeros out. A loss that is not finite (pass it as `value=`, unscaled) or
               a scale that is at its minimum already cannot be cured by a lower scale:
               then the state is `stalled`, and halts after a while; see
               `raise_if_halted`.

    Args:
      inner: any optax transformation.
      initial_scale: the first scale; None for 1/16 of the largest `max_scale`, 2048 for
        float16, so that the first steps are taken. (65536, the usual one, is infinite
        there, and 32768 makes a gradient of 2 infinite.)
      growth_steps: finite steps in a row before the scale grows.
      factor: what it grows and shrinks by, above 1; a power of two costs no accuracy.
      min_scale: it never falls below.
      max_scale: it never rises above; None for the largest power of two in `dtype`, at
        most 2**24.
      dtype: the narrowest dtype of the backward pass, which has to hold the scale.
      give_up_after: stalled steps in a row after which the guard halts.
      telemetry: attempts to remember in `control.history`.
      axis_name: mapped axes over which all devices must agree; the gradients must
        already be averaged over them.

    Returns:
      An optax transformation; its state is a `DynamicLossScaleState`.

    Raises:
      ValueError: an argument is out of its range, or a scale does not fit `dtype`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jaxsafe import transforms
      >>> tx = transforms.dynamic_loss_scale(optax.sgd(1.0))
      >>> params = jnp.ones((), jnp.float16)
      >>> state = tx.init(params)
      >>> loss = lambda p: p * p * 3e-6
      >>> value, grads = transforms.value_and_grad(loss, state)(params)
      >>> updates, state = tx.update(grads, state, params, value=value)
      >>> float(updates)  # without a scale the gradient has two digits at most
      -5.960464477539063e-06

    References:
      Micikevicius et al., Mixed precision training, 2018,
      https://arxiv.org/abs/1710.03740
    """
    largest = _largest_scale(dtype)
    first = max(largest / 16, min_scale) if initial_scale is None else initial_scale
    top = largest if max_scale is None else max_scale
    _check(first, min_scale, top, factor, dtype)
    _errors.check_count(_NAME, "growth_steps", growth_steps)
    rules = Rules(backoff=1.0, give_up_after=give_up_after).check(_NAME)
    inner = in_float32(inner)

    def init(params: PyTree) -> DynamicLossScaleState:
        control = _state.init_control(telemetry=telemetry)
        control = control._replace(loss_scale=first)
        return DynamicLossScaleState(inner.init(params), control)

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree = None,
        *,
        value: Any = None,
        **extra: Any,
    ) -> tuple[PyTree, DynamicLossScaleState]:
        control = state.control
        unscaled = _gate.scale_by(_tree.widen(updates), 1 / control.loss_scale)
        fine_loss = jnp.asarray(True) if value is None else _tree.all_finite(value)
        verdict = _gate.judge(
            unscaled, axis_name=axis_name, also=fine_loss & ~control.halted
        )
        if value is not None:
            extra["value"] = value
        beside = updates if params is None else params

        def attempt() -> tuple[PyTree, Any]:
            new, inner_state = inner.update(
                unscaled, state.inner_state, params, **extra
            )
            return _tree.cast_like(new, beside), inner_state

        ok, (new, inner_state) = _gate.commit_update(
            verdict.ok, attempt, state.inner_state, axis_name=axis_name
        )
        advanced = _control.advance_by(
            control,
            # Skipping while the scale comes down is its work, and no reason to halt.
            rules.without_halting(),
            verdict,
            ok=ok,
            clipped=jnp.asarray(False),
            value=value,
            axis_name=axis_name,
        )
        # A lower scale cures overflow in the backward pass, and nothing else.
        overflow = _gate.agree(fine_loss, axis_name) & ~jnp.isfinite(verdict.length)
        to_blame = overflow & (control.loss_scale > min_scale)
        stalled = ~ok & ~to_blame
        long = advanced.rejected_in_a_row >= give_up_after
        grows = ok & (advanced.committed_in_a_row % growth_steps == 0)
        scale = control.loss_scale
        higher = jnp.where(grows, jnp.minimum(scale * factor, top), scale)
        lower = jnp.where(to_blame, jnp.maximum(scale / factor, min_scale), scale)
        known = (scale >= min_scale) & (scale <= top)
        scale = jnp.where(known, jnp.where(ok, higher, lower), first)
        return new, DynamicLossScaleState(
            inner_state,
            advanced._replace(
                loss_scale=scale,
                stalled=stalled,
                halted=control.halted | (stalled & long),
            ),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def value_and_grad(
    fun: Callable[..., Any],
    opt_state: PyTree,
    *,
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """`jax.value_and_grad` with the gradients of the scaled loss.

    The scale is the one in `opt_state`; the `update` that gets the gradients divides by
    it. The value is not scaled, and its dtype is that of `fun`, but the product with
    the scale is taken in float32, so that it cannot overflow in float16.

    Args:
      fun: function of a scalar loss, or of (loss, aux).
      opt_state: an optax state with a `dynamic_loss_scale` in it.
      argnums: what to differentiate by.
      has_aux: whether `fun` returns (loss, aux).

    Returns:
      A function of the arguments of `fun` that returns (value, scaled gradients), or
      ((value, aux), scaled gradients).

    Raises:
      ValueError: there is no `dynamic_loss_scale` in `opt_state`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jaxsafe import transforms
      >>> tx = transforms.dynamic_loss_scale(optax.sgd(1.0), initial_scale=4.0)
      >>> state = tx.init(1.0)
      >>> value, grads = transforms.value_and_grad(lambda p: p**2, state)(3.0)
      >>> float(value), float(grads)
      (9.0, 24.0)
    """
    scale = _scale_in(opt_state)

    def scaled(*args: Any, **kwargs: Any) -> tuple[jax.Array, Any]:
        out = fun(*args, **kwargs)
        value, aux = out if has_aux else (out, None)
        return _tree.widened(value) * scale.astype(_tree.widened(value).dtype), (
            value,
            aux,
        )

    differentiated = jax.value_and_grad(scaled, argnums=argnums, has_aux=True)

    def call(*args: Any, **kwargs: Any) -> Any:
        (_, (value, aux)), grads = differentiated(*args, **kwargs)
        return ((value, aux) if has_aux else value), grads

    return call


def _scale_in(opt_state: PyTree) -> jax.Array:
    def is_ours(node: Any) -> bool:
        return isinstance(node, DynamicLossScaleState)

    nodes = [n for n in jax.tree.leaves(opt_state, is_leaf=is_ours) if is_ours(n)]
    if not nodes:
        raise _errors.error(
            ValueError,
            "value_and_grad",
            "there is no loss scale in this state",
            jax.tree.structure(opt_state),
            "Wrap the optimizer: transforms.dynamic_loss_scale(tx).",
        )
    scale: jax.Array = nodes[0].control.loss_scale
    return scale


def _largest_scale(dtype: DTypeLike) -> float:
    """The largest power of two in `dtype`, or 2**24 where more is never of use."""
    return 2.0 ** min(24, int(jnp.finfo(dtype).maxexp) - 1)


def _check(
    first: float, low: float, top: float, factor: float, dtype: DTypeLike
) -> None:
    for name, scale in (
        ("initial_scale", first),
        ("min_scale", low),
        ("max_scale", top),
    ):
        _errors.check_positive(_NAME, name, scale)
        if float(scale) > float(jnp.finfo(dtype).max):
            raise _errors.error(
                ValueError,
                _NAME,
                f"{name} is infinite in {jnp.dtype(dtype).name}",
                scale,
                "Pass a smaller scale, or the dtype of the backward pass as dtype=.",
            )
    if not float(low) <= float(first) <= float(top):
        raise _errors.error(
            ValueError,
            _NAME,
            "min_scale <= initial_scale <= max_scale must hold",
            f"{low}, {first}, {top}",
            "Widen the range, or start inside it.",
        )
    _errors.check_positive(_NAME, "factor", factor)
    if not factor > 1:
        raise _errors.error(
            ValueError, _NAME, "factor must be above 1", factor, "Pass 2.0."
        )
