"""Accuracy of every function of the catalog, and of what jax and optax have for it.

Half precision: every number there is, for functions of one number. Else the worst of
very many arguments (see `_screen`; float64, which nothing can screen, takes up to fifty
times as many as the tests), and then, for functions of numbers, their neighbours. A
bound of the catalog has to hold on any machine (the tests see to that); on the machine
that the table names it must not be looser than 1.3 times the largest error found.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import itertools
import json
import math
import multiprocessing
import os
import pathlib
from datetime import date
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track

import jaxsafe.losses
import jaxsafe.ops  # noqa: F401  (fills the catalog)
from benchmarks import _machine, _peers, _screen
from jaxsafe._catalog import CATALOG, Row
from tests import accuracy, oracles, samples

FILE = pathlib.Path(__file__).with_name("accuracy.md")
# What an accelerator gave, each a column of the table.
STORED = pathlib.Path(__file__).with_name("results")
SLACK = 1.3
ROUNDED_ONCE = 0.51
HALF = ("bfloat16", "float16")
ON_ACCELERATOR = ("float32", "bfloat16")
# How a peer says that it does not take a dtype.
_REFUSALS = (TypeError, ValueError, NotImplementedError)
# How often to look around the arguments with the largest errors.
_ROUNDS = 6
# Larger errors that an earlier run has shown (2026-11-26), perhaps on another
# processor: a bound has to hold there too.
ELSEWHERE = {
    "ops.dot_product_attention": (1.9, 2.4),
    "losses.info_nce": (2.9, 4.8),
    "losses.make_fenchel_young_loss[logsumexp]": (1.6, 2.3),
}
# Times as many arguments as the tests draw, in float64; matrices cost the oracle most.
_MORE = {"entrywise": 50, "reduction": 20, "labelled": 20, "whole": 20}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One function in one dtype; errors in ulp, (value, gradient[, second])."""

    name: str
    dtype: str
    ours: tuple[float, ...]
    bound: tuple[float, ...]
    peer: str
    theirs: tuple[float, ...]
    breaks: str

    @property
    def broken(self) -> bool:
        """Whether an error is above its bound."""
        return any(f > b for f, b in zip(self.ours, self.bound, strict=True))


def measure(name: str, dtype: str, *, quick: bool) -> Measured:
    """Errors of a row and of its peer on the same arguments."""
    row, peer = CATALOG[name], _peers.of(CATALOG[name])
    twin = dataclasses.replace(row, function=peer.function)
    with oracles.precision(dtype):
        ours = theirs = np.zeros(len(row.ulp[dtype]))
        programs = [_program(r, dtype) for r in (row, twin)]
        breaks = _first_edge(twin, dtype)
        queue = _arguments(row, dtype, quick=quick)
        rounds = _ROUNDS if _can_search(row, dtype) and not quick else 0
        while queue:
            args = queue.pop()
            exact = accuracy.truth(row, args)
            got = programs[0](*map(jnp.asarray, args))
            found = accuracy.distances(row, dtype, args, got, exact)
            ours = np.maximum(ours, _most(found))
            parts = _peer_errors(programs[1], twin, dtype, args, exact)
            theirs = np.maximum(theirs, _most(parts))
            breaks = breaks or _first_break(twin, dtype, args, parts)
            if rounds:
                rounds -= 1
                queue.append(_near_the_worst(row, args, found))
    return Measured(
        name=name,
        dtype=dtype,
        ours=tuple(map(float, ours)),
        bound=tuple(accuracy.bound(row, dtype)),
        peer=peer.name,
        theirs=tuple(map(float, theirs)),
        breaks=breaks,
    )


def _arguments(row: Row, dtype: str, *, quick: bool) -> list[tuple[Any, ...]]:
    if row.kind == "entrywise" and len(row.domain) == 1 and dtype in HALF and not quick:
        x = oracles.patterns(oracles.DTYPES[dtype])
        return [(x[samples.inside(*row.domain[0], x)],)]
    tested = samples.arguments(row, dtype)
    if quick:
        return tested
    found = list(_screen.worst_arguments(row, dtype))
    more = _MORE[row.kind] // 4 if found else _MORE[row.kind]
    drawn = samples.arguments(row, dtype, more=more, lengths=(1, 3, 10, 60))
    return tested + drawn + found


def _can_search(row: Row, dtype: str) -> bool:
    return row.kind == "entrywise" and row.sample is None and dtype not in HALF


