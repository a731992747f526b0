"""The guarded training step, ours and everybody else's, on any workload.

Guarded means: loss and gradients are checked, the norm is clipped, a bad step is
skipped and counted. Ours also keeps telemetry and adapts the rate.
"""

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.training.dynamic_scale import DynamicScale
from jax.experimental import checkify

from benchmarks._case import Program
from benchmarks._workloads import Workload
from jaxsafe import diagnose, guard, transforms

PLAIN = "optax.adamw"
CLIP = "clip + adamw"
PEER = "apply_if_finite(clip + adamw)"
STEP = "jaxsafe.guard.apply_gradients"
WRAPPER = "jaxsafe.transforms.guarded"
UNCHECKED = "jaxsafe guarded(check_update=False)"
PACKED = "jaxsafe apply_gradients(flatten(adamw))"
TRANSACTION = "jaxsafe.guard.transaction"
TAPPED = "jaxsafe apply_gradients + 20 taps"

_RATE, _NORM = 3e-4, 1.0
Build = Callable[[], Program]


def _adamw() -> optax.GradientTransformation:
    return optax.adamw(_RATE)


def _clipped() -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(_NORM), _adamw())


def _optax(work: Workload, make: Callable[[], Any], **around: Any) -> Build:
    """A plain training step with a chain of optax's."""

    def build() -> Program:
        tx = optax.with_extra_args_support(make())
        params, rest, batch = work.init()
        step = _plain_step(work, tx)
        return Program(step, ((params, rest, tx.init(params)), batch), True, **around)

    return build


def _plain_step(work: Workload, tx: Any) -> Callable[..., Any]:
    def step(carry: Any, batch: Any) -> Any:
        params, rest, opt = carry
        (loss, rest), grads = work.grad(params, rest, batch)
        updates, opt = tx.update(grads, opt, params, value=loss)
        return (optax.apply_updates(params, updates), rest, opt), loss

    return step


def _apply_gradients(
    work: Workload, make: Callable[[], Any] = _adamw, *, tapped: bool = False
) -> Build:
    def build() -> Program:
        tx = make()
        params, rest, batch = work.init()
        control = transforms.init_control(telemetry=128)
        grad = diagnose.collect_taps(work.grad) if tapped else _untapped(work)

        def step(carry: Any, batch: Any) -> Any:
            params, rest, opt, control = carry
            ((loss, new_rest), grads), taps = grad(params, rest, batch)
            params, opt, control = guard.apply_gradients(
                tx, grads, params, opt, control, value=loss, max_norm=_NORM
            )
            rest = guard.select(control.ok, new_rest, rest)
            return (params, rest, opt, control), (loss, taps)

        return Program(step, ((params, rest, tx.init(params), control), batch), True)

    return build


def _untapped(work: Workload) -> Callable[..., Any]:
    return lambda *args: (work.grad(*args), {})


def _transaction(work: Workload) -> Build:
    def build() -> Program:
        tx = optax.with_extra_args_support(_clipped())
        params, rest, batch = work.init()
        step = guard.transaction(_plain_step(work, tx))
        return Program(step, (step.init((params, rest, tx.init(params))), batch), True)

    return build


def _dynamic_scale(work: Workload) -> Build:
    def build() -> Program:
        tx = _clipped()
        params, rest, batch = work.init()

        def step(carry: Any, batch: Any) -> Any:
            params, rest, opt, scale = carry
            grad = scale.value_and_grad(work.loss, has_aux=True)
            scale, fine, (loss, new_rest), grads = grad(params, rest, batch)
            updates, new_opt = tx.update(grads, opt, params)
            new = (optax.apply_updates(params, updates), new_rest, new_opt)
            kept = jax.tree.map(
                lambda n, o: jnp.where(fine, n, o), new, (params, rest, opt)
            )
            return (*kept, scale), loss

        carry = (params, rest, tx.init(params), DynamicScale())
        return Program(step, (carry, batch), True)

    return build


