"""Cleaning a million rows beside scikit-learn and pandas.

Every contender fits and transforms the same float32 matrix with 5 % missing.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks._case import Case, Program
from jaxsafe import clean

_SCIKIT = "scikit-learn"
# What is asked, and the largest share of scikit-learn's time.
_ASKED: dict[str, tuple[dict[str, Any], float]] = {
    "mean": ({}, 0.075),
    "median": ({"impute": "median"}, 0.35),
    "sketched median": ({"impute": "median", "quantiles": "sketch"}, 0.08),
}


def cases(*, quick: bool) -> Iterator[Case]:
    """Imputation and standardising, fit and transform."""
    rows = 100_000 if quick else 1_000_000
    for name, (options, bar) in _ASKED.items():
        strategy = options.get("impute", "mean")
        yield Case(
            name=f"{name} imputation and standardising, {rows:,} x 64",
            contenders={
                _SCIKIT: _if_there("sklearn", _scikit, rows, strategy),
                "pandas": _if_there("pandas", _pandas, rows, strategy),
                "jaxsafe.clean": functools.partial(_ours, rows, options),
            },
            baseline=_SCIKIT,
            bars={} if quick else {"jaxsafe.clean": bar},
        )


def _if_there(
    package: str, build: Callable[..., Program], *args: Any
) -> Callable[[], Program] | None:
    found = importlib.util.find_spec(package) is not None
    return functools.partial(build, *args) if found else None


@functools.cache
def _matrix(rows: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, 64), dtype=np.float32) * 2 + 3
    x[rng.random(x.shape, dtype=np.float32) < 0.05] = np.nan
    return x


def _ours(rows: int, options: dict[str, Any]) -> Program:
    """`clean.fit` and `clean.apply` on a matrix that the device holds."""

    def run(x: jax.Array) -> jax.Array:
        return clean.apply(clean.fit(x, **options), x)

    return Program(run, (jax.device_put(_matrix(rows)),), jitted=False)


def _scikit(rows: int, strategy: str) -> Program:
    """SimpleImputer and StandardScaler."""
    impute = importlib.import_module("sklearn.impute")
    pipeline = importlib.import_module("sklearn.pipeline")
    scale = importlib.import_module("sklearn.preprocessing").StandardScaler

    def run(x: Any) -> Any:
        imputer = impute.SimpleImputer(strategy=strategy)
        return pipeline.make_pipeline(imputer, scale()).fit_transform(x)

    return Program(run, (_matrix(rows),), jitted=False)


def _pandas(rows: int, strategy: str) -> Program:
    frames = importlib.import_module("pandas")

    def run(x: Any) -> Any:
        frame = frames.DataFrame(x)
        filled = frame.fillna(getattr(frame, strategy)())
        return ((filled - filled.mean()) / filled.std(ddof=0)).to_numpy()

    return Program(run, (_matrix(rows),), jitted=False)
