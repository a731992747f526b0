"""What the catalog does not ask of the fused last layer: chunks, masks, memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsafe import losses

fused = losses.linear_softmax_cross_entropy
both_forms = pytest.mark.parametrize(
    "function", [fused, losses.linear_softmax_cross_entropy_mean]
)


def draw(tokens, features, classes, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (tokens, features), dtype)
    kernel = jax.random.normal(keys[1], (features, classes), dtype)
    bias = jax.random.normal(keys[2], (classes,), dtype)
    return hidden, kernel, bias, jax.random.randint(keys[3], (tokens,), 0, classes)


def in_float64(hidden, kernel, bias, labels, weights):
    """Losses and gradients of their weighted sum, from the same inputs."""
    h, k, b = (np.asarray(a).astype(np.float64) for a in (hidden, kernel, bias))
    x = h @ k + b
    power = np.exp(x - x.max(1, keepdims=True))
    slope = power / power.sum(1, keepdims=True)
    rows = np.arange(len(x))
    loss = -np.log(slope[rows, labels])
    slope[rows, labels] -= 1
    slope *= np.asarray(weights, np.float64)[:, None]
    return loss, (slope @ k.T, h.T @ slope, slope.sum(0))


@pytest.mark.parametrize(
    "dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)]
)
def test_any_chunking_agrees_with_float64(dtype):
    # 37 is not divisible: the last chunk overlaps the one before.
    hidden, kernel, bias, labels = draw(24, 16, 37, dtype)
    weights = jnp.linspace(0.5, 2.0, 24)

    @jax.jit
    def program(hidden, kernel, bias):
        def one(size):
            def loss(h, k, b):
                out = fused(h, k, labels, bias=b, chunk_size=size)
                return jnp.sum(out * weights), out

            return jax.grad(loss, (0, 1, 2), has_aux=True)(hidden, kernel, bias)

        return [one(size) for size in (1, 8, 1000)]

    want, slopes = in_float64(hidden, kernel, bias, labels, weights)
    eps = float(jnp.finfo(dtype).eps)
    for gradients, out in program(hidden, kernel, bias):
        assert out.dtype == jnp.float32
        np.testing.assert_allclose(out, want, rtol=2e-6, atol=2e-6)
        for got, slope in zip(gradients, slopes, strict=True):
            assert got.dtype == dtype
            np.testing.assert_allclose(
                np.asarray(got, np.float64), slope, rtol=eps, atol=4e-6
            )


def hard_rows(rng, classes):
    """Logits of every scale, confident or not; some with a maximum in each chunk."""
    x = rng.normal(size=(24, classes)) * np.repeat([0.01, 1.0, 3.0, 10.0], 6)[:, None]
    x[::6, rng.integers(classes)] += 20
    x[1::3] = np.sort(x[1::3])
    x[2::3] = np.sort(x[2::3])[:, ::-1]
    steps = np.arange(classes) * np.asarray([[0.003], [0.05], [-0.05], [0.6]])
    return np.concatenate([x, steps + rng.normal(size=steps.shape) * 1e-3])


@pytest.mark.parametrize(("size", "bound"), [(2, 1.8), (10, 1.8), (64, 1.8), (256, 3)])
def test_error_does_not_grow_with_the_number_of_chunks(size, bound):
    rng = np.random.default_rng(0)
    hidden = np.eye(28, dtype=np.float32)  # so that the logits are exact

    @jax.jit
    def program(kernel, labels):
        def loss(k):
            out = fused(hidden, k, labels, chunk_size=size)
            return out.sum(), out

        return jax.grad(loss, has_aux=True)(kernel)

    for _ in range(10):
        x = hard_rows(rng, 1000).astype(np.float32)
        labels = np.where(rng.random(28) < 0.7, x.argmax(1), rng.integers(0, 1000, 28))
        slope, loss = program(x, labels)
        want, slopes = accurate_in_float64(x.astype(np.float64), labels)
        assert ulps(loss, want).max() <= bound
        assert ulps(slope, slopes).max() <= 4.6


def accurate_in_float64(x, labels):
    """Losses and slopes in the logits, nothing cancelled."""
    rows = np.arange(len(x))
    gap = x - x.max(1, keepdims=True)
    power = np.exp(gap)
    power[rows, x.argmax(1)] = 0
    rest = power.sum(1)
    power[rows, x.argmax(1)] = 1
    slope = power / (1 + rest)[:, None]
    slope[rows, labels] = 0
    slope[rows, labels] = -slope.sum(1)
    return np.log1p(rest) - gap[rows, labels], slope


def ulps(got, want):
    """Errors; what is flushed does not count."""
    size = np.exp2(np.floor(np.log2(np.maximum(np.abs(want), 1e-30))) - 23)
    return np.abs(np.asarray(got, np.float64) - want) / size


def test_shapes_and_maps():
    hidden, kernel, bias, labels = draw(6, 4, 5)
    one = jax.jit(functools.partial(fused, bias=bias, chunk_size=2))
    flat = one(hidden, kernel, labels)
    box = one(hidden.reshape(2, 3, 4), kernel, labels.reshape(2, 3))
    np.testing.assert_array_equal(box, flat.reshape(2, 3))
    mapped = jax.jit(jax.vmap(one, (0, None, 0)))(hidden, kernel, labels)
    np.testing.assert_allclose(mapped, flat, rtol=1e-6)


def test_extreme_logits():
    kernel = jnp.asarray([[3e38, -3e38, 0.0, 1e30, -1e30]])
    bias = jnp.asarray([0.0, 0.0, -jnp.inf, 0.0, 0.0])
    labels = jnp.asarray([0, 3])

    @jax.jit
    def program(kernel):
        def total(k):
            out = fused(jnp.ones((2, 1)), k, labels, bias=bias, chunk_size=2)
            return out.sum(), out

        return jax.grad(total, has_aux=True)(kernel)

    slope, loss = program(kernel)
    np.testing.assert_allclose(loss, [0.0, 3e38], rtol=1e-6)
    np.testing.assert_array_equal(slope, [[1.0, 0.0, 0.0, -1.0, 0.0]])


@both_forms
def test_a_confident_token_keeps_loss_and_gradient(function):
    kernel = jnp.asarray([[18.0, 0.0, 0.0]])
    loss, slope = jax.value_and_grad(
        lambda k: function(jnp.ones((1, 1)), k, jnp.asarray([0]), chunk_size=1).sum()
    )(kernel)
    np.testing.assert_allclose(loss, 3.046e-8, rtol=1e-3)
    np.testing.assert_allclose(slope[0], [-3.046e-8, 1.523e-8, 1.523e-8], rtol=1e-3)


def test_labels_are_ignored_refused_or_loud():
    hidden, kernel, _, _ = draw(4, 3, 5)
    hidden = hidden.at[0].set(jnp.nan).at[3].set(jnp.nan)

    @jax.jit
    def program(hidden, kernel, labels):
        def total(h, k):
            out = fused(h, k, labels, ignore_index=-100, chunk_size=2)
            return jnp.sum(jnp.where(jnp.isnan(out), 0, out)), out

        return jax.grad(total, (0, 1), has_aux=True)(hidden, kernel)

    # ignored with a NaN inside, out of range, good, ignored
    (d_hidden, d_kernel), loss = program(
        hidden, kernel, jnp.asarray([-100, 5, 2, -100])
    )
    np.testing.assert_array_equal(jnp.isnan(loss), [False, True, False, False])
    assert loss[0] == loss[3] == 0
    np.testing.assert_array_equal(d_hidden[jnp.asarray([0, 1, 3])], 0)
    assert np.isfinite(d_kernel).all()
    with pytest.raises(ValueError, match="label is not one of the 5 classes"):
        fused(hidden, kernel, jnp.asarray([0, 1, 5, 2]))


@pytest.mark.parametrize("place", ["hidden", "kernel", "bias"])
def test_nan_comes_out(place):
    hidden, kernel, bias, labels = draw(3, 2, 9)
    arrays = {"hidden": hidden, "kernel": kernel, "bias": bias}
    poisoned = arrays[place].at[(-1,) * arrays[place].ndim].set(jnp.nan)
    arrays[place] = poisoned
    loss = jax.jit(lambda arrays: fused(**arrays, labels=labels, chunk_size=4))(arrays)
    want = [False, False, True] if place == "hidden" else [True] * 3
    np.testing.assert_array_equal(jnp.isnan(loss), want)


def temporaries(loss, tokens, features, classes):
    """Bytes, with both gradients of a loss."""
    specs = (
        jax.ShapeDtypeStruct((tokens, features), jnp.float32),
        jax.ShapeDtypeStruct((features, classes), jnp.float32),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
    )
    program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*specs).compile()
    return program.memory_analysis().temp_size_in_bytes


def plain(h, k, y):
    return optax.softmax_cross_entropy_with_integer_labels(h @ k, y).mean()


@pytest.mark.parametrize(("tokens", "classes"), [(512, 8192), (256, 32768)])
def test_temporaries_do_not_grow_with_the_vocabulary(tokens, classes):
    sizes, chunk = (tokens, 64, classes), classes // 64
    ours = temporaries(lambda *args: fused(*args, chunk_size=chunk).mean(), *sizes)
    assert ours <= 0.03 * temporaries(plain, *sizes)


@both_forms
def test_forward_mode_is_refused(function):
    hidden, kernel, _, labels = draw(2, 3, 4)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda h: function(h, kernel, labels), (hidden,), (hidden,))


@both_forms
def test_bad_input(function):
    hidden, kernel, bias, labels = draw(2, 3, 4)
    for args, options, message in (
        ((hidden, kernel.T, labels), {}, r"kernel \[features, vocabulary\]"),
        ((hidden[:0], kernel, labels[:0]), {}, "hidden must not be empty"),
        ((hidden, kernel, labels[:1]), {}, "labels must have shape"),
        ((hidden, kernel, labels), {"bias": bias[:3]}, "bias must have shape"),
        ((hidden, kernel, labels), {"chunk_size": 0}, "chunk_size must be an integer"),
        ((hidden, kernel, labels + 4), {}, "label is not one of the 4 classes"),
    ):
        with pytest.raises(ValueError, match=f"{function.__name__}: .*{message}"):
            function(*args, **options)
    with pytest.raises(TypeError, match="labels must be integers"):
        function(hidden, kernel, bias[:2])
