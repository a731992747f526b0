"""Training runs that other processes can import."""

import math
import os

from jaxsafe import NonFiniteError


def bowl(settings):
    """Plain descent on w**2 / 2: diverges beyond the rate 2, is done at 1."""
    w = 1.0
    for _ in range(8):
        w -= settings.learning_rate * w
        yield w * w / 2


def breaks(settings):
    yield 1.0
    yield 0.5
    yield math.nan
    raise AssertionError("trained on after it was pruned")


def spikes(settings):
    yield 1.0
    yield 0.2
    yield 1.1  # the first one, and a little more, is no spike
    yield 1.3
    raise AssertionError("trained on after it was pruned")


def halts(settings):
    yield 1.0
    raise NonFiniteError("given up")


def in_which_process(settings):
    with open(os.environ["TUNE_TEST_LOG"], "a", encoding="utf-8") as log:
        log.write(f"{os.getpid()}\n")
    yield from bowl(settings)
