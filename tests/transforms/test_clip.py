"""clip_by_global_norm: right where optax's is, and where it is not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsafe import transforms
from tests.lowering import lower


def clip(grads, max_norm=1.0, **options):
    tx = transforms.clip_by_global_norm(max_norm, **options)
    return tx.update(grads, tx.init(grads))


def test_equal_to_optax_where_optax_is_right(getkey):
    grads = {
        "w": jax.random.normal(getkey(), (5, 3)) * 10,
        "b": jax.random.normal(getkey(), (3,)),
    }
    for max_norm in (0.1, 1.0, 1e3):
        ours, _ = clip(grads, max_norm)
        theirs, _ = optax.clip_by_global_norm(max_norm).update(
            grads, optax.EmptyState()
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-6), ours, theirs)


def test_a_short_gradient_comes_back_bit_by_bit(getkey):
    grads = jax.random.normal(getkey(), (100,)) * 1e-3
    ours, state = jax.jit(lambda g: clip(g))(grads)
    np.testing.assert_array_equal(ours, grads)
    assert int(state.clip_count) == 0


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([1e20, 1e20], jnp.float32), ([300.0, 300.0], jnp.float16)],
)
def test_unit_vector_where_optax_silently_gives_zeros(values, dtype):
    grads = jnp.asarray(values, dtype)
    theirs, _ = optax.clip_by_global_norm(1.0).update(grads, optax.EmptyState())
    assert not np.asarray(theirs).any()
    ours, state = clip(grads)
    np.testing.assert_allclose(np.asarray(ours, np.float32), 2**-0.5, rtol=1e-3)
    np.testing.assert_allclose(state.clip_norm, 2**0.5 * values[0], rtol=1e-6)
    assert int(state.clip_count) == 1


def test_one_infinity_keeps_the_others_and_is_counted():
    grads = {"a": jnp.asarray([jnp.inf, 1.0]), "b": jnp.asarray([2.0])}
    theirs, _ = optax.clip_by_global_norm(1.0).update(grads, optax.EmptyState())
    assert float(theirs["b"][0]) == 0.0  # optax loses it
    kept, state = clip(grads)
    np.testing.assert_array_equal(kept["a"], [np.inf, 1.0])
    assert float(kept["b"][0]) == 2.0
    assert int(state.clip_nonfinite) == 1
    zeroed, state = clip(grads, nonfinite="zero")
    np.testing.assert_allclose(zeroed["a"], [0.0, 5**-0.5], rtol=1e-6)
    np.testing.assert_allclose(zeroed["b"], [2 * 5**-0.5], rtol=1e-6)
    assert int(state.clip_nonfinite) == 1


def test_result_norm_stays_within_the_stated_error(getkey):
    for power in (-30, -10, 0, 10, 30):
        grads = jax.random.normal(getkey(), (1000,)) * 10.0**power
        ours, _ = clip(grads, 1e-3)
        norm = np.linalg.norm(np.asarray(ours, np.float64))
        assert norm <= 1e-3 * (1 + 1e-6)


def test_state_has_one_structure_and_scans():
    tx = transforms.clip_by_global_norm(1.0)
    grads = jnp.asarray([[3.0, 4.0], [0.1, 0.1], [jnp.nan, 1.0]])

    def step(state, g):
        updates, state = tx.update(g, state)
        return state, updates

    state, _ = jax.lax.scan(step, tx.init(grads[0]), grads)
    assert int(state.clip_count) == 1
    assert int(state.clip_nonfinite) == 1


def test_lives_in_a_chain_with_masked_none_and_integer_leaves():
    params = {"w": jnp.ones(2), "frozen": None, "n": jnp.arange(2)}
    tx = optax.chain(
        transforms.clip_by_global_norm(1.0), optax.masked(optax.scale(-1.0), True)
    )
    grads = {"w": jnp.asarray([3.0, 4.0]), "frozen": None, "n": jnp.arange(2)}
    updates, state = jax.jit(tx.update)(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], [-0.6, -0.8], rtol=1e-6)
    assert updates["frozen"] is None
    assert float(optax.tree.get(state, "clip_norm")) == pytest.approx(5.0)


def test_vmap_clips_each_member_on_its_own():
    grads = jnp.asarray([[3.0, 4.0], [1e20, 0.0], [0.1, 0.0]])
    ours, _ = jax.vmap(clip)(grads)
    np.testing.assert_allclose(ours, [[0.6, 0.8], [1.0, 0.0], [0.1, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_lowers_everywhere(platform, dtype):
    grads = jnp.ones((8,), dtype)
    assert "func.func public @main" in lower(lambda g: clip(g)[0], platform, grads)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_refuses_a_limit_that_is_none(bad):
    with pytest.raises(
        ValueError, match=r"clip_by_global_norm: max_norm must be .* Pass"
    ):
        transforms.clip_by_global_norm(bad)


def test_refuses_an_unknown_policy():
    with pytest.raises(ValueError, match=r"nonfinite must be one of 'keep', 'zero'"):
        transforms.clip_by_global_norm(1.0, nonfinite="drop")
