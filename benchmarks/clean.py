"""Cleaning a million rows: our time as a share of scikit-learn's, in one run.

Every rival fits and transforms the same float32 matrix with 5 % missing. The rounds are
interleaved, so that whatever else the machine does falls on all; medians are compared.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from rich.console import Console
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks import _machine
from jaxsafe import clean


class Case(NamedTuple):
    """What is asked of a rival, and what share of its time we may take."""

    name: str
    options: dict[str, Any]
    bar: float


CASES = (
    Case("mean, standard", {}, 0.075),
    Case("median, standard", {"impute": "median"}, 0.35),
    Case(
        "sketched median, standard", {"impute": "median", "quantiles": "sketch"}, 0.08
    ),
)


def ours(x: jax.Array, options: dict[str, Any]) -> Any:
    """`clean.fit` and `clean.apply` on a matrix that the device holds."""
    return jax.block_until_ready(clean.apply(clean.fit(x, **options), x))


def scikit(x: np.ndarray, impute: str) -> Any:
    """SimpleImputer and StandardScaler."""
    imputer = SimpleImputer(strategy=impute)
    return make_pipeline(imputer, StandardScaler()).fit_transform(x)


def frames(x: np.ndarray, impute: str) -> Any:
    """The same in pandas."""
    frame = pd.DataFrame(x)
    filled = frame.fillna(frame.median() if impute == "median" else frame.mean())
    return (filled - filled.mean()) / filled.std(ddof=0)


def main(options: argparse.Namespace) -> int:
    """Run all cases; 0 if every bar held (a quick run only reports)."""
    rows, rounds = (100_000, 3) if options.quick else (1_000_000, 5)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, 64), dtype=np.float32) * 2 + 3
    x[rng.random(x.shape, dtype=np.float32) < 0.05] = np.nan
    on_device = jax.block_until_ready(jax.device_put(x))
    lines = [
        f"{rows:,} x 64 float32, 5 % missing, fit and transform; {_machine.name()}",
        "",
        "| case | jaxsafe, s | scikit-learn, s | pandas, s | ratio | bar | |",
        "|---|---|---|---|---|---|---|",
    ]
    held = True
    for case in CASES:
        if options.only and not any(part in case.name for part in options.only):
            continue
        impute = case.options.get("impute", "mean")
        times = _interleaved(
            [
                functools.partial(ours, on_device, case.options),
                functools.partial(scikit, x, impute),
                functools.partial(frames, x, impute),
            ],
            rounds,
        )
        ratio = times[0] / times[1]
        held &= ratio <= case.bar
        verdict = "holds" if ratio <= case.bar else "**fails**"
        seconds = " | ".join(f"{t:.3f}" for t in times)
        lines.append(
            f"| {case.name} | {seconds} | {ratio:.3f} | {case.bar} | {verdict} |"
        )
    text = "\n".join(lines)
    Console(width=120).print(text, markup=False, highlight=False)
    if options.out:
        options.out.write_text(text + "\n", "utf-8")
    return 0 if held or options.quick else 1


def _interleaved(rivals: list[Callable[[], Any]], rounds: int) -> list[float]:
    """Median seconds of each; the first round compiles and does not count."""
    times: list[list[float]] = [[] for _ in rivals]
    for number in range(rounds + 1):
        for taken, rival in zip(times, rivals, strict=True):
            begin = time.perf_counter()
            rival()
            if number:
                taken.append(time.perf_counter() - begin)
    return [statistics.median(taken) for taken in times]
