"""Both flax APIs: equal to flax where it is right, right where it is not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax.sharding import AxisType, PartitionSpec

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
            self.variables = jax.jit(self.layer.init)(jax.random.key(0), shape)

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
    # Both share the arithmetic: one is compared with a mask, the other without.
    mask = jnp.ones((2, 3, 4), bool).at[0, 0, 1].set(False).at[1, :, 3].set(False)
    options = {"mask": mask} if api == "nnx" else {}
    # flax's default loses digits of the variance: compare with its exact one.
    ours = Layer(api, name)
    theirs = Layer(api, name, safe=False, use_fast_variance=False)
    assert_close(ours.variables, theirs.variables, 0, 0)
    loaded = jax.tree.map(lambda a: a + 0.5, theirs.variables)
    x = batch(2, 3, 4)
    got = out_and_gradients(ours, loaded, x, **options)
    assert_close(got, out_and_gradients(theirs, loaded, x, **options), atol=2e-5)


@every_api
def test_running_statistics_are_used_in_evaluation(api):
    x = batch(6, 4)
    ours, theirs = (
        Layer(api, "BatchNorm", safe=safe, use_running_average=True)
        for safe in (True, False)
    )
    loaded = jax.tree.map(lambda a: a + 0.5, theirs.variables)
    assert_close(jax.jit(ours)(loaded, x), jax.jit(theirs)(loaded, x))


@every_api
@every_norm
def test_half_precision_gives_the_dtype_of_flax(api, name):
    x = batch(2, 3, 4).astype(jnp.bfloat16)
    for options in ({}, {"use_scale": False}, {"dtype": jnp.bfloat16}):
        ours = Layer(api, name, **options)
        theirs = Layer(api, name, safe=False, **options)
        got = jax.eval_shape(ours, ours.variables, x)
        want = jax.eval_shape(theirs, theirs.variables, x)
        assert jax.tree.map(lambda a: a.dtype, got) == jax.tree.map(
            lambda a: a.dtype, want
        )


@every_api
def test_statistics_are_right_for_any_mean_and_magnitude(api):
    size = jnp.asarray([[1e25, -1e25, 1e25, -1e25], [12345.678] * 4])
    x = jnp.concatenate([jnp.outer(2.0 ** jnp.asarray([0, 60, 110]), STEPS), size])
    rows = Layer(api, "LayerNorm")
    groups = Layer(api, "GroupNorm", num_groups=1)
    for layer, given in ((rows, x), (groups, x)):
        out, _, _, (slope,) = out_and_gradients(layer, layer.variables, given)
        np.testing.assert_allclose(out[:3], [STEPPED] * 3, rtol=2e-5)
        np.testing.assert_allclose(out[3], [1, -1, 1, -1], rtol=1e-6)
        np.testing.assert_array_equal(out[4], 0)
        assert np.isfinite(slope).all()


@every_api
def test_a_batch_is_normalised_whatever_its_magnitude(api):
    layer = Layer(api, "BatchNorm", features=3)
    size = jnp.asarray([1e25, -1e25, 1e25, -1e25])
    x = jnp.stack([STEPS, size, jnp.full(4, 12345.678)], axis=1)
    out, after, _, (slope,) = out_and_gradients(layer, layer.variables, x)
    np.testing.assert_allclose(out[:, 0], STEPPED, rtol=2e-5)
    np.testing.assert_allclose(out[:, 1], [1, -1, 1, -1], rtol=1e-6)
    np.testing.assert_array_equal(out[:, 2], 0)
    finite = [np.isfinite(leaf).all() for leaf in jax.tree.leaves((after, slope))]
    assert all(finite)


def test_rms_norm_is_right_for_any_magnitude():
    layer = Layer("nnx", "RMSNorm")
    x = jnp.asarray([[1e25, -1e25, 3e38, 0.0], [0.0, 0.0, 0.0, 0.0]])
    out, _, _, (slope,) = out_and_gradients(layer, layer.variables, x)
    np.testing.assert_allclose(out[0, 2], 2, rtol=1e-6)
    np.testing.assert_array_equal(out[1], 0)
    assert np.isfinite(slope).all()


@every_norm
def test_masked_entries_never_leak(name):
    layer, x = Layer("nnx", name), batch(2, 3, 4)
    mask = jnp.ones((2, 3, 4), bool).at[:, 2].set(False)
    keep = jnp.asarray([0, 1])

    @jax.jit
    def program(x, mask):
        def total(variables, x):
            out, after = layer(variables, x, mask=mask)
            return jnp.sum(out[:, keep] ** 3), (out, after)

        return jax.grad(total, (0, 1), has_aux=True)(layer.variables, x)

    (by_variables, by_x), (out, after) = program(x, mask)
    for junk in (jnp.nan, jnp.inf):
        slopes, (other, then) = program(x.at[:, 2].set(junk), mask)
        np.testing.assert_array_equal(other[:, keep], out[:, keep])
        np.testing.assert_array_equal(slopes[1][:, 2], 0)
        assert_close((slopes[0], then), (by_variables, after), 0, 1e-6)
        np.testing.assert_allclose(slopes[1][:, keep], by_x[:, keep], atol=1e-6)
    _, (nothing, kept) = program(x * jnp.nan, jnp.zeros_like(mask))
    np.testing.assert_array_equal(nothing, 0)
    if name == "BatchNorm":
        assert all(np.isin(kept[k].get_value(), [0, 1]).all() for k in ("mean", "var"))


def test_nan_comes_out():
    layers = {name: Layer("nnx", name, features=8192) for name in NORMS}
    x = jnp.ones((2, 1, 8192)).at[0, 0, 5000].set(jnp.nan)
    variables = {name: layer.variables for name, layer in layers.items()}
    got = jax.jit(lambda v, x: {n: f(v[n], x) for n, f in layers.items()})(variables, x)
    for out, _ in got.values():
        assert jnp.isnan(out[0, 0, 5000])
        assert jnp.isfinite(out[1, 0, 0])
    after = jax.tree.leaves(got["BatchNorm"][1])
    assert any(np.isnan(leaf).any() for leaf in after)


@pytest.mark.several_devices
def test_features_on_several_devices():
    x = batch(4, 6, 8)  # the first axis stands for the devices
    near = Layer("linen", "LayerNorm", features=8)
    near.layer = near.layer.clone(axis_name="device")
    far = Layer("linen", "LayerNorm", features=32)
    local = jax.vmap(lambda part: near(near.variables, part)[0], axis_name="device")
    got = jax.jit(local)(x).swapaxes(0, 1).reshape(6, 32)
    want, _ = jax.jit(far)(far.variables, x.swapaxes(0, 1).reshape(6, 32))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.several_devices
def test_a_batch_on_several_devices():
    near = Layer("nnx", "BatchNorm", axis_name="device")
    far, x = Layer("nnx", "BatchNorm"), batch(8, 4)
    mesh = jax.make_mesh((4,), ("device",), axis_types=(AxisType.Auto,))
    here, everywhere = PartitionSpec("device"), PartitionSpec()
    sharded = jax.shard_map(
        near, mesh=mesh, in_specs=(everywhere, here), out_specs=(here, everywhere)
    )
    got = out_and_gradients(sharded, near.variables, x)
    assert_close(got, out_and_gradients(far, far.variables, x))


@pytest.mark.slow
@every_api
def test_attention_equals_flax(api):
    x, mask = batch(2, 3, 16), jnp.tri(3, dtype=bool)[None, None]
    options = {"normalize_qk": True, "decode": False, "features": 16}
    ours = Layer(api, "MultiHeadAttention", **options)
    theirs = Layer(api, "MultiHeadAttention", safe=False, **options)
    assert_close(ours.variables, theirs.variables, 0, 0)
    got = out_and_gradients(ours, theirs.variables, x, mask=mask)
    want = out_and_gradients(theirs, theirs.variables, x, mask=mask)
    assert_close(got, want, rtol=1e-4, atol=5e-5)


@pytest.mark.slow
def test_dropout_and_grouped_heads_equal_flax():
    x = batch(2, 3, 4)
    for pair in ((safe_nnx, nnx), (safe_linen, linen)):
        heads = jnp.split(x.reshape(2, 3, 2, 2), 1)[0]
        key = jax.random.key(3)
        for broadcast in (True, False):
            got, want = (
                jax.jit(
                    functools.partial(
                        api.dot_product_attention,
                        dropout_rng=key,
                        dropout_rate=0.5,
                        broadcast_dropout=broadcast,
                    )
                )(heads, heads, heads)
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