def _jmp(work: Workload) -> Build | None:
    loss_of = work.loss
    if loss_of is None or importlib.util.find_spec("jmp") is None:
        return None

    def build() -> Program:
        jmp = importlib.import_module("jmp")
        tx = _clipped()
        params, rest, batch = work.init()

        def step(carry: Any, batch: Any) -> Any:
            params, rest, opt, numbers = carry
            # Its class cannot be lowered as an argument; its two numbers can.
            scale = jmp.DynamicLossScale(*numbers)

            def scaled(*args: Any) -> Any:
                loss, rest = loss_of(*args)
                return scale.scale(loss), (loss, rest)

            grad = jax.grad(scaled, has_aux=True)
            grads, (loss, new_rest) = grad(params, rest, batch)
            grads = scale.unscale(grads)
            fine = jmp.all_finite(grads)
            updates, new_opt = tx.update(grads, opt, params)
            new = (optax.apply_updates(params, updates), new_rest, new_opt)
            kept = jmp.select_tree(fine, new, (params, rest, opt))
            scale = scale.adjust(fine)
            return (*kept, (scale.loss_scale, scale.counter)), loss

        numbers = jnp.float32(2.0**15), jnp.int32(0)
        return Program(step, ((params, rest, tx.init(params), numbers), batch), True)

    return build


def _checkify(work: Workload) -> Build:
    def build() -> Program:
        plain = _optax(work, _clipped)()
        checked = checkify.checkify(plain.fn, errors=checkify.float_checks)

        def step(carry: Any, batch: Any) -> Any:
            error, (carry, loss) = checked(carry, batch)
            return carry, (loss, error)

        return plain._replace(fn=step)

    return build


def _error_if(work: Workload) -> Build | None:
    if importlib.util.find_spec("equinox") is None:
        return None

    def build() -> Program:
        eqx = importlib.import_module("equinox")
        tx = _clipped()
        params, rest, batch = work.init()

        def step(carry: Any, batch: Any) -> Any:
            params, rest, opt = carry
            (loss, rest), grads = work.grad(params, rest, batch)
            norm = optax.tree.norm(grads)
            grads = eqx.error_if(grads, ~jnp.isfinite(norm), "not finite")
            updates, opt = tx.update(grads, opt, params)
            return (optax.apply_updates(params, updates), rest, opt), loss

        return Program(step, ((params, rest, tx.init(params)), batch), True)

    return build


@contextlib.contextmanager
def _debug_nans() -> Any:
    with jax.debug_nans(True):
        yield


def contenders(work: Workload) -> Mapping[str, Build | None]:
    """Name -> the step on this workload; the first one is the baseline."""

    def guarded(**options: Any) -> optax.GradientTransformation:
        return transforms.guarded(_adamw(), max_norm=_NORM, telemetry=128, **options)

    def steps(tx: optax.GradientTransformation) -> Any:
        skip = optax.MultiSteps(tx, 1, should_skip_update_fn=optax.skip_not_finite)
        return skip.gradient_transformation()

    # These look into a model; of an optimizer alone they would only say how many leaves
    # it has, and take minutes to compile.
    inside = {
        "flax DynamicScale + clip": _dynamic_scale(work),
        "jmp + clip": _jmp(work),
        "checkify float_checks": _checkify(work),
        "jax_debug_nans": _optax(work, _clipped, around=_debug_nans),
    }
    return {
        PLAIN: _optax(work, _adamw),
        CLIP: _optax(work, _clipped),
        "apply_if_finite(adamw)": _optax(
            work, lambda: optax.apply_if_finite(_adamw(), 5)
        ),
        PEER: _optax(work, lambda: optax.apply_if_finite(_clipped(), 5)),
        "zero_nans + clip + adamw": _optax(
            work, lambda: optax.chain(optax.zero_nans(), _clipped())
        ),
        "MultiSteps(skip_not_finite)": _optax(work, lambda: steps(_clipped())),
        **(inside if work.loss else {}),
        "equinox.error_if + clip": _error_if(work),
        STEP: _apply_gradients(work),
        PACKED: _apply_gradients(work, lambda: optax.flatten(_adamw())),
        WRAPPER: _optax(work, guarded),
        UNCHECKED: _optax(work, lambda: guarded(check_update=False)),
        TRANSACTION: _transaction(work),
    }


def flags(work: Workload) -> Mapping[str, Build]:
    """The guarded step, which flags every leaf, without and with tapped activations."""
    return {
        STEP: _apply_gradients(work),
        TAPPED: _apply_gradients(work, tapped=True),
    }
