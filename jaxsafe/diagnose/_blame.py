"""From what a run recorded to the equation that is to blame.

An *event* is a value that held a NaN, or an infinity, for the first time at some moment
of the run. Walking back from the bad outputs, through events that happened earlier
only, ends at the roots: equations with a bad result whose operands were all fine. What
never reaches an output (a branch thrown away by `where`) is never visited.

An infinity that comes from an argument, a constant or a literal of the program was
put there on purpose (a mask, a best loss so far), and so were the infinities that were
only moved, compared or added. A NaN that is born from such infinities (`-inf - -inf`)
is a root of its own. Nobody sums or squares a mask, though: an infinite argument that
gets into a sum is bad data, and the argument itself is to blame.
"""

import collections
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsafe import _program
from jaxsafe._program import Magnitude, Node, Shards, Traced

# Equations that hand a value on unchanged.
MOVES = frozenset(
    {
        "broadcast_in_dim",
        "concatenate",
        "convert_element_type",
        "copy",
        "dynamic_slice",
        "expand_dims",
        "gather",
        "imag",
        "name",
        "optimization_barrier",
        "pad",
        "real",
        "reduce_precision",
        "reshape",
        "rev",
        "slice",
        "squeeze",
        "stop_gradient",
        "transpose",
    }
)
_INPUTS = ("argument", "constant")
_NOT_FOR_MASKS = frozenset(
    {
        "conv_general_dilated",
        "cumprod",
        "cumsum",
        "dot_general",
        "integer_pow",
        "reduce_prod",
        "reduce_sum",
        "square",
    }
)

Key = tuple[int, str]


class Event(NamedTuple):
    """A value that first held a NaN ("nan") or an infinity ("inf"), and when.

    `turns` are the turns of the loops around it; `time` orders the events of a run.
    """

    node: Node
    kind: str
    turns: tuple[int, ...]
    time: tuple[int, ...]

    @property
    def key(self) -> Key:
        """What identifies it."""
        return self.node.index, self.kind


