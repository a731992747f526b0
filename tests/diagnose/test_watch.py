"""Headroom and its trend, against plain NumPy and against what then happens."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxsafe import _program, diagnose
from tests.lowering import count_conditionals, lower

DTYPES = ["float16", "bfloat16", "float32", "float8_e4m3fn", "float8_e5m2"]


def watched(trees, n=64):
    state = diagnose.init_watch(trees[0], n=n)
    for tree in trees:
        state = diagnose.watch(state, tree)
    return diagnose.headroom(state, trees[-1])


def geometric(count, ratio, start=1.0):
    return [{"w": jnp.float32(start * ratio**k)} for k in range(count)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (64, 64)])
def test_headroom_is_the_distance_to_the_largest_number(dtype, shape):
    x = jax.random.normal(jax.random.key(0), shape).astype(dtype)
    leaf = watched([{"x": x}]).nearest
    largest = np.abs(np.asarray(x, np.float64)).max()
    want = np.log2(float(jnp.finfo(dtype).max) / largest)
    assert (leaf.path, leaf.dtype, leaf.largest) == ("['x']", dtype, largest)
    assert leaf.headroom == pytest.approx(want, abs=1e-9)


def test_float64_and_complex():
    z = jnp.asarray([3.0 - 2.0**100 * 1j], jnp.complex64)
    assert watched([z]).nearest.headroom == pytest.approx(28.0)
    with jax.enable_x64(True):
        tree = {"a": jnp.float64(2.0**1000), "b": jnp.float32(1.0)}
        found = watched([tree])
        assert [leaf.path for leaf in found.leaves] == ["['a']", "['b']"]
        assert found.nearest.headroom == pytest.approx(24.0)
        assert found.leaves[1].headroom == pytest.approx(128.0)


@pytest.mark.parametrize("size", [1, 4096, 100_000])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_a_float_maximum_drops_is_seen(size, bad):
    good = {"a": jnp.ones(size), "b": jnp.full(3, 1e30)}
    worse = {**good, "a": good["a"].at[size // 2].set(bad)}
    found = watched([good, good, worse])
    leaf = found.nearest
    assert (leaf.path, leaf.headroom, leaf.bad_step) == ("['a']", 0.0, 2)
    assert np.isnan(leaf.largest) == np.isnan(bad)
    assert not leaf.ok
    assert found.leaves[1].bad_step is None


@pytest.mark.parametrize("ratio", [1.5, 2.0, 10.0])
def test_the_step_of_the_overflow_is_the_one_that_then_overflows(ratio):
    steps = np.arange(400)
    with np.errstate(over="ignore"):
        run = np.cumprod(np.full(400, ratio, np.float32)) / np.float32(ratio)
        truth = int(steps[~np.isfinite(run)][0])
    leaf = watched(geometric(20, ratio)).nearest
    assert leaf.slope == pytest.approx(np.log2(ratio), rel=1e-5)
    assert abs(leaf.overflow_step - truth) <= 1
    assert not leaf.ok


def test_the_slope_is_that_of_a_fit_over_the_last_steps_only():
    rng = np.random.default_rng(0)
    exponents = np.concatenate([np.full(50, 3.0), 3.0 + 0.5 * np.arange(16)])
    exponents += rng.normal(0, 0.05, exponents.shape)
    trees = [{"w": jnp.float32(2.0**e)} for e in exponents]
    leaf = watched(trees, n=16).nearest
    values = np.log2(np.asarray([float(t["w"]) for t in trees[-16:]]))
    want = np.polyfit(np.arange(16), values, 1)[0]
    assert leaf.slope == pytest.approx(want, rel=1e-6)
    room = np.log2(np.finfo(np.float32).max) - values[-1]
    assert leaf.overflow_step == 65 + int(np.ceil(room / want))


@pytest.mark.parametrize("seed", range(5))
def test_no_overflow_is_foretold_of_noise_or_decay(seed):
    rng = np.random.default_rng(seed)
    noise = [{"w": jnp.float32(np.exp(rng.normal()))} for _ in range(64)]
    assert watched(noise).soonest is None
    assert watched(noise).nearest.ok
    assert watched(geometric(20, 0.5)).nearest.slope == pytest.approx(-1.0)
    assert watched(geometric(20, 0.5)).soonest is None


def test_few_steps_and_zeros_have_no_trend():
    assert watched(geometric(3, 2.0)).nearest.slope == 0
    zero = watched([{"w": jnp.zeros(3)}] * 8).nearest
    assert (zero.headroom, zero.slope, zero.overflow_step) == (np.inf, 0.0, None)
    growing = [{"w": jnp.zeros(())}] * 4 + geometric(6, 2.0)
    assert watched(growing).nearest.slope == pytest.approx(1.0)


def test_a_loop_under_jit_gives_what_single_steps_give():
    tree = {"w": jnp.ones(3, jnp.bfloat16), "n": jnp.arange(2), "loss": jnp.float32(3)}

    def body(carry, _):
        tree, state = carry
        state = diagnose.watch(state, tree)
        return ({**tree, "w": tree["w"] * 2, "loss": tree["loss"] * 3}, state), None

    @jax.jit
    def run(tree, state):
        return lax.scan(body, (tree, state), length=11)[0]

    _, state = run(tree, diagnose.init_watch(tree, n=8))
    expected = diagnose.init_watch(tree, n=8)
    carry = (tree, expected)
    for _ in range(11):
        carry, _ = body(carry, None)
    jax.tree.map(np.testing.assert_array_equal, state, carry[1])
    assert int(state.watch_steps) == 11
    assert diagnose.headroom(state, tree).steps == 11


def test_state_is_donation_safe_and_keeps_its_structure():
    tree = {"w": jnp.ones(3), "key": jax.random.key(0)}
    state = diagnose.init_watch(tree)
    assert len({x.unsafe_buffer_pointer() for x in state}) == 2
    step = jax.jit(diagnose.watch, donate_argnums=0)
    new = step(state, tree)
    assert state.watch_peaks.is_deleted()
    again = step(new, tree)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    assert jax.tree.map(jax.typeof, again) == jax.tree.map(
        jax.typeof, diagnose.init_watch(tree)
    )


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_the_device_part_is_one_pass_without_callback_or_branch(platform):
    tree = {"a": jnp.ones((8, 8)), "b": jnp.ones(5, jnp.float16)}
    text = lower(diagnose.watch, platform, diagnose.init_watch(tree), tree)
    assert count_conditionals(text) == 0
    assert "custom_call" not in text
    assert text.count("stablehlo.reduce(") == 2


def test_nothing_to_watch():
    tree = {"n": jnp.arange(3)}
    state = diagnose.watch(diagnose.init_watch(tree), tree)
    found = diagnose.headroom(state, tree)
    assert (found.steps, found.nearest, found.soonest) == (1, None, None)
    assert found.summary() == "Headroom(1 steps, nothing watched)"


def test_shapes_stand_for_arrays_on_the_host():
    tree = {"w": jnp.ones(3, jnp.float16), "n": 3, "loss": 2.0}
    shapes = jax.eval_shape(lambda: {**tree})
    state = diagnose.watch(diagnose.init_watch(shapes), tree)
    assert diagnose.headroom(state, shapes) == diagnose.headroom(state, tree)


def test_summary_and_json():
    names = [f"layer_{i}_with_a_rather_long_name" for i in range(30)]
    trees = [
        {n: jnp.float16(2.0 ** -(20 - i / 8 * k)) for i, n in enumerate(names)}
        for k in range(6)
    ]
    trees[-1]["bad"] = jnp.float32(jnp.nan)
    for tree in trees[:-1]:
        tree["bad"] = jnp.float32(1e30)
    found = watched(trees)
    lines = found.summary().splitlines()
    assert lines[0].startswith("Headroom(6 steps, ")
    assert max(map(len, lines)) <= 80
    assert "at step 5" in lines[2]
    assert lines[-1] == "... and 19 leaves further away"
    assert any(f"step {found.soonest.overflow_step}" in line for line in lines)
    record = json.loads(found.to_json())
    assert record["steps"] == 6
    assert record["leaves"][0]["largest"] is None
    with pytest.raises(AttributeError):
        found.steps = 3


def test_errors():
    tree = {"w": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"^init_watch: n must be an integer"):
        diagnose.init_watch(tree, n=0)
    state = diagnose.init_watch(tree)
    more = {**tree, "b": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"^watch: tree must have the floating leaves"):
        diagnose.watch(state, more)
    with pytest.raises(ValueError, match=r"^headroom: tree must .* \(got 2 after 1\)"):
        diagnose.headroom(state, more)
    with pytest.raises(TypeError, match=r"^headroom: state must be concrete"):
        jax.jit(lambda s: diagnose.headroom(s, tree).steps)(state)


def test_peak_of_nothing_is_zero():
    assert float(_program.peak(jnp.zeros((0, 3)))) == 0.0
