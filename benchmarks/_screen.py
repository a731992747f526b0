"""Find the rows with the largest errors among very many, without an oracle.

320-bit arithmetic is too slow for millions of numbers, but to *find* bad arguments it
is enough to compare a function with itself in float64. What is found goes to the
oracle, which alone says how large an error is. (Functions of single numbers need no
such help: for them the oracle is fast enough.)
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsafe._catalog import Row
from tests import accuracy, oracles, samples

# Times as many arguments as the default tests draw.
_DRAWN = {"reduction": 2000, "labelled": 2000, "whole": 600}
_ROWS = 4000
_KEPT = 8
# A larger difference, in ulp of float32, is a jump: a derivative next to a kink of the
# function, where float64 is on the other side. Ordinary sampling would find a fault of
# that size.
_JUMP = 1e5
_LENGTHS = (3, 10, 60)


def worst_arguments(row: Row, dtype: str) -> Iterator[tuple[Any, ...]]:
    """Tuples of arguments on which `row` in `dtype` is farthest from itself in float64.

    Nothing for float64, which has no wider twin.
    """
    if dtype == "float64" or row.kind == "entrywise":
        return
    program = jax.jit(functools.partial(accuracy.derivatives, row))
    batches = samples.arguments(row, dtype, more=_DRAWN[row.kind], lengths=_LENGTHS)
    if row.kind != "whole":
        batches = [part for args in batches for part in _parts(args)]
    errors = [_errors(program, args) for args in batches]
    if row.kind == "whole":
        whole = np.asarray([[np.max(e) for e in parts] for parts in errors])
        for i in np.unique(np.argsort(whole, 0)[-_KEPT:]):
            yield batches[i]
        return
    for args, parts in zip(batches, errors, strict=True):
        places = np.unique(np.concatenate([np.argsort(e)[-_KEPT:] for e in parts]))
        yield tuple(a[places] for a in args)


def _parts(args: Any) -> Iterator[tuple[Any, ...]]:
    """Equal parts, so that one small program does for all."""
    for start in range(0, len(args[0]) - _ROWS + 1, _ROWS):
        yield tuple(a[start : start + _ROWS] for a in args)


def _errors(program: Any, args: Any) -> list[np.ndarray]:
    """Errors of value and gradients, entry by entry of the first axis."""
    got = jax.tree.leaves(program(*map(jnp.asarray, args)))
    with oracles.precision("float64"):
        wide = [a if a.dtype.kind in "iub" else oracles.wide(a) for a in args]
        want = jax.tree.leaves(program(*map(jnp.asarray, wide)))
    return [e for g, w in zip(got, want, strict=True) for e in _distances(g, w)]


def _distances(got: Any, want: Any) -> Iterator[np.ndarray]:
    """Relative to each number, and to the largest of its row: both may be what counts.

    Of numbers that are not finite on either side only the oracle can judge.
    """
    got, want = (np.atleast_1d(oracles.wide(a)) for a in (got, want))
    got, want = (a.reshape(len(a), -1) for a in (got, want))
    usual = np.isfinite(got) & np.isfinite(want) & (np.abs(want) > 1e-30)
    off = np.where(usual, np.abs(got - np.where(usual, want, 0)), 0)
    size = np.where(usual, np.abs(want), 1)
    largest = np.max(np.where(usual, size, 0), 1, keepdims=True)
    for unit in (size, np.broadcast_to(largest, size.shape)):
        errors = np.max(off / oracles.ulp(unit, np.float32), 1)
        yield np.where(errors < _JUMP, errors, 0)
