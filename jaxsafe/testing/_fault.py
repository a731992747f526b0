"""What goes wrong, and where: a few integers, made by hand or drawn from a key."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsafe import _errors

FAULT_KINDS = ("nan", "inf", "-inf", "huge", "bit_flip", "zero", "denormal")
FAULT_PLACES = (
    "batch",
    "loss",
    "gradients",
    "updates",
    "optimizer_state",
    "loss_scale",
)

# Far above any number of leaves, entries or bits; `inject` takes the remainder.
_MANY = 2**30


class Fault(NamedTuple):
    """One fault; every field is int32[], or int32[n] for n faults.

    Attributes:
      kind: index in `FAULT_KINDS`; any other number strikes nothing.
      place: index in `FAULT_PLACES`.
      step: the step that it strikes.
      micro_batch: the micro-batch of that step.
      device: the device, counted along a mapped axis.
      leaf: which floating or complex leaf, counted round and round.
      entry: which entry of it, counted round and round.
      bit: which exponent bit is flipped, 0 the lowest, counted round and round; of a
        huge number, how far below the largest it stays.

    Example:
      >>> from jaxsafe import testing
      >>> int(testing.fault("inf", step=3).step)
      3
    """

    kind: jax.Array
    place: jax.Array
    step: jax.Array
    micro_batch: jax.Array
    device: jax.Array
    leaf: jax.Array
    entry: jax.Array
    bit: jax.Array


def fault(
    kind: str,
    *,
    place: str = "gradients",
    step: Any = 0,
    micro_batch: Any = 0,
    device: Any = 0,
    leaf: Any = 0,
    entry: Any = 0,
    bit: Any = 0,
) -> Fault:
    """Return one fault, chosen by hand.

    Args:
      kind: "nan", "inf", "-inf": one entry becomes that. "huge": one entry becomes a
        finite number whose square overflows (in float64 it does not). "bit_flip": one
        bit of the exponent of one entry flips; what comes out may be finite or not.
        "zero", "denormal": all entries of all leaves become 0, or lose their exponent.
      place: where in the step, one of `FAULT_PLACES`.
      step: the step that it strikes.
      micro_batch: the micro-batch of that step.
      device: the device, counted along a mapped axis.
      leaf: which floating or complex leaf; a number above the last starts again.
      entry: which entry of it, likewise.
      bit: which exponent bit, 0 the lowest, likewise. A huge number is the largest one
        divided by 2**(bit * maxexp / 16).

    Raises:
      ValueError: `kind` or `place` is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsafe import testing
      >>> fault = testing.fault("nan", entry=1)
      >>> [float(x) for x in testing.inject(fault, jnp.ones(2))]
      [1.0, nan]
    """
    _errors.check_choice("fault", "kind", kind, FAULT_KINDS)
    _errors.check_choice("fault", "place", place, FAULT_PLACES)
    fields = (
        FAULT_KINDS.index(kind),
        FAULT_PLACES.index(place),
        step,
        micro_batch,
        device,
    )
    return Fault(*(jnp.asarray(x, jnp.int32) for x in (*fields, leaf, entry, bit)))


def random_fault(
    key: jax.Array,
    *,
    kinds: Sequence[str] = FAULT_KINDS,
    places: Sequence[str] = FAULT_PLACES,
    steps: int = 1,
    micro_batches: int = 1,
    devices: int = 1,
) -> Fault:
    """Draw one fault; every kind, place, step, leaf, entry and bit is equally likely.

    Can be jitted. `jax.vmap(random_fault)(jax.random.split(key, n))` draws n of them,
    to be scanned over.

    Args:
      key: a random key.
      kinds: the kinds to draw from.
      places: the places to draw from.
      steps: strike one of the steps 0 to steps - 1.
      micro_batches: likewise.
      devices: likewise.

    Raises:
      ValueError: a kind or place is unknown, there is none, or a number is below 1.

    Example:
      >>> import jax
      >>> from jaxsafe import testing
      >>> keys = jax.random.split(jax.random.key(0), 1000)
      >>> faults = jax.vmap(testing.random_fault)(keys)
      >>> faults.kind.shape, sorted(set(faults.kind.tolist()))
      ((1000,), [0, 1, 2, 3, 4, 5, 6])
    """
    counts = {"steps": steps, "micro_batches": micro_batches, "devices": devices}
    for name, count in counts.items():
        _errors.check_count("random_fault", name, count)
    keys = jax.random.split(key, 8)
    most = [*counts.values(), _MANY, _MANY, _MANY]
    drawn = (
        jax.random.randint(k, (), 0, n) for k, n in zip(keys[2:], most, strict=True)
    )
    return Fault(
        _one_of(keys[0], "kinds", kinds, FAULT_KINDS),
        _one_of(keys[1], "places", places, FAULT_PLACES),
        *drawn,
    )


def _one_of(
    key: jax.Array, name: str, chosen: Sequence[str], known: tuple[str, ...]
) -> jax.Array:
    if not chosen or isinstance(chosen, str):
        raise _errors.error(
            ValueError,
            "random_fault",
            f"{name} must be a list of names",
            repr(chosen),
            f"Choose from {', '.join(map(repr, known))}.",
        )
    for each in chosen:
        _errors.check_choice("random_fault", name, each, known)
    indices = jnp.asarray([known.index(each) for each in chosen], jnp.int32)
    return jax.random.choice(key, indices)
