"""What the graph around a root equation looks like: questions that the rules ask.

Everything is local. "Near" means within a few equations that compute something; moving,
reshaping and casting does not count. A whole model lies upstream of a loss, so an
unbounded search would find every primitive there is.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator

import jax.numpy as jnp
import numpy as np

from jaxsafe._program import Apply, Node
from jaxsafe.diagnose._blame import MOVES as MOVES
from jaxsafe.diagnose._blame import Blame, Event, Run
from jaxsafe.diagnose._finding import Stats
from jaxsafe.diagnose._probe import Probed

SUMS = frozenset({"reduce_sum", "add", "add_any", "dot_general", "cumsum"})
PRODUCTS = frozenset({"integer_pow", "square", "mul", "dot_general"})
# Functions whose slope is infinite or undefined somewhere.
_STEEP = (
    "sqrt",
    "log",
    "log1p",
    "rsqrt",
    "pow",
    "atan2",
    "acos",
    "asin",
    "cbrt",
    "div",
)
_COMPARISONS = frozenset({"eq", "ne", "ge", "gt", "le", "lt"})
_NEAR = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Evidence:
    """A root equation with its numbers and its surroundings.

    Attributes:
      run: the recorded run.
      root: the event to be explained.
      step: its equation.
      path: events from the root to a bad output.
      phase: the pass it belongs to.
      operands: numbers about its operands.
      turning: equation that made the first NaN out of an infinity, if another one.
    """

    run: Run
    root: Event
    step: Apply
    path: list[Event]
    phase: str
    operands: tuple[Stats, ...]
    turning: Apply | None

    @property
    def primitive(self) -> str:
        """Name of the root's primitive."""
        return self.step.primitive

    @property
    def overflowed(self) -> bool:
        """Whether the root made an infinity out of finite numbers."""
        return self.root.kind == "inf"

    @property
    def is_half(self) -> bool:
        """Whether the result is stored in a format that ends at 65504 or earlier."""
        return float(jnp.finfo(self.root.node.aval.dtype).max) < 1e6

    def has_negative(self, position: int = 0) -> bool:
        """Whether an operand has an entry below 0."""
        near = position < len(self.operands)
        return near and self.operands[position].minimum < 0

    def has_zero(self, position: int) -> bool:
        """Whether an operand has an entry that is exactly 0."""
        near = position < len(self.operands)
        return near and self.operands[position].num_zero > 0


def gather(
    run: Run, blame: Blame, turning: Event, phase: str, probed: Probed
) -> Evidence | None:
    """Collect the evidence about the root of a fault; None if it is no equation."""
    step, turned = blame.root.node.step, turning.node.step
    if step is None:
        return None
    return Evidence(
        run=run,
        root=blame.root,
        step=step,
        path=blame.path,
        phase=phase,
        operands=probed.inputs[step],
        turning=turned if turned is not step else None,
    )


def origin(node: Node) -> Node:
    """Where a value was computed, before it was moved, reshaped or cast."""
    while True:
        if node.step is None and len(node.parents) == 1:
            node = node.parents[0]
        elif node.step is not None and node.step.primitive in MOVES:
            node = node.step.inputs[0]
        else:
            return node


def made_by(node: Node) -> str:
    """The primitive that computed a value, or ""."""
    step = origin(node).step
    return step.primitive if step is not None else ""


def near(node: Node, *, within: int = _NEAR) -> Iterator[Apply]:
    """Equations upstream of a value, at most `within` computing steps away."""
    queue = collections.deque([(node, 0)])
    seen: set[Node] = set()
    while queue:
        here, distance = queue.popleft()
        if here in seen:
            continue
        seen.add(here)
        step = here.step
        if step is not None:
            yield step
        further = distance + (step is None or step.primitive not in MOVES)
        if further < within:
            queue.extend((parent, further) for parent in here.parents)


def comes_from(node: Node, primitives: Iterable[str], *, within: int = _NEAR) -> bool:
    """Whether one of `primitives` stands near upstream of a value."""
    wanted = frozenset(primitives)
    return any(step.primitive in wanted for step in near(node, within=within))


def is_length(node: Node) -> bool:
    """Whether a value is a norm or a deviation: the root of a sum of squares."""
    step = origin(node).step
    if step is None or step.primitive != "sqrt":
        return False
    return is_sum_of_squares(step.inputs[0])


def is_sum_of_squares(node: Node) -> bool:
    """Whether a value is a sum (or mean) of squares."""
    steps = list(near(node, within=6))
    summed = any(step.primitive in SUMS for step in steps)
    return summed and any(_is_square(step) for step in steps)