class Run:
    """The events of one run of a program.

    Attributes:
      program: the program.
      events: by (node index, kind).
      peaks: largest magnitude that a value had, by node index.
      bad: indices of the nodes with an event.
      intended: keys of the events that somebody wanted.
      source: for an infinity that comes from an input, the event of that input.
      fixed: keys of the NaNs that are literals of the program, moved or not.
    """

    def __init__(
        self, traced: Traced, keys: list[Node], rows: Magnitude, allow: tuple[str, ...]
    ) -> None:
        program = self.program = traced.program
        self._allow = allow
        arguments = zip(program.arguments, traced.values, strict=True)
        constants = zip(program.constants, program.constant_values, strict=True)
        self._values = {n.index: v for n, v in (*arguments, *constants)}
        self.events: dict[Key, Event] = {}
        self.peaks: dict[int, float] = {}
        peaks = np.asarray(rows.peak).view(np.float32)
        for node, peak, nan_at, inf_at in zip(
            keys, peaks, rows.nan_at, rows.inf_at, strict=True
        ):
            self.peaks[node.index] = float(peak)
            for kind, at in (("nan", nan_at), ("inf", inf_at)):
                if at[0]:
                    self._record(node, kind, at[1:])
        for node in (out for step in program.walk() for out in step.outputs):
            if (source := _program.copied(node)) is not None:
                self.peaks[node.index] = self.peaks[source.index]
                for event in self.of(source):
                    self._record(node, event.kind, event.turns)
        self.bad = {index for index, _ in self.events}
        self.intended: set[Key] = set()
        self.source: dict[Key, Event] = {}
        self.fixed: set[Key] = set()
        for event in sorted(self.events.values(), key=lambda e: e.time):
            self._trace_source(event)
            step, before = event.node.step, self.before(event)
            moved = step is not None and step.primitive in MOVES
            if moved and before and all(e.key in self.fixed for e in before):
                self.fixed.add(event.key)
            if self._is_intended(event):
                self.intended.add(event.key)

    def _record(self, node: Node, kind: str, at: Any) -> None:
        turns = tuple(int(t) for t in at[: len(node.loops)])
        time: list[int] = []
        for loop, turn in zip(node.loops, turns, strict=True):
            # Devices run at the same time: what one has computed, all may have got.
            time += [loop.start, 0 if isinstance(loop, Shards) else turn]
        event = Event(node, kind, turns, (*time, node.index))
        self.events[event.key] = event

    def _trace_source(self, event: Event) -> None:
        if event.node.kind in _INPUTS:
            self.source[event.key] = event
        elif all(e.key in self.intended for e in self.before(event)):
            known = [e.key for e in self.before(event) if e.key in self.source]
            if known:
                self.source[event.key] = self.source[known[0]]

    def _is_intended(self, event: Event) -> bool:
        node, before = event.node, self.before(event)
        if node.kind in _INPUTS:
            return event.kind == "inf" or is_allowed(node.label, self._allow)
        if node.step is not None and node.step.primitive in self._allow:
            return True
        born = event.kind == "nan" and all(e.kind == "inf" for e in before)
        if not before or born or self.is_bad_data(event):
            return False
        return all(e.key in self.intended for e in before)

    def is_bad_data(self, event: Event) -> bool:
        """Whether an infinite input got into an equation that no mask goes into."""
        source, step = self.source.get(event.key), event.node.step
        if source is None or source.kind != "inf" or step is None:
            return False
        allowed = is_allowed(source.node.label, self._allow)
        return step.primitive in _NOT_FOR_MASKS and not allowed

    def before(self, event: Event) -> list[Event]:
        """The events that explain one: NaN operands first, infinite ones else."""
        found = [e for p in event.node.parents for e in self.of(p)]
        found = [e for e in found if e.time < event.time]
        if event.node.kind == "joined" and len(event.node.parents) == 1:
            return found  # all turns of a loop, stacked: both kinds may be in it
        nans = [e for e in found if e.kind == "nan"]
        if event.kind == "nan" and nans:
            # `where(n > 0, v, nan)`: the literal explains nothing if v is a NaN.
            return [e for e in nans if e.key not in self.fixed] or nans
        return [e for e in found if e.kind == "inf"]

    def value(self, node: Node) -> Any:
        """The value of an argument, constant or literal as numpy; None of others.

        None too of an array that other processes hold parts of.
        """
        dtype = getattr(node.aval, "dtype", None)
        if not isinstance(dtype, np.dtype):  # random keys have a dtype of their own
            return None
        value = self._values.get(node.index, node.literal)
        if isinstance(value, jax.Array) and not _is_here(value):
            return None
        return None if value is None else np.asarray(value)

    def of(self, node: Node) -> Iterable[Event]:
        """The events of one value."""
        if node.kind == "literal":
            kind = _program.literal_kind(node.literal)
            event = Event(node, kind, (), (-1,))
            (self.fixed if kind == "nan" else self.intended).add(event.key)
            return [event] if kind else []
        both = ((node.index, "nan"), (node.index, "inf"))
        return [self.events[key] for key in both if key in self.events]

    def after(self) -> dict[Key, list[Event]]:
        """For each event, the events that it explains."""
        found = collections.defaultdict(list)
        for event in self.events.values():
            for earlier in self.before(event):
                found[earlier.key].append(event)
        return found


def _is_here(array: jax.Array) -> bool:
    return bool(array.is_fully_addressable or array.is_fully_replicated)


class Blame(NamedTuple):
    """The earliest root, and the events from it to a bad output."""

    root: Event
    path: list[Event]


def blame(run: Run, allow: tuple[str, ...], outputs: list[str]) -> Blame | None:
    """Walk back from the bad outputs; None if every one of them is intended."""
    start = [
        event
        for node, name in zip(run.program.outputs, outputs, strict=True)
        for event in run.of(node)
        if event.key not in run.intended and not is_allowed(name, allow)
    ]
    leads_to: dict[Key, Event | None] = {e.key: None for e in start}
    queue = collections.deque(start)
    roots = []
    while queue:
        event = queue.popleft()
        before = [e for e in run.before(event) if e.key not in run.intended]
        # For a NaN that the program writes down, the equation that picks it answers.
        if all(e.key in run.fixed for e in before):
            roots.append(event)
            continue
        for earlier in before:
            if earlier.key not in leads_to:
                leads_to[earlier.key] = event
                queue.append(earlier)
    if not roots:
        return None
    root = min(roots, key=lambda e: e.time)
    path = [root]
    while (following := leads_to[path[-1].key]) is not None:
        path.append(following)
    if run.is_bad_data(root):
        root = run.source[root.key]
        path.insert(0, root)
    return Blame(root, path)


def is_allowed(name: str, allow: tuple[str, ...]) -> bool:
    """Whether the name of an input or output begins like an allowed one."""
    return bool(name) and name.startswith(allow)
