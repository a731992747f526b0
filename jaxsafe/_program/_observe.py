"""Run a program once more, under one jit, and write a row about each value of interest.

The rows ride along as arrays: a loop carries them and merges the row of every turn, a
conditional returns the rows of all its branches with those not taken left empty. So
the observation has no effects and no callbacks, and composes with any backend.

What a row says is decided by a `Watch`, such as `Magnitudes`.
"""

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from jaxsafe._program import _adapter
from jaxsafe._program._graph import Apply, Branch, Loop, Node, Program, Shards, Step
from jaxsafe._program._magnitude import Magnitudes

Rows = Any
Turn = tuple[jax.Array, ...]


class Watch(Protocol):
    """What to record: names of rows, known before the run, and the rows themselves."""

    def at_node(self, node: Node) -> bool:
        """Whether a value gets a row when it comes into being."""

    def at_step(self, step: Apply) -> list[Any]:
        """Keys of further rows of an equation, one per watched operand or result."""

    def reading(self, key: Any, value: jax.Array, turn: Turn) -> Any:
        """What is read off one value, at this turn of the loops around it."""

    def rows(self, readings: list[Any], turn: Turn) -> Rows:
        """Rows of readings that were taken at the same turn."""

    def empty(self, count: int) -> Rows:
        """`count` rows about nothing."""

    def merge(self, old: Rows, new: Rows) -> Rows:
        """The rows of two turns as one."""


class _Nothing(Magnitudes):
    """Watch no value at all."""

    def at_node(self, node: Node) -> bool:  # noqa: ARG002
        return False


def depth(program: Program) -> int:
    """How deeply loops are nested."""

    def below(steps: list[Step]) -> int:
        deepest = 0
        for step in steps:
            if isinstance(step, Loop | Shards):
                deepest = max(deepest, 1 + below(step.steps))
            elif isinstance(step, Branch):
                deepest = max(deepest, *(below(inner) for inner, _ in step.branches))
        return deepest

    return below(program.steps)


def observe(
    program: Program, arguments: list[Any], watch: Watch, *, compiled: bool = True
) -> tuple[list[Any], Rows]:
    """Run `program`; return the keys of the rows, and the rows as numpy arrays.

    Not compiled, every operation is a program of its own, and nothing is rewritten.
    """
    keys: list[Any] = []

    def rows_only(constants: list[Any], values: list[Any]) -> Rows:
        _, keys[:], rows = evaluate(program, constants, values, watch)
        return rows

    with jax.disable_jit(disable=not compiled):
        rows = jax.jit(rows_only)(program.constant_values, arguments)
    return keys, jax.tree.map(np.asarray, jax.device_get(rows))


def outputs_of(program: Program, arguments: list[Any]) -> list[Any]:
    """The outputs of `program`, without what it prints. Can be traced."""
    watch = _Nothing(0)
    return evaluate(program, program.constant_values, arguments, watch)[0]


def evaluate(
    program: Program, constants: list[Any], arguments: list[Any], watch: Watch
) -> tuple[list[Any], list[Any], Rows]:
    """Results of `program`, keys of the rows, and the rows; inside of any transform."""
    env = dict(zip(program.constants, constants, strict=True))
    env.update(zip(program.arguments, arguments, strict=True))
    book = _Book(watch, (), _adapter.device_index())
    for node, value in list(env.items()):
        book.note(node, value)
    book.run(program.steps, env)
    results = [_value(node, env) for node in program.outputs]
    return results, book.keys, book.rows()


