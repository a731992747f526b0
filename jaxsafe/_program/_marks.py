"""Values that a user marked by a name, and programs that are opened only to find them.

A mark is a named identity, which survives jit, grad, vmap, scan, cond and remat. What
holds none is left as it stands, so that custom derivatives keep their rule and a
`jax.checkpoint` keeps its memory.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name

from jaxsafe._errors import error
from jaxsafe._program import _adapter
from jaxsafe._program._graph import Apply
from jaxsafe._program._trace import Traced, trace

_PREFIX = "jaxsafe.tap:"


class Marked(NamedTuple):
    """A program with its marks in reach.

    Attributes:
      traced: the program.
      opened: whether a function with a derivative of its own had to be opened.
    """

    traced: Traced
    opened: bool


def mark(name: str, x: jax.Array) -> jax.Array:
    """`x`, known by `name` in the program that is being traced."""
    return checkpoint_name(x, _PREFIX + name)


def mark_of(step: Apply) -> str | None:
    """The name of a marked value, or None."""
    return _mark(step.eqn)


def trace_marked(
    caller: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Marked:
    """Trace `fn`, also under other transformations; arguments may be tracers.

    Raises:
      NotImplementedError: a mark stands where this package cannot look.
      TypeError: `fn` cannot be traced.
    """
    search = _Search()
    traced = trace(caller, fn, args, kwargs, concrete=False, enter=search.begin)
    for step in traced.program.walk():
        if not _adapter.name_of(step.eqn) and (lost := search.wanted(step.eqn)):
            raise error(
                NotImplementedError,
                caller,
                f"tap {min(lost)!r} stands inside {step.primitive}, which cannot be "
                "opened",
                f"{step.site.frame.place}",
                f"Call {caller} inside of it, or tap what comes out of it.",
            )
    return Marked(traced, search.opened)


class _Search:
    """Which equations to open: those that lead to a mark."""

    def __init__(self) -> None:
        self.outside: set[str] = set()
        self.opened = False

    def begin(self, jaxpr: Any) -> Callable[[Any], bool]:
        # Rematerialised marks were seen in the forward pass, and opening a
        # rematerialisation would give up the memory that it saves.
        inner, _ = _adapter.open_jaxpr(jaxpr)
        self.outside = _marks(inner.eqns, recomputed=False)
        return self.enter

    def enter(self, eqn: Any) -> bool:
        found = bool(self.wanted(eqn))
        self.opened |= found and _adapter.has_own_derivative(eqn)
        return found

    def wanted(self, eqn: Any) -> set[str]:
        marks = _marks([eqn], recomputed=True)
        return marks - self.outside if _adapter.is_recomputed(eqn) else marks


def _mark(eqn: Any) -> str | None:
    name = _adapter.name_of(eqn)
    return name.removeprefix(_PREFIX) if name.startswith(_PREFIX) else None


def _marks(eqns: list[Any], *, recomputed: bool) -> set[str]:
    """Names of all marks below `eqns`."""
    found = set()
    for eqn in eqns:
        if (name := _mark(eqn)) is not None:
            found.add(name)
        if recomputed or not _adapter.is_recomputed(eqn):
            for inner in _adapter.inner_jaxprs(eqn):
                found |= _marks(inner.eqns, recomputed=recomputed)
    return found
