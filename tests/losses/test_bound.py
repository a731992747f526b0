"""bound: what is reported, what is felt, and who learns out of a bad start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxsafe import losses

KINDS = ["report", "clip", "tanh", "log"]


def value_and_slope(x, **options):
    def bound(x):
        return losses.bound(x, 10.0, **options)

    value, slope = jax.jit(jax.vmap(jax.value_and_grad(bound)))(jnp.asarray(x))
    return np.asarray(value), np.asarray(slope)


@pytest.mark.parametrize(
    ("kind", "value", "slope"),
    [
        ("report", [1, 10, 10, 10], [1, 1, 1, 1]),
        ("clip", [1, 10, 10, 10], [1, 1, 0, 0]),
        ("tanh", [0.996680, 7.615942, 8.004990, 10], [0.990066, 0.419974, 0.359201, 0]),
        ("log", [1, 10, 10.693147, 19.209440], [1, 1, 0.5, 1 / 9991]),
    ],
)
def test_kinds(kind, value, slope):
    got = value_and_slope(np.float32([1, 10, 11, 1e4]), kind=kind)
    np.testing.assert_allclose(got[0], value, rtol=1e-6)
    np.testing.assert_allclose(got[1], slope, rtol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_where_the_loss_is_not_finite(kind):
    value, slope = value_and_slope(np.float32([np.nan, np.inf, -np.inf]), kind=kind)
    np.testing.assert_array_equal(slope, 0)
    assert np.isnan(value[0])
    top = np.inf if kind == "log" else 10
    assert value[1] == top


def margin_after_training(kind):
    """Descend a softplus loss from a margin of 60, with the loss bounded."""

    def loss(z):
        one = losses.sigmoid_binary_cross_entropy(z, jnp.zeros(()))
        return one if kind is None else losses.bound(one, 10.0, kind=kind)

    def step(z, _):
        return z - 0.1 * jax.grad(loss)(z), None

    return float(jax.jit(lambda z: lax.scan(step, z, None, length=2000)[0])(60.0))


@pytest.mark.parametrize("kind", [None, "report"])
def test_a_bounded_report_still_learns(kind):
    assert margin_after_training(kind) < 0


@pytest.mark.parametrize("kind", ["clip", "tanh", "log"])
def test_the_other_kinds_get_stuck_on_a_loss_far_above_the_limit(kind):
    assert margin_after_training(kind) > 30


@pytest.mark.parametrize("kind", ["tanh", "report"])
def test_an_enormous_limit(kind):
    x = jnp.asarray([1e30, 3e38])
    got = jax.jit(lambda x: losses.bound(x, 1e38, kind=kind))(x)
    want = 1e38 * np.tanh([1e-8, 3.0]) if kind == "tanh" else [1e30, 1e38]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_limit_may_be_traced_and_gets_no_gradient():
    def total(limit):
        return losses.bound(jnp.asarray([1.0, 50.0]), limit).sum()

    value, slope = jax.jit(jax.value_and_grad(total))(5.0)
    assert (value, slope) == (6.0, 0.0)


@pytest.mark.parametrize("limit", [0.0, -1.0, np.inf, np.nan])
def test_limit_must_be_positive(limit):
    with pytest.raises(ValueError, match=r"losses.bound: limit must be a finite"):
        losses.bound(1.0, limit)


def test_unknown_kind():
    with pytest.raises(ValueError, match=r"kind must be one of 'report', 'clip'"):
        losses.bound(1.0, 1.0, kind="soft")


def test_integers_are_refused():
    with pytest.raises(TypeError, match=r"losses.bound: loss must be a floating array"):
        losses.bound(jnp.arange(3), 1.0)
