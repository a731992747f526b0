"""The sharpness against the eigenvalues of a Hessian that is written out."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxsafe import tune


def mlp_loss(params, x, y):
    h = jnp.tanh(x @ params["w"] + params["b"])
    return jnp.mean((h @ params["v"] - y) ** 2)


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    params = {
        "w": jnp.asarray(rng.normal(size=(5, 8)), jnp.float32),
        "b": jnp.zeros(8),
        "v": jnp.asarray(rng.normal(size=8), jnp.float32),
    }
    x = jnp.asarray(rng.normal(size=(32, 5)), jnp.float32)
    return params, x, jnp.sin(x.sum(1))


def eigenvalues(loss, params, *batch):
    flat, unravel = ravel_pytree(params)
    hessian = jax.jit(jax.hessian(lambda p: loss(unravel(p), *batch)))(flat)
    return np.linalg.eigvalsh(np.asarray(hessian, np.float64))


def test_it_is_the_largest_eigenvalue(problem):
    params, x, y = problem
    wanted = eigenvalues(mlp_loss, params, x, y)[-1]
    found = tune.sharpness(mlp_loss, params, x, y)
    assert found.eigenvalue == pytest.approx(wanted, rel=1e-4)
    assert found.error < 1e-3 * wanted
    assert found.largest_rate == pytest.approx(2 / wanted, rel=1e-4)


def test_the_error_bound_holds_when_it_is_stopped_early(problem):
    params, x, y = problem
    every = eigenvalues(mlp_loss, params, x, y)
    found = tune.sharpness(mlp_loss, params, x, y, iterations=4)
    assert found.iterations == 4
    assert np.abs(every - found.eigenvalue).min() <= found.error + 1e-4 * every[-1]


def test_largest_means_largest_and_not_longest():
    found = tune.sharpness(lambda w: 0.5 * (w[0] ** 2 - 50 * w[1] ** 2), jnp.ones(2))
    assert found.eigenvalue == pytest.approx(1.0, rel=1e-5)


def test_descent_is_stable_below_the_rate_and_not_above():
    scales = np.array([0.3, 2.0, 7.0])
    bend = tune.sharpness(lambda w: 0.5 * jnp.sum(scales * w**2), jnp.ones(3))
    for factor, stable in ((0.99, True), (1.01, False)):
        w = np.ones(3)
        for _ in range(1000):
            w = w - factor * bend.largest_rate * scales * w
        assert (np.abs(w).max() < 1) == stable


def test_a_flat_loss_has_no_largest_rate():
    found = tune.sharpness(lambda w: jnp.sum(w), jnp.ones(4))
    assert found.eigenvalue == 0
    assert found.largest_rate == math.inf
    assert json.loads(found.to_json())["eigenvalue"] == 0


def test_nan_in_nan_out():
    found = tune.sharpness(lambda w: jnp.sum(w**2), jnp.array([1.0, jnp.nan]) / 0)
    assert math.isnan(
        tune.sharpness(lambda w, x: jnp.sum(w**2 * x), jnp.ones(2), jnp.nan).eigenvalue
    )
    # The second derivative of w**2 is 2 wherever w is.
    assert found.eigenvalue == pytest.approx(2.0)
    assert "nan" in tune.Sharpness(eigenvalue=math.nan, error=0, iterations=1).summary()


def test_integers_and_half_precision_in_the_tree():
    params = {"w": jnp.ones(4, jnp.bfloat16), "n": jnp.arange(3)}
    found = tune.sharpness(lambda p: jnp.sum(2 * p["w"] ** 2), params)
    assert found.eigenvalue == pytest.approx(4.0, rel=0.02)


def test_what_cannot_be_differentiated_is_an_error():
    with pytest.raises(ValueError, match="no floating leaf"):
        tune.sharpness(lambda n: n * 1.0, jnp.arange(3))
    with pytest.raises(ValueError, match="iterations must be"):
        tune.sharpness(lambda w: w, jnp.ones(()), iterations=0)
