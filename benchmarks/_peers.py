"""The function of jax or optax that a row of the catalog replaces."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.special
import optax

from jaxsafe._catalog import Row

_OPS = (
    ("jax.nn", jax.nn),
    ("jax.numpy", jnp),
    ("jax.numpy.linalg", jnp.linalg),
    ("jax.scipy.special", jax.scipy.special),
    ("jax.lax", jax.lax),
    ("optax", optax),
)
_LOSSES = (("optax", optax.losses),)
_RENAMED = {"softsign": "soft_sign", "global_norm": "tree.norm"}


class Peer(NamedTuple):
    """A function and what it is called."""

    name: str
    function: Callable[..., Any]


def of(row: Row) -> Peer:
    """The function of the same name; else what one writes by hand."""
    room, _, name = row.name.partition("[")[0].partition(".")
    for place, module in _LOSSES if room == "losses" else _OPS:
        function = getattr(module, _RENAMED.get(name, name), None)
        if callable(function):
            bound = _with_options(row, function)
            if bound is not None:
                return Peer(f"{place}.{_RENAMED.get(name, name)}", bound)
    return Peer("by hand", row.naive)


def _with_options(row: Row, function: Callable[..., Any]) -> Callable[..., Any] | None:
    """The function with the options of the row; None if it has no such options."""
    if not isinstance(row.function, functools.partial):
        return function if inspect.isfunction(row.function) and _is_plain(row) else None
    accepted = inspect.signature(function).parameters
    if row.function.args or not set(row.function.keywords) <= set(accepted):
        return None
    return functools.partial(function, **row.function.keywords)


def _is_plain(row: Row) -> bool:
    """Whether the row holds the public function itself, not a lambda around it."""
    return row.function.__name__ == row.name.partition("[")[0].rpartition(".")[2]
