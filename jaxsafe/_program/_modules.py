"""Module paths for flax.nnx models, while a function is traced.

flax.linen writes its module path into the name stack of every equation, flax.nnx does
not. So while tracing, `__call__` of every nnx module enters a `jax.named_scope` with
its path, relative to the module that called it. Only if the user has imported
flax.nnx: this package must stay light without it.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax


@contextlib.contextmanager
def module_scopes() -> Iterator[None]:
    """Name every nnx module that is called in this context."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None:
        yield
        return
    paths: list[dict[int, str]] = []
    originals = [
        (cls, cls.__dict__["__call__"])
        for cls in _subclasses(nnx.Module)
        if callable(cls.__dict__.get("__call__"))
    ]
    try:
        for cls, call in originals:
            _set_call(cls, _scoped(nnx, call, paths))
        yield
    finally:
        for cls, call in originals:
            _set_call(cls, call)


def _set_call(cls: Any, call: Callable[..., Any]) -> None:
    cls.__call__ = call


def _subclasses(cls: type) -> set[type]:
    direct: set[type] = set(cls.__subclasses__())
    return direct.union(*(_subclasses(sub) for sub in direct))


def _scoped(
    nnx: Any, call: Callable[..., Any], paths: list[dict[int, str]]
) -> Callable[..., Any]:
    """`call` under the name by which the calling module knows this one."""

    @functools.wraps(call)
    def scoped(self: Any, *args: Any, **kwargs: Any) -> Any:
        known = paths[-1].get(id(self)) if paths else None
        # A super().__call__ is still the same module.
        name = type(self).__name__ if known is None else known
        paths.append(
            {
                id(module): ".".join(map(str, path))
                for path, module in nnx.iter_modules(self)
            }
        )
        try:
            with jax.named_scope(name) if name else contextlib.nullcontext():
                return call(self, *args, **kwargs)
        finally:
            paths.pop()

    return scoped
