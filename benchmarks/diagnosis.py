"""Who names what: our diagnosis and today's tools on thirty public bug reports.

Each tool gets the failing call of a case, as its documentation says it is to be used,
and what it says (message, traceback, state) is searched for the primitive, the line,
the iteration. What a tool has no words for, it cannot name.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import traceback
from collections.abc import Callable
from datetime import date
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import checkify
from rich.console import Console
from rich.progress import track

from benchmarks import _machine, _sections
from jaxsafe import diagnose
from tests.cases import CASES, Case

ASKED = ("noticed", "primitive", "line", "pass", "iteration", "cause")
# A tool that fails by itself has named nothing.
_OWN_FAULTS = (TypeError, ValueError, NotImplementedError, RuntimeError)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a tool said about a case; None where it has no words for that."""

    noticed: bool = False
    primitive: bool = False
    line: bool = False
    phase: bool | None = None
    iteration: bool | None = None
    cause: bool | None = None


def ours(case: Case) -> Answer:
    """`jaxsafe.diagnose.first_nonfinite`."""
    finding = diagnose.first_nonfinite(case.failing, *case.arrays)
    if finding is None:
        return Answer()
    phase = "input" if case.root == "(input)" else case.phase
    innermost = finding.iteration[-1] if finding.iteration else None
    return Answer(
        noticed=True,
        primitive=finding.primitive in case.accepted_roots,
        line=(finding.file, finding.line) == _root(case),
        phase=finding.phase == phase,
        iteration=innermost == case.loop_index,
        cause=finding.cause == case.cause,
    )


def debug_nans(case: Case) -> Answer:
    """`jax_debug_nans`, around the jitted call."""
    with jax.debug_nans(True):
        try:
            jax.block_until_ready(jax.jit(case.failing)(*case.arrays))
        except FloatingPointError as fault:
            return _read(case, str(fault), fault)
    return Answer()


def checked(case: Case) -> Answer:
    """`checkify` with all automatic checks, jitted; then `throw()`."""
    error, _ = jax.jit(checkify.checkify(case.failing, errors=checkify.all_checks))(
        *case.arrays
    )
    message = error.get()
    if message is None:
        return Answer()
    try:
        error.throw()
    except Exception as fault:  # its own class is private
        return _read(case, message, fault)
    return Answer(noticed=True)


def backward_nan(case: Case) -> Answer:
    """`equinox.debug.backward_nan` on every argument and on the result."""
    eqx = importlib.import_module("equinox")

    def tapped(*args: Any) -> Any:
        marked = jax.tree.map(_tap, args)
        return jax.tree.map(_tap, case.fn(*marked))

    def _tap(x: Any) -> Any:
        floating = jnp.issubdtype(jnp.result_type(x), jnp.floating)
        return eqx.debug.backward_nan(x, terminate=True) if floating else x

    whole = jax.value_and_grad(tapped) if case.phase == "backward" else tapped
    try:
        jax.block_until_ready(whole(*case.arrays))
    except Exception as fault:
        return _read(case, str(fault), fault)
    return Answer()


def apply_if_finite(case: Case) -> Answer:
    """`optax.apply_if_finite` on what the case returns, taken as gradients."""
    out = case.failing(*case.arrays)
    grads = [x for x in jax.tree.leaves(out) if jnp.issubdtype(x.dtype, jnp.floating)]
    tx = optax.apply_if_finite(optax.sgd(0.1), 5)
    _, state = tx.update(grads, tx.init(grads))
    return Answer(noticed=int(np.asarray(state.notfinite_count)) > 0)


TOOLS: dict[str, Callable[[Case], Answer]] = {
    "jaxsafe.diagnose": ours,
    "jax_debug_nans": debug_nans,
    "checkify": checked,
    "equinox.debug.backward_nan": backward_nan,
    "optax.apply_if_finite": apply_if_finite,
}


def _root(case: Case) -> tuple[str, int]:
    return case.fn.__code__.co_filename, case.root_line


def _read(case: Case, message: str, fault: BaseException) -> Answer:
    """What a message and its tracebacks name."""
    frames = set()
    link: BaseException | None = fault
    while link is not None:
        places = traceback.extract_tb(link.__traceback__)
        frames |= {(f.filename, f.lineno) for f in places}
        link = link.__cause__ or link.__context__
    words = message.replace(".", " ").replace(":", " ").split()
    return Answer(
        noticed=True,
        primitive=any(name in words for name in case.accepted_roots),
        line=_root(case) in frames,
    )


def ask(tool: Callable[[Case], Answer]) -> list[Answer]:
    """The tool's answers to all cases."""
    answers = []
    # optax and flax mix dtypes in places, as do the programs of users.
    with jax.numpy_dtype_promotion("standard"):
        for case in CASES:
            try:
                answers.append(tool(case))
            except _OWN_FAULTS:
                answers.append(Answer())
    return answers


def table(found: dict[str, list[Answer] | None]) -> str:
    """Markdown: one row per tool."""
    lines = ["| tool | " + " | ".join(ASKED) + " |", "|---" * (len(ASKED) + 1) + "|"]
    for name, answers in found.items():
        if answers is None:
            lines.append(f"| `{name}` | not installed" + " |" * len(ASKED))
            continue
        cells = [_share(answers, field.name) for field in dataclasses.fields(Answer)]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _share(answers: list[Answer], field: str) -> str:
    values = [getattr(answer, field) for answer in answers]
    if all(v is None for v in values):
        return "-"
    if field == "iteration":  # of those that have one
        pairs = zip(values, CASES, strict=True)
        values = [v for v, case in pairs if case.loop_index is not None]
    return f"{sum(map(bool, values))} of {len(values)}"


HEAD = """# Who names what

Thirty public bug reports, as functions (`tests/cases`). "line": the line that makes the
first bad value stands in the message or in the traceback. "iteration": of the loop, in
the cases that have one. "-": the tool has no words for it.

{machine}, {date}, by

    python -m benchmarks --suite diagnosis --out benchmarks/diagnosis.md

"""


def main(options: argparse.Namespace) -> int:
    """Ask every tool, print or write the table; 1 if ours is below its bars."""
    found: dict[str, list[Answer] | None] = {}
    for name, tool in track(TOOLS.items(), console=Console(stderr=True)):
        missing = "equinox" in name and importlib.util.find_spec("equinox") is None
        found[name] = None if missing else ask(tool)
    text = HEAD.format(machine=_machine.name(), date=date.today()) + table(found)
    if options.out:
        _sections.write(options.out, text)
    else:
        Console(width=120).print(text, markup=False)
    mine = found["jaxsafe.diagnose"] or []
    named = all(a.primitive and a.line and a.phase for a in mine)
    return 0 if named and sum(bool(a.cause) for a in mine) >= 27 else 1
