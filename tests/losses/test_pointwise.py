"""Sigmoid cross-entropy and Huber: extreme arguments, masks, shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsafe import losses
from tests import oracles

binary, huber = losses.sigmoid_binary_cross_entropy, losses.huber_loss
BINARY = jax.jit(jax.vmap(jax.value_and_grad(binary)))
HUBER = jax.jit(jax.vmap(jax.value_and_grad(huber, argnums=(0, 1))))


@given(st.integers(0, 2**32 - 1))
def test_any_finite_arguments_give_a_bounded_slope(seed):
    rng = np.random.default_rng(seed)
    x, y = oracles.random_bits(rng, 16, np.float32).reshape(2, 8)
    labels = rng.integers(0, 2, 8).astype(np.float32)
    value, slope = BINARY(x, labels)
    assert np.isfinite(value).all()
    assert (value >= 0).all()
    assert (np.abs(slope) <= 1).all()
    value, (slope, opposite) = HUBER(x, y)
    assert not np.isnan(value).any()
    assert (np.abs(slope) <= 1).all()
    np.testing.assert_array_equal(slope, -opposite)


def test_all_of_bfloat16_as_logits():
    x = oracles.patterns(oracles.DTYPES["bfloat16"])
    x = jnp.asarray(x[np.isfinite(oracles.wide(x))])
    for label in (0.0, 1.0):
        y = jnp.full(x.shape, label, jnp.bfloat16)
        value, slope = BINARY(x, y)
        signed = oracles.wide(oracles.flush(np.asarray(x))) * (1 - 2 * label)
        want = np.logaddexp(0, signed)
        with np.errstate(over="ignore"):
            want_slope = (1 - 2 * label) / (1 + np.exp(-signed))
        exact = oracles.Exact(want, 0 * want)
        assert oracles.ulps(value, exact, np.float32).max() <= 4
        exact = oracles.Exact(want_slope, 0 * want_slope)
        assert oracles.ulps(slope, exact, x.dtype).max() <= 0.51


def test_binary_second_derivative():
    x = np.float32([0, 1, 10, 20, 60, -10, -60])
    second = jax.vmap(jax.grad(jax.grad(lambda x: binary(x, jnp.float32(1)))))(x)
    t = np.exp(-np.abs(x.astype(np.float64)))
    np.testing.assert_allclose(second, t / (1 + t) ** 2, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.float32])
def test_binary_label_dtypes(dtype):
    x = jnp.asarray([0.3, -2.0])
    want = optax.sigmoid_binary_cross_entropy(x, jnp.asarray([1.0, 0.0]))
    got = binary(x, jnp.asarray([1, 0]).astype(dtype))
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_forward_mode_at_an_infinite_logit():
    x, y = jnp.asarray([jnp.inf, -jnp.inf]), jnp.asarray([1.0, 0.0])
    _, tangent = jax.jvp(lambda x: binary(x, y), (x,), (jnp.ones(2),))
    np.testing.assert_array_equal(tangent, [0.0, 0.0])


def test_huber_against_optax_and_its_default_target():
    x, y = jnp.asarray([0.2, -3.0, 5.0]), jnp.asarray([0.0, 1.0, 4.5])
    for delta in (0.3, 1.0, 10.0):
        want = optax.huber_loss(x, y, delta=delta)
        np.testing.assert_allclose(huber(x, y, delta=delta), want, rtol=1e-5)
    np.testing.assert_allclose(huber(x), huber(x, jnp.zeros(3)), rtol=0)


def test_huber_where_the_difference_does_not_fit():
    x, y = jnp.full(2, 3e38), jnp.full(2, -3e38)
    got = jax.jit(lambda x, y: huber(x, y, delta=0.125))(x, y)
    np.testing.assert_allclose(got, 7.5e37, rtol=1e-6)
    x, y = jnp.asarray([6e4], jnp.float16), jnp.asarray([-6e4], jnp.float16)
    np.testing.assert_allclose(huber(x, y), 119967.5, rtol=1e-3)
    theirs = optax.huber_loss(x, y)
    assert np.isinf(np.asarray(theirs)).all()


def test_huber_delta_may_be_traced():
    got = jax.jit(lambda d: huber(jnp.asarray([3.0]), delta=d))(2.0)
    np.testing.assert_allclose(got, 4.0)


@pytest.mark.parametrize("loss", [binary, huber])
def test_one_number_goes_with_every_entry(loss):
    x = jnp.asarray([[1.0, -2.0]])
    np.testing.assert_array_equal(loss(x, 1.0), loss(x, jnp.ones((1, 2))))


def test_everything_masked():
    x = jnp.full(3, jnp.nan)
    for loss in (binary, huber):

        def total(x, loss=loss):
            return loss(x, x, where=jnp.zeros(3, bool)).sum()

        assert total(x) == 0
        np.testing.assert_array_equal(jax.grad(total)(x), [0, 0, 0])


@pytest.mark.parametrize(
    ("loss", "name"), [(binary, "labels"), (huber, "targets")], ids=["binary", "huber"]
)
def test_shapes_that_do_not_fit(loss, name):
    message = rf"{name} must have shape \(3,\) \(got \(3, 1\)\)"
    with pytest.raises(ValueError, match=message):
        loss(jnp.zeros(3), jnp.zeros((3, 1)))


@pytest.mark.parametrize("loss", [binary, huber])
def test_integers_are_refused(loss):
    with pytest.raises(TypeError, match=r"must be a floating array"):
        loss(jnp.arange(3), jnp.zeros(3))


@pytest.mark.parametrize("delta", [0.0, -1.0, np.inf, np.nan])
def test_delta_must_be_positive(delta):
    with pytest.raises(ValueError, match=r"losses.huber_loss: delta must be a finite"):
        huber(jnp.zeros(3), delta=delta)
