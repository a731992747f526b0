"""The step as a transaction: plain pytrees, donation, scan, control state inside."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

from jaxsafe import guard, transforms
from jaxsafe.guard import linen as guard_linen
from tests.lowering import count_conditionals, lower

X = jnp.asarray([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5], [2.0, 2.0]])
BAD = X.at[1, 0].set(jnp.nan)


def assert_bitwise(a, b):
    def leaf(x, y):
        if jnp.issubdtype(jnp.asarray(x).dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))

    jax.tree.map(leaf, a, b)


def make_step(tx):
    """A step with everything a state can hold: params, moments, statistics, key."""

    def train_step(state, x):
        key, noise = jax.random.split(state["key"])

        def loss_fn(w):
            noisy = x + 0.01 * jax.random.normal(noise, x.shape)
            return jnp.mean((noisy @ w - 1.0) ** 2)

        loss, grads = jax.value_and_grad(loss_fn)(state["w"])
        updates, opt = tx.update(grads, state["opt"], state["w"], value=loss)
        new = {
            "w": optax.apply_updates(state["w"], updates),
            "opt": opt,
            "mean": 0.9 * state["mean"] + 0.1 * x.mean(0),
            "key": key,
            "steps": state["steps"] + 1,
        }
        return new, {"loss": loss}

    return train_step


def make_state(tx):
    w = jnp.asarray([0.5, -0.5])
    return {
        "w": w,
        "opt": tx.init(w),
        "mean": jnp.zeros(2),
        "key": jax.random.key(0),
        "steps": 0,
    }


@pytest.fixture
def adam():
    return optax.with_extra_args_support(optax.adam(0.1))


def snapshot(tree):
    return jax.tree.map(jnp.copy, tree)


@pytest.mark.parametrize("donate", [False, True])
def test_a_bad_step_changes_nothing_but_the_control_state(adam, donate):
    step = guard.transaction(make_step(adam))
    jitted = jax.jit(step, donate_argnums=0 if donate else ())
    carry, _ = jitted(step.init(make_state(adam)), X)
    before, old_leaf = snapshot(carry.state), carry.state["w"]
    carry, aux = jitted(carry, BAD)
    assert np.isnan(aux["loss"])
    assert_bitwise(carry.state, before)
    assert old_leaf.is_deleted() == donate
    control = carry.control
    assert (int(control.attempts), int(control.rejected)) == (2, 1)
    assert not bool(control.ok)
    carry, _ = jitted(carry, X)
    assert int(carry.state["steps"]) == 2
    assert int(carry.control.rejected_in_a_row) == 0


def test_the_run_equals_the_one_without_the_bad_batches(adam):
    step = guard.transaction(make_step(adam))
    jitted = jax.jit(step)

    def train(batches):
        carry = step.init(make_state(adam))
        for batch in batches:
            carry, _ = jitted(carry, batch)
        return carry.state

    assert_bitwise(train([X, BAD, X, BAD, BAD, X]), train([X, X, X]))


def test_scans(adam):
    step = guard.transaction(make_step(adam), policy=guard.Policy(telemetry=4))
    carry, aux = jax.lax.scan(step, step.init(make_state(adam)), jnp.stack([X, BAD, X]))
    assert int(carry.control.rejected) == 1
    history = carry.control.history
    np.testing.assert_array_equal(history.ok, [True, False, True, False])
    np.testing.assert_array_equal(history.loss[:3], aux["loss"])


def test_the_norm_hole_of_xla_cpu_does_not_matter():
    # a float32 maximum over 4096 entries loses the NaN on XLA:CPU
    step = guard.transaction(lambda state, x: (state + x, x.sum()))
    carry = step.init(jnp.zeros((64, 64)))
    bad = jnp.zeros((64, 64)).at[9, 9].set(jnp.nan)
    carry, _ = jax.jit(step)(carry, bad)
    assert int(carry.control.rejected) == 1
    assert int(carry.control.bad_leaf) == 0
    assert np.isfinite(carry.state).all()


def test_an_infinite_aux_rejects_a_finite_state():
    step = guard.transaction(lambda state, x: (state + 1.0, {"loss": x}))
    carry, _ = step(step.init(jnp.zeros(())), jnp.asarray(jnp.inf))
    assert float(carry.state) == 0.0


def test_check_names_what_matters():
    def train_step(state, x):
        return state + 1.0, {"loss": x, "mask": jnp.asarray(-jnp.inf)}

    strict = guard.transaction(train_step)
    carry, _ = strict(strict.init(jnp.zeros(())), jnp.asarray(1.0))
    assert int(carry.control.rejected) == 1

    step = guard.transaction(train_step, check=lambda state, aux: (state, aux["loss"]))
    carry = step.init(jnp.zeros(()))
    for loss, count in ((1.0, 0), (100.0, 0), (jnp.nan, 1)):
        carry, _ = step(carry, jnp.asarray(loss))
        assert int(carry.control.rejected) == count


def test_check_can_be_one_more_condition():
    step = guard.transaction(
        lambda state, x: (state + x, {"loss": x, "flag": jnp.asarray(False)}),
        check=lambda state, aux: aux["loss"] < 10.0,
    )
    carry = step.init(jnp.zeros(()))
    for loss, count in ((1.0, 0), (100.0, 1), (-jnp.inf, 2), (2.0, 2)):
        carry, _ = step(carry, jnp.asarray(loss))
        assert int(carry.control.rejected) == count


def test_it_halts_and_commits_nothing_more(adam):
    policy = guard.Policy(give_up_after=2)
    step = guard.transaction(make_step(adam), policy=policy)
    jitted = jax.jit(step)
    carry = step.init(make_state(adam))
    for batch in (BAD, BAD, X):
        carry, _ = jitted(carry, batch)
    assert bool(carry.control.halted)
    assert int(carry.state["steps"]) == 0


def test_control_state_inside_the_state_is_not_rolled_back():
    tx = optax.chain(optax.sgd(0.1), transforms.adapt_learning_rate())
    step = guard.transaction(make_step(tx))
    jitted = jax.jit(step)
    carry, _ = jitted(step.init(make_state(tx)), BAD)
    inner = carry.state["opt"][1].control
    assert int(inner.attempts) == 1
    assert float(inner.rate_factor) == 0.5
    assert float(carry.control.rate_factor) == 1.0
    np.testing.assert_array_equal(carry.state["w"], make_state(tx)["w"])


def test_control_state_inside_hears_of_a_fault_that_it_cannot_see():
    tx = optax.chain(optax.sgd(0.1), transforms.adapt_learning_rate())

    def train_step(state, poison):
        updates, opt = tx.update(jnp.ones(2), state["opt"])
        new = {"w": state["w"] + updates, "opt": opt, "mean": state["mean"] + poison}
        return new, jnp.asarray(1.0)

    w = jnp.zeros(2)
    step = guard.transaction(train_step)
    carry = step.init({"w": w, "opt": tx.init(w), "mean": jnp.zeros(())})
    carry, _ = step(carry, jnp.asarray(jnp.nan))
    inner = carry.state["opt"][1].control
    assert (int(inner.attempts), int(inner.rejected)) == (1, 1)
    assert float(inner.rate_factor) == 0.5


def test_a_guard_inside_that_says_no_is_heard_outside():
    tx = transforms.guarded(optax.adam(0.1))

    def train_step(state, x):
        updates, opt = tx.update(x, state["opt"], state["w"])
        return {"w": state["w"] + updates, "opt": opt}, jnp.asarray(0.0)

    w = jnp.zeros(2)
    step = guard.transaction(train_step)
    carry = step.init({"w": w, "opt": tx.init(w)})
    carry, _ = step(carry, jnp.asarray([jnp.nan, 1.0]))
    assert int(carry.control.rejected) == 1
    assert np.isnan(carry.control.grad_norm)


@pytest.mark.several_devices
def test_a_state_of_several_devices(adam):
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:4]), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    step = guard.transaction(make_step(adam))
    jitted = jax.jit(step, donate_argnums=0)
    carry, _ = jitted(step.init(make_state(adam)), jax.device_put(X, rows))
    before = snapshot(carry.state)
    carry, _ = jitted(carry, jax.device_put(BAD, rows))
    assert_bitwise(carry.state, before)


def test_no_conditional_is_left_on_an_accelerator():
    step = guard.transaction(lambda state, x: (state + x, jnp.sum(x)))
    carry = step.init(jnp.ones(3))
    for platform in ("cuda", "tpu"):
        assert count_conditionals(lower(step, platform, carry, jnp.ones(3))) == 0


class TestLinen:
    """flax.linen's TrainState with batch_stats, both ways."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=False)(x)
            return nn.Dense(1)(x)

    class State(TrainState):
        batch_stats: dict

    def make(self):
        net = self.Net()
        variables = net.init(jax.random.key(0), X)
        return self.State.create(
            apply_fn=net.apply,
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            tx=optax.adam(0.1),
        )

    @staticmethod
    def grads(state, x):
        def loss_fn(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            y, new = state.apply_fn(variables, x, mutable=["batch_stats"])
            return jnp.mean(y**2), new["batch_stats"]

        return jax.value_and_grad(loss_fn, has_aux=True)(state.params)

    def test_transaction(self):
        def train_step(state, x):
            (loss, stats), grads = self.grads(state, x)
            return state.apply_gradients(grads=grads, batch_stats=stats), loss

        step = guard.transaction(train_step)
        jitted = jax.jit(step, donate_argnums=0)
        carry, _ = jitted(step.init(self.make()), X)
        before = snapshot(carry.state)
        carry, _ = jitted(carry, BAD)
        assert_bitwise(carry.state, before)
        carry, _ = jitted(carry, X)
        assert int(carry.state.step) == 2

    def test_apply_gradients(self):
        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(state, control, x):
            (loss, stats), grads = self.grads(state, x)
            return guard_linen.apply_gradients(
                state,
                control,
                grads=grads,
                value=loss,
                collections={"batch_stats": stats},
                max_norm=1.0,
            )

        state, control = step(self.make(), transforms.init_control(), X)
        before = snapshot(state)
        state, control = step(state, control, BAD)
        assert_bitwise(state, before)
        assert int(control.rejected) == 1
        state, control = step(state, control, X)
        assert int(state.step) == 2

    def test_a_collection_has_to_be_a_field(self):
        state = self.make()
        with pytest.raises(ValueError, match=r"no field of the state \(got 'ema'\)"):
            guard_linen.apply_gradients(
                state,
                transforms.init_control(),
                grads=state.params,
                value=0.0,
                collections={"ema": 1.0},
            )


class TestBadInput:
    def test_the_start_has_to_be_finite(self):
        step = guard.transaction(lambda s, x: (s, x))
        with pytest.raises(ValueError, match=r"not finite \(got leaf \['w'\]\)"):
            step.init({"n": jnp.arange(2), "w": jnp.asarray([1.0, jnp.inf])})

    def test_a_step_returns_a_pair(self):
        step = guard.transaction(lambda s, x: s)
        with pytest.raises(TypeError, match=r"must return \(state, aux\) \(got"):
            jax.jit(step)(step.init(jnp.ones(2)), 1.0)

    def test_a_step_is_a_function(self):
        with pytest.raises(TypeError, match="train_step must be a function"):
            guard.transaction(3)
        with pytest.raises(TypeError, match="check must be a function"):
            guard.transaction(lambda s: (s, s), check="loss")

    def test_the_state_keeps_its_dtypes(self):
        step = guard.transaction(lambda s, x: (s.astype(jnp.bfloat16), x))
        with pytest.raises(ValueError, match=r"changed its shape or dtype .*bfloat16"):
            step(step.init(jnp.ones(2)), jnp.asarray(1.0))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"give_up_after": 0}, "Policy: give_up_after must be an integer"),
            ({"read_every": 0}, "Policy: read_every must be an integer"),
            ({"telemetry": -1}, "Policy: telemetry must be an integer"),
            ({"backoff": 1.5}, "Policy: backoff must lie in"),
        ],
    )
    def test_policy(self, options, message):
        with pytest.raises(ValueError, match=message):
            guard.Policy(**options)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    """A module in equinox's manner: settings and functions are leaves as well."""

    kernel: jax.Array
    activation: Any
    rate: float
    inference: bool


