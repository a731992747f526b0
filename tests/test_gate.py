"""The gate: norm and flag in one pass, at any magnitude, against float64."""

import hypothesis
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from jaxsafe import _gate, _tree, transforms
from tests.lowering import count_conditionals, lower

BOTH = [lambda f: f, jax.jit]


_JUDGE = jax.jit(_gate.judge)


def true_norm(values):
    return float(np.linalg.norm(np.asarray(values, np.float64)))


@pytest.mark.parametrize("compiled", BOTH, ids=["eager", "jit"])
@pytest.mark.parametrize(
    "values",
    [[3.0, 4.0], [1e20, 1e20], [3e30, 4e30], [1e-30, 2e-30], [2e-38, 0.0], [0.0, 0.0]],
)
def test_norm_neither_overflows_nor_vanishes(compiled, values):
    verdict = compiled(_gate.judge)({"w": jnp.asarray(values, jnp.float32)})
    assert bool(verdict.ok)
    np.testing.assert_allclose(float(verdict.norm), true_norm(values), rtol=3e-7)


@pytest.mark.parametrize("compiled", BOTH, ids=["eager", "jit"])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_clip_gives_a_unit_vector_from_the_largest_numbers(compiled, dtype):
    g = jnp.full((3,), jnp.finfo(dtype).max, dtype)
    clipped, flag = compiled(lambda g: _gate.clip(g, _gate.judge(g), 1.0))(g)
    assert bool(flag)
    assert clipped.dtype == dtype
    np.testing.assert_allclose(
        np.asarray(clipped, np.float64), 3**-0.5, rtol=2 * float(jnp.finfo(dtype).eps)
    )


def test_norm_of_many_half_precision_leaves_is_accumulated_in_float32():
    # optax adds the leaves up in bfloat16 and arrives at 16
    tree = [jnp.ones((1,), jnp.bfloat16)] * 1000
    assert float(_gate.judge(tree).norm) == pytest.approx(1000**0.5, rel=1e-6)


@hypothesis.given(
    st.lists(st.integers(0, 2**32 - 1), min_size=6, max_size=6).map(
        lambda bits: np.asarray(bits, np.uint32).view(np.float32)
    )
)
def test_flag_and_norm_for_any_bits(x):
    verdict = _JUDGE(jnp.asarray(x))
    assert bool(verdict.ok) == bool(np.isfinite(x).all())
    if verdict.ok:
        tiny = np.finfo(np.float32).tiny
        flushed = np.where(np.abs(x) < tiny, 0, x)  # XLA on CPU flushes subnormals
        lowest, highest = true_norm(flushed), true_norm(x)
        largest = float(np.finfo(np.float32).max)
        assert float(verdict.norm) <= min(highest * (1 + 1e-6), largest) + tiny
        assert float(verdict.norm) >= min(lowest * (1 - 1e-6), largest) - tiny


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_first_bad_leaf_is_named_among_all_leaves(bad):
    tree = {"a": jnp.ones(3), "b": jnp.arange(2), "c": jnp.asarray([1.0, bad])}
    verdict = _gate.judge(tree)
    assert not bool(verdict.ok)
    assert _tree.leaf_path(tree, int(verdict.bad_leaf)) == "['c']"


def test_a_nan_among_many_entries_is_seen():
    # a float32 maximum over this array loses the NaN on XLA:CPU
    x = jnp.zeros((64, 64)).at[3, 5].set(jnp.nan)
    assert not bool(jax.jit(_gate.judge)(x).ok)
    assert not bool(jax.jit(_tree.all_finite)(x))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
@pytest.mark.parametrize("shape", [(), (3,), (70,), (64, 64), (3, 5000), (2, 3, 4, 65)])
def test_a_lone_bad_entry_is_seen_and_a_large_one_is_not_bad(dtype, shape):
    most = 0.9 * float(jnp.finfo(dtype).max)
    x = jnp.full(shape, most, dtype)
    look = jax.jit(_tree.all_finite)
    assert bool(look(x))
    assert bool(look(-x))
    last = tuple(n - 1 for n in shape)
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        assert not bool(look(x.at[last].set(bad)))


