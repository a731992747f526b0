"""The dynamic loss scale: first step, growth, shrinking, stalling, float16 training."""

import flax.training.dynamic_scale
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsafe import NonFiniteError, transforms

NAN, INF = jnp.nan, jnp.inf


def scale_of(state):
    return float(state.control.loss_scale)


def drive(tx, params, losses):
    """Steps with the loss `factor * sum(params)`; states after each."""
    state, states = tx.init(params), []
    for factor in losses:
        value, grads = transforms.value_and_grad(
            lambda p, f=factor: jnp.sum(p * f), state
        )(params)
        updates, state = tx.update(grads, state, params, value=value)
        params = optax.apply_updates(params, updates)
        states.append(state)
    return params, states


def test_the_first_step_of_float16_is_taken_where_flax_skips_it():
    def loss(p):
        return (p * p).sum()

    params = jnp.ones(2, jnp.float16)
    theirs = flax.training.dynamic_scale.DynamicScale()
    _, fine, _, _ = theirs.value_and_grad(loss)(params)
    assert not bool(fine)
    tx = transforms.dynamic_loss_scale(optax.sgd(0.25))
    state = tx.init(params)
    value, grads = transforms.value_and_grad(loss, state)(params)
    updates, state = jax.jit(tx.update)(grads, state, params, value=value)
    assert float(value) == 2.0
    np.testing.assert_array_equal(updates, [-0.5, -0.5])
    assert updates.dtype == jnp.float16


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_first_and_largest_scale_fit_the_dtype(dtype):
    tx = transforms.dynamic_loss_scale(optax.sgd(0.1), dtype=dtype, growth_steps=1)
    params = jnp.ones(1, dtype)
    _, states = drive(tx, params, [dtype(1e-6)] * 6)
    for state in states:
        assert np.isfinite(np.asarray(state.control.loss_scale, dtype))
    assert (
        scale_of(states[-1])
        == scale_of(states[-2])
        == min(2.0 ** (jnp.finfo(dtype).maxexp - 1), 2.0**24)
    )


def test_grows_after_steps_in_a_row_and_stays_right_while_it_does():
    tx = transforms.dynamic_loss_scale(
        optax.sgd(1.0), initial_scale=8.0, growth_steps=3, max_scale=64.0
    )
    _, states = drive(tx, jnp.zeros(1), [0.5] * 14)
    assert [scale_of(s) for s in states[::3]] == [8, 16, 32, 64, 64]
    # every step is -0.5, the ones at which the scale moves as well
    _, states = drive(tx, jnp.zeros(1), [0.5] * 7)
    params = jnp.zeros(1)
    state = tx.init(params)
    for _ in range(7):
        _, grads = transforms.value_and_grad(lambda p: 0.5 * p.sum(), state)(params)
        updates, state = tx.update(grads, state, params)
        assert float(updates[0]) == -0.5


def test_shrinks_and_skips_on_overflow_and_counts_anew():
    tx = transforms.dynamic_loss_scale(
        optax.sgd(1.0), initial_scale=2.0**15, growth_steps=4
    )
    params = jnp.ones(1, jnp.float16)
    state = tx.init(params)
    bad, good = jnp.asarray([INF], jnp.float16), jnp.asarray([1.0], jnp.float16)
    for g, scale, ok in [
        (good, 15, True), (good, 15, True), (bad, 14, False), (good, 14, True),
        (good, 14, True), (good, 14, True), (good, 15, True), (bad, 14, False),
    ]:  # fmt: skip
        updates, state = tx.update(g, state, params)
        assert (scale_of(state), bool(state.control.ok)) == (2.0**scale, ok)
        assert ok or float(updates[0]) == 0.0
    assert int(state.control.rejected) == 2


def test_finds_the_scale_by_itself_from_too_large_a_one():
    tx = transforms.dynamic_loss_scale(optax.sgd(1e-3), give_up_after=3)
    params = jnp.ones(4, jnp.float16)
    # gradient 200: 200 * 2048 overflows float16, 200 * 256 does not
    _, states = drive(tx, params, [jnp.float16(200.0)] * 8)
    assert [bool(s.control.ok) for s in states] == [False] * 3 + [True] * 5
    assert scale_of(states[-1]) == 256.0
    assert not any(bool(s.control.halted) for s in states)


