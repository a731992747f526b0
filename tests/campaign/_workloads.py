"""What is put under fire: every guard of ours, around models and optimizers."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from optax import contrib

from jaxsafe import guard, ops, testing, transforms
from jaxsafe.guard import nnx as guard_nnx
from tests.campaign import _models
from tests.campaign._harness import Strike, Workload, controls_of

NEVER = 10**9  # the campaign goes on; that a guard halts is tested elsewhere
# What a user knows of a healthy run, and tells the guard: a finite number that struck
# behind the clip is seen by nothing else.
LOSS, NORM, RATE = 20.0, 100.0, 0.3
EVERY = 4  # micro-batches

OPTIMIZERS = {
    "adam": lambda: optax.adam(1e-2),
    "adamw": lambda: optax.adamw(1e-2),
    "sgd + momentum": lambda: optax.sgd(3e-2, momentum=0.9),
    "lion": lambda: optax.lion(1e-3),
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=4),
    "lamb": lambda: optax.lamb(1e-2),
    "rmsprop": lambda: optax.rmsprop(3e-3),
    "adagrad": lambda: optax.adagrad(5e-2),
    # The rate that they estimate never falls again: it must not learn from a spike.
    "prodigy": lambda: optax.chain(transforms.clip_spikes(), contrib.prodigy()),
    "dadapt_adamw": lambda: optax.chain(
        transforms.clip_spikes(), contrib.dadapt_adamw()
    ),
    "muon": lambda: contrib.muon(1e-2),
    "schedule_free_adamw": lambda: contrib.schedule_free_adamw(1e-2),
}
PLACES = ("batch", "loss", "gradients", "updates", "optimizer_state")


def guarded(inner, backoff=0.5):
    # recovery_steps=1: under so much fire a slow recovery would be no training at all.
    return transforms.guarded(
        testing.faulty(inner),
        backoff=backoff,
        recovery_steps=1,
        give_up_after=NEVER,
    )


def policy():
    return guard.Policy(recovery_steps=1, give_up_after=NEVER)


def committed(old, new):
    return controls_of(new)[-1].ok


def clipped(old, new):
    return controls_of(new)[0].clipped > controls_of(old)[0].clipped


def plausible(state, aux):
    if "params" in state:
        params = state["params"]
    else:  # of `guard.nnx`: a dict from path to array
        params = {k: v for k, v in state["variables"].items() if k.startswith("0/")}
    # Prodigy and D-Adaptation estimate a rate that never falls again.
    rates = optax.tree.get_all_with_path(state, "estim_lr")
    fine = [rate < RATE for _, rate in rates]
    return (aux["loss"] < LOSS) & (ops.global_norm(params) < NORM) & all_of(fine)


def all_of(flags):
    return jnp.stack([jnp.asarray(True), *flags]).all()


def strike_opt(carry, fault, i):
    opt = Strike(fault, i)(carry.state["opt"], "optimizer_state")
    return carry._replace(state={**carry.state, "opt": opt})


def with_optimizer(name, tx, params, loss_fn, batches, *, heal_with=None):
    """`guard.transaction` around an optimizer that is guarded itself."""

    def train_step(state, batch, fault, i):
        strike = Strike(fault, i)
        batch = strike(batch, "batch")
        loss, grads = jax.value_and_grad(loss_fn)(state["params"], batch)
        loss, grads = strike(loss, "loss"), strike(grads, "gradients")
        updates, opt = tx.update(
            grads, state["opt"], state["params"], value=loss, fault=fault, step=i
        )
        new = {"params": optax.apply_updates(state["params"], updates), "opt": opt}
        return new, {"loss": loss, "nonfinite": strike.nonfinite}

    step = guard.transaction(train_step, policy=policy(), check=plausible)

    def attempt(carry, batch, fault, i):
        carry, aux = step(carry, batch, fault, i)
        return carry, aux["loss"], aux["nonfinite"]

    def heal(carry):
        opt, _ = transforms.heal_state(tx, carry.state["opt"], carry.state["params"])
        return carry._replace(state={**carry.state, "opt": opt})

    return Workload(
        name=name,
        places=PLACES,
        init=lambda: step.init({"params": params, "opt": tx.init(params)}),
        batches=batches,
        step=attempt,
        committed=committed,
        clipped=clipped,
        strike_state=strike_opt,
        heal=heal,
    )


def mlp(optimizer):
    return with_optimizer(
        f"MLP, {optimizer}",
        guarded(OPTIMIZERS[optimizer]()),
        _models.mlp_params(),
        _models.mlp_loss,
        _models.mlp_batches(),
    )


def transformer_bfloat16():
    """`guard.apply_gradients`, which checks half-precision parameters as well."""
    tx, dtype = transforms.in_float32(optax.adamw(3e-3)), jnp.bfloat16
    params = _models.transformer_params(dtype)

    def step(carry, batch, fault, i):
        strike = Strike(fault, i)
        batch = strike(batch, "batch")
        loss, grads = jax.value_and_grad(_models.transformer_loss)(
            carry["params"], batch
        )
        loss, grads = strike(loss, "loss"), strike(grads, "gradients")
        under_fire = testing.faulty(tx)

        def update(updates, state, params, **extra):
            return under_fire.update(
                updates, state, params, fault=fault, step=i, **extra
            )

        params, opt, control = guard.apply_gradients(
            optax.GradientTransformationExtraArgs(tx.init, update),
            grads,
            carry["params"],
            carry["opt"],
            carry["control"],
            # A bound on the loss, as a condition that has to be finite.
            value=jnp.where(loss < LOSS, loss, jnp.nan),
            max_norm=1.0,
            recovery_steps=1,
            give_up_after=NEVER,
        )
        new = {"params": params, "opt": opt, "control": control}
        return new, loss, strike.nonfinite

    def heal(carry):
        opt, _ = transforms.heal_state(tx, carry["opt"], carry["params"])
        return {**carry, "opt": opt}

    def strike_state(carry, fault, i):
        opt = Strike(fault, i)(carry["opt"], "optimizer_state")
        return {**carry, "opt": opt}

    def init():
        control = transforms.init_control()
        return {"params": params, "opt": tx.init(params), "control": control}

    return Workload(
        name="transformer, bfloat16",
        places=PLACES,
        init=init,
        batches=_models.transformer_batches(dtype),
        step=step,
        committed=committed,
        clipped=clipped,
        strike_state=strike_state,
        heal=heal,
    )


def scaled(*, fixed=False, backoff=0.5):
    """Loss scaling around a guarded adamw; `fixed` for a scale that stays."""
    scale = 2.0**8
    limits = {"min_scale": scale} if fixed else {}
    return transforms.dynamic_loss_scale(
        guarded(optax.adamw(3e-3), backoff),
        initial_scale=scale,
        max_scale=scale,
        growth_steps=5,
        give_up_after=NEVER,
        **limits,
    )


def transformer_float16(tx=None):
    """`transforms.dynamic_loss_scale` inside `guard.transaction`."""
    tx, dtype = tx or scaled(), jnp.float16
    params = _models.transformer_params(dtype)

    def train_step(state, batch, fault, i):
        strike = Strike(fault, i)
        batch = strike(batch, "batch")
        loss, grads = transforms.value_and_grad(_models.transformer_loss, state["opt"])(
            state["params"], batch
        )
        loss, grads = strike(loss, "loss"), strike(grads, "gradients")
        updates, opt = tx.update(
            grads, state["opt"], state["params"], value=loss, fault=fault, step=i
        )
        new = {"params": optax.apply_updates(state["params"], updates), "opt": opt}
        return new, {"loss": loss, "nonfinite": strike.nonfinite}

    step = guard.transaction(train_step, policy=policy(), check=plausible)

    def attempt(carry, batch, fault, i):
        scale = carry.state["opt"].control.loss_scale
        carry, aux = step(carry, batch, fault, i)
        return carry, aux["loss"], aux["nonfinite"] | ~jnp.isfinite(scale)

    def strike_state(carry, fault, i):
        carry = strike_opt(carry, fault, i)
        control = carry.state["opt"].control
        scale = Strike(fault, i)(control.loss_scale, "loss_scale")
        opt = carry.state["opt"]._replace(control=control._replace(loss_scale=scale))
        return carry._replace(state={**carry.state, "opt": opt})

    def heal(carry):
        opt, _ = transforms.heal_state(tx, carry.state["opt"], carry.state["params"])
        return carry._replace(state={**carry.state, "opt": opt})

    return Workload(
        name="transformer, float16, loss scale",
        places=(*PLACES, "loss_scale"),
        init=lambda: step.init({"params": params, "opt": tx.init(params)}),
        batches=_models.transformer_batches(dtype),
        step=attempt,
        committed=committed,
        clipped=clipped,
        strike_state=strike_state,
        heal=heal,
    )


def micro_batches():
    """`transforms.accumulate` around a guarded adam; a step here is a micro-batch."""
    tx = transforms.accumulate(guarded(optax.adam(1e-2)), EVERY)
    params = _models.mlp_params()

    def step(carry, batch, fault, i):
        strike = Strike(fault, i)
        batch = strike(batch, "batch")
        loss, grads = jax.value_and_grad(_models.mlp_loss)(carry["params"], batch)
        loss, grads = strike(loss, "loss"), strike(grads, "gradients")
        value = jnp.where(loss < LOSS, loss, jnp.nan)
        updates, opt = tx.update(
            grads, carry["opt"], carry["params"], value=value, fault=fault, step=i
        )
        params = optax.apply_updates(carry["params"], updates)
        return {"params": params, "opt": opt}, loss, strike.nonfinite

    def rejected(carry):
        return carry["opt"].micro_dropped + controls_of(carry)[0].rejected

    return Workload(
        name="MLP, adam, micro-batches",
        places=("batch", "loss", "gradients"),
        init=lambda: {"params": params, "opt": tx.init(params)},
        batches=_models.mlp_batches(),
        step=step,
        committed=lambda old, new: rejected(new) == rejected(old),
        clipped=clipped,
        all_or_nothing=False,  # a dropped micro-batch counts, and may complete a step
        behind_the_clip=False,
    )


def cnn():
    """`guard.nnx.transaction`: BatchNorm statistics roll back with the rest."""
    clip = transforms.clip_by_global_norm(1.0)
    tx = optax.chain(clip, testing.faulty(optax.adam(3e-3)))
    model = _models.Cnn(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    made = (model, optimizer, guard_nnx.Control())
    definition, start = nnx.split(made)

    def train_step(model, optimizer, batch, fault, i):
        strike = Strike(fault, i)
        images, labels = strike(batch, "batch")
        loss, grads = nnx.value_and_grad(_models.cnn_loss)(model, images, labels)
        loss, grads = strike(loss, "loss"), strike(grads, "gradients")
        optimizer.update(model, grads, fault=fault, step=i)
        return {"loss": loss, "nonfinite": strike.nonfinite}

    guarded_step = guard_nnx.transaction(train_step, policy=policy(), check=plausible)

    def step(carry, batch, fault, i):
        model, optimizer, control = nnx.merge(definition, carry)
        aux = guarded_step(control, model, optimizer, batch, fault, i)
        carry = nnx.state((model, optimizer, control))
        return carry, aux["loss"], aux["nonfinite"]

    def with_opt_state(carry, change):
        model, optimizer, control = nnx.merge(definition, carry)
        params = nnx.as_pure(nnx.state(model, nnx.Param))
        opt = change(nnx.as_pure(optimizer.opt_state), params)
        nnx.update(optimizer.opt_state, nnx.state(opt))
        return nnx.state((model, optimizer, control))

    def strike_state(carry, fault, i):
        return with_opt_state(
            carry, lambda opt, _: Strike(fault, i)(opt, "optimizer_state")
        )

    def heal(carry):
        return with_opt_state(
            carry, lambda opt, params: transforms.heal_state(tx, opt, params)[0]
        )

    def shortened(old, new):
        counts = [nnx.merge(definition, c)[1].opt_state[0] for c in (old, new)]
        before, after = (count.clip_count.get_value() for count in counts)
        return after > before

    return Workload(
        name="CNN with BatchNorm, nnx",
        places=PLACES,
        init=lambda: start,
        batches=_models.cnn_batches(),
        step=step,
        committed=committed,
        clipped=shortened,
        strike_state=strike_state,
        heal=heal,
    )
