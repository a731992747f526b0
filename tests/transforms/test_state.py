"""Healing a poisoned state, float32 inside, accumulation, telemetry."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsafe import transforms

NAN, INF = jnp.nan, jnp.inf
OPTIMIZERS = {
    "adam": lambda: optax.adam(0.1),
    "adamw": lambda: optax.adamw(0.1),
    "amsgrad": lambda: optax.amsgrad(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "lion": lambda: optax.lion(0.1),
    "rmsprop": lambda: optax.rmsprop(0.1),
    "adagrad": lambda: optax.adagrad(0.1),
    "adadelta": lambda: optax.adadelta(0.1),
    "yogi": lambda: optax.yogi(0.1),
    "lamb": lambda: optax.lamb(0.1),
    "adafactor": lambda: optax.adafactor(0.1, min_dim_size_to_factor=2),
    "prodigy": lambda: optax.contrib.prodigy(0.1),
    "dadapt_adamw": lambda: optax.contrib.dadapt_adamw(0.1),
    "dog": lambda: optax.contrib.dog(0.1),
    "dowg": lambda: optax.contrib.dowg(0.1),
    "mechanize": lambda: optax.contrib.mechanize(optax.adam(0.1)),
    "cocob": lambda: optax.contrib.cocob(),
    "muon": lambda: optax.contrib.muon(0.1),
    "schedule_free": lambda: optax.contrib.schedule_free_adamw(0.1),
}
USUAL = ("adam", "adamw", "momentum", "lion", "adafactor", "schedule_free", "muon")


def optimizers(names):
    """As parameters; those that are rare, or like a usual one, in the slow lane."""
    return [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in USUAL))
        for name in names
    ]


every_optimizer = pytest.mark.parametrize("name", optimizers(OPTIMIZERS))


def start(key):
    keys = jax.random.split(key, 2)
    return {
        "w": jax.random.normal(keys[0], (4, 3)),
        "b": jax.random.normal(keys[1], (3,)),
    }


def slope(params):
    return jax.tree.map(lambda p: 0.5 * p, params)


def poisoned(tx, params):
    """A state after a good step and one with a NaN and an infinity."""
    state = tx.init(params)
    _, state = tx.update(slope(params), state, params)
    bad = slope(params)
    bad = {"w": bad["w"].at[1, 2].set(NAN), "b": bad["b"].at[0].set(INF)}
    return jax.jit(tx.update)(bad, state, params)[1]


class TestHeal:
    @every_optimizer
    def test_every_optimizer_is_poisoned_and_can_be_healed(self, name, getkey):
        params, tx = start(getkey()), OPTIMIZERS[name]()
        state = poisoned(tx, params)
        audit = transforms.audit_state(state)
        assert not audit.ok
        healed, count = jax.jit(lambda s: transforms.heal_state(tx, s, params))(state)
        assert transforms.audit_state(healed).ok
        assert int(count) == sum(audit.nonfinite.values())
        updates, after = tx.update(slope(params), healed, params)
        assert transforms.audit_state((updates, after)).ok

    def test_only_poisoned_entries_are_reset_and_their_fellow_moments(self, getkey):
        params, tx = start(getkey()), optax.adam(0.1)
        _, good = tx.update(slope(params), tx.init(params), params)
        adam = good[0]._replace(
            nu={"w": good[0].nu["w"].at[1, 2].set(INF), "b": good[0].nu["b"]}
        )
        healed, count = transforms.heal_state(tx, (adam, good[1]), params)
        assert int(count) == 1
        for old, new in ((good[0].mu, healed[0].mu), (good[0].nu, healed[0].nu)):
            assert float(new["w"][1, 2]) == 0.0
            kept = np.ones((4, 3), bool)
            kept[1, 2] = False
            np.testing.assert_array_equal(new["w"][kept], old["w"][kept])
            np.testing.assert_array_equal(new["b"], old["b"])
        assert int(healed[0].count) == int(good[0].count)

    def test_the_first_step_after_healing_is_of_the_stated_size(self, getkey):
        params, tx = start(getkey()), optax.adam(1.0)
        state = tx.init(params)
        for _ in range(300):
            _, state = tx.update(slope(params), state, params)
        bad = state[0].nu["w"].at[0, 0].set(NAN)
        state = (state[0]._replace(nu={"w": bad, "b": state[0].nu["b"]}), state[1])
        healed, _ = transforms.heal_state(tx, state, params)
        updates, _ = tx.update(slope(params), healed, params)
        assert abs(float(updates["w"][0, 0])) <= 0.1 / 0.001**0.5 + 1e-3

    def test_a_healthy_state_comes_back_bit_by_bit(self, getkey):
        params, tx = start(getkey()), transforms.guarded(optax.adam(0.1), telemetry=2)
        _, state = tx.update(slope(params), tx.init(params), params)
        _, state = tx.update({"w": params["w"] * NAN, "b": params["b"]}, state, params)
        assert transforms.audit_state(state).ok  # the norm of the rejected one is NaN
        healed, count = transforms.heal_state(tx, state, params)
        assert int(count) == 0
        jax.tree.map(np.testing.assert_array_equal, healed, state)

    def test_masked_and_partitioned_states(self, getkey):
        params = start(getkey())
        tx = optax.chain(
            optax.masked(optax.adam(0.1), {"w": True, "b": False}),
            optax.partition(
                {"a": optax.sgd(0.1, momentum=0.9), "z": optax.set_to_zero()},
                {"w": "a", "b": "z"},
            ),
        )
        healed, count = transforms.heal_state(tx, poisoned(tx, params), params)
        assert int(count) > 0
        assert transforms.audit_state(healed).ok

    def test_names_leaf_and_index(self):
        state = {"mu": {"w": jnp.asarray([[0.0, NAN], [INF, 1.0]])}, "n": jnp.arange(2)}
        audit = transforms.audit_state(state)
        assert audit.nonfinite == {"['mu']['w']": 2}
        assert audit.first == {"['mu']['w']": (0, 1)}
        assert audit.summary() == "['mu']['w']: 2 non-finite, first at [0, 1]"

    def test_wants_the_optimizer_that_made_the_state(self):
        p = jnp.ones(2)
        with pytest.raises(ValueError, match=r"does not belong to this optimizer"):
            transforms.heal_state(optax.adam(0.1), optax.sgd(0.1).init(p), p)


class TestInFloat32:
    @pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
    def test_is_the_float32_optimizer_rounded_once(self, dtype, getkey):
        params = jax.tree.map(lambda x: x.astype(dtype), start(getkey()))
        wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
        ours, theirs = transforms.in_float32(optax.adam(0.1)), optax.adam(0.1)
        a, b = ours.init(params), theirs.init(wide)
        for _ in range(3):
            mine, a = ours.update(slope(params), a, params)
            wide_slope = jax.tree.map(lambda x: x.astype(jnp.float32), slope(params))
            other, b = theirs.update(wide_slope, b, wide)
            jax.tree.map(
                lambda x, y: np.testing.assert_array_equal(x, y.astype(dtype)),
                mine,
                other,
            )
        jax.tree.map(np.testing.assert_array_equal, a, b)

    def test_a_zero_gradient_in_float16_moves_nothing(self):
        params = jnp.ones(2, jnp.float16)
        g = jnp.asarray([0.0, 1.0], jnp.float16)
        theirs, _ = optax.adam(0.1).update(g, optax.adam(0.1).init(params))
        assert np.isnan(np.asarray(theirs)).any()
        tx = transforms.in_float32(optax.adam(0.1))
        updates, _ = tx.update(g, tx.init(params), params)
        np.testing.assert_allclose(updates, [0.0, -0.1], rtol=1e-3)

    def test_leaves_other_dtypes_alone_and_scans(self):
        params = {"h": jnp.ones(2, jnp.bfloat16), "c": jnp.ones(2, jnp.complex64)}
        tx = transforms.in_float32(optax.sgd(0.5, momentum=0.9))
        state, out = jax.lax.scan(
            lambda s, g: tx.update(g, s)[::-1],
            tx.init(params),
            jax.tree.map(lambda x: jnp.stack([x, x]), params),
        )
        assert (out["h"].dtype, out["c"].dtype) == (jnp.bfloat16, jnp.complex64)
        trace = optax.tree.get(state, "trace")
        assert (trace["h"].dtype, trace["c"].dtype) == (jnp.float32, jnp.complex64)


def accumulated(batch, every, lr=1.0):
    """NumPy: updates of sgd on means of the finite micro-batches."""
    out = []
    for k in range(len(batch)):
        if (k + 1) % every:
            out.append(np.zeros(batch.shape[1:]))
            continue
        window = batch[k + 1 - every : k + 1]
        good = window[np.isfinite(window).all(axis=1)]
        out.append(-lr * good.mean(0) if len(good) else np.zeros(batch.shape[1:]))
    return np.asarray(out)


class TestAccumulate:
    def test_against_numpy_with_bad_micro_batches(self):
        rng = np.random.default_rng(0)
        batch = rng.normal(size=(24, 3)).astype(np.float32)
        batch[[1, 5, 12, 13, 14, 15]] = [NAN, 1.0, INF]
        tx = transforms.accumulate(optax.sgd(1.0), 4)
        state, out = jax.lax.scan(
            lambda s, g: tx.update(g, s)[::-1], tx.init(batch[0]), jnp.asarray(batch)
        )
        np.testing.assert_allclose(out, accumulated(batch, 4), rtol=1e-6, atol=1e-7)
        assert int(state.micro_dropped) == 6
        assert int(state.empty_steps) == 1

    def test_optax_stops_for_ever_where_ours_goes_on(self):
        params = jnp.zeros(2)
        theirs = optax.MultiSteps(optax.apply_if_finite(optax.sgd(1.0), 5), 2)
        ours = transforms.accumulate(transforms.guarded(optax.sgd(1.0)), 2)
        a, b = theirs.init(params), ours.init(params)
        for g in (NAN, 1.0, 1.0, 1.0):
            other, a = theirs.update(jnp.full(2, g), a, params)
            mine, b = ours.update(jnp.full(2, g), b, params)
        np.testing.assert_array_equal(other, [0, 0])
        np.testing.assert_allclose(mine, -(2**-0.5) * np.ones(2), rtol=1e-6)

    def test_the_inner_optimizer_steps_once_and_hears_the_mean_loss(self):
        tx = transforms.accumulate(transforms.guarded(optax.adam(0.1), telemetry=2), 3)
        state = tx.init(jnp.zeros(1))
        for loss in (1.0, NAN, 4.0):
            _, state = tx.update(jnp.ones(1), state, value=jnp.asarray(loss))
        assert int(optax.tree.get(state, "count")) == 1
        assert float(transforms.read_history(state)["loss"][0]) == 2.5

    def test_half_precision_adds_up_in_float32(self):
        tx = transforms.accumulate(optax.sgd(1.0), 512)
        g = jnp.full((1,), 0.25, jnp.float16)
        _, out = jax.lax.scan(
            lambda s, _: tx.update(g * 40, s)[::-1], tx.init(g), None, 512
        )
        assert float(out[-1][0]) == -10.0
        assert out.dtype == jnp.float16

    def test_one_micro_batch_is_no_accumulation(self, getkey):
        params, tx = start(getkey()), optax.adam(0.1)
        ours = transforms.accumulate(tx, 1)
        mine, _ = ours.update(slope(params), ours.init(params), params)
        other, _ = tx.update(slope(params), tx.init(params), params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-6), mine, other)

    def test_refuses_no_micro_batches(self):
        with pytest.raises(ValueError, match="accumulate: every must be an integer"):
            transforms.accumulate(optax.sgd(0.1), 0)


class TestTelemetry:
    def test_keeps_the_last_steps_in_order(self):
        inner = optax.chain(
            transforms.clip_by_global_norm(1.0),
            transforms.dynamic_loss_scale(transforms.guarded(optax.sgd(0.1))),
        )
        tx = transforms.telemetry(3, inner)
        state = tx.init(jnp.zeros(2))
        for k, g in enumerate((0.5, 3.0, NAN, 0.25)):
            _, state = tx.update(jnp.full(2, g), state, value=jnp.asarray(float(k)))
        last = transforms.read_history(state)
        assert last["step"].tolist() == [1, 2, 3]
        assert last["loss"].tolist() == [1.0, 2.0, 3.0]
        assert last["ok"].tolist() == [True, False, True]
        assert last["clipped"].tolist() == [True, False, False]
        assert last["loss_scale"].tolist() == [2048.0, 2048.0, 1024.0]

    def test_the_norm_is_that_of_what_came_in(self):
        tx = transforms.telemetry(2, optax.scale(0.1))
        _, state = tx.update(jnp.asarray([3.0, 4.0]), tx.init(jnp.zeros(2)))
        last = transforms.read_history(state)
        assert last["grad_norm"].tolist() == [5.0]
        assert np.isnan(last["loss"]).all()

    def test_scans_and_changes_nothing(self, getkey):
        params, inner = start(getkey()), optax.adam(0.1)
        tx = transforms.telemetry(4, inner)
        grads = jax.tree.map(lambda p: jnp.stack([p] * 6), params)
        state, out = jax.lax.scan(
            lambda s, g: tx.update(g, s, params)[::-1], tx.init(params), grads
        )
        _, want = jax.lax.scan(
            lambda s, g: inner.update(g, s, params)[::-1], inner.init(params), grads
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-6), out, want)
        assert transforms.read_history(state)["step"].tolist() == [2, 3, 4, 5]

    def test_read_history_wants_one(self):
        with pytest.raises(ValueError, match=r"nothing in this state keeps a history"):
            transforms.read_history(optax.sgd(0.1).init(jnp.ones(1)))


class TestRateAndSpikes:
    def losses(self, spikes):
        rng = np.random.default_rng(0)
        values = 1 + 0.05 * rng.normal(size=80)
        values[list(spikes)] = 9.0
        return jnp.asarray(values, jnp.float32)

    def drive(self, tx, losses):
        def step(state, loss):
            updates, state = tx.update(jnp.ones(()), state, value=loss)
            return state, (updates, state.control.rate_factor)

        return jax.lax.scan(step, tx.init(jnp.ones(())), losses)

    def test_a_spike_lowers_the_rate_for_the_steps_after_it(self):
        tx = transforms.adapt_learning_rate(spike_threshold=6.0, recovery_steps=10)
        state, (updates, factors) = self.drive(tx, self.losses([40]))
        assert int(state.rate_spikes) == 1
        assert int(state.control.rejected) == 0
        assert float(updates[40]) == 1.0  # its own update is kept
        assert float(factors[40]) == 0.5
        assert float(factors[50]) == pytest.approx(1.0)

    def test_without_a_threshold_nothing_is_a_spike(self):
        _, (_, factors) = self.drive(
            transforms.adapt_learning_rate(), self.losses([40])
        )
        np.testing.assert_array_equal(factors, 1.0)

    def test_a_loss_that_stays_higher_becomes_usual(self):
        losses = jnp.concatenate([self.losses([]), self.losses([]) + 2.0])
        tx = transforms.adapt_learning_rate(spike_threshold=6.0, recovery_steps=5)
        _, (_, factors) = self.drive(tx, losses)
        assert float(factors[80]) == 0.5
        assert float(factors[-1]) == 1.0

    def test_composes_with_schedule_hyperparams_and_plateau(self):
        schedule = optax.cosine_decay_schedule(1.0, 10)
        tx = optax.chain(
            optax.inject_hyperparams(optax.sgd)(learning_rate=schedule),
            optax.contrib.reduce_on_plateau(patience=10),
            transforms.adapt_learning_rate(),
        )
        params = jnp.ones(())
        state = tx.init(params)
        for k, g in enumerate((1.0, NAN, 1.0)):
            updates, state = tx.update(
                jnp.asarray(g), state, params, value=jnp.asarray(g)
            )
            factor = 1.0 if k == 0 else 0.5
            want = 0.0 if k == 1 else -float(schedule(k)) * factor
            assert float(updates) == pytest.approx(want, rel=1e-6)


RATE_FREE = (
    "prodigy", "dadapt_adamw", "dog", "dowg", "mechanize", "cocob", "schedule_free",
    "muon",
)  # fmt: skip


@pytest.mark.parametrize("name", optimizers(RATE_FREE))
def test_learning_rate_free_optimizers_survive_in_a_guard(name, getkey):
    params = start(getkey())
    tx = transforms.guarded(OPTIMIZERS[name]())
    update = jax.jit(tx.update)
    bare = OPTIMIZERS[name]()
    state, unsafe = tx.init(params), bare.init(params)
    bad = {"w": params["w"].at[0, 0].set(NAN), "b": params["b"]}
    for g in (slope(params), bad, slope(params), slope(params)):
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
        _, unsafe = bare.update(g, unsafe, params)
    assert not transforms.audit_state(unsafe).ok
    assert transforms.audit_state((state, params)).ok
    assert int(state.control.rejected) == 1
    assert any(np.asarray(u).any() for u in jax.tree.leaves(updates))