def test_the_loss_counts_too():
    grads = jnp.ones(2)
    assert bool(_gate.judge(grads, value=jnp.asarray(1.0)).ok)
    assert not bool(_gate.judge(grads, value=jnp.asarray(jnp.inf)).ok)
    assert not bool(_gate.judge(grads, also=jnp.asarray(False)).ok)


@pytest.mark.parametrize("tree", [{}, {"n": jnp.arange(3)}, [None]])
def test_a_tree_without_floats_is_finite_and_has_norm_zero(tree):
    verdict = _gate.judge(tree)
    assert bool(verdict.ok)
    assert float(verdict.norm) == 0.0
    assert int(verdict.bad_leaf) == -1


def test_complex_and_float64_leaves():
    assert float(_gate.judge(jnp.asarray([3 + 4j])).norm) == pytest.approx(5.0)
    with jax.enable_x64(True):
        g = jnp.asarray([3e200, 4e200])
        clipped, _ = _gate.clip(g, _gate.judge(g), 1.0)
        np.testing.assert_allclose(np.asarray(clipped), [0.6, 0.8], rtol=1e-15)


def test_float8_leaves_are_checked():
    bad = np.asarray([1.0, np.nan], ml_dtypes.float8_e4m3fn)
    assert not bool(_tree.all_finite(jnp.asarray(bad)))
    assert bool(_tree.all_finite(jnp.asarray(bad[:1])))


def test_only_the_cpu_program_has_a_conditional():
    x = jnp.ones((4,))
    assert count_conditionals(lower(_gate.judge, "cpu", x)) == 1
    for platform in ("cuda", "tpu"):
        assert count_conditionals(lower(_gate.judge, platform, x)) == 0


# A single number of 1e30: XLA rewrites (x c)(x c) to (x x)(c c), infinity times 0.
NUMBERS = [[3.0, 4.0], [3e38, 3e38], [1e30], [1e-30, 2e-30], [0.0], [np.nan, 1.0]]


@pytest.fixture
def elsewhere(monkeypatch):
    """What GPU and TPU run, run here."""
    monkeypatch.setattr(
        _gate.lax,
        "platform_dependent",
        lambda *args, default, **_: default(*args),
    )


@pytest.mark.parametrize("compiled", BOTH, ids=["eager", "jit"])
@pytest.mark.parametrize("values", NUMBERS)
def test_all_scales_in_one_pass_gives_the_same_norm(compiled, values, request):
    expected = _gate.judge(jnp.asarray(values))
    request.getfixturevalue("elsewhere")
    got = compiled(lambda x: _gate.judge(x))(jnp.asarray(values))
    assert bool(got.ok) == bool(expected.ok)
    assert int(got.bad_leaf) == int(expected.bad_leaf)
    np.testing.assert_allclose(got.norm, expected.norm, rtol=1e-6)


@pytest.mark.parametrize("power", range(-30, 31, 10))
@pytest.mark.parametrize("compiled", BOTH, ids=["eager", "jit"])
def test_one_pass_is_accurate_from_1e_30_to_1e30(compiled, power, elsewhere):
    values = np.random.default_rng(0).normal(size=4096) * 10.0**power
    got = compiled(lambda x: _gate.judge(x))(jnp.asarray(values, jnp.float32))
    np.testing.assert_allclose(got.norm, true_norm(np.float32(values)), rtol=1e-6)


@pytest.mark.parametrize("nonfinite", ["keep", "zero"])
@pytest.mark.several_devices
def test_a_clip_of_sharded_leaves_costs_one_all_reduce_as_optax_s(nonfinite, elsewhere):
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:4]), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    grads = jax.device_put({"w": jnp.ones((8, 2)), "b": jnp.ones(4)}, rows)

    def all_reduces(tx):
        update = jax.jit(lambda g, s: tx.update(g, s))
        compiled = update.lower(grads, tx.init(grads)).compile()
        return compiled.as_text().count(" all-reduce(")

    ours = transforms.clip_by_global_norm(1.0, nonfinite=nonfinite)
    assert all_reduces(ours) == all_reduces(optax.clip_by_global_norm(1.0)) == 1


