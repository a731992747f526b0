"""apply_gradients: decides before the update, changes nothing on a bad step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsafe import guard, transforms
from tests.lowering import count_conditionals, lower

PARAMS = {"w": jnp.asarray([1.0, -2.0]), "b": jnp.asarray(0.5)}
GOOD = {"w": jnp.asarray([0.3, 0.4]), "b": jnp.asarray(0.0)}
NAN = {"w": jnp.asarray([0.3, jnp.nan]), "b": jnp.asarray(0.0)}


def assert_bitwise(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def stepper(tx, **options):
    @functools.partial(jax.jit, donate_argnums=(1, 2, 3))
    def step(grads, params, opt_state, control, value):
        return guard.apply_gradients(
            tx, grads, params, opt_state, control, value=value, **options
        )

    return step


def start(tx, params=PARAMS):
    params = jax.tree.map(jnp.copy, params)
    return params, tx.init(params), transforms.init_control()


def test_equal_to_plain_optax_when_nothing_is_wrong(getkey):
    tx = optax.adamw(1e-2)
    peer = optax.chain(optax.clip_by_global_norm(1.0), tx)
    params, opt_state, control = start(tx)
    theirs, peer_state = PARAMS, peer.init(PARAMS)
    step = stepper(tx, max_norm=1.0)
    for _ in range(5):
        grads = {
            "w": jax.random.normal(getkey(), (2,)) * 3,
            "b": jax.random.normal(getkey(), ()),
        }
        updates, peer_state = peer.update(grads, peer_state, theirs)
        theirs = optax.apply_updates(theirs, updates)
        params, opt_state, control = step(
            grads, params, opt_state, control, jnp.asarray(1.0)
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-6), params, theirs)
    assert int(control.rejected) == 0


@pytest.mark.parametrize(
    ("grads", "value"), [(NAN, 1.0), (GOOD, jnp.inf), (GOOD, jnp.nan)]
)
def test_a_bad_step_changes_nothing(grads, value):
    tx = optax.adam(0.1)
    step = stepper(tx)
    carry = step(GOOD, *start(tx), jnp.asarray(1.0))
    before = jax.tree.map(jnp.copy, carry[:2])
    carry = step(grads, *carry, jnp.asarray(value))
    assert_bitwise(carry[:2], before)
    assert int(carry[2].rejected) == 1
    assert float(carry[2].rate_factor) == 0.5


def test_a_state_that_overflows_is_caught_by_the_full_check():
    huge = {"w": jnp.asarray([1e25, 0.0]), "b": jnp.asarray(0.0)}
    tx = optax.adam(0.1)
    _, opt_state, control = stepper(tx)(huge, *start(tx), jnp.asarray(1.0))
    assert not bool(control.ok)
    assert np.isfinite(opt_state[0].nu["w"]).all()
    _, opt_state, control = stepper(tx, check_state_every=0)(
        huge, *start(tx), jnp.asarray(1.0)
    )
    assert bool(control.ok)
    assert np.isinf(opt_state[0].nu["w"]).any()


def test_by_default_the_full_check_is_made_where_it_matters():
    huge = {"w": jnp.asarray([1e25, 0.0]), "b": jnp.asarray(0.0)}
    tx = optax.adam(0.1)
    params, opt_state, control = stepper(tx, max_norm=1.0)(
        huge, *start(tx), jnp.asarray(1.0)
    )
    assert bool(control.ok)  # clipped, so no moment can overflow
    assert np.isfinite(opt_state[0].nu["w"]).all()
    assert float(params["w"][0]) != 1.0

    # an exactly zero gradient: Adam's eps is 0 in float16, its update 0 / 0
    half = jax.tree.map(lambda x: x.astype(jnp.float16), PARAMS)
    zero = jax.tree.map(jnp.zeros_like, half)
    params, _, control = stepper(tx, max_norm=1.0)(
        zero, *start(tx, half), jnp.asarray(1.0)
    )
    assert not bool(control.ok)
    assert_bitwise(params, half)


def test_the_full_check_can_be_rare():
    huge = {"w": jnp.asarray([1e25, 0.0]), "b": jnp.asarray(0.0)}
    tx = optax.adam(0.1)
    step = stepper(tx, check_state_every=2)
    carry = start(tx)
    seen = []
    for grads in (huge, GOOD, huge):
        carry = step(grads, *carry, jnp.asarray(1.0))
        seen.append(bool(carry[2].ok))
    assert seen == [False, True, False]


def test_other_collections_follow_by_select():
    tx = optax.sgd(0.1)
    _, _, control = stepper(tx)(NAN, *start(tx), jnp.asarray(1.0))
    mean = guard.select(control.ok, jnp.asarray(jnp.nan), jnp.asarray(0.5))
    assert float(mean) == 0.5


def test_it_halts_for_good():
    tx = optax.sgd(0.1)
    step = stepper(tx, give_up_after=2)
    carry = start(tx)
    for grads in (NAN, NAN, GOOD):
        carry = step(grads, *carry, jnp.asarray(1.0))
    assert_bitwise(carry[0], PARAMS)
    with pytest.raises(FloatingPointError, match="given up"):
        transforms.raise_if_halted(carry[2])


def test_conditional_on_cpu_select_elsewhere():
    tx = optax.adam(0.1)

    def step(grads, params, opt_state, control):
        return guard.apply_gradients(
            tx, grads, params, opt_state, control, value=jnp.asarray(1.0)
        )

    args = (GOOD, *start(tx))
    assert count_conditionals(lower(step, "cpu", *args)) > 0
    for platform in ("cuda", "tpu"):
        assert count_conditionals(lower(step, platform, *args)) == 0


def test_donation_is_kept_whole():
    tx = optax.adam(0.1)
    params = {"w": jnp.ones((256, 256))}
    args = ({"w": jnp.ones((256, 256))}, *start(tx, params), jnp.asarray(1.0))
    memory = stepper(tx, max_norm=1.0).lower(*args).compile().memory_analysis()
    state_bytes = 3 * 256 * 256 * 4  # params and two moments
    assert memory.alias_size_in_bytes >= state_bytes


def test_bad_arguments():
    tx, (params, opt_state, control) = optax.sgd(0.1), start(optax.sgd(0.1))

    def call(tx=tx, opt_state=opt_state, control=control, **options):
        guard.apply_gradients(
            tx, GOOD, params, opt_state, control, value=1.0, **options
        )

    with pytest.raises(TypeError, match="control must be a ControlState"):
        call(control=None)
    with pytest.raises(ValueError, match="max_norm must be a finite number above 0"):
        call(max_norm=0.0)
    with pytest.raises(ValueError, match="check_state_every must be an integer"):
        call(check_state_every=-1)
    guarded = transforms.guarded(tx)
    with pytest.raises(ValueError, match="the optimizer has a guard of its own"):
        call(guarded, guarded.init(params))
