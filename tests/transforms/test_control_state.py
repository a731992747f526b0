"""Control state shares arrays between its fields; nothing of that may show."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsafe import transforms

DTYPES = {
    "attempts": jnp.int32,
    "rejected": jnp.int32,
    "rejected_in_a_row": jnp.int32,
    "committed_in_a_row": jnp.int32,
    "clipped": jnp.int32,
    "bad_leaf": jnp.int32,
    "ok": jnp.bool_,
    "halted": jnp.bool_,
    "stalled": jnp.bool_,
    "rate_factor": jnp.float32,
    "loss_scale": jnp.float32,
    "grad_norm": jnp.float32,
}


@pytest.mark.parametrize("name", DTYPES)
def test_a_field_is_read_and_replaced_alone(name):
    control = transforms.init_control(telemetry=2)
    before = {k: np.asarray(getattr(control, k)) for k in DTYPES}
    new = jnp.asarray(not before[name] if DTYPES[name] == jnp.bool_ else 7)
    after = control._replace(**{name: new})
    assert type(after) is transforms.ControlState
    assert jax.tree.structure(after) == jax.tree.structure(control)
    for field, dtype in DTYPES.items():
        found = getattr(after, field)
        assert found.dtype == dtype, field
        assert found.shape == (), field
        assert found == (new if field == name else before[field]), field


def test_fields_and_arrays_are_replaced_together_and_typos_are_named():
    control = transforms.init_control()
    after = control._replace(history=(1,), halted=True, loss_scale=4.0)
    assert after.history == (1,)
    assert bool(after.halted)
    assert float(after.loss_scale) == 4.0
    with pytest.raises(ValueError, match="haltd"):
        control._replace(haltd=True)


def test_a_batch_of_states_is_read_like_one():
    tx = transforms.guarded(optax.sgd(0.1), telemetry=3)
    params = jnp.zeros((4, 2))
    states = jax.vmap(tx.init)(params)
    grads = jnp.ones((4, 2)).at[1, 0].set(jnp.nan)
    _, states = jax.jit(jax.vmap(tx.update))(grads, states)
    assert states.control.rejected.tolist() == [0, 1, 0, 0]
    assert states.control.bad_leaf.tolist() == [-1, 0, -1, -1]
    assert states.control.history.ok.shape == (4, 3)
    assert states.control.history.ok[:, 0].tolist() == [True, False, True, True]


def test_the_history_is_read_by_its_columns():
    control = transforms.init_control(telemetry=2)
    columns = control.history.columns()
    assert columns["ok"].dtype == columns["clipped"].dtype == jnp.bool_
    assert all(columns[k].shape == (2,) for k in columns)
    np.testing.assert_array_equal(columns["loss"], [np.nan, np.nan])


def test_the_guard_is_found_by_optax():
    state = optax.chain(transforms.guarded(optax.sgd(0.1)), optax.scale(1.0)).init({})
    assert int(optax.tree.get(state, "control").attempts) == 0
