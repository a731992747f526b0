"""A cleaner as a plain function for data loaders, in NumPy from end to end.

Loaders call it in worker processes and threads, where starting or forking a device
runtime is slow at best; so nothing here runs on one.
"""

import dataclasses
from typing import Any

import jax

from jaxsafe.clean import _apply, _encode
from jaxsafe.clean._cleaner import Cleaner
from jaxsafe.clean._table import HostArray


class Map:
    """From a raw batch to a clean float32 array [rows, output features]."""

    def __init__(self, cleaner: Cleaner) -> None:
        import numpy as np

        lean = dataclasses.replace(cleaner, sketch=None, frequent=None)
        self.cleaner: Cleaner = jax.tree.map(np.array, lean)

    def __call__(self, batch: Any) -> HostArray:
        """Encode and clean one batch: an array, a frame or a mapping of columns."""
        import numpy as np

        x = _encode.encode(self.cleaner, batch)
        with np.errstate(over="ignore", invalid="ignore"):
            cleaned: HostArray = _apply.cleaned(np, self.cleaner, x, None)
        return cleaned

    def __repr__(self) -> str:
        return f"{self.cleaner!r}.as_map()"
