"""The same program by two engines: compiled as a whole, and operation by operation.

A compiler may rewrite what it compiles: `inf * mask` becomes a select, which is 0, and
`x * 0.5 + y * 0.5` becomes `(x + y) * 0.5`, which overflows. So a fault may be there in
one form and not in the other, and then neither the data nor the formula is at fault.

Either form may also lose a NaN in a maximum, as XLA does on CPU; what went in and what
came out is known, so that is told too.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from jaxsafe import _program
from jaxsafe.diagnose._blame import Run
from jaxsafe.diagnose._diagnose import check_allow, find, run_of
from jaxsafe.diagnose._finding import Finding

_MEANING = {
    "neither": "Finite either way.",
    "both": "Compiled and op by op agree.",
    "different": "Both fail, but not at the same place: the compiler has rewritten the "
    "program. Look at both.",
    "compiled only": "Only the compiled program fails: the compiler rewrote it. "
    "jax.lax.optimization_barrier between the operations keeps them as written.",
    "op by op only": "Only op by op: the compiler happened to remove the fault. "
    "Another version or backend may not.",
}
# A NaN among the operands has to come out of these.
_EXTREMES = frozenset({"cummax", "cummin", "max", "min", "reduce_max", "reduce_min"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CrossCheck:
    """What both engines found.

    Attributes:
      verdict: "both", "different", "compiled only", "op by op only" or "neither".
      compiled: the finding in the compiled program, or None; also None where the fault
        goes away as soon as the numbers in between are looked at.
      op_by_op: the finding without a compiler, or None.
      dropped: the maxima and minima that a NaN went into, and none came out of.

    Example:
      >>> from jaxsafe import diagnose
      >>> check = diagnose.CrossCheck(verdict="neither", compiled=None, op_by_op=None)
      >>> check.summary()
      'neither: Finite either way.'
    """

    verdict: str
    compiled: Finding | None
    op_by_op: Finding | None
    dropped: tuple[str, ...] = ()

    def summary(self) -> str:
        """The verdict, what it means, the findings that differ, and lost NaNs."""
        parts = [f"{self.verdict}: {_MEANING[self.verdict]}"]
        findings = [self.compiled or self.op_by_op]
        if self.verdict == "different":
            findings = [self.compiled, self.op_by_op]
        parts += [f.summary() for f in findings if f]
        parts += [
            f"A NaN went into {place} and none came out: this backend loses it there. "
            "`python -m jaxsafe selftest` says more."
            for place in self.dropped
        ]
        return "\n".join(parts)

    def to_json(self) -> str:
        """The check as one JSON object."""
        found = {
            name: finding and json.loads(finding.to_json())
            for name, finding in (
                ("compiled", self.compiled),
                ("op_by_op", self.op_by_op),
            )
        }
        return json.dumps(
            {"verdict": self.verdict, **found, "dropped": list(self.dropped)}
        )


def cross_check(
    fn: Callable[..., Any], *args: Any, allow: tuple[str, ...] = (), **kwargs: Any
) -> CrossCheck:
    """Run `first_nonfinite` by both engines, and say whether they agree.

    Op by op takes long for a large program: every operation is dispatched by itself,
    loops run in Python.

    Args:
      fn: as for `first_nonfinite`.
      *args: its arguments.
      allow: as for `first_nonfinite`.
      **kwargs: its keyword arguments.

    Returns:
      A `CrossCheck`.

    Raises:
      TypeError, ValueError: as `first_nonfinite`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsafe import diagnose
      >>> x = jnp.full(3, 2e38)
      >>> diagnose.cross_check(lambda x, y: x * 0.5 + y * 0.5, x, x).verdict
      'compiled only'
      >>> diagnose.cross_check(jnp.log, -x).verdict
      'both'
    """
    check_allow("cross_check", allow)
    traced = _program.trace("cross_check", fn, args, kwargs)
    as_one = run_of(traced, allow)
    compiled = find(fn, traced, as_one, allow)
    by_op = run_of(traced, allow, compiled=False)
    op_by_op = find(fn, traced, by_op, allow, compiled=False)
    # Looking changes what is compiled, but nothing that runs op by op.
    whole = _bad_outputs(traced)
    single = by_op.bad & {node.index for node in traced.program.outputs}
    verdict = _compare(compiled, op_by_op)
    if whole != single:
        verdict = "compiled only" if whole - single else "op by op only"
    dropped = dict.fromkeys([*_dropped(as_one), *_dropped(by_op)])
    return CrossCheck(
        verdict=verdict, compiled=compiled, op_by_op=op_by_op, dropped=tuple(dropped)
    )


def _dropped(run: Run) -> list[str]:
    def has_nan(nodes: list[_program.Node]) -> bool:
        return any((node.index, "nan") in run.events for node in nodes)

    return [
        f"{step.primitive} at {step.site.frame.place}"
        for step in run.program.walk()
        if step.primitive in _EXTREMES
        and has_nan(step.inputs)
        and not has_nan(step.outputs)
    ]


class _Outputs(_program.Magnitudes):
    """Looks at nothing but the outputs, so that the program is compiled as it is."""

    def __init__(self, program: _program.Program) -> None:
        super().__init__(_program.depth(program))
        self.outputs = set(program.outputs)

    def at_node(self, node: _program.Node) -> bool:
        return node in self.outputs and node.watched


def _bad_outputs(traced: _program.Traced) -> set[int]:
    """Indices of the nodes that come out of the compiled program non-finite."""
    watch = _Outputs(traced.program)
    keys, rows = _program.observe(traced.program, traced.values, watch)
    pairs = zip(keys, rows.peak, strict=True)
    return {node.index for node, peak in pairs if peak >= _program.INFINITY_BITS}


def _compare(compiled: Finding | None, op_by_op: Finding | None) -> str:
    if compiled is None or op_by_op is None:
        if compiled is op_by_op:
            return "neither"
        return "compiled only" if compiled else "op by op only"
    return "both" if _place(compiled) == _place(op_by_op) else "different"


def _place(finding: Finding) -> tuple[Any, ...]:
    return finding.primitive, finding.file, finding.line, finding.iteration
