"""What today's tools do wrong, ours beside theirs; the rest is in its neighbours."""

import functools

import jax
import jax.numpy as jnp
import jmp
import mpx
import numpy as np
import optax
import pytest
from flax.training.dynamic_scale import DynamicScale
from jax.sharding import PartitionSpec

from jaxsafe import guard, transforms

NAN, INF = jnp.nan, jnp.inf

# What others do wrong changes with their releases only.
pytestmark = pytest.mark.slow


def update(tx, grads, params=None):
    return tx.update(grads, tx.init(grads), params)


class TestClip:
    def test_one_nan_leaf_makes_every_leaf_nan(self):
        grads = {"bad": jnp.asarray([NAN]), "good": jnp.asarray([2.0])}
        theirs, _ = update(optax.clip_by_global_norm(1.0), grads)
        ours, _ = update(transforms.clip_by_global_norm(1.0), grads)
        assert np.isnan(theirs["good"]).all()
        np.testing.assert_array_equal(ours["good"], [2.0])

    @pytest.mark.parametrize(
        ("grads", "norm", "theirs"),
        [
            ([jnp.ones(1, jnp.bfloat16)] * 1000, 1000**0.5, 16.0),
            ([jnp.ones(70_000, jnp.float16)], 70_000**0.5, np.inf),
            ([jnp.full(3, 1e-4, jnp.float16)], 3**0.5 * 1e-4, 0.0),
        ],
        ids=["bfloat16 stops growing", "float16 overflows", "float16 vanishes"],
    )
    def test_a_norm_added_up_in_half_precision(self, grads, norm, theirs):
        assert float(optax.tree.norm(grads)) == theirs
        _, state = update(transforms.clip_by_global_norm(1.0), grads)
        np.testing.assert_allclose(state.clip_norm, norm, rtol=1e-3)


class TestApplyIfFinite:
    """It looks at the gradients that come in, and at nothing else."""

    def test_a_loss_that_is_not_finite(self):
        def accepted(tx):
            tx = optax.with_extra_args_support(tx)
            params = jnp.ones(2)
            updates, _ = tx.update(params, tx.init(params), params, value=NAN)
            return bool(np.asarray(updates).any())

        assert accepted(optax.apply_if_finite(optax.sgd(0.1), 3))
        assert not accepted(transforms.guarded(optax.sgd(0.1)))
        assert not accepted(transforms.skip_nonfinite(optax.sgd(0.1)))

    def test_a_finite_gradient_with_an_infinite_update(self):
        params, grads = jnp.ones(2), jnp.asarray([1.0, 1e30])
        inner = optax.scale(-1e20)
        theirs, _ = update(optax.apply_if_finite(inner, 3), grads, params)
        assert np.isinf(theirs).any()
        ours, state = update(transforms.skip_nonfinite(inner), grads, params)
        np.testing.assert_array_equal(ours, [0.0, 0.0])
        assert int(state.control.rejected) == 1

    def test_parameters_that_are_nan_already(self):
        params, grads = jnp.asarray([1.0, NAN]), jnp.zeros(2)
        theirs = optax.apply_if_finite(optax.adamw(0.1), 3)
        _, state = theirs.update(grads, theirs.init(params), params)
        assert bool(state.last_finite)
        tx = optax.adamw(0.1)
        *_, control = guard.apply_gradients(
            tx, grads, params, tx.init(params), transforms.init_control(),
            value=0.0, check_state_every=1,
        )  # fmt: skip
        assert not bool(control.ok)
        _, state = update(transforms.guarded(tx), grads, params)  # weight decay of NaN
        assert not bool(state.control.ok)

    @pytest.mark.slow
    @pytest.mark.several_devices
    def test_in_shard_map_each_device_decides_for_itself(self):
        mesh = jax.make_mesh((4,), ("data",))
        rows = jax.sharding.NamedSharding(mesh, PartitionSpec("data"))
        grads = jax.device_put(jnp.ones((4, 2)).at[2, 0].set(NAN), rows)

        def moved(tx):
            @functools.partial(
                jax.shard_map,
                mesh=mesh,
                in_specs=PartitionSpec("data"),
                out_specs=PartitionSpec("data"),
            )
            def step(g):
                return update(tx, g[0])[0].any()[None]

            return step(grads).tolist()

        theirs = moved(optax.apply_if_finite(optax.sgd(1.0), 3))
        assert theirs == [True, True, False, True]
        ours = moved(transforms.guarded(optax.sgd(1.0), axis_name="data"))
        assert ours == [False] * 4


