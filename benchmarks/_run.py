"""Run the cases of a suite: a failing one is reported, Ctrl-C keeps what is done."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import _measure
from benchmarks._case import Case
from benchmarks._floor import Floor
from benchmarks._measure import Compiled
from benchmarks._results import Row

NOT_INSTALLED = "not installed"


def measured(
    suite: str,
    cases: Iterable[Case],
    floor: Floor,
    *,
    quick: bool,
    told: Callable[[str], Any],
    seconds: float = 5.0,
) -> Iterator[Row]:
    """The rows of a suite, one case after the other, each for `seconds`."""
    for case in cases:
        told(f"{suite}: {case.name}")
        yield from _rows(suite, case, floor, quick=quick, seconds=seconds)
        jax.clear_caches()


def _rows(
    suite: str, case: Case, floor: Floor, *, quick: bool, seconds: float
) -> list[Row]:
    built: dict[str, Compiled] = {}
    errors: dict[str, str] = {}
    for name, build in case.contenders.items():
        if build is None:
            errors[name] = NOT_INSTALLED
            continue
        try:
            built[name] = _measure.ready(build())
        except Exception as fault:  # whatever a peer does, the others go on
            says = f"{type(fault).__name__}: {fault}"
            errors[name] = says.splitlines()[0][:80]
    if case.baseline not in built:
        errors |= {name: f"{case.baseline} failed" for name in built}
        built = {}
    taken = _measure.interleaved(
        {name: one.call for name, one in built.items()},
        rounds=5 if quick else _measure.ROUNDS,
        budget=0 if quick else seconds,
    )
    rows = []
    for name in case.contenders:
        if name in errors:
            rows.append(_row(suite, case, name, error=errors[name]))
            continue
        ours, base = built[name], built[case.baseline]
        each = taken[name] / ours.repeats
        rows.append(
            _row(
                suite,
                case,
                name,
                **_figures(ours, base, each, floor),
                ratio=_measure.ratio(each, taken[case.baseline] / base.repeats),
            )
        )
    return rows


def _figures(
    ours: Compiled, base: Compiled, seconds: Any, floor: Floor
) -> dict[str, float]:
    quarter, median, three = np.quantile(seconds, (0.25, 0.5, 0.75))
    compile_seconds = ours.lower + ours.compile
    return {
        "seconds": float(median),
        "spread": float((three - quarter) / (2 * median)),
        "compile_seconds": compile_seconds,
        "compile_ratio": _over(compile_seconds, base.lower + base.compile),
        "temporary": ours.temporary,
        "memory_ratio": _over(ours.temporary, base.temporary),
        "peak": _peak(),
        "flops": ours.flops,
        "traffic": ours.traffic,
        "floor": floor.seconds(ours.traffic, ours.flops) / float(median),
    }


def _over(a: float, b: float) -> float:
    return a / b if b else math.nan


def _peak() -> float:
    """Bytes in use at most so far, where the device says."""
    stats = jax.devices()[0].memory_stats() or {}
    return float(stats.get("peak_bytes_in_use", math.nan))


def _row(suite: str, case: Case, name: str, **figures: Any) -> Row:
    on_cpu = jax.default_backend() == "cpu"
    return Row(
        suite=suite,
        case=case.name,
        contender=name,
        baseline=case.baseline,
        bar=(case.bars if on_cpu else case.accelerator_bars).get(name),
        compile_bar=case.compile_bars.get(name) if on_cpu else None,
        memory_bar=case.memory_bars.get(name) if on_cpu else None,
        **figures,
    )
