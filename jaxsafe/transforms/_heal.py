"""Look for NaN and Inf inside an optimizer's state, and reset just what is poisoned.

One NaN that reached a moment stays there for ever: all optimizers that were tried kept
it, and some never moved again at any parameter. Starting the optimizer afresh throws
away the moments of all the healthy entries too.

The entries of one parameter belong together: a second moment of 0 beside a first moment
that was kept would make an update of infinite size. So where any moment of an entry is
poisoned, all the moments of that entry are reset.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsafe import _errors, _tree
from jaxsafe._tree import PyTree
from jaxsafe.transforms import _control


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StateAudit:
    """The non-finite leaves of an optimizer state, read on the host.

    Attributes:
      nonfinite: path of the leaf -> its non-finite entries; empty if all is well.
      first: path of the leaf -> index of the first such entry.
      leaves: how many leaves were looked at.

    Example:
      >>> from jaxsafe import transforms
      >>> transforms.StateAudit(nonfinite={}, first={}, leaves=3).summary()
      '3 leaves, all finite'
    """

    nonfinite: dict[str, int]
    first: dict[str, tuple[int, ...]]
    leaves: int

    @property
    def ok(self) -> bool:
        """Whether everything is finite."""
        return not self.nonfinite

    def summary(self) -> str:
        """A line for each poisoned leaf."""
        if self.ok:
            return f"{self.leaves} leaves, all finite"
        return "\n".join(
            f"{path}: {count} non-finite, first at {list(self.first[path])}"
            for path, count in self.nonfinite.items()
        )


def audit_state(opt_state: PyTree) -> StateAudit:
    """Say which leaves of an optimizer state, or of any pytree, are not finite.

    Control state is left out: it may hold the norm of a gradient that it rejected. It
    reads from the device, so call it where the program waits anyway.

    Args:
      opt_state: any pytree.

    Returns:
      A `StateAudit`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jaxsafe import transforms
      >>> tx = optax.trace(0.9)
      >>> _, state = tx.update(jnp.array([1.0, jnp.nan]), tx.init(jnp.zeros(2)))
      >>> print(transforms.audit_state(state).summary())
      .trace: 1 non-finite, first at [1]
    """
    nodes = jax.tree_util.tree_leaves_with_path(opt_state, is_leaf=_control.is_control)
    looked_at = [
        (jax.tree_util.keystr(path) or "(the value itself)", leaf)
        for path, leaf in nodes
        if not _control.is_control(leaf) and _tree.is_inexact(leaf)
    ]
    counts = jax.device_get([_tree.count_nonfinite(leaf) for _, leaf in looked_at])
    bad = {
        path: (int(n), leaf)
        for (path, leaf), n in zip(looked_at, counts, strict=True)
        if n
    }
    first = {path: _first_index(leaf) for path, (_, leaf) in bad.items()}
    return StateAudit(
        nonfinite={path: n for path, (n, _) in bad.items()},
        first=first,
        leaves=len(looked_at),
    )


def heal_state(
    tx: optax.GradientTransformation, opt_state: PyTree, params: PyTree
) -> tuple[PyTree, jax.Array]:
    """Reset the poisoned entries of an optimizer state to what `tx.init` gives.

    Can be jitted. After it, an Adam whose count is high takes a first step of at most
    (1 - b1) / sqrt(1 - b2), 3.2 times the learning rate, at what was reset.

    Value:     entries that are finite, and whose fellow moments are, bitwise as they
               were; all moments of a poisoned entry, and poisoned numbers of no
               parameter, as in a fresh state. Control state and integers stay.
    NaN in:    replaced.

    Args:
      tx: the optimizer that `opt_state` belongs to.
      opt_state: its state.
      params: finite parameters.

    Returns:
      The healed state, and int32[]: how many entries of it were not finite.

    Raises:
      ValueError: `opt_state` has another structure than `tx.init(params)`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jaxsafe import transforms
      >>> tx, params = optax.trace(0.9), jnp.zeros(2)
      >>> _, state = tx.update(jnp.array([1.0, jnp.nan]), tx.init(params))
      >>> state, healed = transforms.heal_state(tx, state, params)
      >>> [float(m) for m in state.trace], int(healed)
      ([1.0, 0.0], 1)
    """
    fresh = tx.init(params)
    _check_same_structure(opt_state, fresh)
    of_params = jax.tree_util.tree_leaves_with_path(params)
    shapes = {path: jnp.shape(leaf) for path, leaf in of_params}
    nodes, structure = jax.tree_util.tree_flatten_with_path(
        opt_state, is_leaf=_control.is_control
    )
    starts = jax.tree.leaves(fresh, is_leaf=_control.is_control)
    poisoned: dict[Any, jax.Array] = {}
    count = jnp.zeros((), jnp.int32)
    for path, x in nodes:
        if _is_looked_at(x):
            owner, bad = _owner(path, x, shapes), _is_bad(x)
            count = count + jnp.sum(bad, dtype=jnp.int32)
            if owner is not None:
                poisoned[owner] = poisoned.get(owner, False) | bad
    healed = [
        _reset(x, start, poisoned.get(_owner(path, x, shapes), False))
        if _is_looked_at(x)
        else x
        for (path, x), start in zip(nodes, starts, strict=True)
    ]
    return jax.tree.unflatten(structure, healed), count


def _is_looked_at(node: Any) -> bool:
    return not _control.is_control(node) and _tree.is_inexact(node)


def _owner(path: Any, leaf: Any, shapes: dict[Any, tuple[int, ...]]) -> Any:
    """Path of the parameter that has an entry for each entry of `leaf`, or None.

    The path of a moment ends with that of its parameter, whatever the optimizer wraps
    it in: `masked` and `partition` leave holes in the tree, but paths as they are.
    """
    for start in range(len(path) + 1):
        if shapes.get(path[start:]) == jnp.shape(leaf):
            return path[start:]
    return None


def _is_bad(x: Any) -> jax.Array:
    return ~_tree.isfinite(x)


def _reset(x: Any, fresh: Any, poisoned: Any) -> jax.Array:
    return jnp.where(_is_bad(x) | poisoned, fresh, x)


def _first_index(leaf: Any) -> tuple[int, ...]:
    bad = np.asarray(_is_bad(leaf))
    return tuple(int(i) for i in np.unravel_index(np.argmax(bad), bad.shape))


def _check_same_structure(opt_state: PyTree, fresh: PyTree) -> None:
    structures: list[Any] = [jax.tree.structure(tree) for tree in (opt_state, fresh)]
    if structures[0] != structures[1]:
        raise _errors.error(
            ValueError,
            "heal_state",
            "the state does not belong to this optimizer",
            f"{structures[0]}, where tx.init gives {structures[1]}",
            "Pass the optimizer and the parameters that made the state.",
        )
