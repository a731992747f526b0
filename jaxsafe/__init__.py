"""NaN and Inf in JAX training: prevent, contain, name, cure.

    raw data --clean--> batch --ops--> model --losses--> loss --transforms--> update
    and around the step: guard (a transaction), diagnose (the line), report (the page),
    tune (the rate)

What needs flax is imported on its own: `jaxsafe.guard.nnx`, `jaxsafe.guard.linen`,
`jaxsafe.layers.nnx`, `jaxsafe.layers.linen`.
"""

import importlib.metadata

from jaxsafe import clean as clean
from jaxsafe import diagnose as diagnose
from jaxsafe import guard as guard
from jaxsafe import layers as layers
from jaxsafe import losses as losses
from jaxsafe import ops as ops
from jaxsafe import report as report
from jaxsafe import testing as testing
from jaxsafe import transforms as transforms
from jaxsafe import tune as tune
from jaxsafe._errors import NonFiniteError as NonFiniteError

__all__ = [
    "NonFiniteError",
    "clean",
    "diagnose",
    "guard",
    "layers",
    "losses",
    "ops",
    "report",
    "testing",
    "transforms",
    "tune",
]

__version__ = importlib.metadata.version("jaxsafe")