class TestMonitor:
    def test_optax_monitor_cannot_be_scanned(self):
        def scan(tx):
            grads = jnp.asarray([[3.0, 4.0], [NAN, 0.0], [0.6, 0.8]])
            state = tx.init(grads[0])
            return jax.lax.scan(lambda s, g: tx.update(g, s)[::-1], state, grads)[0]

        measures = {"norm": lambda updates: optax.tree.norm(updates)}
        with pytest.raises(TypeError, match="scan"):
            scan(optax.monitor(measures))
        history = transforms.read_history(scan(transforms.telemetry(3, optax.sgd(1.0))))
        np.testing.assert_allclose(history["grad_norm"], [5.0, NAN, 1.0], rtol=1e-6)


class TestLossScale:
    def test_jmp_loses_its_least_scale_under_jit(self):
        theirs = jmp.DynamicLossScale(
            jnp.asarray(32.0), min_loss_scale=jnp.asarray(32.0)
        )
        theirs = jax.jit(lambda s: s.adjust(jnp.asarray(False)))(theirs)
        theirs = jax.jit(lambda s: s.adjust(jnp.asarray(False)))(theirs)
        assert float(theirs.loss_scale) < 32.0
        tx = transforms.dynamic_loss_scale(
            optax.sgd(0.1), initial_scale=32.0, min_scale=32.0
        )
        params = jnp.ones(1)
        state = tx.init(params)
        for _ in range(3):
            _, state = jax.jit(tx.update)(jnp.asarray([INF]), state, params)
        assert float(state.control.loss_scale) == 32.0
        assert bool(state.control.stalled)

    def test_mpx_is_wrong_at_growth_steps_and_ours_is_not(self):
        def loss(p):
            return (3 * p).sum()

        params, scale = jnp.ones(2, jnp.float16), jnp.asarray(8.0)
        theirs = mpx.DynamicLossScaling(scale, jnp.asarray(1.0), period=2)
        tx = transforms.dynamic_loss_scale(
            optax.sgd(1.0), initial_scale=8.0, growth_steps=2
        )
        state, seen = tx.init(params), []
        for _ in range(4):
            value, theirs, _, grads = mpx.filter_value_and_grad(loss, theirs)(params)
            our_value, scaled = transforms.value_and_grad(loss, state)(params)
            updates, state = tx.update(scaled, state, params)
            np.testing.assert_array_equal(our_value, 6.0)
            np.testing.assert_array_equal(updates, [-3.0, -3.0])
            seen.append((float(value) / 6, float(grads[0]) / 3))
        assert float(state.control.loss_scale) == 32.0
        assert float(theirs.loss_scaling) > 8.0
        assert {pair for pair in seen if pair != (1.0, 1.0)} == {(0.5, 0.5)}

    def test_flax_takes_no_keyword_arguments_and_ours_does(self):
        def loss(p, *, x):
            return (p * x).sum()

        params = jnp.ones(2)
        with pytest.raises(TypeError, match="unexpected keyword argument 'x'"):
            DynamicScale().value_and_grad(loss)(params, x=3.0)
        state = transforms.dynamic_loss_scale(optax.sgd(0.1)).init(params)
        value, grads = transforms.value_and_grad(loss, state)(params, x=3.0)
        assert float(value) == 6.0
        unscaled = np.asarray(grads) / float(state.control.loss_scale)
        np.testing.assert_array_equal(unscaled, [3.0, 3.0])

    def test_flax_compiles_twice_and_ours_once(self):
        def traces(first, step):
            count = 0

            @jax.jit
            def counted(state):
                nonlocal count
                count += 1
                return step(state)

            state = first
            for _ in range(3):
                state = counted(state)
            return count

        params = jnp.ones(2)

        def theirs(scale):
            return scale.value_and_grad(lambda p: (p**2).sum())(params)[0]

        tx = transforms.dynamic_loss_scale(optax.sgd(0.1))

        def ours(state):
            grad = transforms.value_and_grad(lambda p: (p**2).sum(), state)
            value, grads = grad(params)
            return tx.update(grads, state, params, value=value)[1]

        assert traces(DynamicScale(), theirs) == 2
        assert traces(tx.init(params), ours) == 1


