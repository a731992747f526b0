"""Strike a pytree: pure, traced, selected and never multiplied."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxsafe import _errors, _floats, _tree
from jaxsafe._tree import PyTree
from jaxsafe.testing._fault import FAULT_KINDS, FAULT_PLACES, Fault

_WHOLE = {"zero", "denormal"}  # kinds that strike every entry of every leaf


def inject(
    fault: Fault,
    tree: PyTree,
    *,
    place: str | None = None,
    step: Any = None,
    micro_batch: Any = None,
    device: Any = None,
) -> PyTree:
    """Return `tree` as the fault leaves it, if this is where and when it strikes.

    Value:     `tree`, bit by bit, unless every coordinate that is passed is the one of
               the fault; then one entry, or for "zero" and "denormal" all entries, are
               replaced. Structure, shapes and dtypes stay.
    Gradient:  none flows through what was replaced.
    NaN in:    stays, where it is not what is struck.

    Args:
      fault: one fault; its fields may be traced.
      tree: any pytree with a floating or complex leaf; other leaves are never struck.
        Of a complex entry the real part is. In a dtype without infinity it is a NaN.
      place: one of `FAULT_PLACES`; None for wherever.
      step: number of the step; None for whenever.
      micro_batch: number of the micro-batch, likewise.
      device: number of the device, such as `lax.axis_index("data")`, likewise.

    Raises:
      TypeError: `fault` is no `Fault`.
      ValueError: there is nothing to strike in `tree`, or `place` is unknown.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsafe import testing
      >>> fault = testing.fault("bit_flip", step=2, bit=7)
      >>> strike = jax.jit(lambda x, i: testing.inject(fault, x, step=i))
      >>> [float(strike(jnp.asarray(1.5), i)) for i in range(3)]
      [1.5, 1.5, nan]
    """
    if not isinstance(fault, Fault):
        raise _errors.error(
            TypeError,
            "inject",
            "fault must be a Fault",
            type(fault).__name__,
            "Make one with testing.fault or testing.random_fault.",
        )
    strikes = _strikes(fault, place, step, micro_batch, device)
    leaves, structure = jax.tree.flatten(tree)
    targets = [i for i, x in enumerate(leaves) if _tree.is_inexact(x) and jnp.size(x)]
    if not targets:
        raise _errors.error(
            ValueError,
            "inject",
            "there is nothing to strike",
            structure,
            "Pass a tree with a floating or complex leaf.",
        )
    target = fault.leaf % len(targets)
    for number, i in enumerate(targets):
        leaves[i] = _struck(fault, leaves[i], strikes, strikes & (target == number))
    return jax.tree.unflatten(structure, leaves)


def faulty(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Let faults strike the updates of an optimizer, before anybody looks at them.

    Put it inside what has to withstand: `transforms.guarded(testing.faulty(adamw))`.

    Value:     the updates of `inner`; struck, if `update` gets a `fault=` at the place
               "updates" whose step is the `step=` that it gets (None for whenever), and
               likewise for `micro_batch=` and `device=`.

    Args:
      inner: any optax transformation.

    Returns:
      An optax transformation; its state is that of `inner`. Other extra arguments reach
      `inner`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jaxsafe import testing, transforms
      >>> tx = transforms.guarded(testing.faulty(optax.sgd(0.1)))
      >>> fault = testing.fault("nan", place="updates")
      >>> state = tx.init(jnp.ones(2))
      >>> updates, state = tx.update(jnp.ones(2), state, fault=fault)
      >>> [float(u) for u in updates], int(state.control.rejected)
      ([0.0, 0.0], 1)
    """
    inner = optax.with_extra_args_support(inner)

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree = None,
        *,
        fault: Fault | None = None,
        step: Any = None,
        micro_batch: Any = None,
        device: Any = None,
        **extra: Any,
    ) -> tuple[PyTree, Any]:
        updates, state = inner.update(updates, state, params, **extra)
        if fault is None:
            return updates, state
        when = {"step": step, "micro_batch": micro_batch, "device": device}
        return inject(fault, updates, place="updates", **when), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _strikes(
    fault: Fault, place: str | None, step: Any, micro_batch: Any, device: Any
) -> jax.Array:
    """bool[]: everything that is known of here and now is what the fault says."""
    known = (fault.kind >= 0) & (fault.kind < len(FAULT_KINDS))
    if place is not None:
        _errors.check_choice("inject", "place", place, FAULT_PLACES)
        known = known & (fault.place == FAULT_PLACES.index(place))
    now = ((step, fault.step), (micro_batch, fault.micro_batch), (device, fault.device))
    for here, there in now:
        if here is not None:
            known = known & (here == there)
    return known


