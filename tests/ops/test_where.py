"""where: what is excluded never reaches a value or a derivative, whatever f does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsafe import ops

X = jnp.asarray([0.25, 0.0, -1.0, jnp.nan, jnp.inf, 0.75, 3e38])
IN = jnp.asarray([True, False, False, False, False, True, False])
FUNCTIONS = {
    "log": (jnp.log, lambda x: 1 / x, lambda x: -1 / x**2),
    "sqrt": (jnp.sqrt, lambda x: 0.5 / x**0.5, lambda x: -0.25 / x**1.5),
    "reciprocal": (lambda x: 1 / x, lambda x: -1 / x**2, lambda x: 2 / x**3),
    "arccos": (
        jnp.arccos,
        lambda x: -1 / (1 - x * x) ** 0.5,
        lambda x: -x / (1 - x * x) ** 1.5,
    ),
}


def spread(values):
    return np.where(IN, values(np.where(IN, X, 0.5)), 0)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("mapped", [False, True], ids=["whole", "vmap"])
def test_nested_derivatives(name, mapped):
    f, slope, curvature = FUNCTIONS[name]

    def one(x, condition):
        return ops.where(condition, f, x, 7.0)

    def total(x):
        return jnp.sum(jax.vmap(one)(x, IN) if mapped else one(x, IN))

    first = jax.grad(total)
    second = jax.grad(lambda x: jnp.sum(first(x)))
    third = jax.grad(lambda x: jnp.sum(second(x)))
    out = jax.jit(lambda x: (one(x, IN), first(x), second(x), third(x)))(X)
    np.testing.assert_allclose(np.asarray(out[0])[~IN], 7)
    np.testing.assert_allclose(out[1], spread(slope), rtol=1e-5)
    np.testing.assert_allclose(out[2], spread(curvature), rtol=1e-5)
    assert np.isfinite(out[3]).all()
    _, forward = jax.jvp(lambda x: one(x, IN), (X,), (jnp.ones_like(X),))
    np.testing.assert_allclose(forward, spread(slope), rtol=1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("condition", [IN, jnp.zeros(7, bool)], ids=["some", "none"])
def test_parameters_of_f_get_no_share(name, condition):
    f = FUNCTIONS[name][0]

    def loss(w):
        return jnp.sum(ops.where(condition, lambda x: w * f(x), X))

    want = np.sum(np.where(condition, f(jnp.where(condition, X, 0.5)), 0))
    got = jax.jit(jax.value_and_grad(loss))(jnp.float32(1.0))
    np.testing.assert_allclose(got, (want, want), rtol=1e-6)


def test_a_safe_argument_of_ones_own():
    def loss(w):
        return jnp.sum(
            ops.where(jnp.zeros(7, bool), lambda x: w * jnp.arccosh(x), X, safe=2.0)
        )

    assert jax.grad(loss)(jnp.float32(1.0)) == 0


def test_shapes_and_dtypes():
    row, column = jnp.ones((1, 4), jnp.bfloat16), jnp.asarray([[True], [False]])
    out = ops.where(column, jnp.log, row, -1)
    assert (out.shape, out.dtype) == ((2, 4), jnp.bfloat16)
    np.testing.assert_array_equal(out.astype(jnp.float32), [[0] * 4, [-1] * 4])
    empty = ops.where(jnp.ones(0, bool), jnp.log, jnp.ones(0))
    assert empty.shape == (0,)


def test_bad_input():
    with pytest.raises(TypeError, match=r"^ops.where: condition must be a bool array"):
        ops.where(X, jnp.log, X)
    with pytest.raises(TypeError, match=r"^ops.where: x must be a floating array"):
        ops.where(IN, jnp.log, jnp.arange(7))
    with pytest.raises(ValueError, match=r"^ops.where: f must keep the shape \(7,\)"):
        ops.where(IN, jnp.sum, X)
