"""rel_entr and kl_div: nearly equal, huge, tiny and missing probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxsafe import ops

KL = jax.jit(jax.vmap(ops.kl_div))
RELATIVE = jax.jit(jax.vmap(ops.rel_entr))
TINY = float(jnp.finfo(jnp.float32).tiny)
positive = st.floats(TINY, 2.0**127, width=32, allow_subnormal=False)


def test_nearly_equal_probabilities_are_not_rounding_noise():
    x, y = np.float32([0.013186112]), np.float32([0.013186113])
    gap = y.astype(np.float64) - x
    np.testing.assert_allclose(KL(x, y), gap**2 / (2 * x.astype(np.float64)), rtol=1e-5)
    x, y = jnp.asarray([3672.0], jnp.float16), jnp.asarray([3666.0], jnp.float16)
    np.testing.assert_allclose(KL(x, y).astype(jnp.float32), 0.0049046, rtol=1e-3)


def test_nothing_overflows_that_need_not():
    x, y = 4.9e36, 6.5e6
    want = x * np.log(x / y)
    np.testing.assert_allclose(
        RELATIVE(np.float32([x]), np.float32([y])), want, rtol=1e-6
    )
    x, y = 3.3e38, 1e38
    want = x * np.log(x / y) - x + y
    np.testing.assert_allclose(KL(np.float32([x]), np.float32([y])), want, rtol=1e-6)


@given(positive, st.floats(-1, 1, width=32), st.floats(-126, 0))
def test_kl_div_is_never_negative(x, change, exponent):
    y = np.float32(np.float64(x) * (1 + change * 2.0**exponent))
    assert float(KL(np.float32([x]), np.float32([y]))[0]) >= 0


def test_hessians_are_those_of_the_formulas():
    x, y = jnp.float32(0.3), jnp.float32(0.8)
    want = np.float64([[1 / 0.3, -1 / 0.8], [-1 / 0.8, 0.3 / 0.8**2]])
    for function in (ops.rel_entr, ops.kl_div):
        got = jax.jit(jax.hessian(function, argnums=(0, 1)))(x, y)
        np.testing.assert_allclose(np.float64(got), want, rtol=1e-5)


def test_a_row_with_missing_classes_has_a_finite_gradient():
    p = jnp.asarray([0.0, 0.5, 0.5, 0.0], jnp.float32)
    q = jnp.asarray([0.0, 0.25, 0.5, 0.25], jnp.float32)
    for function in (ops.rel_entr, ops.kl_div):
        total = jax.value_and_grad(lambda p, q, f=function: f(p, q).sum(), (0, 1))
        value, slopes = jax.jit(total)(p, q)
        np.testing.assert_allclose(value, 0.5 * np.log(2), rtol=1e-6)
        assert all(np.isfinite(s).all() for s in slopes)
