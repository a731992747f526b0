"""What a diagnosis costs, in units of one normal compilation and run of the step.

Every sample gets a step of its own, so that nothing is in a cache; the contestants take
turns, so that a machine that is busy for a while is busy for all of them. "Forward" is
the loss alone on a batch that breaks it, "full" the whole step (loss, gradients,
optimizer), with the numbers about the operands.
"""

import argparse
import re
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import checkify
from rich.console import Console
from rich.progress import track

from benchmarks import _machine, _sections
from jaxsafe import _program, diagnose
from jaxsafe.diagnose._blame import Run, blame
from jaxsafe.diagnose._probe import Probe

RUNS = 15


class Bar(NamedTuple):
    """A row of the table: what is divided by what, and the largest ratio allowed."""

    name: str
    of: str
    by: str
    limit: float


BARS = (
    Bar("forward answer / compile and run of the step", "forward", "step", 1.3),
    Bar("full answer, compile / compile of the step", "full_compile", "compile", 4.0),
    Bar("full answer, run / run of the step", "full_run", "run", 3.0),
    Bar("full answer / checkify of the step", "full", "checkify", 1.0),
    Bar("forward answer / checkify of the step", "forward", "checkify", 0.35),
)
# Beside the bars: how the others compare.
SEEN = (
    Bar("full answer / compile and run of the step", "full", "step", 0),
    Bar("checkify / compile and run of the step", "checkify", "step", 0),
)


class Task(NamedTuple):
    """A training step that is new to every cache, and a batch that breaks it."""

    loss: Callable[..., jax.Array]
    step: Callable[..., Any]
    params: Any
    opt_state: Any
    batch: tuple[jax.Array, jax.Array]


def mlp(*, tap: bool = False) -> Task:
    """Four layers of 512, 256 rows."""
    del tap
    rng = np.random.default_rng(0)
    params = [_matrix(rng, 512, 512) for _ in range(4)]

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        for w in params[:-1]:
            x = jax.nn.gelu(x @ w)
        return _cross_entropy(x @ params[-1], y)

    x, y = rng.normal(size=(256, 512)), rng.integers(0, 512, 256)
    return _task(loss, params, jnp.asarray(1e3 * x, jnp.float32), jnp.asarray(y))


def transformer(*, tap: bool = False) -> Task:
    """Four blocks of width 128 and four heads, 8 sequences of 64, written out."""
    rng = np.random.default_rng(0)
    width, heads, words = 128, 4, 512
    names = {"qkv": 3 * width, "out": width, "up": 4 * width}
    params: dict[str, Any] = {
        "embed": _matrix(rng, words, width),
        "blocks": [
            {n: _matrix(rng, width, size) for n, size in names.items()}
            | {"down": _matrix(rng, 4 * width, width), "scale": jnp.ones((2, width))}
            for _ in range(4)
        ],
    }

    def attend(w: Any, x: jax.Array) -> jax.Array:
        n, t, _ = x.shape
        q, k, v = jnp.split((x @ w["qkv"]).reshape(n, t, heads, -1), 3, axis=-1)
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / np.sqrt(width / heads)
        causal = jnp.tril(jnp.ones((t, t), bool))
        weights = jax.nn.softmax(jnp.where(causal, scores, -1e30))
        mixed = jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(n, t, width)
        return mixed @ w["out"]

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        h = params["embed"][x]
        for w in params["blocks"]:
            h = h + attend(w, _normed(h) * w["scale"][0])
            h = diagnose.tap("h", h) if tap else h
            up = _normed(h) * w["scale"][1] @ w["up"]
            h = h + jax.nn.gelu(up) @ w["down"]
        return _cross_entropy(1e3 * _normed(h) @ params["embed"].T, y)

    tokens = jnp.asarray(rng.integers(0, words, (8, 65)))
    return _task(loss, params, tokens[:, :-1], tokens[:, 1:])


