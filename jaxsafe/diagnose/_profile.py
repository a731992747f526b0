"""Before the precision is lowered: which numbers of a program would not fit.

The program is traced and run once more with a row per equation, as for a diagnosis; no
value leaves the device, only how large its entries are and how many of them a narrower
format would lose.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from jaxsafe import _program
from jaxsafe._program import NOWHERE, Apply, Node, Site
from jaxsafe.diagnose._blame import MOVES
from jaxsafe.diagnose._phase import pass_of
from jaxsafe.diagnose._range import FORMATS, Ranges, Row, as_counts, as_float
from jaxsafe.diagnose._table import Profile, Range, merged

_INPUTS = ("argument", "constant")


def profile(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Profile:
    """Say how large the numbers of `fn(*args)` are, and which formats hold them.

    Of every argument and every equation: the smallest and the largest magnitude, and
    how many entries would overflow, or become 0, in float16, bfloat16 and both kinds of
    float8. Over all iterations of a loop, all branches that are taken, all examples of
    a batch; in the backward pass too, if `fn` is `jax.value_and_grad(loss)`. Equations
    that only move numbers are left out; what cannot be opened (a kernel) is judged by
    what comes out of it. In a `shard_map` every device's copy counts.

    It is the numbers of this call: profile a batch of real data, and not only the first
    step. An entry that would only lose digits, as a subnormal does, counts as kept.

    NaN in:    counted as not finite; in no range, and lost in no format.

    Args:
      fn: the function, as it is called in training. It is traced, not run.
      *args: its arguments: concrete arrays in any pytree.
      **kwargs: its keyword arguments.

    Returns:
      A `Profile`; print its `summary()`, by "line", "module" or "equation".

    Raises:
      TypeError: an argument is a tracer, or `fn` cannot be traced.
      ValueError: an argument was donated and is gone.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsafe import diagnose
      >>> x = jnp.array([-20.0, 0.0, 12.0])
      >>> (x, exp) = diagnose.profile(jnp.exp, x).by("equation")
      >>> exp.name, exp.exponents, exp.overflow["float16"], exp.underflow["float16"]
      ('exp', (-29, 17), 1, 1)
    """
    traced = _program.trace("profile", fn, args, kwargs)
    keys, rows = _program.observe(
        traced.program, traced.values, Ranges(_is_profiled, FORMATS)
    )
    steps = list(traced.program.walk())
    transposed = any(pass_of(step, differentiated=False) != "forward" for step in steps)
    found: dict[Any, list[Range]] = {}
    for i, node in enumerate(keys):
        row = jax.tree.map(lambda x, i=i: x[i], rows)
        described = _range(fn, node, row, transposed)
        if described.entries:  # else a branch that was not taken
            found.setdefault(node.step or node, []).append(described)
    return Profile(rows=tuple(merged(ranges) for ranges in found.values()))


def _is_profiled(node: Node) -> bool:
    if not node.watched:
        return False
    if node.step is None:
        return node.kind in _INPUTS
    return node.step.primitive not in MOVES


def _range(fn: Any, node: Node, row: Row, transposed: bool) -> Range:
    counts = as_counts(row.counts)
    total, nonzero, *per_format, nonfinite, _ = counts
    kept, beyond = per_format[::2], per_format[1::2]
    step = node.step
    site = step.site if step else Site()
    frame = site.frame if site.frame != NOWHERE else _defined(fn)
    return Range(
        name=_name(node),
        file=frame.file if step else "",
        line=frame.line if step else 0,
        source=frame.text if step else "",
        function=frame.function if step else "",
        module=site.module,
        phase=pass_of(step, differentiated=transposed) if step else "input",
        dtype=str(node.aval.dtype),
        smallest=as_float(row.smallest),
        largest=as_float(row.largest),
        entries=total,
        zeros=total - nonzero,
        nonfinite=nonfinite,
        overflow={f: n - nonfinite for f, n in zip(FORMATS, beyond, strict=True)},
        underflow={f: nonzero - n for f, n in zip(FORMATS, kept, strict=True)},
    )


@functools.lru_cache(maxsize=8)
def _defined(fn: Any) -> Any:
    return _program.of_function(fn)


def _name(node: Node) -> str:
    step: Apply | None = node.step
    if step is not None:
        return step.primitive
    return node.label or "(a closed-over constant)"
