"""Train under fire in one compiled program, and judge every step from outside.

What is counted, step by step; none of it takes the guard's word for anything but `ok`:

    poisoned   a leaf of the model state is not finite after the step, none was before
    missed     the step was committed, its loss or the state it wrote is not finite
    changed    the step was rejected, the model state is not bitwise what it was
    healthy    a step without a fault was rejected

A fault in the optimizer state itself poisons it *before* the step. There it counts as
seen if the step is rejected, as gone if the step is committed and left everything
finite; the rest is missed. What was seen is healed by `transforms.heal_state`, and has
to be finite then.

A peer that is poisoned gets the state back that it had before, so that every fault
counts once. Ours is never helped but by what jaxsafe itself offers: healing, and the
snapshots of `guard.run`, which are made here inside the scan by the same rule.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsafe import _tree, testing
from jaxsafe.transforms import ControlState

SNAPSHOT_EVERY, ROLL_BACK_AFTER = 10, 3
TAIL = 300  # healthy steps at the end, in which training has to recover


class Workload(NamedTuple):
    """A training run with places to strike.

    `step(carry, batch, fault, i) -> (carry, loss, non-finite struck)`; `strike_state`
    strikes the carry before it; `heal` may be None.
    """

    name: str
    places: tuple[str, ...]
    init: Callable[[], Any]
    batches: Any
    step: Callable[..., Any]
    committed: Callable[[Any, Any], jax.Array]
    clipped: Callable[[Any, Any], jax.Array]
    strike_state: Callable[..., Any] = lambda carry, _fault, _i: carry
    heal: Callable[[Any], Any] | None = None
    all_or_nothing: bool = True  # a rejected step leaves everything as it was
    behind_the_clip: bool = True  # strike finite updates and states too
    ours: bool = True


class Strike:
    """Injects at the places of one step; notes whether what came out is finite."""

    def __init__(self, fault, step, **where):
        self.fault = fault
        self.when = {"step": step, **where}
        self.nonfinite = jnp.asarray(False)

    def __call__(self, tree, place):
        struck = testing.inject(self.fault, tree, place=place, **self.when)
        hit = (self.fault.step == self.when["step"]) & (
            self.fault.place == testing.FAULT_PLACES.index(place)
        )
        self.nonfinite = self.nonfinite | (hit & ~_tree.all_finite(struck))
        return struck


def is_control(node):
    return isinstance(node, ControlState)


def controls_of(carry):
    nodes = jax.tree.leaves(carry, is_leaf=is_control)
    return [node for node in nodes if is_control(node)]


def model_of(carry):
    """Everything that a rejected step must leave alone."""
    leaves = jax.tree.leaves(carry, is_leaf=is_control)
    return [leaf for leaf in leaves if not is_control(leaf)]


def with_model(carry, model):
    leaves, tree = jax.tree.flatten(carry, is_leaf=is_control)
    rest = iter(model)
    return tree.unflatten([x if is_control(x) else next(rest) for x in leaves])


def same_bits(a, b):
    def same(x, y):
        if not _tree.is_inexact(x):
            return (jnp.asarray(x) == jnp.asarray(y)).all()
        kind = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        bits = [lax.bitcast_convert_type(z, kind) for z in (x, y)]
        return (bits[0] == bits[1]).all()

    return jnp.stack([same(x, y) for x, y in zip(a, b, strict=True)]).all()


class Snapshots(NamedTuple):
    """The rule of `guard.run`: good once two later steps were committed."""

    good: Any
    candidate: Any
    proofs: jax.Array  # steps committed since the candidate was copied
    commits: jax.Array
    rejected: jax.Array


def snapshots_of(model):
    zero = jnp.zeros((), jnp.int32)
    return Snapshots(model, model, zero + 2, zero, zero)


def noted(snaps, ok, model):
    """(snapshots after this step, the model state to go on with, rolled back)."""
    proofs = jnp.minimum(snaps.proofs + ok, 2)
    proven = (proofs == 2) & (snaps.proofs < 2)
    good = _tree.select(proven, snaps.candidate, snaps.good)
    commits = snaps.commits + ok
    due = ok & (commits % SNAPSHOT_EVERY == 0)
    rejected = jnp.where(ok, 0, snaps.rejected + 1)
    back = rejected >= ROLL_BACK_AFTER
    candidate = _tree.select(due, model, snaps.candidate)
    proofs = jnp.where(back, 2, jnp.where(due, 0, proofs))
    rejected = jnp.where(back, 0, rejected)
    snaps = Snapshots(good, candidate, proofs, commits, rejected)
    return snaps, _tree.select(back, good, model), back


def make(workload: Workload):
    """A jitted function of (carry, faults, roll back?): what every step did."""

    def body(rolls_back, state, x):
        carry, snaps = state
        fault, i = x
        batch = jax.tree.map(lambda b: b[i % b.shape[0]], workload.batches)
        struck = workload.strike_state(carry, fault, i)
        new, loss, nonfinite = workload.step(struck, batch, fault, i)
        before, after = model_of(struck), model_of(new)
        poisoned_before = ~_tree.all_finite(before)
        finite = _tree.all_finite(after)
        ok = workload.committed(struck, new)
        seen = {
            "struck": fault.step == i,
            "place": fault.place,
            "kind": fault.kind,
            "nonfinite": nonfinite | poisoned_before,
            "before": poisoned_before,
            "ok": ok,
            "clipped": workload.clipped(struck, new),
            "poisoned": ~finite & ~poisoned_before,
            "missed": ok & (~finite | ~jnp.isfinite(loss)),
            "changed": workload.all_or_nothing & ~ok & ~same_bits(before, after),
            "loss": loss.astype(jnp.float32),
        }
        if workload.heal is not None:
            new = lax.cond(poisoned_before & ~finite, workload.heal, lambda c: c, new)
            seen["unhealed"] = poisoned_before & ~_tree.all_finite(model_of(new))
        else:
            new = _tree.select(finite, new, carry)
            seen["unhealed"] = poisoned_before & ~finite
        next_snaps, model, back = noted(snaps, ok, model_of(new))
        back = back & rolls_back
        seen["rolled_back"] = back
        new = with_model(new, _tree.select(back, model, model_of(new)))
        return (new, next_snaps), seen

    @jax.jit
    def run(carry, faults, rolls_back):
        steps = jnp.arange(faults.step.shape[0])
        start = (carry, snapshots_of(model_of(carry)))
        (carry, _), seen = lax.scan(
            lambda state, x: body(rolls_back, state, x), start, (faults, steps)
        )
        return carry, seen

    return run


FINITE = ("huge", "bit_flip", "zero", "denormal")
NONFINITE = ("nan", "inf", "-inf")
BEHIND = ("updates", "optimizer_state")  # where no clip stands in the way


def faults_for(places, steps, *, seed, behind=False):
    """A fault in every other step or so, then a tail without any.

    Finite numbers that strike behind the clip may ruin the state without being seen at
    once; they have a run of their own (`behind`), with a fault in every fourth step, in
    which snapshots help.
    """
    rng = np.random.default_rng(seed)
    where = [p for p in places if p in BEHIND] if behind else list(places)
    place = np.array([testing.FAULT_PLACES.index(p) for p in where])
    place = place[rng.integers(len(place), size=steps)]
    kind = rng.integers(len(testing.FAULT_KINDS), size=steps)
    allowed = [testing.FAULT_KINDS.index(k) for k in (FINITE if behind else NONFINITE)]
    strict = np.isin(place, [testing.FAULT_PLACES.index(p) for p in BEHIND])
    kind = np.where(
        strict, np.array(allowed)[rng.integers(len(allowed), size=steps)], kind
    )
    numbers = np.arange(steps)
    often = 0.25 if behind else 0.5
    strikes = (rng.random(steps) < often) & (numbers >= 5) & (numbers < steps - TAIL)
    leaf, entry, bit = rng.integers(2**30, size=(3, steps))
    zero = np.zeros(steps, int)
    fields = (kind, place, np.where(strikes, numbers, -1), zero, zero, leaf, entry, bit)
    return testing.Fault(*(jnp.asarray(f, jnp.int32) for f in fields))


def run(workload: Workload, steps: int, *, seed: int = 0, compiled=None):
    """What the steps of both runs did, as arrays: (before the clip, behind it)."""
    compiled = compiled or make(workload)
    faults = faults_for(workload.places, steps, seed=seed)
    _, first = compiled(workload.init(), faults, jnp.asarray(False))
    runs = [jax.device_get(first)]
    if workload.behind_the_clip:
        faults = faults_for(workload.places, steps, seed=seed + 1, behind=True)
        _, second = compiled(workload.init(), faults, jnp.asarray(True))
        runs.append(jax.device_get(second))
    return runs
