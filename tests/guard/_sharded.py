"""One small model, laid out over devices in every usual way, under every guard.

Used by scripts that have more devices, or more processes, than the test that starts
them; what they see goes back as JSON.
"""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxsafe import guard, transforms
from jaxsafe.transforms import ControlState

P = PartitionSpec
ADAM = optax.adam(1e-2)
MAX_NORM = 1.0


class Layout(NamedTuple):
    """A mesh, and where parameters and rows lie on it; `axis` if under shard_map."""

    names: tuple
    w1: PartitionSpec = P()
    w2: PartitionSpec = P()
    axis: str | None = None

    def mesh(self):
        devices = np.asarray(jax.devices())
        shape = (2, -1) if len(self.names) == 2 else (-1,)
        return Mesh(devices.reshape(shape), self.names)

    def put(self, array, spec):
        sharding = NamedSharding(self.mesh(), spec)
        return jax.make_array_from_callback(
            array.shape, sharding, lambda part: array[part]
        )

    def params(self):
        return {"w1": self.put(W1, self.w1), "w2": self.put(W2, self.w2)}

    def batch(self, name):
        return tuple(self.put(array, P("data")) for array in BATCHES[name])


LAYOUTS = {
    "data": Layout(("data",)),
    "fsdp": Layout(("data",), P("data"), P("data")),
    "tensor": Layout(("data", "model"), P(None, "model"), P("model", None)),
    "shard_map": Layout(("data",), axis="data"),
}

_rng = np.random.default_rng(0)
W1 = 0.3 * _rng.normal(size=(16, 32)).astype(np.float32)
W2 = 0.3 * _rng.normal(size=(32, 8)).astype(np.float32)
X = _rng.normal(size=(16, 16)).astype(np.float32)
_NOTHING = np.zeros(16, np.float32)


def _with_nan(array, *at):
    array = array.copy()
    array[at] = np.nan
    return array


# Rows, and what each row adds to the loss but not to any gradient.
BATCHES = {
    "good": (X, _NOTHING),
    "huge": (X * 1e12, _NOTHING),  # finite gradients whose squares overflow
    "bad rows": (_with_nan(X, 13, 3), _NOTHING),  # on one device
    "bad loss": (X, _with_nan(_NOTHING, 13)),
}
ORDER = ["huge", "good", "bad rows", "bad loss", "good"]


def loss_fn(params, x):
    return jnp.mean((x @ params["w1"] @ params["w2"] - 1.0) ** 2)


def true_norm(x):
    """Global norm of the gradient at the first parameters, in float64 by hand."""
    x, w1, w2 = (np.asarray(a, np.float64) for a in (x, W1, W2))
    y = x @ w1 @ w2
    slope = 2 * (y - 1) / y.size
    parts = (x.T @ slope @ w2.T, (x @ w1).T @ slope)
    return float(np.sqrt(sum((part**2).sum() for part in parts)))


def value_and_grad(params, x, extra, axis):
    """The loss that this device sees, and the gradient of everybody's."""

    def mean_over_devices(params):
        loss = loss_fn(params, x)
        return loss if axis is None else lax.pmean(loss, axis), loss

    grads, loss = jax.grad(mean_over_devices, has_aux=True)(params)
    return loss + extra.sum(), grads


def with_optimizer(tx, axis):
    tx = optax.with_extra_args_support(tx)

    def step(state, x, extra):
        loss, grads = value_and_grad(state["params"], x, extra, axis)
        updates, opt = tx.update(grads, state["opt"], state["params"], value=loss)
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt": opt}, {"loss": loss[None]}

    return step, lambda params: {"params": params, "opt": tx.init(params)}


def with_apply_gradients(axis):
    def step(state, x, extra):
        loss, grads = value_and_grad(state["params"], x, extra, axis)
        params, opt, control = guard.apply_gradients(
            ADAM,
            grads,
            state["params"],
            state["opt"],
            state["control"],
            value=loss,
            max_norm=MAX_NORM,
            axis_name=axis,
        )
        new = {"params": params, "opt": opt, "control": control}
        return new, {"loss": loss[None]}

    def init(params):
        control = transforms.init_control()
        return {"params": params, "opt": ADAM.init(params), "control": control}

    return step, init


def with_transaction(axis, **policy):
    step, init = with_optimizer(ADAM, axis)
    guarded = guard.transaction(
        step, axis_name=axis, policy=guard.Policy(telemetry=2, **policy)
    )
    return guarded, lambda params: guarded.init(init(params))


def way(name, axis):
    """(step, init) of a guard, or of the plain optimizer that it is measured by."""
    if name == "apply_gradients":
        return with_apply_gradients(axis)
    if name == "transaction":
        return with_transaction(axis)
    tx = {
        "plain": ADAM,
        "guarded": transforms.guarded(ADAM, max_norm=MAX_NORM, axis_name=axis),
        "clip": optax.chain(transforms.clip_by_global_norm(MAX_NORM), optax.sgd(0.1)),
    }[name]
    return with_optimizer(tx, axis)


GUARDS = ["guarded", "apply_gradients", "transaction"]


def on_mesh(step, layout):
    """The step as it is jitted: as it stands, or inside shard_map."""
    if layout.axis is not None:
        rows = P(layout.axis)
        step = jax.shard_map(
            step,
            mesh=layout.mesh(),
            in_specs=(P(), rows, rows),
            out_specs=(P(), rows),
        )
    return jax.jit(step, donate_argnums=0)


