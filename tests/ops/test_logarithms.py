"""Logarithms and exponentials: their ends, their inverses, what used to fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsafe import ops
from jaxsafe._catalog import CATALOG
from tests import oracles
from tests.accuracy import bound, derivatives, worst

NAMES = list(oracles.DTYPES)


def value_and_slopes(function, *args):
    """Value and gradients of single points, compiled once."""
    both = jax.value_and_grad(function, argnums=tuple(range(len(args))))
    return jax.jit(jax.vmap(both))(*args)


@pytest.mark.parametrize("dtype", NAMES)
def test_what_log_of_zero_gives(dtype):
    kind = oracles.DTYPES[dtype]
    tiny = float(jnp.finfo(kind).tiny)
    with oracles.precision(dtype):
        for function, x in ((ops.log, 0.0), (ops.log1p, -1.0)):
            value, (slope,) = value_and_slopes(function, jnp.full(1, x, kind))
            np.testing.assert_allclose(oracles.wide(value), np.log(tiny), rtol=4e-3)
            assert float(slope[0]) == 0


@pytest.mark.parametrize("dtype", NAMES)
def test_logit_is_finite_and_flat_at_both_ends(dtype):
    with oracles.precision(dtype):
        p = jnp.asarray([0.0, -0.0, 1.0], oracles.DTYPES[dtype])
        value, (slope,) = value_and_slopes(ops.logit, p)
        end = -np.log(2.2250738585072014e-308 if dtype == "float64" else 2.0**-126)
        np.testing.assert_allclose(oracles.wide(value), [-end, -end, end], rtol=4e-3)
        np.testing.assert_array_equal(oracles.wide(slope), 0)


@pytest.mark.parametrize("dtype", NAMES)
def test_exponentials_saturate(dtype):
    kind = oracles.DTYPES[dtype]
    largest = float(jnp.finfo(kind).max)
    above = np.log(largest) * 1.01
    with oracles.precision(dtype):
        x = jnp.asarray([above, largest, np.inf], kind)
        for function in (ops.exp, ops.expm1):
            value, (slope,) = value_and_slopes(function, x)
            second = jax.jit(jax.vmap(jax.grad(jax.grad(function))))(x)
            np.testing.assert_array_equal(oracles.wide(value), largest)
            np.testing.assert_array_equal(oracles.wide(slope), 0)
            np.testing.assert_array_equal(oracles.wide(second), 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("name", ["ops.exp", "ops.expm1"])
def test_exponentials_keep_their_bounds_up_to_the_end(name, dtype):
    kind = oracles.DTYPES[dtype]
    end = np.log(float(jnp.finfo(kind).max))
    x = np.linspace(11.0, end, 700).astype(kind)
    x = x[oracles.wide(x) <= end]
    row = CATALOG[name]
    with oracles.precision(dtype):
        got = jax.jit(lambda x: derivatives(row, x, second=True))(jnp.asarray(x))
        assert (worst(row, dtype, (x,), got) <= bound(row, dtype)).all()


def test_log_expm1_and_softplus_undo_each_other():
    x = jnp.asarray([1e-30, 1e-3, 0.69314718, 5.0, 80.0, 1e30], jnp.float32)
    there = jax.jit(lambda x: ops.softplus(ops.log_expm1(x)))(x)
    np.testing.assert_allclose(there, x, rtol=2e-5)


def test_second_derivatives_of_log1mexp_stay_finite_at_large_arguments():
    second = jax.jit(jax.vmap(jax.grad(jax.grad(ops.log1mexp))))
    x = jnp.asarray([80.0, 100.0, 1e4, 3e38], jnp.float32)
    np.testing.assert_allclose(second(x), [-np.exp(-80.0), 0, 0, 0], rtol=2e-6)


def test_a_factor_of_zero_beats_any_logarithm():
    zero = jnp.zeros(4)
    y = jnp.asarray([0.0, 1e-30, 3e38, np.inf], jnp.float32)
    value, (to_x, to_y) = value_and_slopes(ops.xlogy, zero, y)
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_array_equal(to_y, 0)
    floored = np.log(np.float64([2.0**-126, 1e-30, 3e38, np.inf]))
    np.testing.assert_allclose(to_x, floored, rtol=1e-6)
    value, (to_x, to_y) = value_and_slopes(ops.xlog1py, zero[:1], -jnp.ones(1))
    assert (float(value[0]), float(to_y[0])) == (0, 0)
    np.testing.assert_allclose(to_x, np.log(2.0**-126), rtol=1e-6)


def test_log_of_zero_times_a_number_is_finite():
    value, (_, to_y) = value_and_slopes(ops.xlogy, jnp.full(1, 2.0), jnp.zeros(1))
    np.testing.assert_allclose(value, 2 * np.log(2.0**-126), rtol=1e-6)
    assert float(to_y[0]) == 0


def test_the_slope_of_xlogy_survives_a_huge_y():
    to_y = jax.jit(jax.grad(ops.xlogy, argnums=1))
    np.testing.assert_allclose(to_y(3e38, jnp.float32(2e38)), 1.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "x"), [("float32", 3e7), ("bfloat16", 300.0), ("float16", 5000.0)]
)
def test_equal_large_numbers_share_the_slope(dtype, x):
    x = jnp.asarray(x, dtype)
    slopes = jax.grad(ops.logaddexp, argnums=(0, 1))(x, x)
    assert [float(s) for s in slopes] == [0.5, 0.5]


def test_the_hessian_of_logaddexp_does_not_vanish_at_a_tie():
    hessian = jax.jit(jax.hessian(ops.logaddexp, argnums=(0, 1)))
    (aa, ab), (ba, bb) = hessian(jnp.float32(2.0), jnp.float32(2.0))
    np.testing.assert_allclose([aa, ab, ba, bb], [0.25, -0.25, -0.25, 0.25])


ADD = jax.jit(jax.value_and_grad(ops.logaddexp, argnums=(0, 1)))
number = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)


@given(number, number)
def test_slopes_of_logaddexp_sum_to_one(x1, x2):
    value, (to_x1, to_x2) = ADD(np.float32(x1), np.float32(x2))
    assert abs(float(to_x1) + float(to_x2) - 1) <= 4 * 2.0**-23
    assert float(value) >= max(x1, x2)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logaddexp_keeps_its_bound_next_to_its_zero(dtype):
    rng = np.random.default_rng(0)
    x1 = -np.log1p(np.exp(-rng.uniform(-3, 3, 1000)))
    x2 = np.log(-np.expm1(x1)) * (1 + rng.normal(size=1000) * 2.0**-12)
    args = [x.astype(oracles.DTYPES[dtype]) for x in (x1, x2)]
    row = CATALOG["ops.logaddexp"]
    with oracles.precision(dtype):
        got = jax.jit(lambda *args: derivatives(row, *args))(*map(jnp.asarray, args))
        assert (worst(row, dtype, args, got) <= bound(row, dtype)).all()


def test_logsubexp_undoes_logaddexp():
    x1 = jnp.asarray([-50.0, 0.0, 3.0, 1000.0], jnp.float32)
    x2 = x1 - jnp.asarray([0.5, 2.0, 1e-3, 0.25], jnp.float32)
    back = jax.jit(lambda a, b: ops.logsubexp(ops.logaddexp(a, b), b))(x1, x2)
    np.testing.assert_allclose(back, x1, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    ["log1p", "logit", "exp", "expm1", "log1mexp", "log_expm1", "entr"],
)
def test_integers_are_refused(name):
    with pytest.raises(TypeError, match=rf"ops.{name}: .* must be a floating array"):
        getattr(ops, name)(jnp.arange(3))