def _is_square(step: Apply) -> bool:
    if step.primitive == "square":
        return True
    if step.primitive == "integer_pow":
        return step.eqn.params["y"] % 2 == 0
    if step.primitive in ("mul", "dot_general"):
        a, b = (origin(node) for node in step.inputs)
        return a is b
    return False


def is_count(node: Node) -> bool:
    """Whether a value is made of booleans or integers: a mask or a count."""
    casts = [s for s in near(node, within=3) if s.primitive == "convert_element_type"]
    return any(not jnp.issubdtype(s.inputs[0].aval.dtype, jnp.inexact) for s in casts)


def slope_of(evidence: Evidence) -> str:
    """The function whose derivative the root is a factor of, or "".

    `sqrt(x)` becomes `0.5 / sqrt(x)` on the same line: the two share a value.
    """
    if evidence.phase != "backward":
        return ""
    root = evidence.step
    values = {origin(node) for node in root.inputs}
    for step in evidence.run.program.walk():
        shared = values.intersection((*map(origin, step.inputs), *step.outputs))
        same_line = step.site.frame == root.site.frame
        if same_line and step is not root and step.primitive in _STEEP and shared:
            return step.primitive
    return ""


def bad_label(evidence: Evidence) -> str:
    """Which label a loss rejected: "label 10 of 10 classes", or ""."""
    if evidence.primitive != "select_n":
        return ""
    for step in near(evidence.step.inputs[0], within=8):
        if step.primitive not in _COMPARISONS:
            continue
        for label, count in (step.inputs, step.inputs[::-1]):
            labels, classes = evidence.run.value(origin(label)), _class_count(count)
            if labels is None or not classes or labels.dtype.kind not in "iu":
                continue
            wrong = labels[(labels < 0) | (labels >= classes)]
            if wrong.size:
                return f"label {wrong[0]} of {classes} classes"
    return ""


def _class_count(node: Node) -> int:
    """How many classes a label is compared with: all of an iota, or a literal."""
    source = origin(node)
    if source.kind == "literal":
        return int(source.literal)
    if source.step is None or source.step.primitive != "iota":
        return 0
    params = source.step.eqn.params
    return int(params["shape"][params["dimension"]])


def used_by(evidence: Evidence, passing: frozenset[str]) -> set[str]:
    """The primitives that the root's result meets, after those that pass it on."""
    readers = _readers(evidence)
    found: set[str] = set()
    todo, seen = [evidence.root.node], {evidence.root.node}
    while todo:
        for step in readers[todo.pop()]:
            if step.primitive not in passing:
                found.add(step.primitive)
                continue
            fresh = [node for node in step.outputs if node not in seen]
            seen.update(fresh)
            todo += fresh
    return found


def _readers(evidence: Evidence) -> dict[Node, list[Apply]]:
    readers: dict[Node, list[Apply]] = collections.defaultdict(list)
    for step in evidence.run.program.walk():
        for node in step.inputs:
            readers[node].append(step)
    return readers


def is_discarded(evidence: Evidence) -> bool:
    """Whether a `where` throws the bad value away in the forward pass."""
    readers = _readers(evidence)
    bad = evidence.run.bad
    todo, seen = [evidence.root.node], {evidence.root.node}
    while todo:
        for step in readers[todo.pop()]:
            if step.primitive == "select_n" and step.outputs[0].index not in bad:
                return True
            fresh = [n for n in step.outputs if n.index in bad and n not in seen]
            seen.update(fresh)
            todo += fresh
    return False


def is_masked_cotangent(evidence: Evidence) -> bool:
    """Whether the infinity met a 0 that a `where` had put into the backward pass."""
    turning, bad = evidence.turning, evidence.run.bad
    if turning is None or turning.primitive not in ("mul", "div", "dot_general"):
        return False
    fine = [node for node in turning.inputs if node.index not in bad]
    return any(made_by(node) == "select_n" for node in fine)


def intended_sources(evidence: Evidence) -> set[str]:
    """What put infinities into the root's operands: "positive" arguments, or "mask"."""
    found, seen = set(), set()
    todo = list(evidence.step.inputs)
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        value = evidence.run.value(node)
        infinite = np.zeros(0) if value is None else value[np.isinf(value)]
        if infinite.size:
            positive = node.kind == "argument" and (infinite > 0).any()
            found.add("positive" if positive else "mask")
        elif node.index in evidence.run.bad:
            todo += node.parents
    return found
