"""Find the arguments with the largest errors among very many, without an oracle.

320-bit arithmetic is too slow for millions of numbers, but to *find* bad arguments it
is enough to compare a function with itself in float64. What is found goes to the
oracle, which alone says how large an error is.
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
_DRAWN = {"entrywise": 500, "reduction": 400, "labelled": 400, "whole": 300}
_KEPT = 24
_LENGTHS = (2, 3, 10, 60)


def worst_arguments(row: Row, dtype: str) -> Iterator[tuple[Any, ...]]:
    """Tuples of arguments on which `row` in `dtype` is farthest from itself in float64.

    Nothing for float64, which has no wider twin.
    """
    if dtype == "float64":
        return
    program = jax.jit(functools.partial(accuracy.derivatives, row))
    batches = samples.arguments(row, dtype, more=_DRAWN[row.kind], lengths=_LENGTHS)
    errors = [_errors(program, args) for args in batches]
    if row.kind == "whole":
        whole = np.asarray([[np.max(e) for e in parts] for parts in errors])
        for i in np.unique(np.argsort(whole, 0)[-_KEPT:]):
            yield batches[i]
        return
    for args, parts in zip(batches, errors, strict=True):
        places = np.unique(np.concatenate([np.argsort(e)[-_KEPT:] for e in parts]))
        yield tuple(a[places] for a in args)


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
    yield np.max(off / oracles.ulp(size, np.float32), 1)
    yield np.max(off, 1) / oracles.ulp(np.max(np.where(usual, size, 0), 1), np.float32)
