"""Integer cross-entropy: every margin, every bad label, every mask."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxsafe import losses
from tests import oracles

cross_entropy = losses.softmax_cross_entropy_with_integer_labels


def loss_and_gradient(logits, labels, **options):
    def total(logits, labels):
        loss = cross_entropy(logits, labels, **options)
        return jnp.where(jnp.isnan(loss), 0, loss).sum(), loss

    gradient, loss = jax.jit(jax.grad(total, has_aux=True))(logits, labels)
    return np.asarray(loss), np.asarray(gradient)


@pytest.mark.parametrize("dtype", oracles.DEFAULT)
@pytest.mark.parametrize("margin", [0, 1, 4, 8, 12, 18, 40, 80])
def test_confident_and_wrong_rows(dtype, margin):
    logits = jnp.asarray([[margin, 0, 0], [margin, 0, 0]], dtype)
    loss, gradient = loss_and_gradient(logits, jnp.asarray([0, 1]))
    assert loss.dtype == np.float32
    rest = 2 * np.exp(-np.float64(margin))
    want = np.log1p(rest) + np.float64([0, margin])
    exact = oracles.Exact(want, 0 * want)
    assert oracles.ulps(loss, exact, np.float32).max() <= 3
    p = np.float64([1, rest / 2, rest / 2]) / (1 + rest)
    others = (1 + rest / 2) / (1 + rest)
    want = np.float64([[-rest / (1 + rest), p[1], p[2]], [p[0], -others, p[2]]])
    bar = 7 if dtype == "float32" else 0.51
    exact = oracles.Exact(want, 0 * want)
    assert oracles.ulps(gradient, exact, oracles.DTYPES[dtype]).max() <= bar


def test_optax_loses_the_confident_row():
    logits, label = jnp.asarray([8.0, 0.0, 0.0], jnp.bfloat16), jnp.asarray(0)
    theirs = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    assert float(theirs) == 0
    np.testing.assert_allclose(cross_entropy(logits, label), 6.7070e-4, rtol=1e-4)


@pytest.mark.parametrize("bad", [-1, 3, 100, -100])
def test_concrete_bad_label(bad):
    message = rf"not one of the 3 classes 0 to 2 \(got label {bad}\)\. Fix"
    for labels in ([0, bad], np.asarray([0, bad]), jnp.asarray([0, bad])):
        with pytest.raises(ValueError, match=message):
            cross_entropy(jnp.zeros((2, 3)), labels)


@pytest.mark.parametrize("bad", [-1, 3, 100])
def test_traced_bad_label_is_a_nan_without_gradient(bad):
    logits = jnp.asarray([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    loss, gradient = loss_and_gradient(logits, jnp.asarray([0, bad]))
    assert np.isfinite(loss[0])
    assert np.isnan(loss[1])
    assert gradient[0].any()
    np.testing.assert_array_equal(gradient[1], 0)
    plain = jax.jit(jax.grad(lambda x, y: cross_entropy(x, y).sum()))
    np.testing.assert_array_equal(plain(logits, jnp.asarray([0, bad]))[1], 0)


@pytest.mark.parametrize("index", [-100, 0])
def test_ignore_index(index):
    logits = jnp.asarray([[1.0, 2.0, 3.0], [jnp.nan, jnp.inf, 0.0]])
    labels = jnp.asarray([1, index])
    loss, gradient = loss_and_gradient(logits, labels, ignore_index=index)
    np.testing.assert_allclose(loss, [1.407606, 0.0], rtol=1e-6)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[1], 0)
    eager = cross_entropy(logits, labels, ignore_index=index)
    np.testing.assert_allclose(eager, loss, rtol=1e-6)
    with pytest.raises(ValueError, match=r"got label 7"):
        cross_entropy(logits, jnp.asarray([7, index]), ignore_index=index)


def test_where_leaves_classes_out():
    logits = jnp.asarray([[1.0, jnp.nan, 2.0], [jnp.inf, 1.0, 0.0], [0.0, 1.0, 2.0]])
    mask = jnp.asarray([[True, False, True], [False] * 3, [True, True, False]])
    labels = jnp.asarray([0, 1, 2])
    loss, gradient = loss_and_gradient(logits, labels, where=mask)
    # A plain row, a row with nothing left, a label that is left out.
    np.testing.assert_allclose(loss, [np.log1p(np.e), 0.0, np.nan], rtol=1e-6)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[1:], np.zeros((2, 3)))
    np.testing.assert_allclose(gradient[0], [-0.731059, 0.0, 0.731059], rtol=1e-6)


def test_axis_and_label_dtypes():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 3)), jnp.float32)
    want = optax.softmax_cross_entropy_with_integer_labels(
        jnp.moveaxis(x, 1, -1), jnp.ones((2, 3), jnp.int32)
    )
    for dtype in (jnp.int32, jnp.uint8, jnp.int8):
        for axis in (1, -2):
            compiled = jax.jit(cross_entropy, static_argnames="axis")
            got = compiled(x, jnp.ones((2, 3), dtype), axis=axis)
            np.testing.assert_allclose(got, want, rtol=1e-5)


def test_more_classes_than_the_labels_dtype_counts():
    labels = jnp.asarray([255, 3], jnp.uint8)
    got = jax.jit(cross_entropy)(jnp.zeros((2, 1000)), labels)
    np.testing.assert_allclose(got, np.log(1000), rtol=1e-6)


@given(
    hnp.arrays(np.float32, (4, 6), elements=st.floats(-(2.0**127), 2.0**127, width=32)),
    st.integers(0, 5),
)
def test_finite_logits_of_any_size_give_a_loss_and_a_bounded_gradient(x, label):
    labels = np.full(4, label, np.int32)
    loss, gradient = ANY_SIZE(x, labels)
    assert (loss >= 0).all()
    assert not np.isnan(loss).any()
    assert (np.abs(gradient) <= 1).all()
    assert (np.abs(np.asarray(gradient, np.float64).sum(-1)) <= 1e-6).all()


ANY_SIZE = jax.jit(
    lambda x, y: (
        cross_entropy(x, y),
        jax.grad(lambda x: cross_entropy(x, y).sum())(x),
    )
)


def test_shapes_that_do_not_fit():
    with pytest.raises(
        ValueError, match=r"labels must have shape \(4,\).*got \(4, 1\)"
    ):
        cross_entropy(jnp.zeros((4, 3)), jnp.zeros((4, 1), jnp.int32))


def test_labels_that_are_not_integers():
    with pytest.raises(TypeError, match=r"labels must be integers \(got float32\)"):
        cross_entropy(jnp.zeros((4, 3)), jnp.zeros(4))


def test_logits_that_are_not_floating():
    with pytest.raises(TypeError, match=r"logits must be a floating array"):
        cross_entropy(jnp.zeros((4, 3), jnp.int32), jnp.zeros(4, jnp.int32))


def test_options_are_those_of_the_soft_loss():
    x = jnp.asarray([[1.0, 2.0, -1.0, 0.5], [30.0, -3.0, 0.0, 4.0]])
    labels, q = jnp.asarray([1, 2]), jnp.eye(4)[jnp.asarray([1, 2])]
    names = ("label_smoothing", "z_loss", "soft_cap")
    hard = jax.jit(cross_entropy, static_argnames=names)
    soft = jax.jit(losses.softmax_cross_entropy, static_argnames=names)
    for chosen in ({"label_smoothing": 0.1}, {"z_loss": 1e-2}, {"soft_cap": 5.0}):
        got = hard(x, labels, **chosen)
        np.testing.assert_allclose(got, soft(x, q, **chosen), rtol=1e-6)
    smooth = optax.softmax_cross_entropy(x, optax.smooth_labels(q, 0.1))
    np.testing.assert_allclose(soft(x, q, label_smoothing=0.1), smooth, rtol=1e-6)
    lse = jax.nn.logsumexp(x, axis=-1)
    want = optax.softmax_cross_entropy(x, q) + 0.01 * lse**2
    np.testing.assert_allclose(soft(x, q, z_loss=0.01), want, rtol=1e-6)
    want = optax.softmax_cross_entropy(5 * jnp.tanh(x / 5), q)
    np.testing.assert_allclose(soft(x, q, soft_cap=5.0), want, rtol=1e-5)


def test_options_leave_a_class_of_minus_infinity_out():
    x = jnp.asarray([[0.0, 1.0, -jnp.inf], [jnp.inf, 0.0, 0.0]])
    chosen = {"label_smoothing": 0.1, "z_loss": 1e-4, "soft_cap": 20.0}
    loss, gradient = loss_and_gradient(x, jnp.asarray([1, 0]), **chosen)
    short, slope = loss_and_gradient(x[:1, :2], jnp.asarray([1]), **chosen)
    np.testing.assert_allclose(loss[0], short[0], rtol=1e-6)
    np.testing.assert_allclose(gradient[0, :2], slope[0], rtol=1e-6)
    assert np.isfinite(gradient).all()
    _, gradient = loss_and_gradient(x, jnp.asarray([1, 0]), z_loss=1e-4)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\)"),
        ({"z_loss": -1.0}, r"z_loss must lie in \[0, inf\)"),
        ({"soft_cap": 0.0}, r"soft_cap must be a finite number above 0"),
    ],
)
def test_an_option_out_of_range(chosen, message):
    with pytest.raises(ValueError, match=message):
        cross_entropy(jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32), **chosen)


def test_soft_labels_where_today_fails():
    x = jnp.asarray([[-jnp.inf, 0.0, 1.0], [3e38, -3e38, 0.0], [18.0, 0.0, 0.0]])
    q = jnp.asarray([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])

    def total(x, q):
        loss = losses.softmax_cross_entropy(x, q)
        return loss.sum(), loss

    gradients, loss = jax.jit(jax.grad(total, (0, 1), has_aux=True))(x, q)
    np.testing.assert_allclose(loss, [1.3132616, 0.0, 3.0459959e-08], rtol=1e-6)
    assert all(np.isfinite(g).all() for g in gradients)


def test_soft_rows_axes_and_shapes():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4)), jnp.float32)
    q = jax.nn.softmax(x[::-1])
    soft = losses.softmax_cross_entropy
    keep = jnp.asarray([[True, False, True], [True, True, False]])
    want = jnp.where(keep, optax.softmax_cross_entropy(x, q), 0)
    np.testing.assert_allclose(soft(x, q, where=keep), want, rtol=1e-5)
    want = optax.softmax_cross_entropy(x.reshape(2, 12), q.reshape(2, 12))
    np.testing.assert_allclose(soft(x, q, axis=(1, 2)), want, rtol=1e-5)
    with pytest.raises(ValueError, match="where could mean rows or classes"):
        soft(x[0, :3, :3], q[0, :3, :3], where=jnp.ones(3, bool))
    with pytest.raises(ValueError, match=r"labels must have shape \(2, 3, 4\)"):
        soft(x, q[0])
