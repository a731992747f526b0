"""Eight devices under shard_map: a fault strikes one of them. Writes JSON."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from jaxsafe import _tree, guard, testing, transforms
from tests.campaign import _models
from tests.campaign._harness import (
    BEHIND,
    NONFINITE,
    TAIL,
    controls_of,
    faults_for,
    model_of,
    same_bits,
)
from tests.campaign._workloads import NEVER

P = PartitionSpec
PLACES = ("batch", "loss", "gradients", "updates")


def train_step(state, batch, fault, i):
    device = lax.axis_index("data")
    here = {"step": i, "device": device}

    def strike(tree, place):
        return testing.inject(fault, tree, place=place, **here)

    batch = strike(batch, "batch")
    loss, grads = jax.value_and_grad(_models.mlp_loss)(state["params"], batch)
    loss, grads = strike(loss, "loss"), strike(grads, "gradients")
    loss, grads = lax.pmean((loss, grads), "data")
    tx = optimizer()
    updates, opt = tx.update(
        grads, state["opt"], state["params"], value=loss, fault=fault, **here
    )
    params = optax.apply_updates(state["params"], updates)
    return {"params": params, "opt": opt}, {"loss": loss}


def optimizer():
    return transforms.guarded(
        testing.faulty(optax.adam(1e-2)),
        recovery_steps=1,
        give_up_after=NEVER,
        axis_name="data",
    )


def everywhere_the_same(tree):
    """All devices hold the same bits, even of the NaN norm that control state notes."""
    leaves = jax.tree.leaves(tree)
    return same_bits([lax.all_gather(x, "data")[0] for x in leaves], leaves)


def run(steps, seed):
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    policy = guard.Policy(recovery_steps=1, give_up_after=NEVER)
    step = guard.transaction(train_step, policy=policy, axis_name="data")
    params = _models.mlp_params()
    carry = step.init({"params": params, "opt": optimizer().init(params)})
    faults = faults_for(PLACES, steps, seed=seed)
    rng = np.random.default_rng(seed)
    device = rng.integers(jax.device_count(), size=steps)
    faults = faults._replace(device=jnp.asarray(device, jnp.int32))
    batches = _models.mlp_batches()

    def body(carry, x):
        fault, i = x
        batch = jax.tree.map(lambda b: b[i % b.shape[0]], batches)
        new, aux = step(carry, batch, fault, i)
        before, after = model_of(carry), model_of(new)
        finite, ok = _tree.all_finite(after), new.control.ok
        seen = {
            "ok": ok,
            "clipped": controls_of(new)[0].clipped > controls_of(carry)[0].clipped,
            "poisoned": ~finite,
            "missed": ok & (~finite | ~jnp.isfinite(aux["loss"])),
            "changed": ~ok & ~same_bits(before, after),
            "disagree": ~everywhere_the_same(new),
            "loss": aux["loss"],
        }
        return new, jax.tree.map(lambda s: s[None], seen)

    def shard(carry, faults, batches):
        del batches
        return lax.scan(body, carry, (faults, jnp.arange(steps)))

    sharded = jax.shard_map(
        shard,
        mesh=mesh,
        in_specs=(P(), P(), P()),
        out_specs=(P(), P(None, "data")),
        check_vma=False,
    )
    _, seen = jax.jit(sharded)(carry, faults, batches)
    seen = jax.device_get(seen)
    strict = np.isin(faults.place, [testing.FAULT_PLACES.index(p) for p in BEHIND])
    names = [testing.FAULT_KINDS.index(k) for k in NONFINITE]
    result = {k: v.any(1) for k, v in seen.items() if k not in ("ok", "loss")}
    result |= {
        "struck": np.asarray(faults.step) == np.arange(steps),
        "place": faults.place,
        "kind": faults.kind,
        "nonfinite": strict | np.isin(faults.kind, names),
        "ok": seen["ok"].all(1),
        "before": np.zeros(steps, bool),
        "unhealed": np.zeros(steps, bool),
        "rolled_back": np.zeros(steps, bool),
        "loss": seen["loss"][:, 0],
    }
    return {k: np.asarray(v).tolist() for k, v in result.items()}


if __name__ == "__main__":
    assert jax.device_count() == 8
    sys.stdout.write(json.dumps(run(int(sys.argv[1]) + TAIL, int(sys.argv[2]))) + "\n")
