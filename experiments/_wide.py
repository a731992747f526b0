"""A wide table with injected faults: 64 pixels of digits, four kinds of fault.

How many cells of each kind were put in is known, so an audit can be held to it.
"""

from typing import NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

from experiments import _data
from experiments._models import MLP
from experiments._train import make_task, train
from jaxsafe import clean, losses

STEPS = 200
RATE = 1e-2
SENTINEL = -999.0
BRIGHTEST = 16.0
# Fault: (share of the cells, first of the sixteen columns that have it).
FAULTS = {
    "sentinel": (0.04, 0),
    "infinite": (0.01, 16),
    "missing": (0.05, 32),
    "unit mix-up": (0.02, 48),
}


class Wide(NamedTuple):
    """What came of it.

    Attributes:
      injected: cells of the training rows, by fault.
      found: what `clean.audit` counted, by fault.
      accuracy: on faulty test rows, by what was done to the table.
    """

    injected: dict[str, int]
    found: dict[str, int]
    accuracy: dict[str, float]

    def table(self) -> str:
        """Both as text."""
        lines = ["fault         injected   clean.audit"]
        for fault, count in self.injected.items():
            lines.append(f"{fault:14}{count:8}{self.found[fault]:14}")
        lines.append("")
        lines += [f"{name:22}{right:6.1%}" for name, right in self.accuracy.items()]
        return "\n".join(lines)


def run() -> Wide:
    """Count what broke; train on the table as it is, filled by NumPy, and cleaned."""
    data = _data.digits()
    x_train, injected = faulty(data.x_train, seed=1)
    x_test, _ = faulty(data.x_test, seed=2)
    ranges = {f"x{i}": (0.0, BRIGHTEST) for i in range(x_train.shape[1])}
    cleaner = clean.fit(x_train, missing=(SENTINEL,), ranges=ranges)
    audit = clean.audit(x_train, cleaner)
    counts = {
        "sentinel": [c.sentinel for c in audit.columns],
        "infinite": [c.positive_infinite for c in audit.columns],
        "missing": [c.missing for c in audit.columns],
        "unit mix-up": [c.forbidden for c in audit.columns],
    }
    prepared = {
        "raw": (x_train, x_test),
        "numpy.nan_to_num": (np.nan_to_num(x_train), np.nan_to_num(x_test)),
        "clean.apply": tuple(
            np.asarray(clean.apply(cleaner, x)) for x in (x_train, x_test)
        ),
    }
    accuracy = {}
    for name, (x, test) in prepared.items():
        batches = _data.batches(x, data.y_train, steps=STEPS)
        task = make_task(MLP(x.shape[1], 10), loss, optax.adam(RATE))
        accuracy[name] = train(name, task, batches, (test, data.y_test))[0].accuracy
    return Wide(injected, {k: sum(v) for k, v in counts.items()}, accuracy)


def faulty(x: np.ndarray, *, seed: int) -> tuple[np.ndarray, dict[str, int]]:
    """(x with faults, cells of each)."""
    rng = np.random.default_rng(seed)
    x, injected = x.copy(), {}
    for fault, (share, first) in FAULTS.items():
        block = x[:, first : first + 16]
        hit = rng.random(block.shape) < share
        if fault == "unit mix-up":  # dark is dark in any unit
            hit &= block > 0
        wrong = {
            "sentinel": np.full_like(block, SENTINEL),
            "infinite": np.full_like(block, np.inf),
            "missing": np.full_like(block, np.nan),
            "unit mix-up": block * 1000,
        }[fault]
        block[hit] = wrong[hit]
        injected[fault] = int(hit.sum())
    return x, injected


def loss(model: nnx.Module, x: jax.Array, y: jax.Array) -> jax.Array:
    """Cross-entropy, stable: it is the data that is broken here."""
    return losses.softmax_cross_entropy_with_integer_labels(model(x), y).mean()