def _near_the_worst(row: Row, args: Any, found: list[Any]) -> tuple[Any, ...]:
    """Neighbours of the arguments with the largest errors: maxima are narrow."""
    rng = samples.rng_of(row)
    errors = [e for part in found for e in part]
    worst = np.concatenate([np.argsort(e)[-16:] for e in errors])
    near = []
    for x, ends in zip(args, row.domain, strict=True):
        start = np.repeat(np.asarray(x)[worst], 64)
        reach = 2.0 ** rng.uniform(0, 16, start.size) * rng.choice([-1, 1], start.size)
        bits = start.view(f"i{start.dtype.itemsize}") + reach.astype(int)
        moved = bits.astype(f"i{start.dtype.itemsize}").view(start.dtype)
        near.append(np.where(samples.inside(*ends, moved), moved, start))
    return tuple(near)


def _program(row: Row, dtype: str) -> Any:
    second = len(row.ulp[dtype]) > 2
    return jax.jit(functools.partial(accuracy.derivatives, row, second=second))


def _peer_errors(
    program: Any, row: Row, dtype: str, args: Any, exact: Any
) -> list[Any]:
    """Errors of each part; infinite where the function does not take the dtype."""
    try:
        got = program(*map(jnp.asarray, args))
    except _REFUSALS:
        return [[np.full(1, np.inf)] for _ in row.ulp[dtype]]
    return accuracy.distances(row, dtype, args, got, exact)


def _most(parts: list[Any]) -> np.ndarray:
    return np.asarray([max(errors.max() for errors in part) for part in parts])


def _first_break(row: Row, dtype: str, args: Any, parts: list[Any]) -> str:
    """The smallest argument at which value or gradient is off by more than 1 %."""
    percent = 0.01 / float(jnp.finfo(oracles.DTYPES[dtype]).eps)
    if any(np.isinf(errors).all() for part in parts for errors in part):
        return "takes no " + dtype
    if row.kind == "whole":
        return ""
    found = []
    for what, part in zip(("value", "gradient"), parts, strict=False):
        for errors in part:
            bad = errors.reshape(len(errors), -1).max(axis=1) > percent
            found += [(_size(args, i), int(i), what) for i in np.flatnonzero(bad)]
    if not found:
        return ""
    _, i, what = min(found)
    point = ", ".join(_text(a[i]) for a in args)
    return f"{what} at {point}"


def _first_edge(row: Row, dtype: str) -> str:
    """The first documented edge at which the function is NaN or far off."""
    edges = samples.edges(row, dtype)
    try:
        out = [accuracy.derivatives(row, *map(jnp.asarray, a)) for a in edges.batches]
    except _REFUSALS:
        return ""
    for edge, (batch, place) in zip(row.edges, edges.places, strict=True):
        value, gradients = out[batch]
        pairs = [("value", value, edge.value)]
        pairs += [("gradient", *p) for p in zip(gradients, edge.gradient, strict=True)]
        for what, got, want in pairs:
            here = got if row.kind == "whole" else got[place]
            if not np.allclose(
                np.asarray(here, np.float64), want, rtol=0.01, equal_nan=True
            ):
                return f"{what} at {', '.join(map(_text, edge.args))}"
    return ""


def _size(args: Any, i: Any) -> float:
    return float(np.max(np.abs(oracles.wide(args[0][i]))))


def _text(entry: Any) -> str:
    numbers = np.ravel(entry)
    text = " ".join(f"{float(v):.4g}" for v in numbers[:4])
    return f"[{text}{' …' if numbers.size > 4 else ''}]" if numbers.size > 1 else text


def _job(job: tuple[str, str, bool]) -> Measured:
    name, dtype, quick = job
    return measure(name, dtype, quick=quick)


def measure_all(names: list[str], *, quick: bool) -> list[Measured]:
    """Every row in every dtype, spread over the cores.

    An accelerator is asked for the dtypes it is bought for. Processes may share a GPU,
    a TPU belongs to one.
    """
    backend = jax.default_backend()
    dtypes = tuple(oracles.DTYPES) if backend == "cpu" else ON_ACCELERATOR
    jobs = [(name, dtype, quick) for name in names for dtype in dtypes]
    if backend == "tpu":
        return [_job(job) for job in track(jobs)]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), context) as pool:
        return list(track(pool.map(_job, jobs), total=len(jobs)))


def to_json(found: list[Measured]) -> str:
    """What an accelerator gave, for the table; infinite is null."""
    errors = {
        f"{entry.name} {entry.dtype}": [
            e if math.isfinite(e) else None for e in entry.ours
        ]
        for entry in found
    }
    stored = {"context": _machine.context(), "errors": errors}
    return json.dumps(stored, indent=1, allow_nan=False) + "\n"


def elsewhere() -> dict[str, dict[str, tuple[float, ...]]]:
    """Device -> "name dtype" -> errors, of the results that are stored."""
    found = {}
    for path in sorted(STORED.glob("accuracy-*.json")):
        stored = json.loads(path.read_text("utf-8"))
        found[stored["context"]["device"]] = {
            key: tuple(math.inf if e is None else e for e in errors)
            for key, errors in stored["errors"].items()
        }
    return found


