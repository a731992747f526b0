"""From an equation to the line of the user's program that it comes from.

A frame is the user's unless its file lies in the folder of a library that only passes
work on: jax, flax, optax, chex, this package, numpy or the standard library. Equations
inside a jitted library function carry no user frame at all (the traceback ends at the
jit boundary), so the nearest enclosing equation that has one speaks for them.
"""

import functools
import importlib.util
import linecache
import os
import sysconfig
import traceback
from typing import NamedTuple

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "chex", "numpy", "ml_dtypes", "jaxsafe")
_OPTIMIZERS = (("optax",), ("jaxsafe", "transforms"), ("jaxsafe", "guard"))


class Frame(NamedTuple):
    """One line of Python that runs."""

    file: str
    line: int
    function: str

    @property
    def text(self) -> str:
        """The source line, stripped, or "" where it cannot be read."""
        return linecache.getline(self.file, self.line).strip()

    @property
    def place(self) -> str:
        """`file.py:12`, without the folder."""
        return f"{os.path.basename(self.file)}:{self.line}" if self.file else "?"


NOWHERE = Frame("", 0, "")


def user_frame(frames: list[tuple[str, int, str]]) -> Frame | None:
    """The innermost frame that belongs to the user, or None."""
    for file, line, function in frames:
        if not _is_library(file):
            return Frame(file, line, function.replace(".<locals>", ""))
    return None


def in_optimizer(frames: list[tuple[str, int, str]]) -> bool:
    """Whether an optimizer made the equation: optax, or this package's transforms."""
    folders = _optimizer_folders()
    return any(file.startswith(folders) for file, _, _ in frames)


def of_function(fn: object) -> Frame:
    """Where a function is defined; the user's line that runs now if in a library."""
    while hasattr(fn, "__wrapped__"):
        fn = fn.__wrapped__
    code = getattr(fn, "__code__", None)
    if code is None or _is_library(code.co_filename):
        stack = reversed(traceback.extract_stack())
        running = [(f.filename, f.lineno or 0, f.name) for f in stack]
        return user_frame(running) or NOWHERE
    return Frame(code.co_filename, code.co_firstlineno, code.co_name)


@functools.lru_cache(maxsize=4096)
def _is_library(file: str) -> bool:
    if file.startswith("<frozen"):
        return True
    if file.startswith(_package_folders()):
        return True
    installed = "site-packages" in file or "dist-packages" in file
    return not installed and file.startswith(_standard_folders())


@functools.cache
def _package_folders() -> tuple[str, ...]:
    return tuple(f for name in _PACKAGES for f in _folders(name))


@functools.cache
def _optimizer_folders() -> tuple[str, ...]:
    return tuple(
        os.path.join(folder, *rest, "")
        for name, *rest in _OPTIMIZERS
        for folder in _folders(name)
    )


@functools.cache
def _standard_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return tuple({os.path.join(paths[k], "") for k in ("stdlib", "platstdlib")})


def _folders(package: str) -> list[str]:
    spec = importlib.util.find_spec(package)
    places = (spec.submodule_search_locations or []) if spec else []
    return [os.path.join(place, "") for place in places]
