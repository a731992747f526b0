"""The independent oracle: arbitrary precision, ulp distance, and a model of flushing.

A true value is kept as an unevaluated sum of two float64 (`Exact`), which is far finer
than any dtype under test, so whole arrays are compared at once. XLA on CPU treats
float32 and bfloat16 subnormals as 0 on the way in and may on the way out; that is the
backend's doing, not ours, so arguments are flushed before the oracle sees them and 0 is
accepted for a subnormal result.
"""

import contextlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import mpmath
import numpy as np

DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
# What exists without enabling 64 bits.
DEFAULT = [name for name in DTYPES if name != "float64"]
MP = mpmath.mp.clone()
# Enough for 1 + exp(-88) with sixty digits to spare.
MP.prec = 320


def precision(dtype):
    """Context in which the dtype exists."""
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()


class Exact(NamedTuple):
    """A true value: high + low."""

    high: np.ndarray
    low: np.ndarray


def exact(values):
    """An `Exact` from (nested) mpf, int or float."""
    flat = np.asarray(values, dtype=object)
    with np.errstate(over="ignore"):
        high = np.vectorize(float, otypes=[np.float64])(flat)
    low = np.vectorize(
        lambda v, h: float(v - MP.mpf(h)) if np.isfinite(h) else 0.0,
        otypes=[np.float64],
    )(flat, high)
    return Exact(high, low)


def wide(x):
    """`x` as float64; NaN patterns of every kind included."""
    with np.errstate(invalid="ignore"):
        return np.asarray(x).astype(np.float64)


def flushes(dtype):
    """Whether XLA on CPU treats subnormals of this dtype as 0."""
    return np.dtype(dtype) != np.float16


def flush(x):
    """`x` with subnormals as the backend sees them."""
    x = np.asarray(x)
    if x.dtype.kind in "iu" or not flushes(x.dtype):
        return x
    return np.where(
        np.abs(wide(x)) < float(jnp.finfo(x.dtype).tiny), np.zeros_like(x), x
    )


def ulp(size, dtype):
    """Spacing of `dtype` at magnitude `size` (float64)."""
    info = jnp.finfo(dtype)
    size = np.clip(np.abs(size), float(info.tiny), float(info.max))
    return np.exp2(np.floor(np.log2(size)) - info.nmant)


def ulps(got, true, dtype, size=None, terms=0):
    """Distance of `got` from an `Exact`, in ulp of `dtype` at `size` or at the truth.

    Each of `terms` summands may have been flushed, which costs up to `tiny` apiece.
    Infinity counts as the next power of two above the largest number, so an overflow
    that had to happen costs nothing and one that had not costs a lot.
    """
    info = jnp.finfo(dtype)
    end = float(info.max) if info.bits == 64 else 2.0 ** int(info.maxexp)
    got64 = np.clip(wide(got), -end, end)
    high, low = np.clip(true.high, -end, end), true.low
    low = np.where(np.abs(true.high) >= end, 0.0, low)
    unit = ulp(true.high if size is None else size, dtype)
    tiny = float(info.tiny)
    slack = terms * tiny if flushes(dtype) else 0.0
    off = np.maximum(np.abs((got64 - high) - low) - slack, 0) / unit
    # Just above `tiny` a product may have met a flushed factor.
    may_vanish = flushes(dtype) & (np.abs(true.high) < 2 * tiny) & (got64 == 0)
    off = np.where(may_vanish, 0.0, off)
    both = np.isnan(got64) & np.isnan(true.high)
    return np.where(both, 0.0, np.where(np.isnan(off), np.inf, off))


def reference(row, *args, which="oracle"):
    """What a row of the catalog truly gives at arrays of arguments.

    A tuple (value, gradients[, second]) of `Exact`, with gradients a tuple.
    """
    columns = [a if _is_integer(a) else wide(flush(a)) for a in args]
    function = getattr(row, which)
    if row.kind == "whole":
        return _parts(_at(row, function, columns))
    points = [_at(row, function, point) for point in zip(*columns, strict=True)]
    return _parts(tuple(_transposed(part) for part in zip(*points, strict=True)))


def _transposed(part):
    return tuple(zip(*part, strict=True)) if isinstance(part[0], tuple) else list(part)


def _parts(parts):
    return tuple(
        tuple(map(exact, part)) if isinstance(part, tuple) else exact(part)
        for part in parts
    )


def _at(row, function, point):
    numbers = [_numbers(column) for column in point]
    parts = function(MP, *numbers)
    if parts[1] is None:
        slopes = tuple(
            _differentiate(function, numbers, i) for i in range(len(row.domain))
        )
        parts = (parts[0], slopes, *parts[2:])
    return parts


def _numbers(entry):
    """An array as nested lists of mpf, a number as mpf; integers stay integers."""
    if np.ndim(entry):
        return [_numbers(e) for e in entry]
    return int(entry) if _is_integer(entry) else MP.mpf(float(entry))


def _is_integer(entry):
    return np.asarray(entry).dtype.kind in "iu"


def _differentiate(function, args, i):
    """Gradient of the first entry of the value: central differences, 100 bits good."""

    def slope(entry, put):
        if isinstance(entry, list):
            return [
                slope(e, lambda new, k=k: put([*entry[:k], new, *entry[k + 1 :]]))
                for k, e in enumerate(entry)
            ]
        step = (abs(entry) if entry else 1) * MP.mpf(2) ** -100
        ends = (_first(function(MP, *put(entry + s))[0]) for s in (step, -step))
        return (next(ends) - next(ends)) / (2 * step)

    return slope(args[i], lambda new: [*args[:i], new, *args[i + 1 :]])


def _first(value):
    return _first(value[0]) if isinstance(value, list) else value


def patterns(dtype):
    """All 65,536 numbers of a 16-bit dtype."""
    return np.arange(2**16, dtype=np.uint16).view(dtype)


def random_bits(rng, count, dtype):
    """Finite numbers of any magnitude: uniform in the bit pattern."""
    dtype = np.dtype(dtype)
    unsigned = np.dtype(f"u{dtype.itemsize}")
    bits = rng.integers(0, 2 ** (8 * dtype.itemsize), 2 * count, dtype=np.uint64)
    x = bits.astype(unsigned).view(dtype)
    return x[np.isfinite(wide(x))][:count]
