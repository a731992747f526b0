"""Arrays that meet under `shard_map`, where each may vary over other devices.

JAX inserts the cast where two arrays meet in one operation, and its transpose, the sum
over devices. Around a loop, a branch and a `custom_vjp` it does not: what a loop
carries must vary from the start, branches must give what varies alike, a cotangent must
vary like its argument.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax


def alike(tree: Any) -> Any:
    """The tree, every leaf varying over every mesh axis that any leaf varies over."""
    leaves = jax.tree.leaves(tree)
    axes = frozenset().union(*map(_axes, leaves))
    return jax.tree.map(lambda leaf: _cast(leaf, axes), tree)


def cond(
    pred: Any,
    true_fun: Callable[..., Any],
    false_fun: Callable[..., Any],
    *operands: Any,
) -> Any:
    """`lax.cond` for branches that may give what varies over different axes.

    What comes out also varies where the choice does, which JAX leaves to its user.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return lax.cond(pred, true_fun, false_fun, *operands)  # nothing can vary
    found = [jax.eval_shape(branch, *operands) for branch in (true_fun, false_fun)]
    axes = jax.tree.map(lambda *out: _axes(pred).union(*map(_axes, out)), *found)

    def cast(branch: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: jax.tree.map(_cast, branch(*args), axes)

    return lax.cond(pred, cast(true_fun), cast(false_fun), *operands)


def _axes(x: Any) -> frozenset[str]:
    kind = x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)
    found = kind.manual_axis_type  # None where `shard_map` is told not to check
    return frozenset() if found is None else found.varying


def _cast(x: Any, axes: frozenset[str]) -> Any:
    missing = tuple(sorted(axes - _axes(x)))
    return lax.pcast(x, missing, to="varying") if missing else x
