"""What a guarded training step costs beside a plain one."""

from collections.abc import Iterator

import jax

from benchmarks import _steps, _workloads
from benchmarks._case import Case
from benchmarks._workloads import Workload

_STEP = _steps.STEP
# Of a CPU, and of an accelerator: largest ratio to plain adamw.
_BARS = {
    _workloads.SMALL_LEAVES.name: {_STEP: 1.3, _steps.PACKED: 1.0},
    _workloads.LARGE_LEAVES.name: {_STEP: 1.2, _steps.UNCHECKED: 1.65},
}
_ACCELERATOR_BARS = {
    _workloads.LARGE_TRANSFORMER.name: {_STEP: 1.01},
    _workloads.HUGE_LEAVES.name: {_STEP: 1.17},
}


def cases(*, quick: bool) -> Iterator[Case]:
    """A training step of every workload, and of one with its activations watched."""
    if quick:
        yield from map(_case, (_workloads.MLP, _workloads.SMALL_LEAVES))
        return
    yield from map(_case, _workloads.ALL)
    watched = [_workloads.TRANSFORMER]
    if jax.default_backend() != "cpu":
        large = _workloads.LARGE_TRANSFORMER
        yield from map(_case, (large, _workloads.HUGE_LEAVES))
        watched.append(large)
    for work in watched:
        bars = {_steps.TAPPED: 1.04}
        yield Case(
            name=f"flags, {work.name}",
            contenders=_steps.flags(work),
            baseline=_STEP,
            bars=bars,
            accelerator_bars=bars,
        )


def _case(work: Workload) -> Case:
    return Case(
        name=work.name,
        contenders=_steps.contenders(work),
        baseline=_steps.PLAIN,
        bars=_BARS.get(work.name, {_STEP: 1.05}),
        accelerator_bars=_ACCELERATOR_BARS.get(work.name, {}),
        compile_bars={_STEP: 1.35} if work is _workloads.MLP else {},
    )
