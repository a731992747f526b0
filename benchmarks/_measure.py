"""How time and memory are taken.

Lowering, compiling and running are timed apart. Contenders of a case are compiled
first, warmed, and then run in rounds: each round runs every contender once, in random
order, and waits for its result. A ratio is the median over the rounds of the ratio
within a round, so a machine that slows down for a while slows both; its interval is a
bootstrap over the rounds. What is too short for the clock of the host is repeated
inside one program on a CPU. A training step, and everything on an accelerator, is
called again with its own result for a while, as a training loop does: fed ahead of
time, and with its own state in the caches, not that of the contender before it. A
function of the host is called again too: after a library that kept one core busy for
a second, the first call finds its threads on the wrong cores.
"""

import dataclasses
import functools
import math
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import _counts
from benchmarks._case import Program

ROUNDS = 30
MOST_ROUNDS = 200
# Seconds: what is shorter is looped in its program on a CPU, or called again and again.
SHORT, FED, HOST = 2e-4, 3e-2, 0.25
_RESAMPLES = 2000


class Compiled(NamedTuple):
    """A program that is ready to run.

    Attributes:
      call: runs it once and waits for the result.
      repeats: how often the work is done in one call.
      lower: seconds from Python to StableHLO.
      compile: seconds from there to machine code; both 0 for a function of the host.
      temporary: bytes of temporary memory; nan where the backend does not say.
      argument: bytes of arguments.
      alias: bytes of arguments that are written in place.
      flops: as XLA counts them; nan where it does not, or counts a loop once.
      traffic: bytes read and written, as XLA counts them; nan likewise.
    """

    call: Callable[..., None]
    repeats: int = 1
    lower: float = 0.0
    compile: float = 0.0
    temporary: float = math.nan
    argument: float = math.nan
    alias: float = math.nan
    flops: float = math.nan
    traffic: float = math.nan


@dataclasses.dataclass(frozen=True, slots=True)
class Ratio:
    """A median, and the interval that holds it in 95 of 100 resamples."""

    median: float
    low: float
    high: float


def ready(program: Program, *, short: float = SHORT) -> Compiled:
    """Compile a program, run it once, and repeat it if it is short."""
    if not program.jitted:
        call = _host_call(program)
        call()
        return _fed(Compiled(call), _seconds(call), HOST)
    on_cpu = jax.default_backend() == "cpu"
    compiled = _compile(program, 1)
    compiled.call()
    once = min(_seconds(compiled.call) for _ in range(3))
    if on_cpu and once < short:
        repeats = math.ceil(5 * short / max(once, 1e-7))
        looped = _compile(program, repeats)
        looped.call()
        return compiled._replace(call=looped.call, repeats=repeats)
    if on_cpu and not program.carried:
        return compiled
    return _fed(compiled, once, FED)


def _fed(compiled: Compiled, once: float, seconds: float) -> Compiled:
    """Called again and again for this long; `once` is what one call takes."""
    repeats = math.ceil(seconds / max(once, 1e-7))
    fed = functools.partial(compiled.call, repeats)
    return compiled._replace(call=fed, repeats=repeats)


def interleaved(
    calls: Mapping[str, Callable[[], None]],
    *,
    rounds: int = ROUNDS,
    budget: float = 0.0,
    seed: int = 0,
) -> dict[str, np.ndarray[Any, Any]]:
    """Seconds of every call in every round.

    Goes on beyond `rounds` until `budget` seconds are over.
    """
    order, shuffle = list(calls), random.Random(seed)
    taken: dict[str, list[float]] = {name: [] for name in order}
    start, done = time.perf_counter(), 0
    while done < rounds or (
        time.perf_counter() - start < budget and done < MOST_ROUNDS
    ):
        shuffle.shuffle(order)
        for name in order:
            taken[name].append(_seconds(calls[name]))
        done += 1
    return {name: np.asarray(seconds) for name, seconds in taken.items()}


def ratio(ours: Any, theirs: Any, *, seed: int = 0) -> Ratio:
    """Median of the ratios within the rounds, with its bootstrap interval."""
    pairs = np.asarray(ours) / np.asarray(theirs)
    rng = np.random.default_rng(seed)
    drawn = pairs[rng.integers(len(pairs), size=(_RESAMPLES, len(pairs)))]
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return Ratio(float(np.median(pairs)), float(low), float(high))


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _host_call(program: Program) -> Callable[..., None]:
    args = list(program.args)

    def call(repeats: int = 1) -> None:
        with program.around():
            for _ in range(repeats):
                out = program.fn(*args)
                if program.carried:
                    args[0] = out[0]
            jax.block_until_ready(out)

    return call


def _compile(program: Program, repeats: int) -> Compiled:
    fn = program.fn
    if repeats > 1:
        fn = _carried_loop(fn, repeats) if program.carried else _loop(fn, repeats)
    donated = (0,) if program.carried else ()
    # A buffer that is donated must not be the one that another contender needs.
    args = jax.tree.map(jnp.copy, program.args) if program.carried else program.args
    with program.around():
        start = time.perf_counter()
        lowered = jax.jit(fn, donate_argnums=donated).lower(*args)
        middle = time.perf_counter()
        compiled = lowered.compile()
        end = time.perf_counter()
    return Compiled(
        call=_host_call(program._replace(fn=compiled, args=args)),
        repeats=repeats,
        lower=middle - start,
        compile=end - middle,
        **_sizes(compiled),
    )


def _sizes(compiled: Any) -> dict[str, float]:
    """What the compiler says, less what it cannot know: how often a loop runs."""
    found = _counts.sizes(compiled)
    if _counts.opcodes(compiled.as_text())["while"]:
        found |= {"flops": math.nan, "traffic": math.nan}
    return found


def _carried_loop(fn: Callable[..., Any], repeats: int) -> Callable[..., Any]:
    @functools.wraps(fn)
    def looped(carry: Any, *args: Any) -> Any:
        def body(_: Any, pair: Any) -> Any:
            return fn(pair[0], *args)

        return lax.fori_loop(0, repeats - 1, body, fn(carry, *args))

    return looped


def _loop(fn: Callable[..., Any], repeats: int) -> Callable[..., Any]:
    """Do the same `repeats` times; one number of the arguments changes each time.

    Else XLA would take the work out of the loop.
    """

    @functools.wraps(fn)
    def looped(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        inexact = [jnp.issubdtype(x.dtype, jnp.inexact) for x in leaves]
        at = inexact.index(True)
        first, last = leaves[at].ravel()[0], leaves[at].ravel()[-1]

        def body(i: Any, pair: Any) -> Any:
            x, _ = pair
            x = x.at[(0,) * x.ndim].set(jnp.where(i % 2 == 0, first, last))
            changed = [*leaves[:at], x, *leaves[at + 1 :]]
            return x, fn(*jax.tree.unflatten(tree, changed))

        return lax.fori_loop(0, repeats - 1, body, (leaves[at], fn(*args)))[1]

    return looped
