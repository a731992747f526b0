"""A jaxpr as one flat dataflow graph: who made each value, from what, in which loop.

Calls (jit, remat, custom derivatives) are dissolved: their equations stand in the list
of the caller, their operands *are* the caller's values. Loops and branches keep a list
of their own, and so does a `shard_map`, whose devices count as the turns of a loop that
all happen at once. Whatever is not known here stays one opaque step with checked
outputs. Node numbers follow execution order, so two moments of a run can be compared.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

from jaxsafe._program import _adapter, _source
from jaxsafe._program._source import Frame

_NO_MODULE = ("rematted_computation", "jit(", "pjit(")
_SCOPE = re.compile(r"^(?:\w+\()*([^()]*)\)*$")


@dataclasses.dataclass(slots=True, eq=False)
class Node:
    """One value of the program.

    Attributes:
      index: position in execution order.
      kind: argument, constant, literal, result, carry, slice, shard or joined.
      aval: shape and dtype.
      parents: the values that it is computed from.
      step: the equation that made it, if an equation did.
      loops: the loops and shard_maps around it, outermost first.
      branch: index of the innermost conditional branch that it stands in, or None.
      label: name of an argument.
      literal: value of a literal.
    """

    index: int
    kind: str
    aval: Any
    parents: list["Node"]
    step: "Apply | None" = None
    loops: tuple["Loop | Shards", ...] = ()
    branch: int | None = None
    label: str = ""
    literal: Any = None

    @property
    def watched(self) -> bool:
        """Whether it can hold a NaN that a run would have to record."""
        return self.kind != "literal" and _adapter.is_floating(self.aval)


@dataclasses.dataclass(frozen=True, slots=True)
class Site:
    """Where in the user's program an equation stands.

    Attributes:
      frame: line of the user.
      stack: scopes and transformations, along the whole call path.
      calls: names of the jitted functions around it, outermost first.
      optimizer: an optimizer library made it.
    """

    frame: Frame = _source.NOWHERE
    stack: str = ""
    calls: tuple[str, ...] = ()
    optimizer: bool = False

    @property
    def module(self) -> str:
        """The flax module path in the name stack: `transpose(jvp(Net))/Dense_0`."""
        parts = [p for p in self.stack.split("/") if not p.startswith(_NO_MODULE)]
        names = [_SCOPE.sub(r"\1", part) for part in parts]
        return "/".join(name for name in names if name)

    def inside(self, eqn: Any) -> "Site":
        """The site of an equation that stands in a program at this site."""
        frames = _adapter.frames(eqn)
        return Site(
            frame=_source.user_frame(frames) or self.frame,
            stack="/".join(s for s in (self.stack, _adapter.name_stack(eqn)) if s),
            calls=self.calls,
            optimizer=self.optimizer or _source.in_optimizer(frames),
        )


@dataclasses.dataclass(slots=True, eq=False)
class Apply:
    """One equation."""

    eqn: Any
    site: Site
    inputs: list[Node]
    outputs: list[Node]

    @property
    def primitive(self) -> str:
        """Name of the primitive."""
        return self.eqn.primitive.name


@dataclasses.dataclass(slots=True, eq=False)
class Loop:
    """A scan or a while loop; `start` is its place in execution order."""

    eqn: Any
    site: Site
    start: int
    init: list[Node]
    sequences: list[Node]
    condition_consts: list[Node]
    carry: list[Node] = dataclasses.field(default_factory=list)
    slices: list[Node] = dataclasses.field(default_factory=list)
    steps: list[Any] = dataclasses.field(default_factory=list)
    results: list[Node] = dataclasses.field(default_factory=list)
    outputs: list[Node] = dataclasses.field(default_factory=list)

    @property
    def is_scan(self) -> bool:
        """Whether it is a scan."""
        return self.eqn.primitive.name == "scan"

    def iteration(self, turn: int) -> int:
        """The user's loop index of the turn that was run as number `turn`."""
        if self.is_scan and self.eqn.params["reverse"]:
            return self.eqn.params["length"] - 1 - turn
        return turn


