"""zero_nonfinite and skip_nonfinite beside optax's zero_nans and apply_if_finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsafe import NonFiniteError, transforms

NAN, INF = jnp.nan, jnp.inf


def grads(*values):
    return {"b": jnp.asarray(values[:1]), "w": jnp.asarray(values[1:])}


def leaves(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


class TestZero:
    def test_infinities_too_which_optax_leaves(self):
        g = grads(1.0, NAN, INF)
        tx = transforms.zero_nonfinite()
        updates, state = tx.update(g, tx.init(g))
        np.testing.assert_array_equal(leaves(updates), [1, 0, 0])
        theirs, _ = optax.zero_nans().update(g, optax.zero_nans().init(g))
        assert np.isinf(leaves(theirs)).any()
        assert int(state.zeroed) == 2
        report = transforms.nonfinite_report(state, g)
        assert (report.first, report.counts) == ("['w']", {"['w']": 2})

    def test_counts_add_up_in_a_scan_and_the_first_is_of_the_last(self):
        tx = transforms.zero_nonfinite()
        batch = jnp.asarray([[NAN, 1.0], [2.0, 3.0], [INF, -INF]])
        state, out = jax.lax.scan(
            lambda s, g: tx.update(g, s)[::-1], tx.init(batch[0]), batch
        )
        np.testing.assert_array_equal(out, [[0, 1], [2, 3], [0, 0]])
        assert np.asarray(state.zeroed_counts).tolist() == [3]
        assert int(state.zeroed_leaf) == 0

    def test_complex_and_integers_and_none(self):
        g = {"c": jnp.asarray([1 + 1j * NAN, 2j]), "n": jnp.arange(2), "none": None}
        tx = transforms.zero_nonfinite()
        updates, state = tx.update(g, tx.init(g))
        np.testing.assert_array_equal(updates["c"], [0, 2j])
        np.testing.assert_array_equal(updates["n"], [0, 1])
        assert int(state.zeroed) == 1

    def test_a_counter_stays_at_its_end(self):
        tx = transforms.zero_nonfinite()
        most = jnp.iinfo(jnp.int32).max
        state = tx.init(jnp.zeros(2))._replace(zeroed_counts=jnp.asarray([most - 1]))
        _, state = tx.update(jnp.asarray([NAN, NAN]), state)
        assert int(state.zeroed_counts[0]) == most

    def test_an_empty_tree(self):
        tx = transforms.zero_nonfinite()
        assert tx.update({}, tx.init({}))[0] == {}


class TestSkip:
    def test_is_the_inner_optimizer_while_all_is_well(self):
        params, tx = grads(0.0, 0.0, 0.0), optax.adam(0.1)
        ours = transforms.skip_nonfinite(tx)
        mine, theirs = ours.init(params), tx.init(params)
        for _ in range(3):
            g = grads(1.0, -2.0, 1e-3)
            a, mine = ours.update(g, mine, params)
            b, theirs = tx.update(g, theirs, params)
            np.testing.assert_allclose(leaves(a), leaves(b), rtol=1e-6)

    @pytest.mark.parametrize("bad", [NAN, INF, -INF])
    def test_a_bad_step_changes_nothing_inside(self, bad):
        params = grads(0.0, 0.0, 0.0)
        tx = transforms.skip_nonfinite(optax.adam(0.1))
        _, before = tx.update(grads(1.0, 2.0, 3.0), tx.init(params), params)
        updates, after = tx.update(grads(1.0, bad, 3.0), before, params)
        np.testing.assert_array_equal(leaves(updates), 0)
        jax.tree.map(
            np.testing.assert_array_equal, after.inner_state, before.inner_state
        )
        report = transforms.nonfinite_report(after, params)
        assert report.summary() == "first bad leaf ['w']; so far ['w'] 1"

    def test_a_bad_loss_and_a_bad_update_are_skipped_too(self):
        params = jnp.ones(2, jnp.float16)
        tx = transforms.skip_nonfinite(optax.adam(0.1))
        g = jnp.asarray([0.0, 1.0], jnp.float16)  # Adam divides 0 by 0 in float16
        updates, state = tx.update(g, tx.init(params), params)
        np.testing.assert_array_equal(updates, [0, 0])
        theirs, _ = optax.apply_if_finite(optax.adam(0.1), 3).update(
            g, optax.apply_if_finite(optax.adam(0.1), 3).init(params), params
        )
        assert np.isnan(np.asarray(theirs)).any()
        _, state = tx.update(g + 1, tx.init(params), params, value=NAN)
        assert int(state.control.rejected) == 1

    def test_halts_where_optax_accepts(self):
        params, bad = jnp.ones(2), jnp.asarray([NAN, 1.0])
        ours = transforms.skip_nonfinite(optax.sgd(0.1), give_up_after=3)
        theirs = optax.apply_if_finite(optax.sgd(0.1), 3)
        a, b = ours.init(params), theirs.init(params)
        for _ in range(5):
            mine, a = ours.update(bad, a)
            other, b = theirs.update(bad, b)
        assert np.isnan(np.asarray(other)).any()
        np.testing.assert_array_equal(mine, [0, 0])
        # for good, also when the gradients are fine again
        np.testing.assert_array_equal(ours.update(params, a)[0], [0, 0])
        with pytest.raises(NonFiniteError, match="the guard has given up"):
            transforms.raise_if_halted(a)

    def test_scans_vmaps_and_donates(self):
        tx = transforms.skip_nonfinite(optax.adam(0.1), telemetry=4)
        batch = jnp.asarray([[1.0, 2.0], [NAN, 1.0], [1.0, 1.0]])
        state, out = jax.lax.scan(
            lambda s, g: tx.update(g, s)[::-1], tx.init(batch[0]), batch
        )
        np.testing.assert_array_equal(out[1], [0, 0])
        assert int(state.control.rejected) == 1
        out, states = jax.jit(jax.vmap(lambda g: tx.update(g, tx.init(g))))(batch)
        np.testing.assert_array_equal(states.control.ok, [True, False, True])
        jax.jit(tx.update, donate_argnums=1)(batch[0], tx.init(batch[0]))

    def test_found_by_name_in_partition_masked_and_inject(self):
        tx = optax.partition(
            {
                "a": transforms.skip_nonfinite(optax.sgd(0.1)),
                "b": optax.inject_hyperparams(
                    lambda lr: transforms.skip_nonfinite(optax.sgd(lr))
                )(lr=0.5),
            },
            {"x": "a", "y": "b"},
        )
        params = {"x": jnp.ones(1), "y": jnp.ones(1)}
        state = tx.init(params)
        g = {"x": jnp.asarray([NAN]), "y": jnp.ones(1)}
        updates, state = jax.jit(tx.update)(g, state, params)
        assert (float(updates["x"][0]), float(updates["y"][0])) == (0.0, -0.5)


def test_report_wants_a_state_that_counts():
    with pytest.raises(ValueError, match=r"nonfinite_report: nothing .* Pass the"):
        transforms.nonfinite_report(optax.sgd(0.1).init(jnp.ones(1)), jnp.ones(1))
    tx = transforms.zero_nonfinite()
    with pytest.raises(ValueError, match="params must have 1 leaves"):
        transforms.nonfinite_report(tx.init(jnp.ones(1)), {"a": 1, "b": 2})
