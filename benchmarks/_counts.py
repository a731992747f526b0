"""What stands in a program: the costs that are the same on every machine."""

import collections
import dataclasses
import math
import re
from typing import Any

# An instruction of optimised HLO: `%name = type[shape] opcode(...)`.
_OPCODE = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = .*? ([a-z][a-z-]*)\(")
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][a-z-]*)\(([^)]*)\)(.*)"
)
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+)[\w]*\[([\d,]*)\]")
_CALLED = re.compile(r"(?:to_apply|calls)=%?([\w.-]+)")
# What moves nothing: names of buffers, or the second half of something asynchronous.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Of one compiled program; nan where the compiler does not say.

    Attributes:
      flops: floating operations.
      traffic: bytes read and written.
      temporary: bytes of temporary memory.
      argument: bytes of arguments.
      alias: bytes of arguments that are written in place.
      conditionals: branches that are taken at run time.
      copies: of whole buffers.
      fusions: kernels, on an accelerator.
      all_reduces: of all devices.
    """

    flops: float
    traffic: float
    temporary: float
    argument: float
    alias: float
    conditionals: int
    copies: int
    fusions: int
    all_reduces: int


def of(compiled: Any) -> Counts:
    """Count what stands in the optimised program."""
    text = compiled.as_text()
    seen, found = opcodes(text), sizes(compiled)
    if not found["traffic"] > 0:
        found["traffic"] = float(traffic(text))
    return Counts(
        **found,
        conditionals=seen["conditional"],
        copies=seen["copy"] + seen["copy-start"],
        fusions=seen["fusion"],
        all_reduces=seen["all-reduce"] + seen["all-reduce-start"],
    )


def sizes(compiled: Any) -> dict[str, float]:
    """What the compiler says of memory and work; nan where it says nothing."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    parts = {"temporary": "temp", "argument": "argument", "alias": "alias"}
    found = {
        name: float(getattr(memory, f"{part}_size_in_bytes", math.nan))
        for name, part in parts.items()
    }
    found["flops"] = float(cost.get("flops", math.nan))
    found["traffic"] = float(cost.get("bytes accessed", math.nan))
    return found


def opcodes(text: str) -> collections.Counter[str]:
    """How often each opcode stands in the text of an HLO module, fusions inside too."""
    found = (_OPCODE.match(line) for line in text.splitlines())
    return collections.Counter(match[1] for match in found if match)


def traffic(text: str) -> int:
    """Bytes that the kernels of a program read and write: operands and results.

    For a GPU, whose compiler says nothing. A kernel that reads a part of an operand is
    counted as if it read all of it; a loop counts once.
    """
    bodies: dict[str, list[re.Match[str]]] = {}
    entry = name = ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            name = head[2]
            entry = name if head[1] else entry
        elif found := _INSTRUCTION.match(line):
            bodies.setdefault(name, []).append(found)
    return _of_body(entry, bodies)


def _of_body(name: str, bodies: dict[str, list[re.Match[str]]]) -> int:
    sizes = {found[1]: _bytes(found[2]) for found in bodies.get(name, ())}
    total = 0
    for found in bodies.get(name, ()):
        opcode, operands = found[3], re.findall(r"%?([\w.-]+)(?:,|$)", found[4])
        called = _CALLED.search(found[5])
        if opcode in _FREE or opcode.endswith("-done"):
            continue
        if opcode == "call" and called:
            total += _of_body(called[1], bodies)
            continue
        total += sizes[found[1]] + sum(sizes.get(o, 0) for o in operands)
    return total


def _bytes(shape: str) -> int:
    """Of a type as HLO writes it, arrays and tuples."""
    total = 0
    for kind, dims in _ARRAY.findall(shape):
        bits = 8 if kind == "pred" else int(re.sub(r"\D", "", kind))
        total += math.prod(int(d) for d in dims.split(",") if d) * bits // 8
    return total