def test_a_loss_that_is_nan_is_no_matter_of_scale():
    tx = transforms.dynamic_loss_scale(optax.sgd(1.0), give_up_after=3)
    params = jnp.ones(1)
    _, states = drive(tx, params, [0.1, NAN, 0.1, NAN, NAN, NAN, 0.1])
    assert {scale_of(s) for s in states} == {2.0**11}
    assert [bool(s.control.stalled) for s in states] == [0, 1, 0, 1, 1, 1, 1]
    assert [bool(s.control.halted) for s in states] == [0, 0, 0, 0, 0, 1, 1]
    with pytest.raises(NonFiniteError, match="given up"):
        transforms.raise_if_halted(states[-1])


def test_flax_sinks_to_nothing_where_ours_stalls_and_halts():
    tx = transforms.dynamic_loss_scale(optax.sgd(1.0), initial_scale=4.0)
    params, state = jnp.ones(1), tx.init(jnp.ones(1))
    for _ in range(12):
        updates, state = tx.update(jnp.asarray([NAN]), state, params)
        assert float(updates[0]) == 0.0
    assert scale_of(state) == 1.0
    assert bool(state.control.stalled)
    assert bool(state.control.halted)
    theirs = flax.training.dynamic_scale.DynamicScale()
    for _ in range(150):
        theirs, *_ = theirs.value_and_grad(lambda p: (p * NAN).sum())(params)
    assert float(theirs.scale) < 1e-37


def test_small_gradients_survive_in_float16():
    params = jnp.ones(1, jnp.float16)

    def loss(p):
        return (p * jnp.float16(2e-7)).sum() * jnp.float16(0.1)

    assert float(jax.grad(loss)(params)[0]) == 0.0  # below the smallest float16
    tx = transforms.dynamic_loss_scale(optax.scale(-1e4))
    state = tx.init(params)
    _, grads = transforms.value_and_grad(loss, state)(params)
    updates, _ = tx.update(grads, state, params)
    # 2e-7 is a subnormal of two digits already
    np.testing.assert_allclose(float(updates[0]), -2e-4, rtol=0.15)


def test_scans_with_one_structure_and_aux_and_argnums():
    tx = transforms.dynamic_loss_scale(transforms.guarded(optax.adam(1e-2)))

    def loss(p, x):
        return jnp.mean((p - x) ** 2), {"x": x}

    def step(carry, x):
        params, state = carry
        (value, aux), grads = transforms.value_and_grad(loss, state, has_aux=True)(
            params, x
        )
        updates, state = tx.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), (value, aux["x"])

    params = jnp.zeros(3, jnp.bfloat16)
    xs = jnp.stack([jnp.ones(3), jnp.full(3, NAN), jnp.ones(3)]).astype(jnp.bfloat16)
    (params, state), (values, _) = jax.lax.scan(step, (params, tx.init(params)), xs)
    assert params.dtype == jnp.bfloat16
    assert int(state.control.rejected) == 1
    assert np.isnan(float(values[1]))
    two = transforms.value_and_grad(lambda a, b: a * b, state, argnums=(0, 1))
    value, (da, db) = two(2.0, 3.0)
    scale = scale_of(state)
    assert (float(value), float(da), float(db)) == (6.0, 3 * scale, 2 * scale)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"initial_scale": 65536.0}, "initial_scale is infinite in float16"),
        ({"min_scale": 2.0, "initial_scale": 1.0}, "min_scale <= initial_scale"),
        ({"factor": 1.0}, "factor must be above 1"),
        ({"growth_steps": 0}, "growth_steps must be an integer"),
        ({"give_up_after": 0}, "give_up_after must be an integer"),
    ],
)
def test_refuses(options, says):
    with pytest.raises(ValueError, match=f"dynamic_loss_scale: {says}"):
        transforms.dynamic_loss_scale(optax.sgd(0.1), **options)


def test_value_and_grad_wants_a_scale():
    with pytest.raises(ValueError, match=r"no loss scale in this state .* Wrap"):
        transforms.value_and_grad(jnp.sum, optax.sgd(0.1).init(jnp.ones(1)))
