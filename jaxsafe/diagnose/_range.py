"""How large numbers are, read from their bits: the rows of taps and of profiles.

Magnitudes are compared as unsigned integers. A float maximum may drop a NaN on CPU and
a float comparison flushes subnormals there; the integers do neither, and rank NaN above
infinity above every number.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsafe import _floats
from jaxsafe._program import Node

FORMATS = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


def entry_bits(x: jax.Array) -> jax.Array:
    """uint32 of the shape of x, or uint64 for float64: |x|, sorted as the numbers are.

    Of a complex number both parts are entries, along a first axis.
    """
    if jnp.iscomplexobj(x):
        x = jnp.stack([x.real, x.imag])
    x = x.astype(_floats.wide(x.dtype))
    unsigned = _unsigned(x.dtype)
    sign = np.array(1 << (8 * unsigned.itemsize - 1), unsigned)
    return lax.bitcast_convert_type(x, unsigned) & ~sign


def wide_real(dtype: Any) -> Any:
    """The dtype in which magnitudes of `dtype` are exact: float32 or float64."""
    return _floats.wide(jnp.finfo(dtype).dtype)


class Extent(NamedTuple):
    """How far one value goes, over all its entries and all turns of its loops.

    Attributes:
      largest: bits of the largest magnitude: NaN above infinity above numbers.
      smallest: bits of the smallest magnitude that is not 0; all ones if none is.
    """

    largest: jax.Array
    smallest: jax.Array


class Row(NamedTuple):
    """About one value, over all its entries and all turns of its loops.

    Attributes:
      largest: bits of the largest finite magnitude, 0 if there is none.
      smallest: bits of the smallest magnitude that is not 0; all ones if none is.
      counts: uint32[levels, 2], entries at or above each level; the low half first.
    """

    largest: jax.Array
    smallest: jax.Array
    counts: jax.Array


class _Chosen:
    """What is common to the watches here (see `_program.Watch`): which values."""

    def __init__(self, wanted: Callable[[Node], bool]) -> None:
        self.wanted = wanted

    def at_node(self, node: Node) -> bool:
        return self.wanted(node)

    def at_step(self, step: Any) -> list[Any]:  # noqa: ARG002
        return []

    def rows(self, readings: list[Any], turn: Any) -> Any:  # noqa: ARG002
        return jax.tree.map(lambda *x: jnp.stack(x), *readings)


class Extremes(_Chosen):
    """A watch: how far chosen values go. The cheaper one, for what runs in training."""

    def reading(self, key: Any, value: jax.Array, turn: Any) -> Extent:  # noqa: ARG002
        if value.size == 0:
            return jax.tree.map(lambda x: x[0], self.empty(1))
        bits = entry_bits(value)
        one, most = (np.array(x, bits.dtype) for x in (1, np.iinfo(bits.dtype).max))

        def wider(old: Any, new: Any) -> tuple[jax.Array, jax.Array]:
            return jnp.maximum(old[0], new[0]), jnp.minimum(old[1], new[1])

        # One less than 0 is the largest. One reduction: on a CPU both extremes take
        # less than one of them by itself.
        start = np.zeros_like(one), most
        axes = tuple(range(bits.ndim))
        largest, before = lax.reduce((bits, bits - one), start, wider, axes)
        dtype = wide_real(value.dtype)
        return Extent(
            _widened(largest, dtype),
            jnp.where(before == most, _none(), _widened(before + one, dtype)),
        )

    def empty(self, count: int) -> Extent:
        dtype = _unsigned(_widest())
        return Extent(jnp.zeros((count,), dtype), jnp.full((count,), _none(), dtype))

    def merge(self, old: Extent, new: Extent) -> Extent:
        return Extent(
            jnp.maximum(old.largest, new.largest),
            jnp.minimum(old.smallest, new.smallest),
        )


class Ranges(_Chosen):
    """A watch: the range of chosen values, and who fits where.

    Counted are the entries at or above each of `levels(formats, dtype)`.
    """

    def __init__(
        self, wanted: Callable[[Node], bool], formats: tuple[str, ...]
    ) -> None:
        super().__init__(wanted)
        self.formats = formats

    def reading(self, key: Any, value: jax.Array, turn: Any) -> Row:  # noqa: ARG002
        dtype = wide_real(value.dtype)
        wanted = levels(self.formats, str(dtype))
        if value.size == 0:
            return jax.tree.map(lambda x: x[0], self.empty(1))
        bits = entry_bits(value).reshape(-1)
        finite = bits < wanted[-2]
        largest = jnp.max(jnp.where(finite, bits, wanted[0]))
        smallest = jnp.min(jnp.where(finite & (bits >= wanted[1]), bits, wanted[-1]))
        counts = jnp.sum(bits >= wanted[:, None], axis=1, dtype=jnp.uint32)
        none = smallest == wanted[-1]
        return Row(
            _widened(largest, dtype),
            jnp.where(none, _none(), _widened(smallest, dtype)),
            jnp.stack([counts, jnp.zeros_like(counts)], axis=-1),
        )

    def empty(self, count: int) -> Row:
        dtype = _unsigned(_widest())
        size = len(levels(self.formats, str(_widest())))
        return Row(
            jnp.zeros((count,), dtype),
            jnp.full((count,), _none(), dtype),
            jnp.zeros((count, size, 2), jnp.uint32),
        )

    def merge(self, old: Row, new: Row) -> Row:
        low = old.counts[..., 0] + new.counts[..., 0]
        carried = (low < old.counts[..., 0]).astype(jnp.uint32)
        high = old.counts[..., 1] + new.counts[..., 1] + carried
        return Row(
            jnp.maximum(old.largest, new.largest),
            jnp.minimum(old.smallest, new.smallest),
            jnp.stack([low, high], axis=-1),
        )


@functools.cache
def levels(formats: tuple[str, ...], dtype: str) -> np.ndarray[Any, Any]:
    """Bits, as of `dtype`: 0, above 0, (kept, too large) per format, Inf, NaN.

    An entry below `kept` rounds to 0 in the format; one at or above `too large` rounds
    beyond its largest number.
    """
    wide = np.dtype(dtype)
    found = [0, 1]
    for name in formats:
        found += [_bits(wide, edge) for edge in _edges(name, wide)]
    infinity = _bits(wide, np.inf)
    return np.array([*found, infinity, infinity + 1], _unsigned(wide))


def _edges(name: str, wide: Any) -> tuple[Any, Any]:
    """The least number that `name` does not round to 0, and the least it cannot hold.

    Half-way cases are tried out: float8_e4m3fn rounds its one down, the others up.
    """
    info, kind = jnp.finfo(name), jnp.dtype(name)
    half = wide.type(float(info.smallest_subnormal) / 2)
    largest = float(info.max)
    beyond = wide.type(largest + 2.0 ** (np.frexp(largest)[1] - 2 - info.nmant))
    with np.errstate(over="ignore"):
        holds = np.isfinite(beyond.astype(kind).astype(np.float32))
    return np.nextafter(half, wide.type(1)), (
        np.nextafter(beyond, wide.type(np.inf)) if holds else beyond
    )


def as_float(bits: Any) -> float:
    """The magnitude that a row's bits stand for; 0 where there is none."""
    bits = np.asarray(bits)
    if bits == np.iinfo(bits.dtype).max:
        return 0.0
    return float(bits.view(f"float{bits.dtype.itemsize * 8}"))


def as_counts(counts: Any) -> list[int]:
    """The two halves of each count as one number."""
    return [int(low) + (int(high) << 32) for low, high in np.asarray(counts)]


def _widened(bits: jax.Array, dtype: Any) -> jax.Array:
    """Bits of a float32 as those of a float64, where rows are that wide."""
    if dtype == _widest():
        return bits
    x = lax.bitcast_convert_type(bits, dtype).astype(_widest())
    return lax.bitcast_convert_type(x, _unsigned(_widest()))


def _widest() -> Any:
    return jnp.dtype("float64" if jax.config.read("jax_enable_x64") else "float32")


def _none() -> Any:
    """Bits of no number: larger than all others."""
    unsigned = _unsigned(_widest())
    return np.array(np.iinfo(unsigned).max, unsigned)


def _unsigned(dtype: Any) -> Any:
    return np.dtype(f"uint{jnp.finfo(dtype).bits}")


def _bits(dtype: Any, value: Any) -> int:
    return int(np.asarray(value, dtype).view(_unsigned(dtype)))
