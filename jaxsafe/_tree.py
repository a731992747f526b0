"""Whole pytrees at once: are they finite, which leaf is not, take one or the other.

Only leaves of a floating or complex dtype are looked at; integers, booleans and random
keys cannot hold a NaN. Finiteness is read from `isfinite` or from sums, never from a
maximum: XLA on CPU drops a NaN in `max` of 4,096 float32 or more.
"""

from numbers import Number
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsafe import _floats
from jaxsafe._errors import error

PyTree = Any


def is_fixed(leaf: Any) -> bool:
    """Whether `leaf` is no number: a function or a string, as equinox keeps in a model.

    A Python bool too, which such models branch on. (Under jit it is an array.)
    """
    if isinstance(leaf, bool):
        return True
    return not isinstance(leaf, jax.Array | np.ndarray | np.generic | Number)


def is_inexact(leaf: Any) -> bool:
    """Whether `leaf` can hold a NaN."""
    if is_fixed(leaf):
        return False
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))


def leaf_is_finite(leaf: Any) -> jax.Array:
    """bool[]: no entry of `leaf` is NaN or infinite."""
    # A CPU adds numbers in a third of the time that it takes to join flags, and x - x
    # is 0 exactly for what is finite.
    return lax.platform_dependent(
        _of_known_kind(leaf),
        cpu=lambda x: jnp.sum(x - x) == 0,
        default=lambda x: jnp.isfinite(x).all(),
    )


def isfinite(leaf: Any) -> jax.Array:
    """bool, entry by entry, for every floating or complex dtype."""
    return jnp.isfinite(_of_known_kind(leaf))


def _of_known_kind(leaf: Any) -> jax.Array:
    x = jnp.asarray(leaf)
    # isfinite is not defined for every float8
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 16 else x


def all_finite(tree: PyTree) -> jax.Array:
    """bool[]: no leaf of `tree` holds a NaN or an infinity."""
    flags = [leaf_is_finite(x) for x in jax.tree.leaves(tree) if is_inexact(x)]
    return jnp.stack(flags).all() if flags else jnp.asarray(True)


def first_nonfinite_leaf(tree: PyTree) -> jax.Array:
    """int32[]: index in `jax.tree.leaves(tree)` of the first bad leaf, or -1."""
    leaves = jax.tree.leaves(tree)
    if not leaves:
        return jnp.asarray(-1, jnp.int32)
    bad = [~leaf_is_finite(x) if is_inexact(x) else jnp.asarray(False) for x in leaves]
    return first_true(jnp.stack(bad))


def count_nonfinite(tree: PyTree, *, dtype: Any = jnp.int32) -> jax.Array:
    """dtype[]: how many entries of `tree` are NaN or infinite."""
    total = jnp.zeros((), dtype)
    for leaf in jax.tree.leaves(tree):
        if is_inexact(leaf):
            total = total + jnp.sum(~isfinite(leaf), dtype=dtype)
    return total


def zero_nonfinite(tree: PyTree) -> PyTree:
    """`tree` with 0 in place of every NaN and infinity."""
    return jax.tree.map(
        lambda x: jnp.where(isfinite(x), x, jnp.zeros_like(x)) if is_inexact(x) else x,
        tree,
    )


def widened(leaf: Any) -> jax.Array:
    """`leaf` in float32 or better; complex numbers have no narrower kind."""
    x = jnp.asarray(leaf)
    return x if jnp.iscomplexobj(x) else x.astype(_floats.wide(x.dtype))


def widen(tree: PyTree) -> PyTree:
    """`tree` with its inexact leaves in float32 or better."""
    return jax.tree.map(lambda x: widened(x) if is_inexact(x) else x, tree)


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """`tree` in the dtypes of `like`, where those are inexact."""
    return jax.tree.map(
        lambda x, y: x.astype(jnp.result_type(y)) if is_inexact(y) else x, tree, like
    )


def inexact_leaves(tree: PyTree) -> list[jax.Array]:
    """The leaves that can hold a NaN, as arrays, in order."""
    return [jnp.asarray(x) for x in jax.tree.leaves(tree) if is_inexact(x)]


def scalar(value: Any) -> jax.Array:
    """float32[]: one number that stands for a loss; the sum, if it is not a scalar."""
    leaves = [jnp.sum(jnp.asarray(x)) for x in jax.tree.leaves(value)]
    return jnp.stack([x.astype(jnp.float32) for x in leaves]).sum()