class TestSpikeSkippers:
    """The two rules of public trainers, transcribed; both have no release to import."""

    @staticmethod
    def window_rule(norms, window=8, factor=6.0):
        """Skip where the norm is `factor` deviations above the last `window` ones.

        As MaxText's skip_step_on_spikes: every norm enters, and the first half of a
        window is always accepted.
        """
        accepted = []
        for i, norm in enumerate(norms):
            seen = np.asarray(norms[max(0, i - window) : i])
            usual = len(seen) < window / 2
            with np.errstate(invalid="ignore"):
                usual = usual or norm <= seen.mean() + factor * seen.std()
            accepted.append(bool(usual))
        return accepted

    def test_a_nan_in_the_window_skips_all_that_follows(self):
        rng = np.random.default_rng(0)
        norms = 1 + 0.1 * rng.normal(size=40)
        norms[[0, 20]] = np.nan
        theirs = self.window_rule(norms)
        assert theirs[0]  # the NaN of the first steps is taken
        assert not any(theirs[21:28])  # and good steps are not
        tx = transforms.guarded(
            optax.chain(transforms.clip_spikes(), optax.sgd(1.0)), max_norm=None
        )
        grads = jnp.asarray(norms, jnp.float32)[:, None]

        def step(state, g):
            _, state = tx.update(g, state)
            return state, state.control.ok

        _, ours = jax.lax.scan(step, tx.init(grads[0]), grads)
        np.testing.assert_array_equal(ours, np.isfinite(norms))

    def test_a_step_multiplied_by_zero_is_not_skipped(self):
        # As Levanter's SkipStepConfig: update * 0.0 where the step is to be skipped.
        grads = jnp.asarray([NAN, 1.0])
        assert np.isnan(grads * 0.0).any()
        for tx in (transforms.guarded, transforms.skip_nonfinite):
            updates, _ = update(tx(optax.sgd(1.0)), grads)
            np.testing.assert_array_equal(updates, [0.0, 0.0])

    def test_a_detector_behind_the_clip_sees_no_spike(self):
        # As MaxText hands it the norm that was clipped to 1 already.
        norms = np.where(np.arange(60) == 50, 1e4, 2.0)
        grads = jnp.asarray(norms, jnp.float32)[:, None]

        def spikes(tx):
            state = tx.init(grads[0])
            state, _ = jax.lax.scan(lambda s, g: tx.update(g, s)[::-1], state, grads)
            return int(optax.tree.get(state, "spike_count"))

        spike = functools.partial(transforms.clip_spikes, warmup_steps=10)
        clipped_first = optax.chain(optax.clip_by_global_norm(1.0), spike())
        assert spikes(clipped_first) == 0
        assert spikes(spike(max_norm=None)) == 1


def test_measure_with_ema_never_forgets_a_nan():
    theirs = optax.measure_with_ema(optax.tree.norm, 0.9)
    ours = transforms.clip_spikes(warmup_steps=2, max_norm=None)
    first = jnp.ones(1)
    a, b = theirs.init(first), ours.init(first)
    for g in (1.0, 1.0, NAN, *[1.0] * 5):
        average, a = theirs.update(jnp.asarray([g]), a)
        _, b = ours.update(jnp.asarray([g]), b)
    assert np.isnan(average)
    assert float(b.spike_statistics.mean) == 1.0
