"""A finding in words, at most 80 columns wide.

Four questions in order: what happened, where, why in the numbers of this run, and what
to do about it. The numbers come from the finding, the general explanation from the
table of causes. A path is never cut, so that a terminal can open it.
"""

import contextlib
import math
import os
import textwrap
from typing import TYPE_CHECKING

import jax.numpy as jnp

from jaxsafe import _text
from jaxsafe._causes import CAUSES

if TYPE_CHECKING:
    from jaxsafe.diagnose._finding import Finding, Stats

_LARGEST_EXPONENT = {"exp": math.log(2), "expm1": math.log(2), "exp2": 1.0}
_NEEDS_POSITIVE = ("log", "log2", "sqrt", "rsqrt", "cbrt", "pow")
_LOGARITHMS = ("log", "log1p", "log2")


def describe(stats: "Stats") -> str:
    """One line about an array: `x: float32[4] in [-1, 2], 1 NaN, first bad at [2]`."""
    text = f"{stats.name}: {stats.dtype}{list(stats.shape)}"
    if not math.isnan(stats.minimum):
        text += f" in [{_number(stats.minimum)}, {_number(stats.maximum)}]"
    counts = ((stats.num_nan, "NaN"), (stats.num_inf, "Inf"), (stats.num_zero, "zero"))
    text += "".join(f", {count} {what}" for count, what in counts if count)
    if stats.first_index:
        text += f", first bad at {list(stats.first_index)}"
    return text


def summary(finding: "Finding") -> str:
    """What, where, why and what to do."""
    cause = CAUSES[finding.cause]
    lines = [headline(finding), *_where(finding), *_numbers(finding)]
    sure = f"{finding.confidence:.0%} sure"
    lines.append(f"Why ({finding.cause}, {sure}):")
    lines += _text.wrap(f"{why(finding)} {cause.explanation}")
    lines.append("Try:")
    for remedy in finding.remedies:
        lines += _text.wrap(remedy)
    return "\n".join(lines)


def headline(finding: "Finding") -> str:
    """The first line of a summary."""
    kind = "NaN" if finding.result.num_nan else "Inf"
    if finding.phase == "input":
        return f"{kind} in an input: {finding.result.name}"
    return f"{kind} born in the {finding.phase} pass, by {finding.primitive}"


def _where(finding: "Finding") -> list[str]:
    lines = []
    if finding.file:
        lines.append(f"  {place(finding)}, {finding.function}")
    if finding.source:
        lines.append("    " + textwrap.shorten(finding.source, _text.WIDTH - 4))
    notes = []
    if finding.module:
        notes.append(f"module {finding.module}")
    if finding.iteration:
        notes.append(f"loop iteration {', '.join(map(str, finding.iteration))}")
    if finding.device is not None:
        notes.append(f"device {finding.device} of the mesh")
    if finding.branch is not None:
        notes.append(f"branch {finding.branch} of a conditional")
    return lines + (_text.wrap("; ".join(notes)) if notes else [])


def _numbers(finding: "Finding") -> list[str]:
    stats = [finding.result]
    if finding.phase != "input":
        stats = [*finding.operands, *stats]
    lines = [line for s in stats for line in _text.wrap(describe(s))]
    if len(finding.chain) > 1:
        lines += _text.wrap(", then ".join(finding.chain))
    return lines


def why(finding: "Finding") -> str:
    """One sentence about the numbers of this run."""
    if finding.phase == "input":
        return _about_input(finding.result)
    if finding.cause == "mask" and finding.phase == "backward":
        name = forward_name(finding)
        return f"0 * inf: guard the input of this `{name}`, not its output."
    if _note(finding).startswith("label"):
        return f"{_note(finding).capitalize()}; labels count from 0."
    return _about_operands(finding) or _fallback(finding)


def _about_input(stats: "Stats") -> str:
    bad = ((stats.num_nan, "NaN"), (stats.num_inf, "infinite"))
    counts = " and ".join(f"{count} {what}" for count, what in bad if count)
    return f"{stats.name}: {counts} of {stats.size} entries."


def forward_name(finding: "Finding") -> str:
    """The primitive of the forward line: `log` if the root is the slope of a log."""
    _, found, function = _note(finding).partition("slope of ")
    return function if found else finding.primitive


def _note(finding: "Finding") -> str:
    """What the first step of the chain says in brackets."""
    return finding.chain[0].partition(" (")[2].partition(") ")[0]


def _about_operands(finding: "Finding") -> str:
    name, operands = finding.primitive, finding.operands
    if forward_name(finding) != name:
        return f"The slope of {forward_name(finding)} is infinite here."
    if not operands:
        return ""
    first, last = operands[0], operands[-1]
    if name == "gather" and finding.result.num_nan:
        reach = f"indices reach {_number(last.maximum)}, the shape is"
        return f"An index is out of range: {reach} {list(first.shape)}."
    if any(s.num_inf for s in operands):
        return f"{name} of infinities has no value (inf - inf, 0 * inf, inf / inf)."
    if name in ("div", "rem") and last.num_zero:
        zero = f"{last.num_zero} of {last.size} divisors are 0."
        return f"0 / 0: {zero}" if finding.result.num_nan else zero
    if name in _NEEDS_POSITIVE and first.minimum < 0 and finding.result.num_nan:
        return f"{name} of {_number(first.minimum)}, which is below 0."
    if name in _LOGARITHMS and finding.result.num_inf:
        return f"{name} at its pole; its argument reaches {_number(first.minimum)}."
    if name in _LARGEST_EXPONENT and finding.result.num_inf:
        return _overflowing_exponential(finding)
    return ""


def _overflowing_exponential(finding: "Finding") -> str:
    # finfo.maxexp is the power of two at which the dtype ends.
    dtype = jnp.dtype(finding.result.dtype)
    limit = int(jnp.finfo(dtype).maxexp) * _LARGEST_EXPONENT[finding.primitive]
    return (
        f"{finding.primitive} of {_number(finding.operands[0].maximum)} does not fit "
        f"into {dtype}, which ends at {finding.primitive}({limit:.4g})."
    )


def _fallback(finding: "Finding") -> str:
    result = finding.result
    largest = [abs(x) for s in finding.operands for x in (s.minimum, s.maximum)]
    largest = [x for x in largest if not math.isnan(x)]
    grown = finding.cause in ("overflow", "learning_rate") or (
        result.num_inf and not result.num_nan
    )
    if grown and largest and max(largest) > 1:
        return (
            f"{finding.primitive} of numbers up to {_number(max(largest))} does not "
            f"fit into {result.dtype}."
        )
    return f"{finding.primitive} has no finite value for these operands."


def _number(x: float) -> str:
    return f"{x + 0.0:.6g}"  # + 0.0 turns -0 into 0


def place(finding: "Finding") -> str:
    """File and line; the file relative to the working directory, if that is shorter."""
    file = finding.file
    with contextlib.suppress(ValueError):  # on another drive
        file = min(os.path.relpath(file), file, key=len)
    return f"{file}:{finding.line}"
