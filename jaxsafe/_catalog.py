"""The catalog of safe functions: what each one promises, standing next to its code.

One of the project's two tables of knowledge (the other is `_causes`). Every safe
function adds one row; tests, benchmarks, diagnosis and docs read it, so a promise is
written once. Oracles get the arbitrary-precision module handed in, because the package
itself must import nothing but its runtime dependencies.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from jaxsafe._errors import error

# "unary" and "binary" work entry by entry; a "reduction" takes one array and works
# along its last axis; "labelled" takes logits and one integer label per row.
Kind = Literal["unary", "binary", "reduction", "labelled"]

# Error in units in the last place: (value, gradient).
Ulp = tuple[float, float]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """What a function gives at one documented point.

    Attributes:
      args: the arguments; a row of numbers is a tuple.
      value: the value there.
      gradient: one entry per differentiable argument; for a vector-valued function
        the gradient of its first entry.
    """

    args: tuple[Any, ...]
    value: Any
    gradient: tuple[Any, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One safe function and its promises.

    Attributes:
      name: folder and function, such as `ops.log`.
      function: the safe function, options already bound.
      naive: what a user would have written; equal wherever that one is right.
      kind: how arguments and result are shaped.
      domain: (low, high) per floating argument, where the bounds of `ulp` hold; a low
        of None is the smallest normal number of the dtype.
      edges: documented singular and extreme points.
      ulp: dtype name -> (value, gradient) error bound; half precision is rounded once.
      oracle: `oracle(mp, *args) -> (value, gradient)` in arbitrary precision; a row of
        numbers is a list, `gradient` has one entry per differentiable argument.
      size: `size(mp, *args) -> (value, gradient)`, the magnitude whose ulp counts
        where rounding of the *input* alone makes a relative bound impossible.
      keeps_dtype: False for losses, which are float32 for half-precision input.
    """

    name: str
    function: Callable[..., Any]
    naive: Callable[..., Any]
    kind: Kind
    domain: tuple[tuple[float | None, float], ...]
    edges: tuple[Edge, ...]
    ulp: Mapping[str, Ulp]
    oracle: Callable[..., tuple[Any, tuple[Any, ...]]]
    size: Callable[..., tuple[Any, tuple[Any, ...]]] | None = None
    keeps_dtype: bool = True


CATALOG: dict[str, Row] = {}


def add(row: Row) -> None:
    """Put a row into the catalog; a name is taken once."""
    if row.name in CATALOG:
        raise error(ValueError, "catalog", "a name is taken", row.name, "Rename it.")
    CATALOG[row.name] = row
