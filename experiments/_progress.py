"""A bar for the steps of a training run, where the command shows bars.

The experiments know nothing of a terminal: the command opens a display with `shown`,
and every run passes its batches through `steps`.
"""

import contextlib
import contextvars
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.progress import Progress

Item = TypeVar("Item")

_display: contextvars.ContextVar[Progress | None] = contextvars.ContextVar(
    "display", default=None
)


@contextlib.contextmanager
def shown(progress: Progress) -> Iterator[None]:
    """Show the steps of all runs inside this block as bars of `progress`."""
    token = _display.set(progress)
    try:
        yield
    finally:
        _display.reset(token)


def steps(label: str, batches: Iterable[Item]) -> Iterator[Item]:
    """Yield the batches; move a bar, if there is a display."""
    progress = _display.get()
    if progress is None:
        yield from batches
        return
    batches = list(batches)
    bar = progress.add_task(f"  {label}", total=len(batches))
    try:
        for batch in batches:
            yield batch
            progress.advance(bar)
    finally:
        progress.remove_task(bar)
