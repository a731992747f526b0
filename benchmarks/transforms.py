"""What each transform costs beside optax's, on gradients that are there already."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import _workloads
from benchmarks._case import Case, Program
from benchmarks._workloads import Workload
from jaxsafe import ops
from jaxsafe import transforms as ours

Make = Callable[[], optax.GradientTransformation]

# (ours, optax's, name, name of optax's)
_PAIRS: tuple[tuple[str, Make, str, Make], ...] = (
    ("clip", lambda: ours.clip(1.0), "optax.clip", lambda: optax.clip(1.0)),
    (
        "clip_by_global_norm",
        lambda: ours.clip_by_global_norm(1.0),
        "optax.clip_by_global_norm",
        lambda: optax.clip_by_global_norm(1.0),
    ),
    (
        "clip_by_block_norm",
        lambda: ours.clip_by_block_norm(1.0),
        "optax.clip_by_block_rms",
        lambda: optax.clip_by_block_rms(1.0),
    ),
    (
        "adaptive_grad_clip",
        lambda: ours.adaptive_grad_clip(0.1),
        "optax.adaptive_grad_clip",
        lambda: optax.adaptive_grad_clip(0.1),
    ),
    ("zero_nonfinite", ours.zero_nonfinite, "optax.zero_nans", optax.zero_nans),
    (
        "skip_nonfinite(adamw)",
        lambda: ours.skip_nonfinite(optax.adamw(3e-4)),
        "optax.apply_if_finite(adamw)",
        lambda: optax.apply_if_finite(optax.adamw(3e-4), 5),
    ),
    (
        "accumulate(adamw, 4)",
        lambda: ours.accumulate(optax.adamw(3e-4), 4),
        "optax.MultiSteps(adamw, 4)",
        lambda: optax.MultiSteps(optax.adamw(3e-4), 4).gradient_transformation(),
    ),
    (
        "clip_spikes",
        ours.clip_spikes,
        "optax.clip_by_global_norm",
        lambda: optax.clip_by_global_norm(1.0),
    ),
)


def cases(*, quick: bool) -> Iterator[Case]:
    """Every pair on few large and on many small leaves."""
    for work in (_workloads.SMALL_LEAVES, _workloads.LARGE_LEAVES)[: 1 if quick else 2]:
        for name, make, peer, make_peer in _PAIRS:
            yield Case(
                name=f"{name}, {work.name.partition(', ')[2]}",
                contenders={
                    peer: functools.partial(_program, work, make_peer),
                    f"jaxsafe.transforms.{name}": functools.partial(
                        _program, work, make
                    ),
                },
                baseline=peer,
            )
        yield _norm(work)


def _program(work: Workload, make: Make) -> Program:
    params, _, (_, grads) = work.init()
    tx = optax.with_extra_args_support(make())

    def step(carry: Any, grads: Any, params: Any) -> Any:
        updates, state = tx.update(grads, carry[0], params)
        return (state,), updates

    return Program(step, ((tx.init(params),), grads, params), carried=True)


def _norm(work: Workload) -> Case:
    def build(norm: Callable[[Any], jax.Array]) -> Program:
        grads = work.init()[2][1]
        return Program(norm, (jax.tree.map(jnp.asarray, grads),))

    return Case(
        name=f"global_norm, {work.name.partition(', ')[2]}",
        contenders={
            "optax.tree.norm": functools.partial(build, optax.tree.norm),
            "jaxsafe.ops.global_norm": functools.partial(build, ops.global_norm),
        },
        baseline="optax.tree.norm",
        bars={"jaxsafe.ops.global_norm": 1.2},
    )
