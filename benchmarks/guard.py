"""What a guarded training step costs beside a plain one."""

from collections.abc import Iterator

from benchmarks import _steps, _workloads
from benchmarks._case import Case
from benchmarks._workloads import Workload


def cases(*, quick: bool) -> Iterator[Case]:
    """A training step of every workload."""
    for work in _workloads.MODELS[: 1 if quick else None]:
        bars = {_steps.STEP: 1.05}
        yield _case(work, bars, {_steps.STEP: 1.35} if work.name[:3] == "MLP" else {})
    yield _case(_workloads.SMALL_LEAVES, {_steps.STEP: 1.3, _steps.PACKED: 1.0}, {})
    if not quick:
        yield _case(
            _workloads.LARGE_LEAVES, {_steps.STEP: 1.2, _steps.UNCHECKED: 1.65}, {}
        )


def _case(
    work: Workload, bars: dict[str, float], compile_bars: dict[str, float]
) -> Case:
    return Case(
        name=work.name,
        contenders=_steps.contenders(work),
        baseline=_steps.PLAIN,
        bars=bars,
        compile_bars=compile_bars,
    )