def filter_jit(function):
    """What equinox.filter_jit does: arrays are traced, all other leaves are not."""

    def call(*args):
        leaves, tree = jax.tree.flatten(args)
        places = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array)]
        static_out = []

        @jax.jit
        def traced(arrays):
            filled = list(leaves)
            for i, x in zip(places, arrays, strict=True):
                filled[i] = x
            out, out_tree = jax.tree.flatten(
                function(*jax.tree.unflatten(tree, filled))
            )
            static_out[:] = [out_tree, [None if is_array(x) else x for x in out]]
            return [x for x in out if is_array(x)]

        arrays = iter(traced([leaves[i] for i in places]))
        out_tree, statics = static_out
        return jax.tree.unflatten(
            out_tree, [next(arrays) if s is None else s for s in statics]
        )

    return call


def is_array(x):
    return isinstance(x, jax.Array)


def test_a_module_that_holds_functions_and_settings():
    def train_step(state, x):
        layer, key = state["layer"], state["key"]
        key, sub = jax.random.split(key)
        if not layer.inference:  # a Python bool, also inside jit
            x = x * jax.random.bernoulli(sub, 1 - layer.rate, x.shape)
        slope = jax.grad(lambda k: layer.activation(k * x).sum())(layer.kernel)
        kernel = layer.kernel - 0.1 * slope
        return {"layer": dataclasses.replace(layer, kernel=kernel), "key": key}, slope

    step = guard.transaction(train_step)
    layer = Layer(jnp.ones(3), jax.nn.tanh, 0.25, inference=False)
    carry = step.init({"layer": layer, "key": jax.random.key(0)})
    for x in (jnp.ones(3), jnp.full(3, jnp.nan)):
        before = carry.state
        carry, _ = filter_jit(step)(carry, x)
    after = carry.state["layer"]
    assert int(carry.control.rejected) == 1
    np.testing.assert_array_equal(after.kernel, before["layer"].kernel)
    assert carry.state["key"] == before["key"]
    assert (after.activation, after.rate, after.inference) == (jax.nn.tanh, 0.25, False)


def test_a_step_cannot_change_what_is_no_number():
    step = guard.transaction(lambda state, x: ({"f": jnp.cos, "x": x}, x))
    carry = step.init({"f": jnp.sin, "x": jnp.ones(())})
    with pytest.raises(ValueError, match=r"\['f'\] is no number and has changed"):
        step(carry, jnp.ones(()))
