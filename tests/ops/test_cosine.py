"""cosine_similarity: digits that cancellation takes, second derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsafe import ops
from jaxsafe._catalog import CATALOG
from jaxsafe.ops._cosine import one_minus_cosine
from tests import oracles

ROW = CATALOG["ops.cosine_similarity"]
BOTH = jax.jit(jax.vmap(jax.value_and_grad(ops.cosine_similarity, (0, 1))))
LENGTH = functools.partial(np.linalg.norm, axis=-1, keepdims=True)


def pairs(count, n):
    """Rows that agree to 0 to 20 bits."""
    rng = np.random.default_rng(n)
    x, y = rng.standard_normal((2, count, n))
    y = x + 2.0 ** -rng.uniform(0, 20, (count, 1)) * y
    return x.astype(np.float32), y.astype(np.float32)


def true_slope(x, y):
    x, y = x.astype(np.longdouble), y.astype(np.longdouble)
    across = y - x * np.sum(x * y, -1, keepdims=True) / np.sum(x * x, -1, keepdims=True)
    return (across / LENGTH(x) / LENGTH(y)).astype(np.float64)


@pytest.mark.parametrize("scale", [1.0, 2.0**-100, 2.0**120])
def test_a_thousand_entries(scale):
    x, y = pairs(64, 1000)
    _, slopes = BOTH(x * np.float32(scale), y)
    for got, (a, b), s in zip(slopes, ((x, y), (y, x)), (scale, 1), strict=True):
        want = true_slope(a, b) / s
        least = 1 / (16 * LENGTH(a.astype(np.float64)) * s)
        unit = oracles.ulp(np.maximum(np.abs(want), least), np.float32)
        off = np.maximum(np.abs(got - want) - np.finfo(np.float32).tiny, 0)
        assert (off / unit).max() <= ROW.ulp["float32"][1]


def test_a_tiny_angle_has_a_distance():
    angle = 2.0 ** -np.arange(1.0, 20.0)
    x = np.float32([[1.0, 0.7]] * angle.size)
    y = np.float32(np.stack([1 - 0.7 * angle, 0.7 + angle], -1))
    got = jax.jit(one_minus_cosine, static_argnums=2)(x, y, (1,))[:, 0]
    a, b = x.astype(np.float64), y.astype(np.float64)
    sine = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) / np.sqrt(
        np.sum(a * a, 1) * np.sum(b * b, 1)
    )
    want = 2 * np.sin(0.5 * np.arcsin(sine)) ** 2
    np.testing.assert_allclose(got, want, rtol=3e-5)
    np.testing.assert_allclose(got[:12], want[:12], rtol=6e-7)


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        (jax.jacfwd, jax.jacrev),
        (jax.jacrev, jax.jacfwd),
        pytest.param(jax.jacfwd, jax.jacfwd, marks=pytest.mark.slow),
        pytest.param(jax.jacrev, jax.jacrev, marks=pytest.mark.slow),
    ],
)
def test_second_derivatives(outer, inner):
    def naive(x, y):
        return jnp.sum(x * y) / jnp.sqrt(jnp.sum(x * x) * jnp.sum(y * y))

    def second(function):
        return jax.jit(jax.vmap(outer(inner(function, (0, 1)), (0, 1))))

    x, y = pairs(16, 5)
    got = second(ops.cosine_similarity)(x, y)
    with oracles.precision("float64"):
        want = second(naive)(x.astype(np.float64), y.astype(np.float64))
        want = jax.tree.map(np.asarray, want)
    for i, a in enumerate((x, y)):
        for j, b in enumerate((x, y)):
            size = (LENGTH(a) * LENGTH(b))[:, None]
            off = np.abs(got[i][j] - want[i][j]) * size
            assert off.max() <= 1e-6, (i, j)


def test_an_infinite_vector_has_the_direction_of_its_infinities():
    x = jnp.asarray([[jnp.inf, 1.0], [jnp.inf, -jnp.inf]])
    y = jnp.asarray([[3.0, 4.0], [3.0, 4.0]])
    value, (slope, _) = BOTH(x, y)
    np.testing.assert_allclose(value, [0.6, -0.2 * 0.5**0.5], rtol=4e-7)
    np.testing.assert_array_equal(slope, np.zeros((2, 2)))
