"""Arguments of any shape as JSON, and back, without pickle and without an import.

Known are dictionaries, lists, tuples, None, and named tuples whose class is loaded when
they are put together again. Anything else can be written, but not rebuilt.
"""

import sys
from typing import Any

import jax


def flatten(
    args: tuple[Any, ...], kwargs: dict[str, Any], arrays: tuple[int, ...]
) -> tuple[Any, list[dict[str, Any]]]:
    """The containers, or None if one is unknown, and a description of each leaf.

    Args:
      args: of a call.
      kwargs: of a call.
      arrays: positions of the leaves that are stored as arrays, in order.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path((args, kwargs))
    leaves = []
    for position, (path, leaf) in enumerate(paths):
        about: dict[str, Any] = {"path": jax.tree_util.keystr(path)}
        if position in arrays:
            about["array"] = arrays.index(position)
        elif isinstance(leaf, bool | int | str) or _is_finite_float(leaf):
            about["value"] = leaf
        else:
            about["repr"] = repr(leaf)[:200]
        leaves.append(about)
    known = all("repr" not in leaf for leaf in leaves)
    numbered = jax.tree_util.tree_unflatten(structure, range(len(leaves)))
    return (_encode(numbered) if known else None), leaves


def _is_finite_float(leaf: Any) -> bool:
    return isinstance(leaf, float) and leaf - leaf == 0


def _encode(tree: Any) -> Any:
    if tree is None:
        return {"none": True}
    if isinstance(tree, int):
        return {"leaf": tree}
    if type(tree) is dict and all(isinstance(key, str) for key in tree):
        items = {key: _encode(value) for key, value in tree.items()}
        return None if None in items.values() else {"dict": items}
    kind = type(tree)
    if kind not in (list, tuple) and not _is_named_tuple(kind):
        return None
    encoded = [_encode(value) for value in tree]
    if None in encoded:
        return None
    if kind in (list, tuple):
        return {kind.__name__: encoded}
    return {"named": [kind.__module__, kind.__qualname__], "items": encoded}


def _is_named_tuple(kind: type) -> bool:
    return issubclass(kind, tuple) and hasattr(kind, "_fields")


def unflatten(
    tree: Any, leaves: list[dict[str, Any]], arrays: list[Any], home: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs); classes of `__main__` are looked for in the module `home`.

    Raises:
      LookupError: a container or a leaf is unknown.
    """
    if tree is None:
        unknown = [
            f"{leaf['path']} {leaf['repr']}" for leaf in leaves if "repr" in leaf
        ]
        raise LookupError((unknown or ["a container of its own kind"])[0])
    values = [arrays[x["array"]] if "array" in x else x["value"] for x in leaves]
    return _Decoder(values, home).decode(tree)


class _Decoder:
    def __init__(self, values: list[Any], home: str) -> None:
        self.values, self.home = values, home

    def decode(self, tree: dict[str, Any]) -> Any:
        if "none" in tree:
            return None
        if "leaf" in tree:
            return self.values[tree["leaf"]]
        if "dict" in tree:
            return {key: self.decode(value) for key, value in tree["dict"].items()}
        if "named" in tree:
            return self.class_of(*tree["named"])(*map(self.decode, tree["items"]))
        (name,) = tree
        return {"list": list, "tuple": tuple}[name](map(self.decode, tree[name]))

    def class_of(self, module: str, name: str) -> type:
        """A class of a module that is imported already: a bundle imports nothing."""
        found: Any = sys.modules.get(self.home if module == "__main__" else module)
        for part in name.split("."):
            found = getattr(found, part, None)
        if not (isinstance(found, type) and _is_named_tuple(found)):
            raise LookupError(f"the named tuple {module}.{name}")
        return found
