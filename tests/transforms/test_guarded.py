"""guarded and adapt_learning_rate: nothing bad gets in, and the rate reacts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from jaxsafe import transforms
from jaxsafe.transforms import ControlState
from tests.lowering import count_conditionals, lower

PARAMS = {"w": jnp.asarray([1.0, -2.0, 0.5]), "b": jnp.asarray(0.25)}
GOOD = {"w": jnp.asarray([0.1, 0.2, -0.3]), "b": jnp.asarray(0.1)}
NAN = {"w": jnp.asarray([0.1, jnp.nan, -0.3]), "b": jnp.asarray(0.1)}
HUGE = {"w": jnp.asarray([1e25, 0.0, 0.0]), "b": jnp.asarray(0.1)}


def assert_bitwise(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    "inner", [optax.sgd(0.1, momentum=0.9), optax.adam(0.1), optax.adamw(0.1)]
)
def test_a_bad_step_leaves_the_inner_state_bitwise(inner):
    tx = transforms.guarded(inner)
    update = jax.jit(tx.update)
    _, state = update(GOOD, tx.init(PARAMS), PARAMS)
    updates, after = update(NAN, state, PARAMS)
    assert_bitwise(after.inner_state, state.inner_state)
    assert_bitwise(updates, jax.tree.map(jnp.zeros_like, PARAMS))
    assert int(after.control.rejected) == 1
    assert int(after.control.attempts) == 2
    assert int(after.control.bad_leaf) == 1


def test_a_finite_gradient_of_1e25_does_not_freeze_adam():
    naive = optax.apply_if_finite(optax.adam(0.1), 5)
    state = naive.init(PARAMS)
    for grads in (HUGE, GOOD):
        updates, state = naive.update(grads, state, PARAMS)
    assert float(updates["w"][0]) == 0.0  # frozen for ever, and nothing was counted

    tx = transforms.guarded(optax.adam(0.1))
    state = tx.init(PARAMS)
    for grads in (HUGE, GOOD):
        updates, state = tx.update(grads, state, PARAMS)
    assert float(updates["w"][0]) != 0.0
    assert int(state.control.clipped) == 1


def test_an_infinite_loss_is_a_bad_step_although_gradients_are_finite():
    tx = transforms.guarded(optax.sgd(0.1))
    updates, state = tx.update(
        GOOD, tx.init(PARAMS), PARAMS, value=jnp.asarray(jnp.inf)
    )
    assert not bool(state.control.ok)
    assert_bitwise(updates, jax.tree.map(jnp.zeros_like, PARAMS))


def test_an_update_that_turns_bad_inside_the_optimizer_is_caught():
    # optax.adam on float16 and an exactly zero gradient: its eps is 0 there, 0/0
    params = jnp.ones(2, jnp.float16)
    zero = jnp.zeros(2, jnp.float16)
    tx = transforms.guarded(optax.adam(1e-3))
    updates, state = tx.update(zero, tx.init(params), params)
    np.testing.assert_array_equal(updates, zero)
    assert int(state.control.rejected) == 1


def test_without_a_look_at_the_update_gradients_and_loss_are_still_checked():
    checked = transforms.guarded(optax.adamw(0.1))
    tx = transforms.guarded(optax.adamw(0.1), check_update=False)
    update = jax.jit(tx.update)
    state = tx.init(PARAMS)
    for grads, loss in ((GOOD, 1.0), (NAN, 1.0), (GOOD, jnp.inf), (HUGE, 1.0)):
        expected = checked.update(grads, state, PARAMS, value=loss)
        found = update(grads, state, PARAMS, value=loss)
        chex.assert_trees_all_close(found, expected, rtol=1e-6)
        state = found[1]
    assert int(state.control.rejected) == 2


def test_it_halts_and_never_accepts():
    peer = optax.apply_if_finite(optax.sgd(0.1), 2)
    peer_state = peer.init(PARAMS)
    tx = transforms.guarded(optax.sgd(0.1), give_up_after=3)
    state = tx.init(PARAMS)
    for _ in range(4):
        peer_updates, peer_state = peer.update(NAN, peer_state, PARAMS)
        updates, state = tx.update(NAN, state, PARAMS)
    assert np.isnan(peer_updates["w"]).any()  # optax lets it through
    assert bool(state.control.halted)
    updates, state = tx.update(GOOD, state, PARAMS)
    assert_bitwise(updates, jax.tree.map(jnp.zeros_like, PARAMS))
    with pytest.raises(
        transforms._control.NonFiniteError, match=r"given up.*rejected steps.*Replay"
    ):
        transforms.raise_if_halted(state)


def test_the_rate_halves_and_recovers_slowly():
    tx = transforms.guarded(optax.sgd(1.0), recovery_steps=10, min_factor=0.2)
    update, state = jax.jit(tx.update), tx.init(PARAMS)
    for _ in range(4):
        _, state = update(NAN, state, PARAMS)
    assert float(state.control.rate_factor) == pytest.approx(0.2)
    factors = []
    for _ in range(30):
        updates, new_state = update(GOOD, state, PARAMS)
        factors.append(float(state.control.rate_factor))
        np.testing.assert_allclose(updates["w"], -factors[-1] * GOOD["w"], rtol=1e-6)
        state = new_state
    assert factors[10] == pytest.approx(0.4, rel=1e-4)
    assert factors == sorted(factors)
    assert float(state.control.rate_factor) == 1.0


def test_with_backoff_off_the_run_is_that_without_the_bad_steps():
    tx = transforms.guarded(optax.adam(0.1), backoff=1.0)
    update = jax.jit(tx.update)

    def train(sequence):
        params, state = PARAMS, tx.init(PARAMS)
        for grads in sequence:
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params

    assert_bitwise(train([GOOD, NAN, HUGE, NAN, GOOD]), train([GOOD, HUGE, GOOD]))


def test_equal_to_the_plain_chain_when_nothing_is_wrong(getkey):
    params = {"w": jax.random.normal(getkey(), (8, 4))}
    tx = transforms.guarded(optax.adamw(1e-2), max_norm=1.0)
    peer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))
    ours, theirs = tx.init(params), peer.init(params)
    for _ in range(5):
        grads = {"w": jax.random.normal(getkey(), (8, 4))}
        u, ours = tx.update(grads, ours, params)
        v, theirs = peer.update(grads, theirs, params)
        np.testing.assert_allclose(u["w"], v["w"], rtol=2e-5)


def test_one_structure_scan_donation_and_telemetry():
    tx = transforms.guarded(optax.adam(0.1), telemetry=3)
    grads = jax.tree.map(lambda *x: jnp.stack(x), GOOD, NAN, HUGE, GOOD)
    losses = jnp.asarray([1.0, jnp.nan, 3.0, 4.0])

    @jax.jit
    def train(carry):
        def step(carry, batch):
            params, state = carry
            updates, state = tx.update(batch[0], state, params, value=batch[1])
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, carry, (grads, losses))[0]

    state = tx.init(PARAMS)
    _, after = train((PARAMS, state))
    assert jax.tree.structure(state) == jax.tree.structure(after)
    history = after.control.history
    np.testing.assert_array_equal(history.ok, [True, False, True])
    np.testing.assert_array_equal(history.clipped, [False, False, True])
    np.testing.assert_allclose(history.loss, [4.0, np.nan, 3.0])
    donated = jax.jit(tx.update, donate_argnums=1)(GOOD, tx.init(PARAMS), PARAMS)
    assert bool(donated[1].control.ok)


def test_composes_with_optax_wrappers():
    params = {"w": jnp.ones(2), "head": jnp.ones(2)}
    grads = {"w": jnp.asarray([1.0, jnp.nan]), "head": jnp.ones(2)}
    adam = optax.inject_hyperparams(optax.adam)(learning_rate=0.1)
    tx = optax.MultiSteps(
        transforms.guarded(
            optax.partition({"a": adam, "b": optax.sgd(0.1)}, {"w": "a", "head": "b"})
        ),
        every_k_schedule=1,
    )
    updates, state = tx.update(grads, tx.init(params), params)
    assert np.isfinite(updates["w"]).all()
    assert int(optax.tree.get(state, "control").rejected) == 1


def test_half_precision_gradients_of_float32_parameters():
    params = {"w": jnp.ones(3)}
    grads = {"w": jnp.asarray([0.1, 0.2, 0.3], jnp.bfloat16)}
    tx = transforms.guarded(optax.adamw(0.1))
    updates, state = jax.jit(tx.update)(grads, tx.init(params), params)
    assert updates["w"].dtype == jnp.float32
    assert int(state.control.rejected) == 0


def test_a_guard_inside_an_nnx_optimizer_can_be_asked():
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    tx = transforms.guarded(optax.adam(0.1), give_up_after=1)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    transforms.raise_if_halted(optimizer.opt_state)
    grads = jax.tree.map(lambda x: x * jnp.nan, nnx.state(model, nnx.Param))
    optimizer.update(model, grads)
    with pytest.raises(FloatingPointError, match="1 rejected steps in a row"):
        transforms.raise_if_halted(optimizer.opt_state)


def test_vmap_decides_for_each_member():
    tx = transforms.guarded(optax.sgd(1.0))
    params = jnp.ones((2, 3))
    grads = jnp.asarray([[0.1, 0.1, 0.1], [jnp.nan, 0.1, 0.1]])
    state = jax.vmap(tx.init)(params)
    updates, state = jax.jit(jax.vmap(tx.update))(grads, state, params)
    np.testing.assert_array_equal(state.control.ok, [True, False])
    np.testing.assert_allclose(updates, [[-0.1] * 3, [0.0] * 3], rtol=1e-6)


@pytest.mark.several_devices
def test_all_devices_of_a_shard_map_take_one_decision():
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    tx = transforms.guarded(optax.sgd(1.0), axis_name="data")
    params = jnp.ones(2)
    grads = jnp.ones((4, 2)).at[2, 0].set(jnp.nan)  # one bad device

    def step(state, g):
        # not averaged on purpose: only one device sees the NaN
        updates, state = tx.update(g[0], state, params)
        return updates[None], state.control.ok[None]

    updates, ok = jax.jit(
        jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec("data")),
            out_specs=(PartitionSpec("data"), PartitionSpec("data")),
        )
    )(tx.init(params), grads)
    np.testing.assert_array_equal(ok, [False] * 4)
    np.testing.assert_array_equal(updates, np.zeros((4, 2)))


def test_the_accelerator_program_has_no_conditional():
    tx = transforms.guarded(optax.adamw(1e-3))
    state = tx.init(PARAMS)

    def step(grads, state):
        return tx.update(grads, state, PARAMS)

    assert count_conditionals(lower(step, "cpu", GOOD, state)) > 0
    for platform in ("cuda", "tpu"):
        assert count_conditionals(lower(step, platform, GOOD, state)) == 0


class TestAdaptLearningRate:
    def test_scales_the_finished_update_of_any_schedule(self):
        schedule = optax.linear_schedule(1.0, 0.0, 10)
        tx = optax.chain(optax.sgd(schedule), transforms.adapt_learning_rate())
        state = tx.init(PARAMS)
        _, state = tx.update(NAN, state, PARAMS)
        updates, _ = tx.update(GOOD, state, PARAMS)
        np.testing.assert_allclose(updates["w"], -0.5 * 0.9 * GOOD["w"], rtol=1e-6)

    def test_a_bad_update_becomes_zero(self):
        tx = transforms.adapt_learning_rate()
        updates, state = tx.update(NAN, tx.init(PARAMS))
        assert_bitwise(updates, jax.tree.map(jnp.zeros_like, PARAMS))
        assert isinstance(state.control, ControlState)

    def test_the_loss_can_be_passed(self):
        tx = transforms.adapt_learning_rate()
        _, state = tx.update(GOOD, tx.init(PARAMS), value=jnp.asarray(jnp.nan))
        assert float(state.control.rate_factor) == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_norm": -1.0}, r"guarded: max_norm must be a finite number above 0"),
        ({"backoff": 0.0}, r"guarded: backoff must lie in \(0, 1\]"),
        ({"backoff": 2.0}, r"guarded: backoff must lie in \(0, 1\] \(got 2.0\)"),
        ({"recovery_steps": 0}, r"guarded: recovery_steps must be an integer"),
        ({"min_factor": -0.1}, r"guarded: min_factor must lie"),
        ({"give_up_after": 1.5}, r"guarded: give_up_after must be an integer"),
        ({"telemetry": -1}, r"init_control: telemetry must be an integer"),
    ],
)
def test_refuses_what_makes_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        transforms.guarded(optax.sgd(0.1), **options).init(PARAMS)


def test_a_state_without_a_guard_is_no_answer():
    with pytest.raises(ValueError, match="there is no guard in this state"):
        transforms.raise_if_halted(optax.adam(0.1).init(PARAMS))
