"""What the device can do at best, measured in the same run.

A row that stands at 60 % of its floor can become 1.7 times as fast, and no faster.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import _measure
from benchmarks._case import Program


class Floor(NamedTuple):
    """Bytes and floating operations per second."""

    bandwidth: float
    arithmetic: float

    def seconds(self, traffic: float, flops: float) -> float:
        """The least time in which that can be done; nan if nothing is known."""
        times = [traffic / self.bandwidth, flops / self.arithmetic]
        return max((t for t in times if math.isfinite(t)), default=math.nan)


def measure(*, quick: bool = False) -> Floor:
    """Time a pass over a large array, and a product of large matrices."""
    large = jax.default_backend() != "cpu"
    length = (2**28 if large else 2**25) // (4 if quick else 1)
    side = (8192 if large else 2048) // (2 if quick else 1)
    stream = Program(_in_place, (jnp.ones(length),), carried=True)
    square = jnp.full((side, side), 1e-3)
    product = Program(lambda a, b: a @ b, (square, square))
    rounds = 3 if quick else 10
    ready = {"stream": _measure.ready(stream), "product": _measure.ready(product)}
    taken = _measure.interleaved(
        {name: one.call for name, one in ready.items()}, rounds=rounds
    )
    best = {name: float(taken[name].min()) / one.repeats for name, one in ready.items()}
    return Floor(2 * 4 * length / best["stream"], 2 * side**3 / best["product"])


def _in_place(x: jax.Array) -> tuple[jax.Array, tuple[()]]:
    return x * 1.0001, ()
