"""hypot, arctan2: extreme points, both second derivatives, sizes that broadcast."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxsafe import ops

# Wrong, infinite or NaN slopes in a formula that squares the coordinates.
POINTS = np.asarray(
    [
        [1e30, 3e30], [3e38, 3e38], [2e19, 1e19], [1e-19, 2e-19],
        [-3e-38, 4e-38], [1.0, 1e-30], [0.0, -2.0],
    ],
    np.float32,
)  # fmt: skip


def jet(function, x, y):
    slopes = jax.grad(function, (0, 1))
    return function(x, y), slopes(x, y), jax.jacfwd(slopes, (0, 1))(x, y)


def test_far_out_and_close_in():
    x, y = POINTS.T.astype(np.float64)
    r = np.sqrt(x * x + y * y)
    c, s = x / r, y / r
    out = jax.jit(jax.vmap(lambda x, y: (jet(ops.hypot, x, y), jet(ops.arctan2, y, x))))
    (value, slopes, second), (_, turns, _) = out(*POINTS.T)
    fits = r < 3.4e38
    np.testing.assert_allclose(value[fits], r[fits], rtol=4e-7)
    assert np.isinf(value[~fits]).all()
    np.testing.assert_allclose(slopes, (c, s), rtol=4e-7)
    wanted = np.asarray([[s * s, -c * s], [-c * s, c * c]]) / r
    np.testing.assert_allclose(second, wanted, rtol=2e-6, atol=1.2e-38)
    np.testing.assert_allclose(turns, (c / r, -s / r), rtol=7e-7, atol=1.2e-38)


def test_neighbours_in_float16():
    x, y = jnp.float16(702.5), jnp.float16(703.5)
    slopes = jax.grad(ops.hypot, (0, 1))(x, y)
    np.testing.assert_allclose(np.asarray(slopes, float), (0.7065, 0.7076), rtol=1e-3)


def test_nothing_happens_at_the_origin():
    x = jnp.asarray([0.0, -0.0, 0.0, -0.0])
    y = jnp.asarray([0.0, 0.0, -0.0, -0.0])
    for function in (ops.hypot, ops.arctan2):
        out = jax.jit(jax.vmap(lambda x, y, f=function: jet(f, x, y)))(x, y)
        assert not any(np.any(part) for part in jax.tree.leaves(out))


def test_the_side_of_the_cut_is_kept():
    y = jnp.asarray([0.0, -0.0])
    np.testing.assert_array_equal(ops.arctan2(y, -1.0), np.arctan2(y, -1.0))


_MODERATE = st.floats(2.0**-60, 2.0**60, width=32)


@given(_MODERATE, _MODERATE, st.integers(-60, 60))
def test_a_power_of_two_scales_the_length_and_not_the_direction(x, y, exponent):
    point = np.float32([x, y])
    value, slopes = _value_and_slopes(*point)
    larger, same = _value_and_slopes(*np.ldexp(point, exponent))
    assert larger == np.ldexp(value, exponent)
    assert slopes == same


_value_and_slopes = jax.jit(jax.value_and_grad(ops.hypot, (0, 1)))
