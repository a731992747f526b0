"""What today's tools say of a step that broke.

Each is used as its documentation says. The verdict quotes its first words, and whether
any user line that it shows is the line that made the first non-finite value.
"""

import contextlib
import io
import re
import traceback
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import checkify

from experiments._records import Verdict
from experiments._train import Batch, Crash, Task, train
from jaxsafe.diagnose import Finding


def ask_all(
    crash: Crash,
    finding: Finding,
    skipping: Task,
    batches: Iterable[Batch],
    test: Batch,
) -> tuple[Verdict, ...]:
    """The three tools people reach for.

    Args:
      crash: the step that broke, with its arguments.
      finding: jaxsafe's own answer, to compare lines with.
      skipping: the same task with its optimizer inside `optax.apply_if_finite`.
      batches: the batches of the broken run.
      test: rows to judge by.
    """
    return (
        _debug_nans(crash, finding),
        _checkify(crash, finding),
        _apply_if_finite(skipping, batches, test),
    )


def skip_nonfinite(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer as `optax.apply_if_finite` wraps it, with a common limit of 5."""
    return optax.apply_if_finite(tx, max_consecutive_errors=5)


def _debug_nans(crash: Crash, finding: Finding) -> Verdict:
    # It announces its op-by-op replay on stdout.
    with jax.debug_nans(True), contextlib.redirect_stdout(io.StringIO()):
        try:
            jax.block_until_ready(jax.jit(crash.step)(*crash.args))
        except FloatingPointError as problem:
            return _from_exception("jax_debug_nans", problem, finding)
    return Verdict(tool="jax_debug_nans", says="nothing", names_line=False)


def _checkify(crash: Crash, finding: Finding) -> Verdict:
    checked = checkify.checkify(crash.step, errors=checkify.float_checks)
    problem, _ = jax.jit(checked)(*crash.args)
    try:
        problem.throw()
    except checkify.JaxRuntimeError as raised:
        return _from_exception("checkify", raised, finding)
    return Verdict(tool="checkify", says="nothing", names_line=False)


def _from_exception(tool: str, problem: BaseException, finding: Finding) -> Verdict:
    """The message, and the user line nearest to where the tool stopped."""
    chain: BaseException | None = problem
    lines = []
    while chain is not None:
        frames = traceback.extract_tb(chain.__traceback__)
        lines += [(f.filename, f.lineno) for f in frames]
        chain = chain.__cause__
    named = (finding.file, finding.line) in lines
    says = re.split(r"(?<=\.) |\n", str(problem).strip())[0].rstrip(".")
    return Verdict(tool=tool, says=says, names_line=named)


def _apply_if_finite(task: Task, batches: Iterable[Batch], test: Batch) -> Verdict:
    run, _ = train("optax.apply_if_finite", task, batches, test)
    bad = sum(not np.isfinite(loss) for loss in run.losses)
    if run.broke_at is None:
        says = "skips nothing"
    else:
        says = f"{bad} of {len(run.losses)} losses non-finite"
    says += f"; test accuracy {run.accuracy:.0%}"
    return Verdict(tool="optax.apply_if_finite", says=says, names_line=False)


def summary(verdicts: tuple[Verdict, ...]) -> list[list[Any]]:
    """Rows for a table."""
    return [[v.tool, v.says, v.names_line] for v in verdicts]
