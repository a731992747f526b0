"""The diagnosis of a rejected step, and the file in which it can leave the machine."""

import os
import warnings
from collections.abc import Callable
from typing import Any

import jax

from jaxsafe import diagnose
from jaxsafe.diagnose import Finding


def bundle_path(folder: str | os.PathLike[str] | None, batch: int) -> str | None:
    """The file for the batch at a position, or None without a folder."""
    if folder is None:
        return None
    return os.path.join(folder, f"batch-{batch:06}.zip")


def diagnosed(fn: Callable[..., Any], *args: Any, into: str | None) -> Finding | None:
    """`diagnose.first_nonfinite`, its finding saved as a bundle `into` a file."""
    finding = diagnose.first_nonfinite(fn, *args)
    if into is None or finding is None or jax.process_index() != 0:
        return finding
    # A full disk, or an array that other processes hold, must not end the run.
    try:
        diagnose.save_bundle(into, fn, *args, finding=finding)
    except Exception as reason:
        warnings.warn(
            f"guard.run: a bundle was not saved (got {reason}). The run goes on.",
            stacklevel=2,
        )
    return finding