@dataclasses.dataclass(slots=True, eq=False)
class Shards:
    """A `shard_map`; `fed` are what its inputs are on one device."""

    eqn: Any
    start: int
    axes: tuple[str, ...]
    inputs: list[Node]
    fed: list[Node] = dataclasses.field(default_factory=list)
    steps: list[Any] = dataclasses.field(default_factory=list)
    results: list[Node] = dataclasses.field(default_factory=list)
    outputs: list[Node] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True, eq=False)
class Branch:
    """A conditional; every branch has its own steps and results."""

    selector: Node
    branches: list[tuple[list[Any], list[Node]]]
    outputs: list[Node]


Step = Apply | Loop | Shards | Branch


@dataclasses.dataclass(slots=True, eq=False)
class Program:
    """A traced function: arguments, constants with their values, steps, outputs."""

    arguments: list[Node]
    constants: list[Node]
    constant_values: list[Any]
    steps: list[Step]
    outputs: list[Node]

    def walk(self) -> Iterator[Apply]:
        """Every equation, in the order of the text."""
        return walk(self.steps)


def walk(steps: list[Step]) -> Iterator[Apply]:
    """Every equation below `steps`."""
    for step in steps:
        if isinstance(step, Apply):
            yield step
        elif isinstance(step, Loop | Shards):
            yield from walk(step.steps)
        else:
            for inner, _ in step.branches:
                yield from walk(inner)


def everything(eqn: Any) -> bool:  # noqa: ARG001
    """Look into every equation."""
    return True


def build(
    jaxpr: Any, labels: list[str], enter: Callable[[Any], bool] = everything
) -> Program:
    """Turn a traced jaxpr into a graph; `labels` name its arguments.

    An equation that runs other programs, and that `enter` refuses, stays one step.
    """
    return _Builder(enter).program(jaxpr, labels)


@dataclasses.dataclass(frozen=True)
class _Place:
    """What surrounds the equations being read."""

    site: Site = dataclasses.field(default_factory=Site)
    loops: tuple[Loop | Shards, ...] = ()
    branch: int | None = None


