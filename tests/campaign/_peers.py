"""The same fire at what people use today, beside ours on the same model."""

import jax
import jax.numpy as jnp
import optax
from flax.training.dynamic_scale import DynamicScale

from jaxsafe import testing
from tests.campaign import _models
from tests.campaign._harness import Strike, Workload, same_bits
from tests.campaign._workloads import PLACES


def never(old, new):
    return jnp.asarray(False)


def optimizer(name, wrap, accepted):
    """optax around adam behind a clip; `accepted(opt)` says whether it went through."""
    clip = optax.clip_by_global_norm(1.0)
    tx = wrap(optax.chain(clip, testing.faulty(optax.adam(1e-2))))
    params = _models.mlp_params()

    def step(carry, batch, fault, i):
        strike = Strike(fault, i)
        batch = strike(batch, "batch")
        loss, grads = jax.value_and_grad(_models.mlp_loss)(carry["params"], batch)
        loss, grads = strike(loss, "loss"), strike(grads, "gradients")
        updates, opt = tx.update(
            grads, carry["opt"], carry["params"], fault=fault, step=i
        )
        params = optax.apply_updates(carry["params"], updates)
        return {"params": params, "opt": opt}, loss, strike.nonfinite

    def strike_state(carry, fault, i):
        return {**carry, "opt": Strike(fault, i)(carry["opt"], "optimizer_state")}

    return Workload(
        name=f"MLP, adam in {name}",
        places=PLACES,
        init=lambda: {"params": params, "opt": tx.init(params)},
        batches=_models.mlp_batches(),
        step=step,
        committed=lambda old, new: accepted(new["opt"]),
        clipped=never,
        strike_state=strike_state,
        all_or_nothing=False,
        behind_the_clip=False,
    )


def dynamic_scale():
    """flax's loss scale, with the selects of its documentation."""
    dtype = jnp.float16
    tx = testing.faulty(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-3)))
    params = _models.transformer_params(jnp.float32)

    def loss_fn(params, batch):
        half = jax.tree.map(lambda p: p.astype(dtype), params)
        return _models.transformer_loss(half, batch)

    def step(carry, batch, fault, i):
        strike = Strike(fault, i)
        batch = strike(batch, "batch")
        grad_fn = carry["scale"].value_and_grad(loss_fn)
        scale, fine, loss, grads = grad_fn(carry["params"], batch)
        loss, grads = strike(loss, "loss"), strike(grads, "gradients")
        updates, opt = tx.update(
            grads, carry["opt"], carry["params"], fault=fault, step=i
        )
        params = optax.apply_updates(carry["params"], updates)
        keep = {"params": carry["params"], "opt": carry["opt"]}
        new = jax.tree.map(
            lambda n, o: jnp.where(fine, n, o), {"params": params, "opt": opt}, keep
        )
        return {**new, "scale": scale}, loss, strike.nonfinite

    def strike_state(carry, fault, i):
        opt = Strike(fault, i)(carry["opt"], "optimizer_state")
        scale = Strike(fault, i)(carry["scale"], "loss_scale")
        return {**carry, "opt": opt, "scale": scale}

    return Workload(
        name="transformer, float16, flax DynamicScale",
        places=(*PLACES, "loss_scale"),
        init=lambda: {
            "params": params,
            "opt": tx.init(params),
            "scale": DynamicScale(scale=jnp.asarray(65536.0)),
        },
        batches=_models.transformer_batches(dtype),
        step=step,
        committed=lambda old, new: (
            ~same_bits(jax.tree.leaves(old["params"]), jax.tree.leaves(new["params"]))
        ),
        clipped=never,
        strike_state=strike_state,
        all_or_nothing=False,
        behind_the_clip=False,
    )


def all_of_them():
    limit = 5

    def finite_or_given_up(opt):
        return opt.last_finite | (opt.notfinite_count > limit)

    def always(opt):
        return jnp.asarray(True)

    return [
        lambda: optimizer("a clip alone", lambda tx: tx, always),
        lambda: optimizer(
            "optax.apply_if_finite",
            lambda tx: optax.apply_if_finite(tx, limit),
            finite_or_given_up,
        ),
        lambda: optimizer(
            "optax.zero_nans", lambda tx: optax.chain(optax.zero_nans(), tx), always
        ),
        dynamic_scale,
    ]
