"""Clipping by value, block, unit, example: as optax where that is right."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsafe import transforms
from tests.lowering import lower

CLIPS = {
    "clip": lambda **o: transforms.clip(1.0, **o),
    "global": lambda **o: transforms.clip_by_global_norm(1.0, **o),
    "block": lambda **o: transforms.clip_by_block_norm(1.0, **o),
    "unit": lambda **o: transforms.adaptive_grad_clip(0.1, **o),
    "zscore": lambda **o: transforms.clip_spikes(**o),
    "per_leaf": lambda **o: transforms.clip_spikes("per_leaf", **o),
}
every_clip = pytest.mark.parametrize("make", CLIPS.values(), ids=CLIPS)


def tree(key, scale=1.0, dtype=jnp.float32):
    keys = jax.random.split(key, 3)
    return {
        "w": (scale * jax.random.normal(keys[0], (4, 3))).astype(dtype),
        "b": (scale * jax.random.normal(keys[1], (3,))).astype(dtype),
        "k": (scale * jax.random.normal(keys[2], (2, 2, 3, 2))).astype(dtype),
    }


def apply(tx, grads, params=None):
    params = grads if params is None else params
    return jax.jit(lambda g, p: tx.update(g, tx.init(p), p))(grads, params)


def close(ours, theirs, rtol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol), ours, theirs)


class TestEveryClip:
    @every_clip
    def test_keeps_structure_dtypes_none_and_integers(self, make, getkey):
        params = tree(getkey(), dtype=jnp.bfloat16) | {"none": None, "n": jnp.arange(2)}
        updates, state = apply(make(), params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        assert updates["w"].dtype == jnp.bfloat16
        np.testing.assert_array_equal(updates["n"], [0, 1])
        same = jax.tree.map(lambda a, b: a.dtype == b.dtype, state, make().init(params))
        assert all(jax.tree.leaves(same))

    @every_clip
    def test_scans_donates_and_compiles_to_the_same(self, make, getkey):
        grads = [tree(getkey(), scale) for scale in (0.01, 1.0, 30.0)]
        tx, params = make(), grads[0]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *grads)

        def step(state, g):
            updates, state = tx.update(g, state, params)
            return state, updates

        scanned_state, scanned = jax.lax.scan(step, tx.init(params), stacked)
        jitted = jax.jit(tx.update, donate_argnums=1)
        state = tx.init(params)
        for i, g in enumerate(grads):
            updates, state = jitted(g, state, params)
            close(updates, jax.tree.map(lambda x, i=i: x[i], scanned), 1e-5)
        close(state, scanned_state, 1e-5)

    @every_clip
    def test_keeps_non_finite_entries_and_counts_them(self, make):
        grads = {"a": jnp.asarray([jnp.nan, jnp.inf, 0.001]), "b": jnp.ones(2) * 0.001}
        updates, state = apply(make(), grads, jax.tree.map(jnp.ones_like, grads))
        np.testing.assert_array_equal(updates["a"], grads["a"])
        counted = [v for k, v in state._asdict().items() if k.endswith("_nonfinite")]
        assert [int(n) for n in counted] == [2]

    @every_clip
    def test_zeroes_non_finite_entries_before_anything_else(self, make):
        grads = {"a": jnp.asarray([jnp.nan, -jnp.inf, 3.0]), "b": jnp.ones(2)}
        clean = {"a": jnp.asarray([0.0, 0.0, 3.0]), "b": jnp.ones(2)}
        updates, state = apply(make(nonfinite="zero"), grads, clean)
        close(updates, apply(make(), clean, clean)[0])
        counted = [v for k, v in state._asdict().items() if k.endswith("_nonfinite")]
        assert [int(n) for n in counted] == [2]

    @every_clip
    def test_huge_finite_gradients_give_finite_updates(self, make):
        for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
            most = jnp.finfo(dtype).max
            grads = {
                "a": jnp.full((3,), most, dtype),
                "b": jnp.full((2, 2), -most, dtype),
            }
            updates, state = apply(make(), grads, jax.tree.map(jnp.ones_like, grads))
            for leaf in jax.tree.leaves(updates):
                assert np.isfinite(np.asarray(leaf, np.float32)).all()
                assert np.asarray(leaf, np.float32).any()  # not the zeros of optax
            shortened = [v for k, v in state._asdict().items() if k.endswith("_count")]
            assert [int(n) for n in shortened] == [1]

    @every_clip
    def test_empty_tree_and_tree_without_floats(self, make):
        for params in ({}, {"n": jnp.arange(3)}):
            updates, _ = apply(make(), params)
            assert jax.tree.structure(updates) == jax.tree.structure(params)

    @every_clip
    @pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
    def test_lowers(self, make, platform):
        grads = {"a": jnp.ones((8,), jnp.bfloat16), "b": jnp.ones((2, 3))}
        program = lower(lambda g: apply(make(), g)[0], platform, grads)
        assert "func.func public @main" in program

    @every_clip
    def test_refuses_an_unknown_policy(self, make):
        with pytest.raises(ValueError, match="nonfinite must be one of"):
            make(nonfinite="ignore")

    @every_clip
    def test_names_are_found_in_a_chain_of_all(self, make):
        chain = optax.chain(
            *(c() for c in CLIPS.values() if c is not CLIPS["per_leaf"])
        )
        state = chain.init(jnp.ones(3))
        own = make().init(jnp.ones(3))._asdict()
        for name in own:
            assert optax.tree.get(state, name) is not None


def test_clip_is_optax_clip_for_finite_numbers(getkey):
    grads = tree(getkey(), 3.0)
    ours, state = apply(transforms.clip(1.0), grads)
    close(ours, apply(optax.clip(1.0), grads)[0], 0)
    assert bool(state.clip_value_clipped)
    np.testing.assert_allclose(state.clip_value_norm, optax.tree.norm(grads), 1e-6)
    _, state = apply(transforms.clip(100.0), grads)
    assert not bool(state.clip_value_clipped)


def test_optax_clip_hides_an_infinity():
    g = jnp.asarray([jnp.inf, 0.5])
    assert float(apply(optax.clip(1.0), g)[0][0]) == 1.0
    assert float(apply(transforms.clip(1.0), g)[0][0]) == np.inf


def test_clip_cuts_both_parts_of_a_complex_number():
    updates, _ = apply(transforms.clip(1.0), jnp.asarray([3 - 4j, 0.5 + 0.2j]))
    np.testing.assert_allclose(updates, [1 - 1j, 0.5 + 0.2j])


def test_block_norm_against_numpy(getkey):
    grads = tree(getkey(), 0.3)
    ours, state = apply(transforms.clip_by_block_norm(1.0), grads)
    norms = {k: np.linalg.norm(np.asarray(g, np.float64)) for k, g in grads.items()}
    close(ours, {k: g / max(norms[k], 1.0) for k, g in grads.items()})
    assert int(state.clip_block_clipped) == sum(n > 1 for n in norms.values())
    np.testing.assert_allclose(state.clip_block_norm, max(norms.values()), 1e-6)


def test_block_norm_leaves_other_blocks_alone():
    grads = {
        "huge": jnp.full((2,), 3e30),
        "nan": jnp.asarray([jnp.nan]),
        "b": jnp.ones(1),
    }
    ours, _ = apply(transforms.clip_by_block_norm(1.0), grads)
    np.testing.assert_allclose(ours["huge"], 2**-0.5 * np.ones(2), 1e-6)
    assert float(ours["b"][0]) == 1.0
    theirs, _ = apply(optax.clip_by_block_rms(1.0), {"huge": grads["huge"]})
    assert not np.asarray(theirs["huge"]).any()


def test_unit_clip_is_optax_where_that_is_right(getkey):
    params, grads = tree(getkey()), tree(getkey(), 0.3)
    for clipping in (0.01, 0.3, 3.0):
        ours, _ = apply(transforms.adaptive_grad_clip(clipping), grads, params)
        theirs, _ = apply(optax.adaptive_grad_clip(clipping), grads, params)
        close(ours, theirs, 2e-6)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 5), (2, 3, 4), (2,) * 5])
def test_unit_clip_has_optax_units(getkey, shape):
    params = jax.random.normal(getkey(), shape)
    grads = 10 * jax.random.normal(getkey(), shape)
    ours, state = apply(transforms.adaptive_grad_clip(0.1), grads, params)
    theirs, _ = apply(optax.adaptive_grad_clip(0.1), grads, params)
    close(ours, theirs, 2e-6)
    assert int(state.agc_clipped) >= 1


def test_unit_clip_of_more_axes_wants_to_know_them(getkey):
    x = jax.random.normal(getkey(), (2,) * 6)
    with pytest.raises(ValueError, match=r"adaptive_grad_clip: .* Pass the axes"):
        apply(transforms.adaptive_grad_clip(0.1), x)
    ours, _ = apply(transforms.adaptive_grad_clip(0.1, axis=(0, 1)), x)
    close(ours, apply(optax.adaptive_grad_clip(0.1, axis=(0, 1)), x)[0], 2e-6)


def test_unit_clip_of_complex_parameters(getkey):
    params = jax.random.normal(getkey(), (3, 2)) + 1j
    grads = jax.random.normal(getkey(), (3, 2)) * (1 - 2j)
    ours, _ = apply(transforms.adaptive_grad_clip(0.1), grads, params)
    close(ours, apply(optax.adaptive_grad_clip(0.1), grads, params)[0], 2e-6)


def test_unit_clip_needs_parameters():
    tx = transforms.adaptive_grad_clip(0.1)
    with pytest.raises(ValueError, match=r"the parameters are needed .* Call update"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_per_example_clip_against_optax(getkey):
    batch = {"w": jax.random.normal(getkey(), (5, 4, 3)), "b": jnp.ones((5, 3))}
    params = jax.tree.map(lambda x: x[0], batch)
    ours, state = apply(transforms.per_example_clip(2.0), batch, params)
    theirs, clipped = optax.per_example_global_norm_clip(jax.tree.leaves(batch), 2.0)
    for mine, total in zip(jax.tree.leaves(ours), theirs, strict=True):
        np.testing.assert_allclose(mine, total / 5, 1e-5, 1e-6)
    assert int(state.example_clipped) == int(clipped)


def test_per_example_clip_drops_the_bad_and_averages_the_rest():
    batch = jnp.asarray([[0.3, 0.4], [jnp.nan, 1.0], [3e38, 3e38], [jnp.inf, 0.0]])
    tx = transforms.per_example_clip(1.0, nonfinite="drop")
    ours, state = jax.jit(tx.update)(batch, tx.init(batch[0]))
    np.testing.assert_allclose(ours, [(0.3 + 0.5**0.5) / 2, (0.4 + 0.5**0.5) / 2], 1e-6)
    assert (int(state.example_nonfinite), int(state.example_clipped)) == (2, 1)
    kept, _ = apply(transforms.per_example_clip(1.0), batch, batch[0])
    assert np.isnan(np.asarray(kept)).any()


def test_per_example_clip_of_nothing_good_is_zero():
    batch = jnp.full((3, 2), jnp.nan)
    tx = transforms.per_example_clip(1.0, nonfinite="drop")
    np.testing.assert_array_equal(
        jax.jit(tx.update)(batch, tx.init(batch[0]))[0], [0, 0]
    )


def test_per_example_clip_sums_half_precision_in_float32():
    batch = jnp.full((4096, 1), 0.25, jnp.float16)
    ours, _ = apply(transforms.per_example_clip(1.0), batch, batch[0])
    assert float(ours[0]) == 0.25  # a float16 sum stops growing


@pytest.mark.parametrize("shapes", [[(3, 2), (4, 2)], [(0, 2)], [()]])
def test_per_example_clip_wants_one_axis_of_examples(shapes):
    grads = [jnp.ones(shape) for shape in shapes]
    with pytest.raises(ValueError, match="share a first axis of at least one example"):
        apply(transforms.per_example_clip(1.0), grads)
