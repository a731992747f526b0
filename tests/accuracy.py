"""How far a function of the catalog is from the truth: value, gradient, second."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsafe import _floats
from tests import oracles, samples


def result_dtype(row, dtype):
    return np.dtype(row.result(oracles.DTYPES[dtype]))


def differentiable(row):
    return tuple(range(len(row.domain)))


def first(row, out):
    """What the catalog's gradient belongs to: first entries of vectors."""
    if row.kind == "whole":
        return out.ravel()[0]
    return out[..., 0] if row.kind == "reduction" and out.ndim > 1 else out


def total(row):
    def function(*args):
        out = first(row, row.function(*args))
        return jnp.sum(out.astype(_floats.wide(out.dtype)))

    return function


def derivatives(row, *args, second=False):
    """(value, gradients[, second derivative]) at arrays of arguments."""
    gradient = jax.grad(total(row), argnums=differentiable(row))
    out = row.function(*args), gradient(*args)
    if not second:
        return out

    def slope(x):
        (dx,) = gradient(x)
        return jnp.sum(dx.astype(_floats.wide(dx.dtype)))

    return (*out, jax.grad(slope)(*args))


def bound(row, dtype):
    """The bounds of a dtype on the device that is here."""
    on_gpu = dtype == "float32" and jax.default_backend() == "gpu"
    return row.ulp.get("gpu", row.ulp[dtype]) if on_gpu else row.ulp[dtype]


def truth(row, args):
    """What is right, and the sizes whose ulp counts."""
    want = oracles.reference(row, *args)
    size = want if row.size is None else oracles.reference(row, *args, which="size")
    return want, size


def distances(row, dtype, args, got, exact):
    """Errors in ulp, entry by entry, of the value, the gradients[, the second]."""
    want, size = exact
    terms = samples.terms(row, args)
    here, there = oracles.DTYPES[dtype], result_dtype(row, dtype)
    found = [[oracles.ulps(got[0], want[0], there, size[0].high, terms)]]
    pairs = zip(got[1], want[1], size[1], strict=True)
    found.append([oracles.ulps(g, w, here, s.high, terms) for g, w, s in pairs])
    if len(got) > 2:
        found.append([oracles.ulps(got[2], want[2], here, size[2].high)])
    return found


def worst(row, dtype, args, got):
    """Largest error, in ulp, of each thing that the row bounds."""
    parts = distances(row, dtype, args, got, truth(row, args))
    return np.asarray([max(errors.max() for errors in part) for part in parts])
