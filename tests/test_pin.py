"""A pinned number is that number, and no compiler simplifies across it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsafe._pin import pinned
from tests import oracles

HUGE = 3e38


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_number_is_itself(dtype):
    x = oracles.patterns(oracles.DTYPES[dtype])
    got = np.asarray(jax.jit(pinned)(jnp.asarray(x)))
    finite = np.isfinite(oracles.wide(x))
    kept = oracles.wide(oracles.flush(x))[finite]
    assert (oracles.wide(oracles.flush(got))[finite] == kept).all()
    np.testing.assert_array_equal(oracles.wide(got)[~finite], oracles.wide(x)[~finite])


@pytest.mark.parametrize(
    ("fn", "x", "want"),
    [
        (lambda x: pinned(x * 0.5) + pinned(x * 0.5), HUGE, HUGE),
        (lambda x: pinned(x + 1.0) - 1.0, 1e-9, 0.0),
        (lambda x: jnp.square(pinned(x * 1e-25)), 1e30, 1e10),
    ],
    ids=["halves", "what was rounded", "squares"],
)
def test_is_computed_as_written(fn, x, want):
    got = jax.jit(fn)(jnp.full((64,), x, jnp.float32))
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_has_the_slope_of_the_identity():
    x = jnp.asarray([1.0, -2.0])
    slope = jax.jit(jax.grad(lambda x: jnp.sum(pinned(x) * x)))(x)
    np.testing.assert_array_equal(slope, 2 * x)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rounds_to_more_digits_than_there_are(dtype):
    # To just those, the compiler for GPUs takes it out: seen on an H200.
    with oracles.precision(dtype):
        (step,) = jax.make_jaxpr(pinned)(jnp.ones((), dtype)).eqns
    assert step.primitive.name == "reduce_precision"
    assert step.params["mantissa_bits"] > jnp.finfo(dtype).nmant
    assert step.params["exponent_bits"] >= jnp.finfo(dtype).nexp