def test_non_finite_entries_are_counted_alike_elsewhere(elsewhere):
    x = jnp.ones(5000).at[jnp.arange(1, 4000, 2)].set(jnp.nan)
    for verdict in (None, _gate.judge(x)):
        count = _gate.count_nonfinite(x, verdict)
        assert (int(count), count.dtype) == (2000, jnp.int32)


def leaf_norms(leaves):
    lengths, scales = _gate.leaf_lengths(leaves)
    return _gate.norm_of(lengths, scales)


@pytest.mark.parametrize("here", [True, False], ids=["cpu", "elsewhere"])
@pytest.mark.parametrize("compiled", BOTH, ids=["eager", "jit"])
def test_leaf_norms(compiled, here, request):
    if not here:
        request.getfixturevalue("elsewhere")
    leaves = [jnp.asarray(v, jnp.float32) for v in NUMBERS]
    got = compiled(lambda leaves: leaf_norms(leaves))(leaves)
    most = float(jnp.finfo(jnp.float32).max)
    want = [min(true_norm(np.asarray(x)), most) for x in leaves]
    np.testing.assert_allclose(got, [*want[:-1], np.nan], rtol=1e-6)


def test_select_takes_one_or_the_other_and_never_mixes():
    old = {"w": jnp.asarray([1.0, 2.0]), "key": jax.random.key(0), "n": 3}
    new = {"w": jnp.asarray([jnp.nan, 5.0]), "key": jax.random.key(1), "n": 4}
    kept = _tree.select(jnp.asarray(False), new, old)
    np.testing.assert_array_equal(kept["w"], [1.0, 2.0])
    assert kept["key"] == jax.random.key(0)
    assert int(kept["n"]) == 3
    taken = _tree.select(jnp.asarray(True), old, new)
    np.testing.assert_array_equal(taken["w"], [1.0, 2.0])


def test_select_refuses_a_state_that_changed():
    ok = jnp.asarray(True)
    with pytest.raises(ValueError, match=r"leaf \['w'\] changed its shape or dtype"):
        _tree.select(ok, {"w": jnp.ones(2, jnp.bfloat16)}, {"w": jnp.ones(2)})
    with pytest.raises(ValueError, match="another structure"):
        _tree.select(ok, {"w": jnp.ones(2), "more": 1.0}, {"w": jnp.ones(2)})


def test_small_and_large_leaves_side_by_side_name_the_bad_one():
    def leaf(size):
        return jnp.linspace(-1, 1, size, dtype=jnp.float32)

    sizes = (3, 20_000, 0, 5, 1, 30_000, 7)
    parts = [leaf(n) for n in sizes]
    exact = np.sqrt(sum(float((np.asarray(x, np.float64) ** 2).sum()) for x in parts))
    assert float(jax.jit(_gate.judge)(parts).norm) == pytest.approx(exact, rel=1e-6)
    for i, n in enumerate(sizes):
        for at in {0, n - 1} if n else ():
            for bad in (jnp.nan, jnp.inf, -jnp.inf):
                hurt = [*parts[:i], parts[i].at[at].set(bad), *parts[i + 1 :]]
                verdict = jax.jit(_gate.judge)(hurt)
                assert verdict.bad_leaves.tolist() == [k == i for k in range(7)]
                assert not verdict.ok


@pytest.mark.several_devices
def test_leaves_that_are_sharded_by_type_are_left_alone():
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        spread = jax.device_put(jnp.ones((8, 3)), P("x", None))
        grads = {"a": spread, "b": jnp.full((5,), 2.0)}
        assert float(jax.jit(_gate.judge)(grads).norm) == pytest.approx(44**0.5)