def shards(tree):
    """Which device holds which part of every leaf, and the bytes that are held here."""
    return [
        (
            x.sharding.devices_indices_map(x.shape),
            [np.asarray(part.data).tobytes() for part in x.addressable_shards],
        )
        for x in jax.tree.leaves(tree)
    ]


def model_of(carry):
    """What a rejected step must leave alone: everything but control state."""

    def blank(node):
        return None if isinstance(node, ControlState) else node

    return jax.tree.map(blank, carry, is_leaf=lambda n: isinstance(n, ControlState))


def control_of(carry):
    nodes = jax.tree.leaves(carry, is_leaf=lambda n: isinstance(n, ControlState))
    return next(node for node in nodes if isinstance(node, ControlState))


def control_per_device(carry):
    """The distinct control states among this process's devices; one, if all is well."""
    held = [
        [shard.data for shard in leaf.addressable_shards]
        for leaf in jax.tree.leaves(control_of(carry))
    ]
    states = zip(*held, strict=True)
    return sorted({json.dumps([np.asarray(x).tolist() for x in s]) for s in states})


def follow(compiled, carry, batches):
    """Train; what every step did, as plain values."""
    steps = []
    for batch in batches:
        before = shards(model_of(carry))
        carry, _ = compiled(carry, *batch)
        after, control = shards(model_of(carry)), control_of(carry)
        steps.append(
            {
                "ok": bool(control.ok),
                "norm": float(control.grad_norm),
                "unchanged": [a[1] for a in after] == [b[1] for b in before],
                "sharding kept": [a[0] for a in after] == [b[0] for b in before],
                "control": control_per_device(carry),
            }
        )
    return steps


def on_one_device(name):
    """The same steps, unsharded, on the first device of this process."""
    step, init = way(name, None)
    carry = init({"w1": jnp.asarray(W1), "w2": jnp.asarray(W2)})
    return follow(jax.jit(step), carry, [BATCHES[name] for name in ORDER])


def on_many(name, layout):
    """What the steps did, and the all-reduces in the compiled step.

    Those outside of conditionals first, then all of them.
    """
    step, init = way(name, layout.axis)
    carry = jax.tree.map(
        lambda x: x if len(x.devices()) > 1 else layout.put(np.asarray(x), P()),
        init(layout.params()),
    )
    batches = [layout.batch(name) for name in ORDER]
    compiled = on_mesh(step, layout).lower(carry, *batches[0]).compile()
    text = compiled.as_text()
    always = text[text.index("\nENTRY ") :]
    reduces = [part.count(" all-reduce(") for part in (always, text)]
    steps = follow(compiled, carry, batches) if name in GUARDS else []
    return {"steps": steps, "all-reduces": reduces}


def clip(layout):
    """Norms that the clip saw, with the parameters after each step."""
    step, init = way("clip", layout.axis if layout else None)
    if layout is None:
        jitted = jax.jit(step)
        carry = init({"w1": jnp.asarray(W1), "w2": jnp.asarray(W2)})
        batches = [BATCHES["huge"], BATCHES["good"]]
    else:
        jitted, carry = on_mesh(step, layout), init(layout.params())
        batches = [layout.batch("huge"), layout.batch("good")]
    norms = []
    for batch in batches:
        carry, _ = jitted(carry, *batch)
        norms.append(float(carry["opt"][0].clip_norm))
    # A number that depends on every entry, and that every process can read.
    size = jax.jit(lambda p: jnp.stack([jnp.sum(x**3) for x in p.values()]))
    return {
        "norms": norms,
        "clipped": int(carry["opt"][0].clip_count),
        "params": np.asarray(size(carry["params"])).tolist(),
    }


def drive(layout):
    """`guard.run` until it gives up: what it told, and what it raised."""
    step, init = with_transaction(layout.axis, give_up_after=3)
    carry, events = init(layout.params()), []
    names = ["good", "bad rows", "good", "bad loss", "bad rows", "bad rows", "good"]
    ledger, raised = {}, None
    try:
        carry = guard.run(
            on_mesh(step, layout),
            carry,
            [layout.batch(name) for name in names],
            ledger=ledger,
            on_event=events.append,
        )
    except guard.Halted as halted:
        carry, raised = halted.carry, str(halted)
    return {
        "kinds": [event.kind for event in events],
        "verdicts": [event.verdict and event.verdict.kind for event in events],
        "bitwise": [event.verdict and event.verdict.bitwise for event in events],
        "primitives": [event.finding and event.finding.primitive for event in events],
        "ledger": ledger,
        "raised": raised,
        "control": control_per_device(carry),
        "finite": all(
            np.isfinite(np.asarray(shard.data)).all()
            for leaf in jax.tree.leaves(carry.state["params"])
            for shard in leaf.addressable_shards
        ),
    }


def report(ways, layouts, *, driven):
    """Everything, for some ways and layouts, by name."""
    return {
        "many": {
            way: {name: on_many(way, LAYOUTS[name]) for name in layouts} for way in ways
        },
        "clip": {
            name: clip(LAYOUTS[name]) for name in layouts if not LAYOUTS[name].axis
        },
        "run": {name: drive(LAYOUTS[name]) for name in driven},
    }