def _matrix(rng: np.random.Generator, rows: int, columns: int) -> jax.Array:
    drawn = rng.normal(size=(rows, columns)) / np.sqrt(rows)
    return jnp.asarray(drawn, jnp.float32)


def _normed(x: jax.Array) -> jax.Array:
    variance = jnp.var(x, axis=-1, keepdims=True)
    return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(variance + 1e-6)


def _cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    """The hand-written one: the logarithm of a softmax, which is infinite here."""
    p = jax.nn.softmax(logits)
    return -jnp.log(jnp.take_along_axis(p, y[..., None], -1)).mean()


def _task(loss: Callable[..., jax.Array], params: Any, x: Any, y: Any) -> Task:
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))

    def step(params: Any, opt_state: Any, x: Any, y: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, x, y)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    return Task(loss, step, params, tx.init(params), (x, y))


MODELS: dict[str, Callable[..., Task]] = {
    "MLP, 4 x 512": mlp,
    "transformer, 4 layers": transformer,
}


def plain(task: Task) -> dict[str, float]:
    """Compile the step, and run it."""
    args = (task.params, task.opt_state, *task.batch)
    compiled, seconds = _timed(lambda: jax.jit(task.step).lower(*args).compile())
    run = _runs(lambda: compiled(*args))
    return {"compile": seconds, "run": run, "step": seconds + run}


def forward(task: Task) -> dict[str, float]:
    """The diagnosis of the loss."""
    finding, seconds = _timed(
        lambda: diagnose.first_nonfinite(task.loss, task.params, *task.batch)
    )
    assert finding is not None
    assert finding.primitive == "log"
    return {"forward": seconds}


def full(task: Task) -> dict[str, float]:
    """The diagnosis of the whole step."""
    args = (task.params, task.opt_state, *task.batch)
    finding, seconds = _timed(lambda: diagnose.first_nonfinite(task.step, *args))
    assert finding is not None
    assert finding.primitive == "log"
    return {"full": seconds}


def parts(task: Task) -> dict[str, float]:
    """The two programs of the full answer: seconds to compile both, to run both."""
    args = (task.params, task.opt_state, *task.batch)
    traced, tracing = _timed(lambda: _program.trace("parts", task.step, args, {}))
    depth = _program.depth(traced.program)
    magnitudes = _program.Magnitudes(depth, together=True)
    (keys, rows), compiling, running = _watched(traced, magnitudes)
    run = Run(traced, keys, jax.tree.map(np.asarray, rows), ())
    root = blame(run, (), traced.outputs)
    assert root is not None
    assert root.root.node.step is not None
    probe = Probe({root.root.node.step: root.root.turns}, [])
    _, again, once_more = _watched(traced, probe)
    return {
        "full_compile": tracing + compiling + again,
        "full_run": running + once_more,
    }


def _watched(traced: Any, watch: Any) -> tuple[Any, float, float]:
    """((keys, rows), seconds to compile, seconds to run) of a watched program."""
    keys: list[Any] = []

    def rows_only(constants: Any, values: Any) -> Any:
        _, keys[:], rows = _program.evaluate(traced.program, constants, values, watch)
        return rows

    args = (traced.program.constant_values, traced.values)
    compiled, seconds = _timed(lambda: jax.jit(rows_only).lower(*args).compile())
    return (keys, compiled(*args)), seconds, _runs(lambda: compiled(*args))


def checked(task: Task) -> dict[str, float]:
    """`checkify` with its checks of floats: trace, compile, run, read the message."""
    args = (task.params, task.opt_state, *task.batch)

    def ask() -> str | None:
        fn = checkify.checkify(task.step, errors=checkify.float_checks)
        error, out = jax.jit(fn)(*args)
        jax.block_until_ready(out)
        return error.get()

    message, seconds = _timed(ask)
    assert message
    return {"checkify": seconds}


CONTESTANTS = (plain, forward, full, parts, checked)