def _struck(fault: Fault, leaf: Any, anywhere: jax.Array, here: jax.Array) -> jax.Array:
    """`leaf` after the fault; `here` says whether its one entry is in this leaf."""
    x = jnp.asarray(leaf)
    if jnp.iscomplexobj(x):
        return lax.complex(_struck(fault, x.real, anywhere, here), x.imag)
    whole = {
        name: anywhere & (fault.kind == FAULT_KINDS.index(name)) for name in _WHOLE
    }
    all_zero = jnp.where(whole["zero"], jnp.zeros_like(x), x)
    changed = jnp.where(whole["denormal"], _denormal(x), all_zero)
    # Compared, not scattered: every device can tell by itself whether it holds it.
    place = lax.iota(jnp.int32, x.size).reshape(x.shape)
    one = here & ~whole["zero"] & ~whole["denormal"] & (place == fault.entry % x.size)
    return jnp.where(one, _entry(fault, x), changed)


def _entry(fault: Fault, x: jax.Array) -> jax.Array:
    """What the one entry becomes, for each entry of `x`."""
    dtype = x.dtype

    def constant(value: Any) -> jax.Array:
        return jnp.full_like(x, jnp.asarray(value, dtype))

    branches = {
        "nan": lambda: constant(jnp.nan),
        "inf": lambda: constant(jnp.inf),
        "-inf": lambda: constant(-jnp.inf),
        "huge": lambda: constant(_huge(dtype)[fault.bit % jnp.finfo(dtype).nexp]),
        "bit_flip": lambda: _flipped(x, fault.bit),
        "zero": lambda: x,
        "denormal": lambda: x,
    }
    return lax.switch(fault.kind, [branches[name] for name in FAULT_KINDS])


def _huge(dtype: Any) -> jax.Array:
    """Finite numbers of which the square overflows, or nearly; one for each bit."""
    info = jnp.finfo(dtype)
    largest, apart = _floats.largest(dtype), int(info.maxexp) // 16
    return jnp.asarray([largest / 2.0 ** (i * apart) for i in range(info.nexp)], dtype)


def _flipped(x: jax.Array, bit: jax.Array) -> jax.Array:
    """Every entry with one bit of its exponent flipped."""
    info, bits = jnp.finfo(x.dtype), _bits(x)
    one = jnp.ones((), bits.dtype)
    mask = one << (int(info.nmant) + bit % info.nexp).astype(bits.dtype)
    return lax.bitcast_convert_type(bits ^ mask, x.dtype)


def _denormal(x: jax.Array) -> jax.Array:
    """Every entry without its exponent: sign and digits stay, and never all zeros."""
    info, bits = jnp.finfo(x.dtype), _bits(x)
    exponent = ((1 << int(info.nexp)) - 1) << int(info.nmant)
    kept = bits & ~jnp.asarray(exponent, bits.dtype)
    return lax.bitcast_convert_type(kept | jnp.ones((), bits.dtype), x.dtype)


def _bits(x: jax.Array) -> jax.Array:
    unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    return lax.bitcast_convert_type(x, unsigned)
