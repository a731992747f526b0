"""Checkpoints: all that a run needs, never non-finite, and the best one is finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsafe import guard, transforms
from tests.guard.test_resume import assert_bitwise

ONE, NAN = jnp.asarray(1.0), jnp.asarray(jnp.nan)
LOSSES = [1.0, 0.5, float("nan"), 0.4, float("nan")]


def add(state, x):
    return {"x": state["x"] + x}, {"loss": x}


STEP = guard.transaction(add)


def init():
    return STEP.init({"x": jnp.asarray(0.0)})


def loss_of(aux):
    return aux["loss"]


@pytest.fixture
def checkpoints(tmp_path):
    with guard.Checkpoints(tmp_path / "checkpoints", keep=2, best=loss_of) as made:
        yield made


def test_orbax_calls_the_nan_the_best_and_we_do_not(tmp_path, checkpoints):
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, best_fn=lambda metrics: metrics["loss"], best_mode="min"
    )
    with ocp.CheckpointManager(tmp_path / "orbax", options=options) as manager:
        for position, loss in enumerate(LOSSES, 1):
            saved = {"x": jnp.asarray(0.0)}
            manager.save(
                position, args=ocp.args.StandardSave(saved), metrics={"loss": loss}
            )
        manager.wait_until_finished()
        assert np.isnan(manager.metrics(manager.best_step())["loss"])

    for position, loss in enumerate(LOSSES, 1):
        assert checkpoints.save(init(), position, aux={"loss": jnp.asarray(loss)})
    checkpoints.wait()
    assert checkpoints.best_position() == 4
    assert checkpoints.positions() == [4, 5]  # the newest two, the best among them


def test_the_best_is_kept_however_old_and_found_by_the_next_process(tmp_path):
    directory = tmp_path / "checkpoints"
    with guard.Checkpoints(directory, keep=2, best=loss_of) as checkpoints:
        for position, loss in enumerate([3.0, 1.0, 2.0, -np.inf, np.nan, np.inf], 1):
            checkpoints.save(init(), position, aux={"loss": loss})
    with guard.Checkpoints(directory, keep=2, best=loss_of) as checkpoints:
        assert checkpoints.positions() == [2, 5, 6]
        assert checkpoints.best_position() == 2


def test_without_a_finite_metric_nothing_is_best(checkpoints):
    assert checkpoints.best_position() is None
    checkpoints.save(init(), 1, aux={"loss": np.nan})
    checkpoints.save(init(), 2, aux={"loss": np.inf})
    assert checkpoints.best_position() is None
    assert checkpoints.latest() == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nothing_that_is_not_finite_is_saved(checkpoints, bad):
    carry = init()
    poisoned = carry._replace(state={"x": jnp.asarray(bad)})
    assert not checkpoints.save(poisoned, 1, aux={"loss": 0.0})
    rejected, aux = STEP(carry, bad)
    assert not checkpoints.save(rejected, 2, aux=aux)
    assert checkpoints.positions() == []


def test_a_nan_in_control_state_is_no_reason(checkpoints):
    carry = init()
    control = carry.control._replace(grad_norm=jnp.asarray(jnp.nan))
    carry = carry._replace(control=control, state={"x": control})
    assert checkpoints.save(carry, 1, aux={"loss": 0.0})


def test_a_run_saves_only_what_its_check_calls_finite(tmp_path):
    def check(state, aux):
        return (state["x"], aux)

    step = guard.transaction(
        lambda state, x: ({**state, "x": state["x"] + x}, x), check=check
    )
    # An infinity that is there on purpose, and a batch that is bad.
    carry = step.init({"x": jnp.asarray(0.0), "lowest": jnp.asarray(jnp.inf)})
    with guard.Checkpoints(tmp_path, keep=9) as checkpoints:
        carry = guard.run(step, carry, [ONE, NAN, ONE], checkpoints=checkpoints)
        assert checkpoints.positions() == [1, 3]
        restored, position = checkpoints.restore(carry)
        assert position == 3
        assert_bitwise(restored, carry)
        first, _ = checkpoints.restore(carry, position=1)
        assert float(first.state["x"]) == 1.0


def make_rich_carry():
    """A carry with everything in it, and nothing at its first value."""
    tx = transforms.guarded(optax.adam(0.1), telemetry=3)

    def train_step(state, x):
        value, grads = jax.value_and_grad(lambda w: jnp.sum(w * x))(state["w"])
        updates, opt = tx.update(grads, state["opt"], state["w"], value=value)
        return {
            "w": state["w"] + updates,
            "opt": opt,
            "half": state["half"] * jnp.bfloat16(1.01),
            "typed": jax.random.split(state["typed"])[0],
            "raw": jax.random.split(state["raw"])[0],
            "rbg": state["rbg"],
            "count": state["count"] + 1,
            "nothing": None,
        }, value

    step = guard.transaction(train_step, policy=guard.Policy(telemetry=4))
    w = jnp.linspace(0.1, 0.9, 8)
    first = step.init(
        {
            "w": w,
            "opt": tx.init(w),
            "half": jnp.ones(3, jnp.bfloat16),
            "typed": jax.random.key(1),
            "raw": jax.random.PRNGKey(2),
            "rbg": jax.random.key(3, impl="rbg"),
            "count": 0,
            "nothing": None,
        }
    )
    carry = first
    for x in (1.0, np.nan, 2.0):
        carry, _ = step(carry, x)
    return first, carry


def test_state_control_and_keys_come_back_bitwise(tmp_path):
    first, carry = make_rich_carry()
    with guard.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(carry, 12)
    with guard.Checkpoints(tmp_path) as checkpoints:
        restored, position = checkpoints.restore(first)
    assert position == 12
    assert jax.tree.structure(restored) == jax.tree.structure(carry)
    assert [x.dtype for x in jax.tree.leaves(restored)] == [
        x.dtype for x in jax.tree.leaves(carry)
    ]
    assert_bitwise(restored, carry)
    assert float(restored.state["opt"].control.rate_factor) < 1.0


def test_a_carry_may_be_donated_while_it_is_written(tmp_path):
    step = jax.jit(STEP, donate_argnums=0)
    carry = STEP.init({"x": jnp.zeros(1 << 20)})
    with guard.Checkpoints(tmp_path, keep=9) as checkpoints:
        for position in range(1, 6):
            carry, _ = step(carry, jnp.asarray(1.0))
            checkpoints.save(carry, position)
        for position in range(1, 6):
            saved, _ = checkpoints.restore(carry, position=position)
            np.testing.assert_array_equal(saved.state["x"], float(position))


@pytest.mark.several_devices
def test_sharded_leaves_come_back_sharded(tmp_path):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P("data"))
    carry = STEP.init({"x": jax.device_put(jnp.arange(8.0), sharding)})
    with guard.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(carry, 1)
        restored, _ = checkpoints.restore(carry)
    assert restored.state["x"].sharding.is_equivalent_to(sharding, 1)
    np.testing.assert_array_equal(restored.state["x"], np.arange(8.0))


def test_every_counts_batches(tmp_path):
    with guard.Checkpoints(tmp_path, every=3, keep=9) as checkpoints:
        carry = guard.run(STEP, init(), [1.0] * 10, checkpoints=checkpoints)
        assert checkpoints.positions() == [3, 6, 9, 10]
    assert float(carry.state["x"]) == 10.0


def test_an_empty_directory_gives_back_the_start(checkpoints):
    carry = init()
    assert checkpoints.restore(carry) == (carry, 0)
    with pytest.raises(ValueError, match=r"no such checkpoint \(got 3\)"):
        checkpoints.restore(carry, position=3)


def test_snapshots_may_be_asked_for_later(tmp_path):
    # as after a halt: the next start wants to roll back
    carry = init()
    with guard.Checkpoints(tmp_path) as checkpoints:
        carry = guard.run(STEP, carry, [ONE, ONE], checkpoints=checkpoints)
    policy = guard.Policy(snapshot_every=2, roll_back_after=1)
    with guard.Checkpoints(tmp_path) as checkpoints:
        carry = guard.run(
            STEP,
            init(),
            [ONE, ONE, ONE, NAN],
            policy=policy,
            checkpoints=checkpoints,
        )
    assert float(carry.state["x"]) == 2.0  # what the second run started from


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (jnp.zeros(2), r"at \.state\['x'\]: float32\[\], .*has float32\[2\]"),
        (jnp.zeros((), jnp.bfloat16), r"float32\[\], .*has bfloat16\[\]"),
        ({"y": jnp.zeros(())}, r"at \.state\['x'\]\['y'\]: None, .*float32\[\]"),
    ],
)
def test_another_model_is_an_error_that_names_the_leaf(tmp_path, other, message):
    with guard.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(init(), 1)
        with pytest.raises(ValueError, match=message):
            checkpoints.restore(STEP.init({"x": other}))


def test_a_manager_of_orbax_is_an_error_that_says_what_to_pass(tmp_path):
    with (
        ocp.CheckpointManager(tmp_path) as manager,
        pytest.raises(TypeError, match=r"CheckpointManager\).*guard.Checkpoints\("),
    ):
        guard.run(STEP, init(), [1.0], checkpoints=manager)


def test_arguments_are_checked(tmp_path):
    for wrong in ({"every": 0}, {"keep": 0}):
        with pytest.raises(ValueError, match="integer of at least 1"):
            guard.Checkpoints(tmp_path, **wrong)
    with pytest.raises(TypeError, match="best must be a function"):
        guard.Checkpoints(tmp_path, best="loss")
    with (
        guard.Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match="nothing says which"),
    ):
        checkpoints.best_position()