class _Book:
    """Collects rows in order while a list of steps is run."""

    def __init__(self, watch: Watch, turn: Turn, device: Any = None) -> None:
        self.watch, self.turn, self.device = watch, turn, device
        self.keys: list[Any] = []
        self.parts: list[Rows] = []
        self.readings: list[Any] = []

    def note(self, node: Node, value: Any) -> None:
        if self.watch.at_node(node):
            self.add(node, value)

    def add(self, key: Any, value: Any) -> None:
        self.keys.append(key)
        self.readings.append(self.watch.reading(key, value, self.turn))

    def extend(self, keys: list[Any], rows: Rows) -> None:
        self.gather()
        self.keys.extend(keys)
        self.parts.append(rows)

    def gather(self) -> None:
        if self.readings:
            self.parts.append(self.watch.rows(self.readings, self.turn))
            self.readings = []

    def rows(self) -> Rows:
        self.gather()
        if not self.parts:
            return self.empty(0)
        return self.own(jax.tree.map(lambda *x: jnp.concatenate(x), *self.parts))

    def empty(self, count: int) -> Rows:
        return self.own(self.watch.empty(count))

    def own(self, rows: Rows) -> Rows:
        """`rows` in the type of what differs between devices, inside a shard_map."""
        if self.device is None:
            return rows
        mine = self.device >= 0
        return jax.tree.map(lambda x: jnp.where(mine, x, jnp.zeros_like(x)), rows)

    def run(self, steps: list[Step], env: dict[Node, Any]) -> None:
        for step in steps:
            if isinstance(step, Apply):
                self.apply(step, env)
            elif isinstance(step, Loop):
                self.loop(step, env)
            elif isinstance(step, Shards):
                self.shards(step, env)
            else:
                self.branch(step, env)

    def apply(self, step: Apply, env: dict[Node, Any]) -> None:
        values = [_value(node, env) for node in step.inputs]
        results = _adapter.bind(step.eqn, values)
        for node, result in zip(step.outputs, results, strict=True):
            env[node] = result
            self.note(node, result)
        for key in self.watch.at_step(step):
            self.add(key, [*values, *results][key[1]])

    def loop(self, loop: Loop, env: dict[Node, Any]) -> None:
        keys = _expected_keys(self.watch, loop)

        def body(state: Any, slices: Any) -> Any:
            turn, carried, old = state
            inner = {**env, **dict(zip(loop.carry, carried, strict=True))}
            inner.update(zip(loop.slices, slices, strict=True))
            book = _Book(self.watch, (*self.turn, turn), self.device)
            for node in (*loop.carry, *loop.slices):
                book.note(node, inner[node])
            book.run(loop.steps, inner)
            results = [_strong(_value(node, inner)) for node in loop.results]
            n = len(loop.carry)
            rows = self.watch.merge(old, book.rows())
            return (turn + np.int32(1), results[:n], rows), results[n:]

        init = [_strong(_value(node, env)) for node in loop.init]
        state = (jnp.zeros((), jnp.int32), init, self.empty(len(keys)))
        if loop.is_scan:
            params = loop.eqn.params
            sequences = [_value(node, env) for node in loop.sequences]
            (_, carried, rows), stacked = lax.scan(
                body,
                state,
                sequences,
                length=params["length"],
                reverse=params["reverse"],
            )
        else:
            (_, carried, rows), stacked = self.while_loop(loop, env, body, state), []
        self.extend(keys, rows)
        for node, value in zip(loop.outputs, [*carried, *stacked], strict=True):
            env[node] = value
            self.note(node, value)

    def shards(self, step: Shards, env: dict[Node, Any]) -> None:
        def one_device(*values: Any) -> Any:
            device = lax.axis_index(step.axes).astype(jnp.int32)
            inner = {**env, **dict(zip(step.fed, values, strict=True))}
            # All axes that are around, those of an outer shard_map too.
            book = _Book(self.watch, (*self.turn, device), _adapter.device_index())
            for node in step.fed:
                book.note(node, inner[node])
            book.run(step.steps, inner)
            rows = jax.tree.map(lambda x: x[None], book.rows())
            return [_value(node, inner) for node in step.results], rows

        values = [_value(node, env) for node in step.inputs]
        spread = PartitionSpec(step.axes)
        results, rows = _adapter.map_shards(step.eqn, one_device, spread)(*values)
        count = jax.tree.leaves(rows)[0].shape[0]
        each = [jax.tree.map(lambda x, i=i: x[i], rows) for i in range(count)]
        self.extend(
            _expected_keys(self.watch, step), functools.reduce(self.watch.merge, each)
        )
        for node, value in zip(step.outputs, results, strict=True):
            env[node] = value
            self.note(node, value)

    def while_loop(
        self, loop: Loop, env: dict[Node, Any], body: Any, state: Any
    ) -> Any:
        consts = [_value(node, env) for node in loop.condition_consts]
        condition = loop.eqn.params["cond_jaxpr"]
        return lax.while_loop(
            lambda s: _adapter.evaluate(condition, [*consts, *s[1]])[0],
            lambda s: body(s, [])[0],
            state,
        )

    def branch(self, branch: Branch, env: dict[Node, Any]) -> None:
        keys = [_keys(self.watch, steps) for steps, _ in branch.branches]

        def run(i: int) -> Any:
            def chosen() -> Any:
                steps, results = branch.branches[i]
                inner = dict(env)
                book = _Book(self.watch, self.turn, self.device)
                book.run(steps, inner)
                rows = [self.empty(len(k)) for k in keys]
                rows[i] = book.rows()
                return [_strong(_value(node, inner)) for node in results], rows

            return chosen

        index = _value(branch.selector, env)
        functions = [run(i) for i in range(len(branch.branches))]
        values, rows = lax.switch(jnp.asarray(index, jnp.int32), functions)
        for k, r in zip(keys, rows, strict=True):
            self.extend(k, r)
        for node, value in zip(branch.outputs, values, strict=True):
            env[node] = value
            self.note(node, value)


def _value(node: Node, env: dict[Node, Any]) -> Any:
    if node.kind == "literal":
        return jnp.asarray(node.literal, node.aval.dtype)
    return env[node]


def _strong(x: Any) -> Any:
    """`x` without its weak type, which the two ends of a loop need not share."""
    weak = getattr(jax.typeof(x), "weak_type", False)
    return lax.convert_element_type(x, x.dtype) if weak else x


def _expected_keys(watch: Watch, step: Loop | Shards) -> list[Any]:
    inside = step.fed if isinstance(step, Shards) else [*step.carry, *step.slices]
    fed = [node for node in inside if watch.at_node(node)]
    return [*fed, *_keys(watch, step.steps)]


def _keys(watch: Watch, steps: list[Step]) -> list[Any]:
    """Keys of the rows that running `steps` will add, in order."""
    keys: list[Any] = []
    for step in steps:
        if isinstance(step, Apply):
            keys += [n for n in step.outputs if watch.at_node(n)]
            keys += watch.at_step(step)
            continue
        if isinstance(step, Loop | Shards):
            keys += _expected_keys(watch, step)
        else:
            for inner, _ in step.branches:
                keys += _keys(watch, inner)
        keys += [n for n in step.outputs if watch.at_node(n)]
    return keys
