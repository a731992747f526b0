"""The numbers about operands, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsafe.diagnose._probe import _numbers

RNG = np.random.default_rng(0)
BAD = {"none": {}, "nan": {7: np.nan}, "inf": {3: -np.inf}}
BAD["both"] = {2: np.inf, 5: -np.inf, 9: np.nan, 11: np.nan}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "complex64"])
def test_numbers_are_those_of_numpy(bad, dtype):
    x = RNG.integers(-3, 4, 5000).astype(np.float64)
    if dtype != "int32":
        for at, value in BAD[bad].items():
            x[at] = value
    value = jnp.asarray(x, jnp.float32).astype(dtype)
    bounds, (num_nan, num_inf, num_zero, first) = jax.jit(_numbers)(value)
    good = x[np.isfinite(x)]
    parts = 1
    if dtype == "complex64":
        good, parts = np.append(good, 0.0), 2
    np.testing.assert_array_equal(bounds, [good.min(), good.max()])
    assert (num_nan, num_inf) == (np.isnan(x).sum(), np.isinf(x).sum())
    assert num_zero == (x == 0).sum() + (parts - 1) * x.size
    wrong = np.isnan(x) if np.isnan(x).any() else np.isinf(x)
    assert first == (parts * int(np.argmax(wrong)) if wrong.any() else -1)


@pytest.mark.parametrize("size", [0, 1, 64])
def test_no_finite_entry_has_no_bounds(size):
    bounds, (num_nan, _, _, first) = _numbers(jnp.full(size, jnp.nan))
    assert np.isnan(np.asarray(bounds)).all()
    assert (num_nan, first) == (size, 0 if size else -1)
