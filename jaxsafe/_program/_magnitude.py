"""One number per value: its largest magnitude, read from the *bits*.

A float maximum may drop a NaN on CPU; the largest of the bits, as integers, cannot.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsafe import _floats
from jaxsafe._program._graph import Apply, Node

Turn = tuple[jax.Array, ...]

INFINITY_BITS = 0x7F800000
# Equations whose result is as large as their operand, and as finite.
_COPIES = frozenset(
    {
        "broadcast_in_dim",
        "copy",
        "expand_dims",
        "name",
        "neg",
        "reshape",
        "rev",
        "squeeze",
        "transpose",
    }
)
# Values of one shape that are read in one pass. A pass for each takes longer to compile
# and to run, since every one repeats what leads to its value.
_TOGETHER = 32


class Magnitude(NamedTuple):
    """Rows of `Magnitudes`; `nan_at` and `inf_at` are (1, turn, turn, ...) or zeros."""

    peak: jax.Array
    nan_at: jax.Array
    inf_at: jax.Array


def copied(node: Node) -> Node | None:
    """The value that this one only hands on, if that one is read, and as often."""
    step = node.step
    if step is None or step.primitive not in _COPIES or not node.aval.size:
        return None
    source = step.inputs[0]
    # A branch that is not taken says nothing of what it was given.
    alike = source.loops == node.loops and node.branch is None
    return source if alike and source.watched else None


class Magnitudes:
    """Watch floating values: their largest magnitude, and when they first went bad.

    What is `copied` is not read again.

    Args:
      depth: how deeply loops are nested.
      together: read values of one shape in one pass. For a CPU: on a TPU it takes three
        times as long to compile. Not for arrays that are spread over devices: they
        would all have to be spread alike.
    """

    def __init__(self, depth: int, *, together: bool = False) -> None:
        self.depth = depth
        self.most = _TOGETHER if together else 1

    def at_node(self, node: Node) -> bool:
        return node.watched and copied(node) is None

    def at_step(self, step: Apply) -> list[Any]:  # noqa: ARG002
        return []

    def reading(self, key: Any, value: jax.Array, turn: Turn) -> jax.Array:  # noqa: ARG002
        return value

    def rows(self, readings: list[jax.Array], turn: Turn) -> Magnitude:
        # One comparison for all of them: per value, it doubles the time to compile.
        bits = jnp.stack(magnitudes(readings, most=self.most))
        now = [jnp.ones((), jnp.int32), *turn]
        now += [jnp.zeros((), jnp.int32)] * (self.depth - len(turn))
        at = jnp.stack(now)[None, :]
        never = jnp.zeros_like(at)
        return Magnitude(
            bits,
            jnp.where(bits[:, None] > np.uint32(INFINITY_BITS), at, never),
            jnp.where(bits[:, None] == np.uint32(INFINITY_BITS), at, never),
        )

    def empty(self, count: int) -> Magnitude:
        at = jnp.zeros((count, self.depth + 1), jnp.int32)
        return Magnitude(jnp.zeros((count,), jnp.uint32), at, at)

    def merge(self, old: Magnitude, new: Magnitude) -> Magnitude:
        def first(a: jax.Array, b: jax.Array) -> jax.Array:
            return jnp.where(a[:, :1] > 0, a, b)

        return Magnitude(
            jnp.maximum(old.peak, new.peak),
            first(old.nan_at, new.nan_at),
            first(old.inf_at, new.inf_at),
        )


def magnitudes(values: list[jax.Array], *, most: int = 1) -> list[jax.Array]:
    """uint32[] each: bits of the largest |x| as float32; above those of Inf for a NaN.

    Up to `most` values of one type are read together.
    """
    alike: dict[Any, list[int]] = {}
    for i, x in enumerate(values):
        alike.setdefault(jax.typeof(x), []).append(i)
    found: dict[int, jax.Array] = {}
    for places in alike.values():
        for at in range(0, len(places), most):
            some = places[at : at + most]
            together = [values[i] for i in some]
            for i, bits in zip(some, _peaks(together), strict=True):
                found[i] = _float32_bits(bits, values[i].dtype)
    return [found[i] for i in range(len(values))]


def _float32_bits(bits: jax.Array, dtype: Any) -> jax.Array:
    if bits.dtype == jnp.uint32:
        return bits
    largest = _as_float(bits, dtype)
    if bits.dtype == jnp.uint64:  # a finite float64 must not turn infinite on the way
        limit = np.array(np.finfo(np.float32).max, np.float64)
        bounded = jnp.minimum(largest, limit)
        largest = jnp.where(jnp.isfinite(largest), bounded, largest)
    return lax.bitcast_convert_type(largest.astype(jnp.float32), jnp.uint32)


def peak(x: Any) -> jax.Array:
    """float32[], or float64[] for float64: the largest |x|; NaN if any is NaN."""
    x = jnp.asarray(x)
    dtype = _floats.wide(jnp.finfo(x.dtype).dtype)
    return _as_float(_peaks([x])[0], x.dtype).astype(dtype)


def _peaks(values: list[jax.Array]) -> list[jax.Array]:
    """uint16[], uint32[] or uint64[] each: bits of the largest |x| in its own dtype."""
    if jnp.iscomplexobj(values[0]):
        real, imag = _peaks([x.real for x in values]), _peaks([x.imag for x in values])
        return [jnp.maximum(r, i) for r, i in zip(real, imag, strict=True)]
    if jnp.finfo(values[0].dtype).bits < 16:
        values = [x.astype(jnp.float32) for x in values]
    width = jnp.finfo(values[0].dtype).bits
    unsigned = jnp.dtype(f"uint{width}")
    sign = np.array(1 << (width - 1), unsigned)
    bits = [lax.bitcast_convert_type(x, unsigned) & ~sign for x in values]
    if not values[0].ndim:
        return bits
    return list(
        lax.reduce(
            tuple(bits),
            (np.array(0, unsigned),) * len(bits),
            lambda a, b: tuple(map(jnp.maximum, a, b)),
            tuple(range(values[0].ndim)),
        )
    )


def _as_float(bits: jax.Array, dtype: Any) -> jax.Array:
    real = jnp.finfo(dtype).dtype
    fits = jnp.finfo(real).bits == jnp.iinfo(bits.dtype).bits
    return lax.bitcast_convert_type(bits, real if fits else jnp.float32)
