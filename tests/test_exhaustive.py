"""Every number that 16 bits can hold, through every function of one number.

Value, slope and second derivative against arbitrary precision: for half precision the
bounds of the catalog are thereby proven on this backend, not sampled.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsafe._catalog import CATALOG
from tests import oracles, samples
from tests.accuracy import bound, derivatives, worst

UNARY = [
    pytest.param(row, id=name)
    for name, row in CATALOG.items()
    if row.kind == "entrywise" and len(row.domain) == 1
]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("row", UNARY)
def test_every_half_precision_number(row, dtype):
    x = oracles.patterns(oracles.DTYPES[dtype])
    second = len(row.ulp[dtype]) > 2
    program = jax.jit(functools.partial(derivatives, row, second=second))
    got = jax.tree.map(np.asarray, program(jnp.asarray(x)))
    chosen = samples.inside(*row.domain[0], x)
    assert chosen.sum() > 1000
    inside = jax.tree.map(lambda a: a[chosen], got)
    found = worst(row, dtype, (x[chosen],), inside)
    assert (found <= bound(row, dtype)).all(), (found, bound(row, dtype))
    nan = np.isnan(oracles.wide(x))
    assert np.isnan(oracles.wide(got[0][nan])).all()