class _Builder:
    def __init__(self, enter: Callable[[Any], bool]) -> None:
        self.may_enter = enter
        self.count = itertools.count()

    def program(self, jaxpr: Any, labels: list[str]) -> Program:
        inner, values = _adapter.open_jaxpr(jaxpr)
        place = _Place()
        constants = [self.node("constant", v.aval, place) for v in inner.constvars]
        arguments = [self.node("argument", v.aval, place) for v in inner.invars]
        for node, label in zip(arguments, labels, strict=True):
            node.label = label
        self.constants, self.constant_values = constants, values
        steps: list[Step] = []
        outputs = self.read(inner, constants + arguments, place, steps)
        return Program(arguments, constants, values, steps, outputs)

    def node(
        self, kind: str, aval: Any, place: _Place, parents: Any = (), **more: Any
    ) -> Node:
        return Node(
            next(self.count),
            kind,
            aval,
            list(parents),
            loops=place.loops,
            branch=place.branch,
            **more,
        )

    def read(
        self, jaxpr: Any, operands: list[Node], place: _Place, steps: list[Step]
    ) -> list[Node]:
        """Append the equations of an open jaxpr to `steps`; return its results."""
        names = [*jaxpr.constvars, *jaxpr.invars]
        env = dict(zip(names, operands, strict=True))

        def value(atom: Any) -> Node:
            if _adapter.is_literal(atom):
                return self.node("literal", atom.aval, place, literal=atom.val)
            return env[atom]

        for eqn in jaxpr.eqns:
            if _adapter.is_silent(eqn):
                continue
            inputs = [value(atom) for atom in eqn.invars]
            outputs = self.equation(eqn, inputs, place, steps)
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [value(atom) for atom in jaxpr.outvars]

    def enter(
        self, jaxpr: Any, operands: list[Node], place: _Place, steps: list[Step]
    ) -> list[Node]:
        """`read` for a jaxpr that brings constants of its own."""
        inner, values = _adapter.open_jaxpr(jaxpr)
        outside = _Place()
        consts = [self.node("constant", v.aval, outside) for v in inner.constvars]
        self.constants.extend(consts)
        self.constant_values.extend(values)
        return self.read(inner, consts + operands, place, steps)

    def equation(
        self, eqn: Any, inputs: list[Node], place: _Place, steps: list[Step]
    ) -> list[Node]:
        site = place.site.inside(eqn)
        entered = self.may_enter(eqn)
        jaxpr = _adapter.called(eqn) if entered else None
        if jaxpr is not None:
            name = eqn.params.get("name") or eqn.primitive.name
            called = dataclasses.replace(site, calls=(*site.calls, str(name)))
            inner = dataclasses.replace(place, site=called)
            return self.enter(jaxpr, inputs, inner, steps)
        place = dataclasses.replace(place, site=site)
        if entered and eqn.primitive.name in ("scan", "while"):
            return self.loop(eqn, inputs, place, steps)
        if entered and eqn.primitive.name == "cond":
            return self.conditional(eqn, inputs, place, steps)
        shards = _adapter.shards(eqn) if entered else None
        if shards is not None:
            return self.shards(eqn, *shards, inputs, place, steps)
        step = Apply(eqn, site, inputs, [])
        for var in eqn.outvars:
            node = self.node("result", var.aval, place, inputs, step=step)
            step.outputs.append(node)
        steps.append(step)
        return step.outputs

    def loop(
        self, eqn: Any, inputs: list[Node], place: _Place, steps: list[Step]
    ) -> list[Node]:
        if eqn.primitive.name == "scan":
            n_consts, n_carry = _adapter.scan_sizes(eqn)
            skipped, body = 0, eqn.params["jaxpr"]
        else:
            skipped, n_consts = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
            n_carry = len(inputs) - skipped - n_consts
            body = eqn.params["body_jaxpr"]
        condition, inputs = inputs[:skipped], inputs[skipped:]
        consts, init = inputs[:n_consts], inputs[n_consts : n_consts + n_carry]
        sequences = inputs[n_consts + n_carry :]
        loop = Loop(eqn, place.site, next(self.count), init, sequences, condition)
        inner = dataclasses.replace(place, loops=(*place.loops, loop))
        avals = [v.aval for v in _adapter.open_jaxpr(body)[0].invars[n_consts:]]
        sources = [*init, *sequences]
        fed = [
            self.node("carry" if i < n_carry else "slice", aval, inner, [source])
            for i, (aval, source) in enumerate(zip(avals, sources, strict=True))
        ]
        loop.carry, loop.slices = fed[:n_carry], fed[n_carry:]
        loop.results = self.enter(body, consts + fed, inner, loop.steps)
        for node, result in zip(loop.carry, loop.results[:n_carry], strict=True):
            node.parents.append(result)
        for i, (var, result) in enumerate(zip(eqn.outvars, loop.results, strict=True)):
            parents = [result, init[i]] if i < n_carry else [result]
            loop.outputs.append(self.node("joined", var.aval, place, parents))
        steps.append(loop)
        return loop.outputs

    def shards(
        self,
        eqn: Any,
        body: Any,
        axes: tuple[str, ...],
        inputs: list[Node],
        place: _Place,
        steps: list[Step],
    ) -> list[Node]:
        step = Shards(eqn, next(self.count), axes, inputs)
        inner = dataclasses.replace(place, loops=(*place.loops, step))
        invars = _adapter.open_jaxpr(body)[0].invars
        step.fed = [
            self.node("shard", var.aval, inner, [source])
            for var, source in zip(invars, inputs, strict=True)
        ]
        step.results = self.enter(body, step.fed, inner, step.steps)
        step.outputs = [
            self.node("joined", var.aval, place, [result])
            for var, result in zip(eqn.outvars, step.results, strict=True)
        ]
        steps.append(step)
        return step.outputs

    def conditional(
        self, eqn: Any, inputs: list[Node], place: _Place, steps: list[Step]
    ) -> list[Node]:
        selector, operands = inputs[0], inputs[1:]
        branches = []
        for i, jaxpr in enumerate(eqn.params["branches"]):
            inner: list[Step] = []
            inside = dataclasses.replace(place, branch=i)
            branches.append((inner, self.enter(jaxpr, operands, inside, inner)))
        outputs = [
            self.node("joined", var.aval, place, [out[i] for _, out in branches])
            for i, var in enumerate(eqn.outvars)
        ]
        steps.append(Branch(selector, branches, outputs))
        return outputs
