"""Both flax APIs: equal to flax where it is right, right where it is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxsafe.layers import linen as safe_linen
from jaxsafe.layers import nnx as safe_nnx

NORMS = ["LayerNorm", "RMSNorm", "GroupNorm", "BatchNorm"]
APIS = ["nnx", "linen"]
STEPS = jnp.asarray([1e4, 1e4 + 1, 1e4 + 2, 1e4 + 3])
STEPPED = np.asarray([-3, -1, 1, 3]) / np.sqrt(5)
every_api = pytest.mark.parametrize("api", APIS)
every_norm = pytest.mark.parametrize("name", NORMS)


class Layer:
    """A layer of either API as a pure function of (parameters, input)."""

    def __init__(self, api, name, *, safe=True, features=4, **options):
        self.api = api
        if name == "GroupNorm":
            options.setdefault("num_groups", 2)
        if api == "nnx":
            sizes = (2, features) if name == "MultiHeadAttention" else (features,)
            cls = getattr(safe_nnx if safe else nnx, name)
            self.layer = cls(*sizes, rngs=nnx.Rngs(0), **options)
            self.graph, self.variables = nnx.split(self.layer)
        else:
            if name == "BatchNorm":
                options.setdefault("use_running_average", False)
            if name == "MultiHeadAttention":
                options.setdefault("num_heads", 2)
            self.layer = getattr(safe_linen if safe else linen, name)(**options)
            shape = jnp.zeros((2, 3, features))
            self.variables = self.layer.init(jax.random.key(0), shape)

    def __call__(self, variables, *args, **options):
        """(output, variables after the call)."""
        if self.api == "nnx":
            layer = nnx.merge(self.graph, variables)
            out = layer(*args, **options)
            return out, nnx.state(layer)
        return self.layer.apply(
            variables, *args, mutable=["batch_stats", "intermediates"], **options
        )


def batch(*shape):
    return jax.random.normal(jax.random.key(1), shape) * 2 + 1


def out_and_gradients(layer, variables, *args, **options):
    """Output, new variables and gradients of a weighted sum of the output."""

    @jax.jit
    def program(variables, args):
        def total(variables, args):
            out, after = layer(variables, *args, **options)
            weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32))
            return jnp.sum(out.ravel() * weights), (out, after)

        return jax.grad(total, (0, 1), has_aux=True)(variables, args)

    (by_variables, by_args), (out, after) = program(variables, args)
    return out, after, by_variables, by_args


def assert_close(got, want, rtol=1e-5, atol=2e-6):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=rtol, atol=atol
        )


@every_api
@every_norm
def test_equals_flax_and_loads_its_variables(api, name):
    x = batch(2, 3, 4)
    mask = jnp.ones((2, 3, 4), bool).at[0, 0, 1].set(False).at[1, :, 3].set(False)
    # flax's default loses digits of the variance: compare with its exact one.
    ours = Layer(api, name)
    theirs = Layer(api, name, safe=False, use_fast_variance=False)
    assert_close(ours.variables, theirs.variables, 0, 0)
    loaded = jax.tree.map(lambda a: a + 0.5, theirs.variables)
    got = out_and_gradients(ours, loaded, x)
    assert_close(got, out_and_gradients(theirs, loaded, x), atol=2e-5)
    got = out_and_gradients(ours, loaded, x, mask=mask)
    want = out_and_gradients(theirs, loaded, x, mask=mask)
    assert_close(got, want, atol=2e-5)


@every_api
def test_running_statistics_are_used_in_evaluation(api):
    x = batch(6, 4)
    ours, theirs = (
        Layer(api, "BatchNorm", safe=safe, use_running_average=True)
        for safe in (True, False)
    )
    loaded = jax.tree.map(lambda a: a + 0.5, theirs.variables)
    got = out_and_gradients(ours, loaded, x)
    assert_close(got, out_and_gradients(theirs, loaded, x))


@every_api
@every_norm
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_half_precision_gives_the_dtype_of_flax(api, name, dtype):
    x = batch(2, 3, 4).astype(jnp.bfloat16)
    for options in ({}, {"use_scale": False}):
        ours = Layer(api, name, dtype=dtype, **options)
        theirs = Layer(api, name, safe=False, dtype=dtype, **options)
        got, _ = ours(ours.variables, x)
        want, _ = theirs(theirs.variables, x)
        assert got.dtype == want.dtype
        np.testing.assert_allclose(
            np.asarray(got, np.float32), np.asarray(want, np.float32), atol=0.02
        )


@every_api
def test_statistics_are_right_for_any_mean_and_magnitude(api):
    layers = {
        "LayerNorm": Layer(api, "LayerNorm"),
        "GroupNorm": Layer(api, "GroupNorm", num_groups=1),
    }
    for scale in (1.0, 2.0**60, 2.0**110):
        x = jnp.stack([STEPS * scale, jnp.asarray([1e25, -1e25, 1e25, -1e25])])
        for layer in layers.values():
            out, _, _, (slope,) = out_and_gradients(layer, layer.variables, x)
            np.testing.assert_allclose(out[0], STEPPED, rtol=2e-5)
            np.testing.assert_allclose(out[1], [1, -1, 1, -1], rtol=1e-6)
            assert np.isfinite(slope).all()
    layer = Layer(api, "BatchNorm", features=2)
    x = jnp.stack([STEPS, jnp.asarray([1e25, -1e25, 1e25, -1e25])], axis=1)
    out, after, *_ = out_and_gradients(layer, layer.variables, x)
    np.testing.assert_allclose(out[:, 0], STEPPED, rtol=2e-5)
    np.testing.assert_allclose(out[:, 1], [1, -1, 1, -1], rtol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    layer = Layer(api, "RMSNorm")
    out, _ = layer(layer.variables, jnp.asarray([[1e25, -1e25, 3e38, 0.0]]))
    np.testing.assert_allclose(out[0, 2], 2, rtol=1e-6)


@every_api
@every_norm
def test_a_constant_input_gives_the_bias(api, name):
    layer = Layer(api, name)
    value = 0.0 if name == "RMSNorm" else 12345.678
    out, _, *slopes = out_and_gradients(
        layer, layer.variables, jnp.full((2, 3, 4), value)
    )
    np.testing.assert_array_equal(out, 0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


@every_api
@every_norm
def test_masked_entries_never_leak(api, name):
    layer, x = Layer(api, name), batch(2, 3, 4)
    mask = jnp.ones((2, 3, 4), bool).at[:, 2].set(False)
    keep = jnp.asarray([0, 1])

    @jax.jit
    def program(x):
        def total(variables, x):
            out, after = layer(variables, x, mask=mask)
            return jnp.sum(out[:, keep] ** 3), (out, after)

        return jax.grad(total, (0, 1), has_aux=True)(layer.variables, x)

    (by_variables, by_x), (out, after) = program(x)
    for junk in (jnp.nan, jnp.inf):
        slopes, (other, then) = program(x.at[:, 2].set(junk))
        np.testing.assert_array_equal(other[:, keep], out[:, keep])
        if name not in ("GroupNorm",):
            np.testing.assert_array_equal(slopes[1][:, 2], 0)
        assert_close((slopes[0], then), (by_variables, after), 0, 1e-6)
        np.testing.assert_allclose(slopes[1][:, keep], by_x[:, keep], atol=1e-6)
    nothing, kept = layer(layer.variables, x * jnp.nan, mask=jnp.zeros_like(mask))
    np.testing.assert_array_equal(nothing, 0)
    if name == "BatchNorm":
        stats = kept if api == "linen" else {k: kept[k] for k in ("mean", "var")}
        assert all(np.isin(leaf, [0, 1]).all() for leaf in jax.tree.leaves(stats))


@every_api
@every_norm
def test_nan_comes_out(api, name):
    layer = Layer(api, name, features=8192)
    x = jnp.ones((2, 1, 8192)).at[0, 0, 5000].set(jnp.nan)
    out, after = jax.jit(layer)(layer.variables, x)
    assert jnp.isnan(out[0, 0, 5000])
    assert jnp.isfinite(out[1, 0, 0])
    if name == "BatchNorm":
        assert any(np.isnan(leaf).any() for leaf in jax.tree.leaves(after))


@pytest.mark.parametrize("name", ["LayerNorm", "BatchNorm"])
def test_statistics_are_shared_between_devices(name):
    # linen; the same code serves nnx. The axis stands for the devices.
    x = batch(4, 6, 8)
    if name == "LayerNorm":  # features on different devices
        parts, whole = x, x.swapaxes(0, 1).reshape(6, 32)
    else:
        parts, whole = x, x.reshape(24, 8)
    near = Layer("linen", name, features=8)
    near.layer = near.layer.clone(axis_name="device")
    far = Layer("linen", name, features=whole.shape[-1])
    shared, after = jax.vmap(
        lambda part: near(near.variables, part), axis_name="device"
    )(parts)
    want, then = far(far.variables, whole)
    if name == "LayerNorm":
        shared = shared.swapaxes(0, 1)
    np.testing.assert_allclose(shared.reshape(want.shape), want, rtol=1e-5, atol=1e-6)
    for got, leaf in zip(jax.tree.leaves(after), jax.tree.leaves(then), strict=True):
        np.testing.assert_allclose(got[0], leaf, rtol=1e-5)
    slope = jax.grad(
        lambda p: jax.vmap(
            lambda part: near(near.variables, part)[0].ravel()[0], axis_name="device"
        )(p)[0]
    )(parts)
    assert np.isfinite(slope).all()


@every_api
@pytest.mark.parametrize("normalize_qk", [False, True])
def test_attention_equals_flax(api, normalize_qk):
    x, mask = batch(2, 3, 16), jnp.tri(3, dtype=bool)[None, None]
    options = {"normalize_qk": normalize_qk, "decode": False, "features": 16}
    ours = Layer(api, "MultiHeadAttention", **options)
    theirs = Layer(api, "MultiHeadAttention", safe=False, **options)
    assert_close(ours.variables, theirs.variables, 0, 0)
    got = out_and_gradients(ours, theirs.variables, x, mask=mask)
    want = out_and_gradients(theirs, theirs.variables, x, mask=mask)
    assert_close(got, want, rtol=1e-4, atol=5e-5)


def test_dropout_and_grouped_heads_equal_flax():
    x = batch(2, 3, 4)
    for pair in ((safe_nnx, nnx), (safe_linen, linen)):
        heads = jnp.split(x.reshape(2, 3, 2, 2), 1)[0]
        key = jax.random.key(3)
        for broadcast in (True, False):
            got, want = (
                api.dot_product_attention(
                    heads,
                    heads,
                    heads,
                    dropout_rng=key,
                    dropout_rate=0.5,
                    broadcast_dropout=broadcast,
                )
                for api in pair
            )
            np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)
    heads = batch(2, 3, 4, 2)
    few = heads[:, :, :2]
    got, want = (
        api.dot_product_attention(heads, few, few, is_causal=True)
        for api in (safe_nnx, nnx)
    )
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("api", [safe_nnx, safe_linen])
def test_masked_keys_and_values_never_leak(api):
    q, k, v = batch(3, 2, 5, 2, 4)
    # the last key is for nobody, the one before only for the last query
    mask = jnp.ones((5, 5), bool).at[:, 4].set(False).at[:4, 3].set(False)
    mask = mask.at[0].set(False)[None, None]

    @jax.jit
    def program(q, k, v):
        def total(q, k, v):
            out = api.dot_product_attention(q, k, v, mask=mask)
            return jnp.sum(out[:, :4] ** 2), out

        return jax.grad(total, (0, 1, 2), has_aux=True)(q, k, v)

    slopes, out = program(q, k, v)
    np.testing.assert_array_equal(out[:, 0], 0)
    for junk in (jnp.nan, jnp.inf):
        dirty = program(
            q.at[:, 0].set(junk), k.at[:, 4].set(junk), v.at[:, 4].set(junk)
        )
        assert_close(dirty, (slopes, out), 0, 1e-6)
    _, out_of_three = program(q, k.at[:, 3].set(jnp.nan), v)
    np.testing.assert_array_equal(
        jnp.isnan(out_of_three).any((0, 2, 3)), [0, 0, 0, 0, 1]
    )


def test_bad_input():
    with pytest.raises(ValueError, match="groups must divide the 4 channels"):
        Layer("linen", "GroupNorm", num_groups=3)
    with pytest.raises(TypeError, match="inputs must be real numbers"):
        safe_linen.LayerNorm().init(jax.random.key(0), jnp.ones((2, 4), jnp.complex64))
    with pytest.raises(ValueError, match="depth"):
        safe_nnx.dot_product_attention(
            jnp.ones((1, 2, 1, 3)), jnp.ones((1, 2, 1, 4)), jnp.ones((1, 2, 1, 4))
        )
