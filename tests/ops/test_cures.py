"""Public bug reports that an op of ours cures: the naive program fails, ours is right.

Each case is a small program rewritten from the report it names.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxsafe import ops

ROWS = jnp.asarray([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]])
MASK = jnp.asarray([[True, True], [False, False]])
POINTS = jnp.asarray([[100.3, 200.7], [100.3, 200.71]])
SILENCE = jnp.zeros(8)
BIAS = jnp.where(MASK, 0.0, -jnp.inf)


def distances(root):
    square = jnp.sum(POINTS**2, axis=1)
    gram = POINTS @ POINTS.T
    return root(square[:, None] + square[None, :] - 2.0 * gram)


def spectrum(x, length):
    z = jnp.fft.rfft(x)
    return jnp.mean(length(jnp.stack([z.real, z.imag])))


def attention(softmax):
    def loss(scores):
        p = softmax(scores)
        return jnp.sum(jnp.where(MASK.any(-1, keepdims=True), p, 0.0)[:, 0])

    return loss


def pearson(x, divide):
    y = jnp.asarray([1.0, 2.0, 4.0])
    a, b = x - jnp.mean(x), y - jnp.mean(y)
    norms = ops.norm(a) * ops.norm(b)
    return 1.0 - divide(jnp.sum(a * b), norms)


def spectral(norm, divide):
    weight, x = jnp.zeros((2, 2)), jnp.ones(2)

    def body(_, u):
        v = weight.T @ u
        u = weight @ divide(v, norm(v))
        return divide(u, norm(u))

    u = lax.fori_loop(0, 3, body, jnp.asarray([1.0, 0.0]))
    sigma = divide(u @ (weight @ (weight.T @ u)), norm(weight.T @ u))
    return divide(weight, sigma) @ x


def entropy(r, log):
    return jnp.sum(jnp.where(r > 0, r * log(r), 0) * jnp.asarray([1.0, 2.0]))


def first_adam_step(g, root):
    m, v = 0.1 * g, 0.001 * g**2
    return jnp.sum((m / 0.1) / (root(v / 0.001) + 1e-3))


# name: (naive, ours, argument, value, gradient)
S = 0.19661194
GRADIENTS = {
    "jax 11716: std of a constant": (
        jnp.std,
        lambda x: ops.divide(ops.norm(x - jnp.mean(x)), 2.0),
        jnp.full(4, 3.0),
        0.0,
        [0.0] * 4,
    ),
    "jax 347: norm of a zero row": (
        lambda x: jnp.sum(jnp.linalg.norm(x, axis=1)),
        lambda x: jnp.sum(ops.norm(x, axis=1)),
        ROWS,
        np.sqrt(5) + 5,
        [[0.4472136, 0.8944272], [0.6, 0.8], [0.0, 0.0]],
    ),
    "speechbrain 184: silent frame": (
        lambda x: spectrum(x, lambda z: jnp.sqrt(jnp.sum(z**2, axis=0))),
        lambda x: spectrum(x, lambda z: ops.norm(z, axis=0)),
        SILENCE,
        0.0,
        [0.0] * 8,
    ),
    "pytorch 131060: masked attention row": (
        attention(lambda s: jax.nn.softmax(s + BIAS)),
        attention(lambda s: ops.softmax(s + BIAS)),
        jnp.asarray([[1.0, 2.0], [3.0, -1.0]]),
        0.26894143,
        [[S, -S], [0.0, 0.0]],
    ),
    "jax_xc 28: entropy of an empty cell": (
        lambda r: entropy(r, jnp.log),
        lambda r: entropy(r, ops.log),
        jnp.asarray([0.5, 0.0]),
        -0.34657359,
        [0.30685282, 0.0],
    ),
    "higher 17: meta-gradient through Adam": (
        lambda g: first_adam_step(g, jnp.sqrt),
        lambda g: first_adam_step(g, ops.sqrt),
        jnp.asarray([0.0, 1.0]),
        0.999001,
        [1000.0, 0.000998],
    ),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient(name):
    naive, ours, x, value, gradient = GRADIENTS[name]
    assert np.isfinite(naive(x))
    assert np.isnan(jax.grad(naive)(x)).any()
    for function in (jax.value_and_grad(ours), jax.jit(jax.value_and_grad(ours))):
        got = function(x)
        np.testing.assert_allclose(got[0], value, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(got[1], gradient, rtol=2e-3, atol=1e-7)


HALF_SCORES = jnp.asarray([[1.0, 0.5], [0.25, 2.0]], jnp.float16)
HALF_MASK = jnp.asarray([[False, False], [True, True]])

# name: (naive, ours, argument, value)
VALUES = {
    "jax 21501: softmax of +inf": (
        jax.nn.softmax,
        ops.softmax,
        jnp.asarray([jnp.inf, 1.0, 2.0]),
        [1.0, 0.0, 0.0],
    ),
    "paddle 13664: norm of a huge vector": (
        lambda g: jnp.sqrt(jnp.sum(g**2)),
        ops.norm,
        jnp.asarray([3e20, 4e20]),
        5e20,
    ),
    "atacworks 104: correlation with a constant": (
        lambda x: pearson(x, lambda a, b: a / b),
        lambda x: pearson(x, ops.divide),
        jnp.full(3, 2.0),
        1.0,
    ),
    "compare_gan 9: spectral norm of a zero weight": (
        lambda _: spectral(jnp.linalg.norm, lambda a, b: a / b),
        lambda _: spectral(ops.norm, ops.divide),
        None,
        [0.0, 0.0],
    ),
    "flax 982: float16 attention bias": (
        lambda s: jax.nn.softmax(
            s + jnp.where(HALF_MASK, 0, -jnp.inf).astype(s.dtype), axis=-1
        ),
        lambda s: ops.softmax(s, where=HALF_MASK),
        HALF_SCORES,
        [[0.0, 0.0], [0.1480, 0.8520]],
    ),
    "softplus as log(1 + exp(x))": (
        lambda x: jnp.log(1 + jnp.exp(x)),
        lambda x: ops.logsumexp(jnp.stack([x, 0 * x]), axis=0),
        jnp.asarray([20.0, 50.0, 100.0]),
        [20.0, 50.0, 100.0],
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_value(name):
    naive, ours, x, value = VALUES[name]
    assert not np.isfinite(naive(x)).all()
    np.testing.assert_allclose(np.float32(ours(x)), value, rtol=1e-3, atol=1e-6)


def test_pairwise_distances():
    """pytorch 37154: the expanded square is negative; subtract first, then `norm`."""
    assert np.isnan(distances(jnp.sqrt)).any()
    got = ops.norm(POINTS[:, None] - POINTS[None, :], axis=-1)
    np.testing.assert_allclose(got, [[0.0, 0.01], [0.01, 0.0]], atol=1e-5)


def test_quaternion_from_half_turn():
    """kornia 1653: the branch that is not taken has a square root of 0."""

    def quaternion_x(r, root):
        s_w = 2.0 * root(1.0 + r[0, 0] + r[1, 1] + r[2, 2])
        s_x = 2.0 * root(1.0 + r[0, 0] - r[1, 1] - r[2, 2])
        divide = ops.divide if root is ops.sqrt else jnp.divide
        trace = r[0, 0] + r[1, 1] + r[2, 2]
        return jnp.where(trace > 0, divide(r[2, 1] - r[1, 2], s_w), 0.25 * s_x)

    r = jnp.diag(jnp.asarray([1.0, -1.0, -1.0]))
    assert np.isnan(jax.grad(quaternion_x)(r, jnp.sqrt)).any()
    gradient = jax.grad(quaternion_x)(r, ops.sqrt)
    np.testing.assert_allclose(gradient, np.diag([0.125, -0.125, -0.125]), rtol=1e-6)
