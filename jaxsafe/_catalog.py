"""The catalog of safe functions: what each one promises, standing next to its code.

One of the project's two tables of knowledge (the other is `_causes`). Every safe
function adds one row; tests, benchmarks, diagnosis and docs read it, so a promise is
written once. Oracles get the arbitrary-precision module handed in, because the package
itself must import nothing but its runtime dependencies.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from jaxsafe._errors import error

# "entrywise" works entry by entry; a "reduction" takes arrays [rows, n] and works along
# the last axis; "labelled" is a reduction whose last argument is one integer label per
# row; "whole" takes arrays of any shape, which `sample` has to draw.
Kind = Literal["entrywise", "reduction", "labelled", "whole"]

# Error in units in the last place: (value, gradient) or (value, gradient, second).
Ulp = tuple[float, ...]


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
        of None is the smallest normal number of the dtype, a high of None the logarithm
        of its largest.
      edges: documented singular and extreme points.
      ulp: dtype name -> (value, gradient[, second]) error bound; "gpu" -> those of
        float32 on a GPU, where they are others.
      oracle: `oracle(mp, *args) -> (value, gradient[, second])` in arbitrary precision;
        a row of numbers is a list. `gradient` has one entry per floating argument; None
        lets the tests differentiate the value numerically, with hundreds of bits.
        `second` is the second derivative of a function of one number.
      size: like `oracle`, the magnitude whose ulp counts where rounding of the *input*
        alone makes a relative bound impossible; see `at_least`.
      sample: `sample(rng) -> iterator of argument tuples` (float64 arrays, rounded to
        the dtype by the tests) where the drawing by `domain` does not fit.
      result: dtype of the result for a dtype of the arguments.
      forward: whether forward mode and second derivatives exist; only a function that
        has to see the cotangent to save memory (`custom_vjp`) may say no.
    """

    name: str
    function: Callable[..., Any]
    naive: Callable[..., Any]
    kind: Kind
    domain: tuple[tuple[float | None, float | None], ...]
    edges: tuple[Edge, ...]
    ulp: Mapping[str, Ulp]
    oracle: Callable[..., tuple[Any, ...]]
    size: Callable[..., tuple[Any, ...]] | None = None
    sample: Callable[[Any], Iterator[tuple[Any, ...]]] | None = None
    result: Callable[[Any], Any] = lambda dtype: dtype
    forward: bool = True


CATALOG: dict[str, Row] = {}


def add(row: Row) -> None:
    """Put a row into the catalog; a name is taken once."""
    if row.name in CATALOG:
        raise error(ValueError, "catalog", "a name is taken", row.name, "Rename it.")
    CATALOG[row.name] = row


def bounds(
    float32: Ulp, float64: Ulp, half: Ulp | None = None, gpu: Ulp | None = None
) -> dict[str, Ulp]:
    """Error bounds per dtype; half precision is rounded once, unless `half` is given.

    `gpu` is for float32 on a GPU, whose division and roots are not rounded correctly.

    >>> bounds((3, 5), (2, 4))["bfloat16"]
    (0.51, 0.51)
    """
    half = (0.51,) * len(float32) if half is None else half
    found = {"float32": float32, "float64": float64, "bfloat16": half, "float16": half}
    return found if gpu is None else {**found, "gpu": gpu}


def at_least(
    oracle: Callable[..., tuple[Any, ...]], *floors: float
) -> Callable[..., tuple[Any, ...]]:
    """A `size`: the true magnitudes, but no less than these.

    One floor per member of what the oracle returns: value, gradient, second.
    """

    def size(mp: Any, *args: Any) -> tuple[Any, ...]:
        parts = oracle(mp, *args)
        return tuple(_raised(mp, p, f) for p, f in zip(parts, floors, strict=True))

    return size


def _raised(mp: Any, part: Any, floor: float) -> Any:
    if isinstance(part, list | tuple):
        return type(part)(_raised(mp, p, floor) for p in part)
    return max(abs(part), mp.mpf(floor))
