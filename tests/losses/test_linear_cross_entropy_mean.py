"""What the catalog does not ask of the mean-taking last layer: chunks, masks, cost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsafe import losses
from tests.losses.test_linear_cross_entropy import (
    draw,
    in_float64,
    plain,
    temporaries,
)

fused = losses.linear_softmax_cross_entropy_mean
per_token = losses.linear_softmax_cross_entropy


def both_gradients(function, hidden, kernel, labels, **options):
    return jax.value_and_grad(
        lambda h, k: function(h, k, labels, **options), argnums=(0, 1)
    )(hidden, kernel)


def dots(function, *args):
    """Products of matrices in the program, those of a loop body once."""
    return jax.jit(function).lower(*args).as_text().count("stablehlo.dot_general")


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(1, jnp.float32), (5, jnp.float32), (1000, jnp.float32), (5, jnp.bfloat16)],
)
def test_any_chunking_agrees_with_float64(size, dtype):
    hidden, kernel, bias, labels = draw(24, 16, 37, dtype)

    @jax.jit
    def program(hidden, kernel, bias):
        def loss(h, k, b):
            return fused(h, k, labels, bias=b, chunk_size=size)

        return jax.value_and_grad(loss, (0, 1, 2))(hidden, kernel, bias)

    loss, gradients = program(hidden, kernel, bias)
    want, slopes = in_float64(hidden, kernel, bias, labels, np.full(24, 1 / 24))
    eps = float(jnp.finfo(dtype).eps)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, want.mean(), rtol=2e-6)
    for got, slope in zip(gradients, slopes, strict=True):
        assert got.dtype == dtype
        most = np.abs(slope).max()  # of what cancels
        error = np.abs(np.asarray(got, np.float64) - slope)
        assert error.max() <= max(2 * eps, 4e-6) * most


def test_agrees_with_the_mean_of_the_losses_per_token():
    hidden, kernel, bias, labels = draw(23, 16, 37)
    labels = labels.at[::3].set(-100)
    options = {"bias": bias, "ignore_index": -100, "chunk_size": 7}

    def mean(*args, **options):
        return losses.masked_mean(per_token(*args, **options), labels != -100)

    def flat(function):
        return jax.jit(functools.partial(both_gradients, function, **options))

    got = flat(fused)(hidden, kernel, labels)
    want = flat(mean)(hidden, kernel, labels)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), got, want)


def test_three_products_with_a_gradient_and_one_without():
    hidden, kernel, _, labels = draw(16, 8, 37)
    loss = functools.partial(fused, chunk_size=16)
    assert dots(loss, hidden, kernel, labels) == 1
    assert dots(functools.partial(both_gradients, loss), hidden, kernel, labels) == 3


def test_temporaries_are_those_of_a_chunk():
    sizes = (1024, 64, 4096)
    ours = temporaries(functools.partial(fused, chunk_size=1024 // 16), *sizes)
    assert ours <= 0.13 * temporaries(plain, *sizes)


def test_loss_scaling_saves_what_float16_would_lose():
    # The gradient is made before the scale is known: 1.5e-8 is nothing in float16.
    hidden = jnp.ones((1, 1), jnp.float16)
    kernel = jnp.asarray([[18.0, 0.0, 0.0]], jnp.float16)
    slope = jax.grad(lambda k: 2.0**15 * fused(hidden, k, jnp.asarray([0])))(kernel)
    want = 2.0**15 * np.asarray([-3.046e-8, 1.523e-8, 1.523e-8])
    np.testing.assert_allclose(slope[0], want, rtol=2e-3)


def test_labels_are_ignored_refused_or_loud():
    hidden, kernel, _, _ = draw(4, 3, 5)
    hidden = hidden.at[0].set(jnp.nan).at[3].set(jnp.nan)
    program = jax.jit(
        functools.partial(both_gradients, fused, ignore_index=-100, chunk_size=2)
    )
    loss, gradients = program(hidden, kernel, jnp.asarray([-100, 1, 2, -100]))
    want, (d_hidden, d_kernel) = both_gradients(
        fused, hidden[1:3], kernel, jnp.asarray([1, 2])
    )
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    np.testing.assert_allclose(gradients[0][1:3], d_hidden, rtol=1e-5)
    np.testing.assert_array_equal(gradients[0][jnp.asarray([0, 3])], 0)
    np.testing.assert_allclose(gradients[1], d_kernel, rtol=1e-5, atol=1e-7)

    loss, gradients = program(hidden, kernel, jnp.asarray([-100, 5, 2, -100]))
    assert np.isnan(loss)
    assert all(np.isfinite(g).all() for g in gradients)

    loss, gradients = program(hidden, kernel, jnp.full(4, -100))
    assert loss == 0
    assert not any(np.any(g) for g in gradients)

    with pytest.raises(ValueError, match="label is not one of the 5 classes"):
        fused(hidden, kernel, jnp.asarray([0, 1, 5, 2]))


@pytest.mark.parametrize("place", ["hidden", "kernel", "bias"])
def test_nan_comes_out(place):
    hidden, kernel, bias, labels = draw(3, 2, 9)
    arrays = {"hidden": hidden, "kernel": kernel, "bias": bias}
    arrays[place] = arrays[place].at[(-1,) * arrays[place].ndim].set(jnp.nan)
    value, gradients = jax.jit(
        jax.value_and_grad(lambda a: fused(**a, labels=labels, chunk_size=2))
    )(arrays)
    assert np.isnan(value)
    assert np.isnan(gradients["kernel"]).any()


def test_shapes_and_maps():
    hidden, kernel, _, labels = draw(6, 4, 5)
    flat = fused(hidden, kernel, labels, chunk_size=4)
    assert flat.shape == ()
    box = fused(hidden.reshape(2, 3, 4), kernel, labels.reshape(2, 3), chunk_size=4)
    np.testing.assert_array_equal(box, flat)
    one = functools.partial(both_gradients, fused, chunk_size=2)
    stacked = hidden.reshape(2, 3, 4), kernel, labels.reshape(2, 3)
    mapped = jax.jit(jax.vmap(one, (0, None, 0)))(*stacked)
    for i in range(2):
        want = one(stacked[0][i], kernel, stacked[2][i])
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-6),
            mapped,
            want,
        )


def test_second_derivative():
    hidden, kernel, _, labels = draw(5, 3, 4)

    def curved(loss):
        def size(h, k):
            d_h, d_k = jax.grad(loss, (0, 1))(h, k, labels)
            return jnp.sum(d_h**2) + jnp.sum(jnp.sin(d_k))

        return jax.jit(jax.grad(size, (0, 1)))(hidden, kernel)

    got = curved(functools.partial(fused, chunk_size=2))
    for a, b in zip(got, curved(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def four_devices():
    return jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))


def on_four_devices(function):
    """Mean over all devices of `function` of their tokens, and both gradients."""

    def step(hidden, kernel, labels):
        def loss(h, k):
            return jax.lax.pmean(jnp.mean(function(h, k, labels)), "data")

        return jax.value_and_grad(loss, (0, 1))(hidden, kernel)

    return jax.shard_map(
        step,
        mesh=four_devices(),
        in_specs=(P("data"), P(), P("data")),
        out_specs=(P(), (P("data"), P())),
    )


@pytest.mark.several_devices
@pytest.mark.parametrize("function", [fused, per_token])
def test_sharded_tokens(function):
    hidden, kernel, _, labels = draw(32, 8, 11)
    function = functools.partial(function, chunk_size=4)

    def step(hidden, kernel, labels):
        return both_gradients(
            lambda *args: jnp.mean(function(*args)), hidden, kernel, labels
        )

    rows = NamedSharding(four_devices(), P("data"))
    spread = jax.device_put(hidden, rows), kernel, jax.device_put(labels, rows)
    want = jax.jit(step)(hidden, kernel, labels)
    for program in (step, on_four_devices(function)):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, atol=1e-6),
            jax.jit(program)(*spread),
            want,
        )


@pytest.mark.several_devices
def test_devices_meet_once():
    hidden, kernel, _, labels = draw(32, 8, 11)
    step = on_four_devices(functools.partial(fused, chunk_size=4))
    program = jax.jit(step).lower(hidden, kernel, labels).compile().as_text()
    assert program.count(" all-reduce(") == 1