def _timed(fn: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = jax.block_until_ready(fn())
    return result, time.perf_counter() - start


def _runs(fn: Callable[[], Any]) -> float:
    """Median of several runs, the first not counted."""
    return statistics.median([_timed(fn)[1] for _ in range(RUNS + 1)][1:])


def same_program(make: Callable[..., Task]) -> bool:
    """Whether the step compiles to the same bits with taps, and after a diagnosis."""
    texts = [_compiled(make())]
    forward(make())
    texts += [_compiled(make()), _compiled(make(tap=True))]
    return len(set(texts)) == 1


def _compiled(task: Task) -> str:
    """The optimised program, without the tables of files and lines."""
    args = (task.params, task.opt_state, *task.batch)
    text = str(jax.jit(task.step).lower(*args).compile().as_text())
    text = re.sub(r"(?s)\nFileNames\n.*?\n\n(?=%|ENTRY)", "\n", text)
    return re.sub(r", metadata=\{[^}]*\}", "", text)


def measure(make: Callable[..., Task], samples: int) -> Iterator[dict[str, float]]:
    """Times of all contestants, sample by sample; the first, not counted, warms up."""
    for i in range(samples + 1):
        order = (
            CONTESTANTS[i % len(CONTESTANTS) :] + CONTESTANTS[: i % len(CONTESTANTS)]
        )
        found: dict[str, float] = {}
        for contestant in order:
            found |= contestant(make())
        if i:
            yield found


def ratio(found: list[dict[str, float]], bar: Bar) -> float:
    """Median over the samples of the ratio within each."""
    return statistics.median(each[bar.of] / each[bar.by] for each in found)


def table(results: dict[str, list[dict[str, float]]], same: dict[str, bool]) -> str:
    """Markdown: one row per bar, one column per model."""
    lines = [
        "| | bar | " + " | ".join(results) + " |",
        "|---" * (len(results) + 2) + "|",
    ]
    for bar in (*BARS, *SEEN):
        limit = f"{bar.limit:g}" if bar.limit else "-"
        cells = [f"{ratio(found, bar):.2f}" for found in results.values()]
        lines.append(f"| {bar.name} | {limit} | " + " | ".join(cells) + " |")
    cells = ["yes" if same[name] else "no" for name in results]
    lines.append("| before a fault: the same program, bitwise | yes | ")
    lines[-1] += " | ".join(cells) + " |"
    for name, what in (("compile", "compile"), ("run", "run")):
        cells = [f"{_seconds(found, name):.3g} s" for found in results.values()]
        lines.append(f"| the step itself, {what} | - | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _seconds(found: list[dict[str, float]], name: str) -> float:
    return statistics.median(each[name] for each in found)


HEAD = """# What a diagnosis costs

Cold: every sample has a step that no cache has seen. Ratios, each the median over
{samples} samples; the contestants take turns. "Forward" is the loss alone, "full" the
whole step: loss, gradients, clipping, AdamW, and the numbers about the operands.

{machine}, {date}, by

    python -m benchmarks --suite diagnose --out benchmarks/diagnosis.md

"""


def main(options: argparse.Namespace) -> int:
    """Measure, print or write the table; 1 if a bar is missed."""
    samples = 1 if options.quick else 9
    console = Console(stderr=True)
    results: dict[str, list[dict[str, float]]] = {}
    same = {}
    for name, make in MODELS.items():
        if options.only and not any(part in name for part in options.only):
            continue
        same[name] = same_program(make)
        found = measure(make, samples)
        results[name] = list(track(found, name, total=samples, console=console))
    head = HEAD.format(samples=samples, machine=_machine.name(), date=date.today())
    text = head + table(results, same)
    if options.out:
        _sections.write(options.out, text)
    else:
        Console(width=120).print(text, markup=False)
    missed = [
        bar
        for found in results.values()
        for bar in BARS
        if ratio(found, bar) > bar.limit
    ]
    return 1 if missed or not all(same.values()) else 0
