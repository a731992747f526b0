"""log, sqrt, divide: every bfloat16 and float16 number, the edges, the XLA traps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsafe import ops
from jaxsafe._catalog import CATALOG
from tests import oracles

TINY = float(jnp.finfo(jnp.float32).tiny)
HALVES = ["bfloat16", "float16"]


def value_and_slope(function, x):
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(function)))(jnp.asarray(x))
    return np.asarray(value), np.asarray(slope)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["log", "sqrt"])
def test_every_half_precision_number(name, dtype):
    dtype = oracles.DTYPES[dtype]
    row = CATALOG[f"ops.{name}"]
    x = oracles.patterns(dtype)
    value, slope = value_and_slope(row.function, x)
    wide, tiny = oracles.wide(oracles.flush(x)), float(jnp.finfo(dtype).tiny)

    outside = np.isnan(wide) | (wide < 0)
    assert np.isnan(oracles.wide(value[outside])).all()
    assert np.isnan(oracles.wide(slope[outside])).all()

    guarded = (wide >= 0) & (wide < tiny) if name == "log" else wide == 0
    at_guard = np.log(tiny) if name == "log" else 0.0
    np.testing.assert_allclose(oracles.wide(value[guarded]), at_guard, rtol=4e-3)
    np.testing.assert_array_equal(oracles.wide(slope[guarded]), 0)

    infinite = wide == np.inf
    np.testing.assert_array_equal(oracles.wide(value[infinite]), np.inf)
    np.testing.assert_array_equal(oracles.wide(slope[infinite]), 0)

    inside = ~(outside | guarded | infinite)
    assert inside.sum() > 30_000
    want, (want_slope,), *_ = oracles.reference(row, x[inside])
    assert oracles.ulps(value[inside], want, dtype).max() <= 0.51
    assert oracles.ulps(slope[inside], want_slope, dtype).max() <= 0.51


@pytest.mark.parametrize("dtype", oracles.DEFAULT)
def test_log_below_the_floor(dtype):
    tiny = float(jnp.finfo(dtype).tiny)
    for x in (0.0, -0.0, tiny / 2):
        x = jnp.asarray(x, dtype)
        value, slope = jax.value_and_grad(ops.log)(x)
        np.testing.assert_allclose(float(value), np.log(tiny), rtol=4e-3)
        assert float(slope) == 0
        assert float(jax.grad(jax.grad(ops.log))(x)) == 0


def test_log_with_a_floor_of_its_own():
    def log(x):
        return ops.log(x, floor=1e-3, grad="limit")

    value, slope = value_and_slope(log, np.float32([0, 1e-4, 1e-3, 0.5]))
    np.testing.assert_allclose(value, np.log([1e-3, 1e-3, 1e-3, 0.5]), rtol=1e-6)
    np.testing.assert_allclose(slope, [1e3, 1e3, 1e3, 2.0], rtol=1e-6)
    value, slope = value_and_slope(log, np.float32([-1, np.nan]))
    assert np.isnan(value).all()
    assert np.isnan(slope).all()


def test_a_naive_guard_around_log_has_no_gradient_but_nan():
    def naive(x):
        return jnp.where(x > 0, jnp.log(x), 0)

    assert np.isnan(jax.grad(naive)(jnp.zeros(())))
    assert jax.grad(ops.log)(jnp.zeros(())) == 0


@pytest.mark.parametrize("function", [ops.log, ops.sqrt], ids=["log", "sqrt"])
def test_second_derivative_is_finite_where_it_fits(function):
    x = np.float32([1e-18, 1e-6, 1.0, 1e6, 1e18, 3e38])
    second = jax.vmap(jax.grad(jax.grad(function)))(jnp.asarray(x))
    x = x.astype(np.float64)
    want = -1 / x**2 if function is ops.log else -0.25 * x**-1.5
    want = np.where(np.abs(want) < TINY, 0, want)
    np.testing.assert_allclose(second, want, rtol=1e-6)


def test_dividing_by_a_huge_scalar_is_not_a_product_with_its_reciprocal():
    x = np.float32([1e38, 3e38, 1.0])

    true = x.astype(np.float64) / np.float64(np.float32(9e37))
    true = np.where(true < TINY, 0, true)
    traced = jax.jit(ops.divide)(x, np.float32(9e37))
    constant = jax.jit(lambda x: ops.divide(x, 9e37))(x)
    slope = jax.jit(jax.vjp(ops.divide, x, np.full(3, 9e37, np.float32))[1])(x)[0]
    for got in (traced, constant, slope):
        np.testing.assert_allclose(got, true, rtol=2e-7)


@pytest.mark.parametrize("compile_", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_dividing_by_a_scalar(compile_):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(10_000).astype(np.float32)
    for y in np.float32([3, 7.3, 1e-30, 1e37]):
        got = compile_(ops.divide)(jnp.asarray(x), jnp.float32(y))
        true = x.astype(np.float64) / np.float64(y)
        exact = oracles.Exact(true, np.zeros_like(true))
        assert oracles.ulps(got, exact, np.float32).max() <= 1.5


@pytest.mark.parametrize(
    ("dtype", "x", "y", "slope"),
    [
        ("float16", 10320.0, 6504.0, -2.4396e-4),
        ("float16", 0.84, -0.0036, -65120.0),
        ("float32", 1e30, 1e25, -1e-20),
        ("float32", 1e-30, 1e-25, -1e20),
        ("float32", 3e38, 2e38, 0.0),
    ],
)
def test_slope_of_the_divisor_needs_no_square(dtype, x, y, slope):
    x, y = jnp.asarray(x, dtype), jnp.asarray(y, dtype)
    got = float(jax.grad(ops.divide, argnums=1)(x, y))
    np.testing.assert_allclose(got, slope, rtol=6e-3)


def test_second_derivatives_of_divide_fit_where_the_true_ones_do():
    hessian = jax.jit(jax.hessian(ops.divide, argnums=(0, 1)))
    for x, y in ((1e-15, 1e-15), (2.0, 1e-12), (1e30, 1e18), (3e38, 1e25)):
        (xx, xy), (yx, yy) = hessian(jnp.float32(x), jnp.float32(y))
        assert xx == 0
        np.testing.assert_allclose(xy, np.float32(-1 / y**2), rtol=1e-5)
        np.testing.assert_allclose(yx, xy, rtol=1e-6)
        np.testing.assert_allclose(yy, np.float32(2 * (x / y) / y / y), rtol=1e-5)


def test_divide_fills():
    x, y = jnp.asarray([1.0, 0.0, -2.0]), jnp.asarray([0.0, 0.0, 4.0])
    np.testing.assert_array_equal(ops.divide(x, y, fill=7.0), [7.0, 7.0, -0.5])

    def total(x, y, fill):
        return ops.divide(x, y, fill=fill).sum()

    gx, gy, gf = jax.grad(total, argnums=(0, 1, 2))(x, y, jnp.zeros(3))
    np.testing.assert_allclose(gx, [0, 0, 0.25])
    np.testing.assert_allclose(gy, [0, 0, 0.125])
    np.testing.assert_allclose(gf, [1, 1, 0])


def test_divide_broadcasts():
    x = jnp.ones((3, 4), jnp.bfloat16)
    y = jnp.full((3, 1), 2.0, jnp.bfloat16)
    out = ops.divide(x, y)
    assert (out.shape, out.dtype) == ((3, 4), jnp.bfloat16)
    assert jax.grad(lambda y: ops.divide(x, y).astype("float32").sum())(y).shape == (
        3,
        1,
    )


normal = st.floats(TINY, 2.0**100, width=32, allow_subnormal=False)


COMPILED_SQRT, COMPILED_DIVIDE = jax.jit(ops.sqrt), jax.jit(ops.divide)


@given(normal)
def test_sqrt_of_a_square_times_four_doubles(x):
    root = COMPILED_SQRT(np.float32(x))
    double = COMPILED_SQRT(np.float32(x) * np.float32(4))
    assert float(double) == 2 * float(root)


@given(normal, st.integers(-60, 60))
def test_a_power_of_two_passes_through_divide(x, k):
    scaled = float(np.float64(x) * 2.0**k)
    if not TINY <= scaled < 3e38:
        return
    quotient = COMPILED_DIVIDE(np.float32(scaled), np.float32(x))
    assert float(quotient) == 2.0**k


@pytest.mark.parametrize(
    "call",
    [ops.log, ops.sqrt, lambda x: ops.divide(x, 1.0), lambda x: ops.divide(1.0, x)],
)
def test_integers_are_refused(call):
    with pytest.raises(TypeError, match=r"must be a floating array \(got int32\)"):
        call(jnp.arange(3))


@pytest.mark.parametrize("floor", [0.0, 1e-40, -1.0, np.inf, np.nan])
def test_a_floor_that_would_be_flushed_is_refused(floor):
    with pytest.raises(ValueError, match=r"ops.log: floor must be finite and at least"):
        ops.log(1.0, floor=floor)


def test_an_unknown_kind_of_gradient_is_refused():
    with pytest.raises(ValueError, match=r"grad must be one of 'zero', 'limit'"):
        ops.log(1.0, grad="one")
