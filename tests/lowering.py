"""What a program lowers to, read from its StableHLO."""

import re

import jax
from jax import export


def lower(function, platform, *args):
    """StableHLO text of `function` for a platform that need not be here."""
    return export.export(jax.jit(function), platforms=[platform])(*args).mlir_module()


def count_conditionals(text):
    """Conditionals that are left to run time.

    `lax.platform_dependent` leaves a `case` on a constant, or with one branch only;
    those disappear in compilation.
    """
    return sum(
        not operand.startswith("%c") and _count_branches(text[match_end:]) > 1
        for operand, match_end in (
            (m.group(1), m.end())
            for m in re.finditer(r'"stablehlo\.(?:case|if)"\((%\w+)\) \(', text)
        )
    )


def _count_branches(text):
    """How many `{...}` stand in a row at the beginning of `text`."""
    depth, branches = 0, 0
    for character in text:
        if character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            branches += depth == 0
        elif character == ")" and depth == 0:
            break
    return branches
