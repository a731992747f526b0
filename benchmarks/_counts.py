"""What stands in a program: the costs that are the same on every machine."""

import collections
import dataclasses
import math
import re
from typing import Any

# An instruction of optimised HLO: `%name = type[shape] opcode(...)`.
_OPCODE = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = .*? ([a-z][a-z-]*)\(")


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
    seen = opcodes(compiled.as_text())
    return Counts(
        **sizes(compiled),
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
