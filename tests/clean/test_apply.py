"""The half that runs on the device: finite for all bits, under every transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxsafe import clean

_BITS = {"float16": np.uint16, "bfloat16": np.uint16, "float32": np.uint32}


@pytest.fixture(name="x")
def _x():
    rng = np.random.default_rng(3)
    x = (5 + rng.standard_normal((64, 4))).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = np.nan
    x[0] = [np.inf, -np.inf, -999.0, np.nan]
    return x


@pytest.fixture(name="cleaner")
def _cleaner(x):
    return clean.fit(x, missing=(-999.0,), outliers=2.0)


def _numbers_of(bits, dtype):
    return jax.lax.bitcast_convert_type(jnp.asarray(bits), jnp.dtype(dtype))


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        *((dtype, {"outliers": 3.0}) for dtype in _BITS),
        ("float32", {}),
        ("float16", {"scale": None}),
    ],
    ids=str,
)
@given(data=st.data())
def test_finite_whatever_the_bits(dtype, options, data):
    unsigned = _BITS[dtype]
    words = st.integers(0, np.iinfo(unsigned).max)
    fitted, seen = (
        data.draw(hnp.arrays(unsigned, (4, 3), elements=words)) for _ in range(2)
    )
    cleaner = clean.fit(_numbers_of(fitted, dtype), **options)
    for leaf in jax.tree.leaves(cleaner):
        assert bool(jnp.isfinite(leaf).all())
    for bits in (fitted, seen):
        out = clean.apply(cleaner, _numbers_of(bits, dtype))
        assert out.dtype == jnp.dtype(dtype)
        assert bool(jnp.isfinite(out).all()), out


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("fitted", [[-1.0, 1.0], [1e-6, -1e-6], [2e4, 6e4]], ids=str)
def test_finite_for_all_numbers_of_half_precision(dtype, fitted):
    every = _numbers_of(np.arange(2**16, dtype=np.uint16), dtype)[:, None]
    cleaner = clean.fit(jnp.asarray(fitted, dtype)[:, None])
    out = jax.jit(clean.apply)(cleaner, every)
    assert bool(jnp.isfinite(out).all())
    # A number that is not missing stands where exact arithmetic puts it.
    assert int(clean.fit(every).count[0]) == int(jnp.isfinite(every).sum())
    with np.errstate(invalid="ignore"):
        wide = np.asarray(every, np.float64)
        z = (wide - float(cleaner.mean[0])) / float(cleaner.std[0])
    limit = float(jnp.finfo(dtype).max)
    expected = np.where(np.isfinite(wide), np.clip(z, -limit, limit), 0)
    np.testing.assert_allclose(
        np.asarray(out, np.float64),
        expected,
        rtol=1.01 * float(jnp.finfo(dtype).eps) / 2,
        atol=2e-7,
    )


def test_jitted_is_eager(cleaner, x):
    eager = clean.apply(cleaner, x)
    np.testing.assert_array_equal(jax.jit(clean.apply)(cleaner, x), eager)
    closed = jax.jit(lambda x: clean.apply(cleaner, x))(x)
    np.testing.assert_array_equal(closed, eager)


def test_one_compilation_serves_two_fits(x):
    traced = []

    @jax.jit
    def run(cleaner, x):
        traced.append(1)
        return clean.apply(cleaner, x)

    run(clean.fit(x), x)
    run(clean.fit(x + 1), x)
    assert len(traced) == 1


def test_vmap_over_rows_and_over_cleaners(cleaner, x):
    expected = clean.apply(cleaner, x)
    rows = jax.vmap(clean.apply, in_axes=(None, 0))(cleaner, x)
    np.testing.assert_array_equal(rows, expected)
    other = clean.fit(x + 1, missing=(-999.0,), outliers=2.0)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), cleaner, other)
    out = jax.vmap(clean.apply, in_axes=(0, None))(both, x)
    np.testing.assert_array_equal(out[0], expected)
    np.testing.assert_array_equal(out[1], clean.apply(other, x))


def test_leading_axes_are_free(cleaner, x):
    cube = x.reshape(4, 16, 4)
    np.testing.assert_array_equal(
        clean.apply(cleaner, cube).reshape(x.shape), clean.apply(cleaner, x)
    )


def test_masked_rows_are_zero_and_leak_neither_value_nor_gradient(cleaner, x):
    keep = np.arange(64) % 2 == 1
    out = clean.apply(cleaner, x, where=keep)
    np.testing.assert_array_equal(out[~keep], np.zeros((32, 4)))
    np.testing.assert_array_equal(out[keep], clean.apply(cleaner, x)[keep])
    grad = jax.grad(lambda x: clean.apply(cleaner, x, where=keep).sum())(x)
    np.testing.assert_array_equal(grad[~keep], np.zeros((32, 4)))
    assert bool((grad[keep] != 0).any())


def test_gradient_is_finite_and_zero_where_filled_or_clipped(cleaner, x):
    grad = jax.grad(lambda x: clean.apply(cleaner, x).sum())(x)
    z = (x - np.asarray(cleaner.mean)) / np.asarray(cleaner.std)
    with np.errstate(invalid="ignore"):
        inside = np.isfinite(x) & (x != -999.0) & (np.abs(z) < 2)
    slope = np.broadcast_to(1 / np.asarray(cleaner.std), x.shape)
    np.testing.assert_allclose(grad, np.where(inside, slope, 0), rtol=1e-6)


def test_huge_input_has_finite_value_and_gradient():
    cleaner = clean.fit(np.asarray([[1e-30], [-1e-30]], np.float32))
    value, grad = jax.value_and_grad(lambda x: clean.apply(cleaner, x).sum())(
        np.asarray([[3e38]], np.float32)
    )
    assert float(value) == float(jnp.finfo(jnp.float32).max)
    assert grad.tolist() == [[0.0]]


@pytest.mark.parametrize("impute", ["mean", "zero", "median"])
def test_cleaning_twice_changes_nothing(impute, x):
    unscaled = clean.fit(x, impute=impute, scale=None, missing=(-999.0,))
    once = clean.apply(unscaled, x)
    np.testing.assert_array_equal(clean.apply(unscaled, once), once)

    once = clean.apply(clean.fit(once), once)
    twice = clean.apply(clean.fit(once), once)
    np.testing.assert_allclose(twice, once, rtol=0, atol=1e-6)


def test_mean_filling_is_exactly_zero_after_scaling():
    column = 1e6 + np.random.default_rng(4).standard_normal(99)
    x = np.append(column, np.nan).astype(np.float32)[:, None]
    assert float(clean.apply(clean.fit(x), x)[-1, 0]) == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.bool_])
def test_integers_come_out_as_float32(dtype):
    cleaner = clean.fit(np.asarray([[0.0], [1.0]]))
    out = clean.apply(cleaner, np.asarray([[0], [1]], dtype))
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, [[-1.0], [1.0]])


def test_float64_is_kept_where_jax_has_it():
    cleaner = clean.fit(np.asarray([[1.0], [3.0]]), missing=(-999.9,))
    wide = np.asarray([[1e300], [np.nan], [-999.9]])
    assert clean.apply(cleaner, wide).tolist() == [[0.0], [0.0], [0.0]]
    with jax.enable_x64(True):
        out = clean.apply(cleaner, wide)
    assert out.dtype == jnp.float64
    np.testing.assert_allclose(out, [[1e300], [0.0], [0.0]], rtol=1e-6)


def test_exports_for_every_platform(cleaner, x):
    def run(cleaner, x, keep):
        return clean.apply(cleaner, x, where=keep)

    exported = jax.export.export(jax.jit(run), platforms=("cpu", "cuda", "tpu"))(
        cleaner, x, np.ones(64, bool)
    )
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert "callback" not in exported.mlir_module()


@pytest.mark.parametrize("options", [{}, {"impute": "median", "indicator": True}])
def test_every_device_cleans_its_own_rows(options):
    x = np.random.default_rng(5).normal(3, 2, (4 * len(jax.devices()), 3))
    x = x.astype(np.float32)
    x[::3, 1], x[1, 2] = np.nan, np.inf
    keep = np.arange(len(x)) % 5 > 0
    cleaner = clean.fit(x, **options)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("rows",))
    spec = jax.sharding.PartitionSpec

    def run(cleaner, x, keep):
        return clean.apply(cleaner, x, where=keep)

    sharded = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(spec(), spec("rows"), spec("rows")),
        out_specs=spec("rows"),
    )
    out = jax.jit(sharded)(cleaner, x, keep)
    assert len(out.sharding.device_set) == len(jax.devices()) > 1
    expected = clean.apply(cleaner, x, where=keep)
    np.testing.assert_array_equal(out, expected)
    assert not bool(out[~keep].any())
    # Closed over, as a step that owns its cleaner does; and with its gate.
    gated = jax.shard_map(
        lambda x: clean.gate(clean.apply(cleaner, x)).weight,
        mesh=mesh,
        in_specs=spec("rows"),
        out_specs=spec("rows"),
    )
    np.testing.assert_array_equal(jax.jit(gated)(x), 1)