def first_true(flags: jax.Array) -> jax.Array:
    """int32[]: position of the first True in a vector, or -1."""
    none = flags.shape[0]
    first = jnp.min(jnp.where(flags, jnp.arange(none), none), initial=none)
    return jnp.where(first < none, first, -1).astype(jnp.int32)


def leaf_paths(tree: PyTree) -> list[str]:
    """Names of `jax.tree.leaves(tree)`, as a user would index."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    return [jax.tree_util.keystr(path) or "(the value itself)" for path in paths]


def leaf_path(tree: PyTree, index: int) -> str:
    """Name of leaf number `index`."""
    return leaf_paths(tree)[index]


def select(ok: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """`new` where `ok`, else `old`, leaf by leaf; never by multiplication.

    Value:     bitwise one or the other, whatever the other holds: select(True, x, nan)
               is x, where x * 1 + nan * 0 would be NaN.

    Args:
      ok: bool[].
      new: pytree of arrays, random keys and numbers.
      old: pytree of the same structure, shapes and dtypes.

    Raises:
      ValueError: a leaf changed its shape or dtype, or the structure changed.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsafe import guard
      >>> ok = jnp.asarray(False)
      >>> float(guard.select(ok, {"mean": jnp.nan}, {"mean": 0.5})["mean"])
      0.5
    """
    check_same_structure(new, old)
    return jax.tree_util.tree_map_with_path(
        lambda path, n, o: select_leaf(ok, path, n, o), new, old
    )


def check_same_structure(new: PyTree, old: PyTree) -> None:
    """Raise ValueError unless both trees have the same structure."""
    structures: list[Any] = [jax.tree.structure(tree) for tree in (new, old)]
    if structures[0] != structures[1]:
        raise error(
            ValueError,
            "select",
            "the new state has another structure than the old one",
            " after ".join(map(str, structures)),
            "Return a state with the same leaves as the one that came in.",
        )


def select_leaf(ok: jax.Array, path: Any, new: Any, old: Any) -> Any:
    """`select` for one leaf; `path` is for the message of an error."""
    if _is_python(new) and _is_python(old) and new == old:
        return old  # nothing to select, and no array where the user had none
    new, old = _alike(path, new, old)
    return strong(jnp.where(ok, new, old))


def check_same_leaves(new: PyTree, old: PyTree) -> None:
    """Raise ValueError unless `new` could replace `old` leaf by leaf."""
    check_same_structure(new, old)
    jax.tree_util.tree_map_with_path(_alike, new, old)


def _alike(path: Any, new: Any, old: Any) -> tuple[jax.Array, jax.Array]:
    """Both as arrays; raises unless shapes and dtypes agree."""
    if any(is_fixed(x) and not isinstance(x, bool) for x in (new, old)):
        raise error(
            ValueError,
            "select",
            f"leaf {jax.tree_util.keystr(path)} is no number and has changed",
            f"{new!r} after {old!r}",
            "A step can change numbers only; keep the rest out of the state.",
        )
    new, old = _as_array(new, old), _as_array(old, new)
    if new.shape != old.shape or new.dtype != old.dtype:
        raise error(
            ValueError,
            "select",
            f"leaf {jax.tree_util.keystr(path)} changed its shape or dtype",
            f"{new.dtype}{list(new.shape)} after {old.dtype}{list(old.shape)}",
            "Cast it back inside the step, so that a rejected step can be undone.",
        )
    return new, old


def _is_python(leaf: Any) -> bool:
    return is_fixed(leaf) or isinstance(leaf, int | float | complex)


def strong(leaf: Any) -> Any:
    """`leaf` as an array without weak type, so that branches and carries agree."""
    if is_fixed(leaf):
        return leaf
    x = jnp.asarray(leaf)
    if jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return x  # random keys have no weak type
    return lax.convert_element_type(x, x.dtype)


def _as_array(leaf: Any, other: Any) -> jax.Array:
    """`leaf` as an array; a Python number takes the dtype of its partner."""
    if isinstance(leaf, bool | int | float | complex):
        return jnp.asarray(leaf, jnp.result_type(other))
    return jnp.asarray(leaf)