def table(found: list[Measured]) -> str:
    """Markdown: one row per function."""
    by_name: dict[str, dict[str, Measured]] = {}
    for entry in found:
        by_name.setdefault(entry.name, {})[entry.dtype] = entry
    devices = elsewhere()
    header = [
        "function", "float32", "bound", "float64", "bfloat16", "float16", "today",
        "float32", "bfloat16", "first breaks at",
    ]  # fmt: skip
    header += [f"{device}, {d}" for device in devices for d in ON_ACCELERATOR]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for name, entries in by_name.items():
        single = entries["float32"]
        cells = [
            f"`{name}`", _ulps(single.ours), _ulps(single.bound),
            _ulps(entries["float64"].ours), _ulps(entries["bfloat16"].ours),
            _ulps(entries["float16"].ours), f"`{single.peer}`", _ulps(single.theirs),
            _ulps(entries["bfloat16"].theirs), single.breaks or "nowhere found",
        ]  # fmt: skip
        for errors in devices.values():
            cells += [_ulps(errors.get(f"{name} {d}", ())) for d in ON_ACCELERATOR]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _ulps(numbers: tuple[float, ...]) -> str:
    return " / ".join(_short(n) for n in numbers)


def _short(number: float) -> str:
    if np.isinf(number):
        return "∞"
    return f"{number:.2g}" if number < 1000 else f"{number:.0e}".replace("e+0", "e")


def main(options: argparse.Namespace) -> int:
    """Measure, print what is loose or broken, write the table."""
    names = [n for n in CATALOG if any(part in n for part in options.only or [""])]
    if not names:
        print(f"accuracy: no function has this in its name (got {options.only}).")
        return 2
    # The processes below share the memory of a GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    found = measure_all(names, quick=options.quick)
    console, machine = Console(width=160), _machine.name()
    on_cpu = jax.default_backend() == "cpu"
    head = HEAD.format(machine=machine, date=date.today())
    text = head + table(found) if on_cpu else to_json(found)
    named = not FILE.exists() or machine in FILE.read_text("utf-8")
    loose = _loose(found) if named and not (options.quick or options.only) else []
    for entry in found:
        if entry.broken or entry in loose:
            kind = "above its bound" if entry.broken else "bound too loose"
            console.print(
                f"{entry.name} {entry.dtype}: {kind}: found {_ulps(entry.ours)}, "
                f"bound {_ulps(entry.bound)}",
                markup=False,
            )
    if options.out:
        options.out.write_text(text, "utf-8")
    else:
        console.print(text, markup=False)
    return 1 if loose or any(entry.broken for entry in found) else 0


def _loose(found: list[Measured]) -> list[Measured]:
    """Where a bound is far above the largest error of all that share it.

    A number stated once for several dtypes, or for a function with two names, has to be
    reached by one of them.
    """
    largest: dict[Any, float] = {}
    devices = elsewhere().values()
    for entry in found:
        seen = [entry.ours, ELSEWHERE.get(entry.name, ())]
        seen += [errors.get(f"{entry.name} {entry.dtype}", ()) for errors in devices]
        for key, *errors in itertools.zip_longest(_shared(entry), *seen, fillvalue=0.0):
            largest[key] = max(largest.get(key, 0.0), *errors)
    return [
        entry
        for entry in found
        if any(
            key[-1] > max(SLACK * largest[key], ROUNDED_ONCE) for key in _shared(entry)
        )
    ]


def _shared(entry: Measured) -> list[Any]:
    """For each bound of a row what identifies it; the number comes last."""
    oracle = CATALOG[entry.name].oracle
    return [(oracle, i, bound) for i, bound in enumerate(entry.bound)]


HEAD = """# How accurate the functions are

Largest error found, in units in the last place: value / gradient / second derivative,
against 320-bit arithmetic. Half precision: every one of the 65,536 numbers, for
functions of one number. "bound" is what the tests enforce on every machine. "today" is
the function of jax or optax with the same name (or what one writes by hand) on the same
arguments, with the documented edge or the smallest argument at which it is off by more
than 1 %. Columns at the end: ours on other devices. Next to a zero of a derivative the
error is counted in ulp of 1/16, ours and theirs alike. ∞: NaN or Inf where the truth is
finite, or a dtype that it refuses. On the H200 `linear_softmax_cross_entropy` was
measured with products as that device makes them by default, of 10 binary digits.

Measured on {machine}, {date}, by

    python -m benchmarks --suite accuracy --out benchmarks/accuracy.md

"""
