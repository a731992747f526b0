"""The second run: numbers about the operands and results of a few equations.

Same engine as the first run, another watch: it looks at the chosen equations only, at
the chosen turn of the loops around them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsafe import _program
from jaxsafe._program import Apply, Node, Traced
from jaxsafe.diagnose._finding import Stats


class Row(NamedTuple):
    """Numbers about one array; `bounds` and `counts` are vectors."""

    seen: jax.Array
    bounds: jax.Array
    counts: jax.Array


class Key(NamedTuple):
    """Value number `position` of an equation: operands first, then results."""

    step: Apply
    position: int


class Probe:
    """Watch given equations at given turns, and given values that have no equation."""

    def __init__(self, steps: dict[Apply, tuple[int, ...]], nodes: list[Node]) -> None:
        self.steps, self.nodes = steps, nodes

    def at_node(self, node: Node) -> bool:
        return node in self.nodes

    def at_step(self, step: Apply) -> list[Key]:
        if step not in self.steps:
            return []
        values = [*step.inputs, *step.outputs]
        return [Key(step, i) for i, node in enumerate(values) if _has_numbers(node)]

    def reading(self, key: Any, value: jax.Array, turn: tuple[jax.Array, ...]) -> Row:
        seen = jnp.asarray(True)
        if isinstance(key, Key):
            for now, wanted in zip(turn, self.steps[key.step], strict=True):
                seen = seen & (now == np.int32(wanted))
        bounds, counts = _numbers(value)
        return Row(seen, bounds, counts)

    def rows(self, readings: list[Row], turn: tuple[jax.Array, ...]) -> Row:  # noqa: ARG002
        return jax.tree.map(lambda *x: jnp.stack(x), *readings)

    def empty(self, count: int) -> Row:
        return Row(
            jnp.zeros((count,), bool),
            jnp.zeros((count, 2), _widest()),
            jnp.zeros((count, 4), jnp.int32),
        )

    def merge(self, old: Row, new: Row) -> Row:
        first = old.seen[:, None]
        return Row(
            old.seen | new.seen,
            jnp.where(first, old.bounds, new.bounds),
            jnp.where(first, old.counts, new.counts),
        )


class Probed(NamedTuple):
    """What the second run found, by equation and by value."""

    inputs: dict[Apply, tuple[Stats, ...]]
    results: dict[Apply, Stats]
    nodes: dict[Node, Stats]


def probe(
    traced: Traced,
    steps: dict[Apply, tuple[int, ...]],
    nodes: list[Node],
    *,
    compiled: bool = True,
) -> Probed:
    """Run the program again and describe the operands and results of `steps`."""
    watch = Probe(steps, nodes)
    keys, rows = _program.observe(
        traced.program, traced.values, watch, compiled=compiled
    )
    found: dict[Key, Stats] = {}
    described = {
        node: _stats("constant", node, *_numbers(jnp.asarray(node.literal)))
        for node in nodes
        if node.kind == "literal"  # an output that the program writes down
    }
    for key, bounds, counts in zip(keys, rows.bounds, rows.counts, strict=True):
        if isinstance(key, Key):
            node = [*key.step.inputs, *key.step.outputs][key.position]
            found[key] = _stats(_role(key, node), node, bounds, counts)
        else:
            described[key] = _stats(key.label or "constant", key, bounds, counts)
    inputs, results = {}, {}
    for step in steps:
        n = len(step.inputs)
        mine = {k.position: s for k, s in found.items() if k.step is step}
        inputs[step] = tuple(mine[i] for i in sorted(mine) if i < n)
        after = [mine[i] for i in sorted(mine) if i >= n]
        results[step] = max(after, key=lambda s: bool(s.num_nan or s.num_inf))
    return Probed(inputs, results, described)


def _role(key: Key, node: Node) -> str:
    if key.position >= len(key.step.inputs):
        return "result"
    return node.label or f"operand {key.position}"


def _has_numbers(node: Node) -> bool:
    if not isinstance(node.aval, jax.core.ShapedArray):
        return False
    dtype = node.aval.dtype
    return bool(jnp.issubdtype(dtype, jnp.number)) or dtype == jnp.dtype(bool)


def _widest() -> Any:
    return jnp.float64 if jax.config.read("jax_enable_x64") else jnp.float32


def _numbers(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """([smallest, largest] finite entry, [NaN, Inf, zeros, first bad flat index])."""
    if jnp.iscomplexobj(x):
        # The magnitude would overflow or hide which part is bad.
        x = jnp.stack([x.real, x.imag], axis=-1)
    wide = x.astype(_widest()).reshape(-1)
    if wide.size == 0:
        none = jnp.full((2,), jnp.nan, _widest())
        return none, jnp.asarray([0, 0, 0, -1], jnp.int32)
    nan, inf = jnp.isnan(wide), jnp.isinf(wide)
    bad, at = nan | inf, jnp.arange(wide.size, dtype=jnp.int32)
    nowhere = np.int32(np.iinfo(np.int32).max)
    zero, largest = np.int32(0), np.array(np.inf, _widest())
    counts = [flags.astype(jnp.int32) for flags in (nan, inf, wide == 0)]
    # In one pass: seven of them take three times as long to compile.
    num_nan, num_inf, num_zero, low, high, nan_at, bad_at = lax.reduce(
        (
            *counts,
            # No NaN reaches these two, so nothing can be lost in them.
            jnp.where(bad, largest, wide),
            jnp.where(bad, -largest, wide),
            jnp.where(nan, at, nowhere),
            jnp.where(bad, at, nowhere),
        ),
        (zero, zero, zero, largest, -largest, nowhere, nowhere),
        _both,
        (0,),
    )
    first = jnp.where(num_nan > 0, nan_at, jnp.where(num_inf > 0, bad_at, -1))
    bounds = jnp.where(low <= high, jnp.stack([low, high]), jnp.nan)
    return bounds, jnp.stack([num_nan, num_inf, num_zero, first])


def _both(a: Any, b: Any) -> tuple[jax.Array, ...]:
    """The numbers of two parts of an array as those of both."""
    add, least = jnp.add, jnp.minimum
    ways = (add, add, add, least, jnp.maximum, least, least)
    return tuple(way(x, y) for way, x, y in zip(ways, a, b, strict=True))


def _stats(name: str, node: Node, bounds: Any, counts: Any) -> Stats:
    shape = tuple(int(n) for n in node.aval.shape)
    num_nan, num_inf, num_zero, first = (int(c) for c in counts)
    parts = 2 if jnp.issubdtype(node.aval.dtype, jnp.complexfloating) else 1
    index = None
    if first >= 0:
        index = tuple(int(i) for i in np.unravel_index(first // parts, shape))
    return Stats(
        name=name,
        shape=shape,
        dtype=str(node.aval.dtype),
        minimum=float(bounds[0]),
        maximum=float(bounds[1]),
        num_nan=num_nan,
        num_inf=num_inf,
        num_zero=num_zero,
        first_index=index,
    )
