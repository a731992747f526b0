"""What a diagnosis says: a frozen record, plain Python values only.

`Finding` names the equation in which finite numbers first turned non-finite, the line
of the user's program, the numbers that went in and came out, the cause and the cure.
It holds no arrays, so it can be kept, compared, sent and written as JSON.
"""

import dataclasses
import math
from typing import Any

from jaxsafe import _text
from jaxsafe.diagnose import _words

_BOUNDS = ("minimum", "maximum")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Numbers about one array.

    Attributes:
      name: name of the argument, or role of an operand.
      shape: its shape.
      dtype: its dtype, as a string.
      minimum: smallest finite entry, NaN if there is none.
      maximum: largest finite entry, NaN if there is none.
      num_nan: how many entries are NaN.
      num_inf: how many are infinite.
      num_zero: how many are exactly 0.
      first_index: index of the first NaN, else of the first infinity, else None.

    >>> import jax.numpy as jnp
    >>> from jaxsafe import diagnose
    >>> finding = diagnose.first_nonfinite(jnp.log, jnp.array([1.0, 0.0]))
    >>> str(finding.operands[0])
    'x: float32[2] in [0, 1], 1 zero'
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    minimum: float
    maximum: float
    num_nan: int
    num_inf: int
    num_zero: int
    first_index: tuple[int, ...] | None

    @property
    def size(self) -> int:
        """How many entries there are."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return _words.describe(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Where, why and from what a program first became non-finite.

    Attributes:
      primitive: name of the JAX primitive, or "(input)".
      file: file of the user's line; for a backward fault the forward line.
      line: its number, from 1; 0 if unknown.
      source: text of that line.
      function: name of the Python function it stands in.
      module: path of the flax module, or "".
      phase: "forward", "backward", "update" or "input".
      iteration: loop indices, outermost first; () outside of loops.
      branch: index of the conditional's branch that was taken, or None.
      operands: what went into the equation.
      result: what came out.
      chain: where the first infinity was born, then what turned it into a NaN.
      cause: id of a row of `CAUSES`.
      remedies: code to try, the best first.
      confidence: how sure the cause is, from 0 to 1.
      device: inside a shard_map the position in its mesh of the first device on which
        it happened, or None.

    >>> import jax.numpy as jnp
    >>> from jaxsafe import diagnose
    >>> finding = diagnose.first_nonfinite(lambda x: 1 / jnp.exp(x), jnp.array([99.0]))
    >>> finding is None  # 1 / inf is 0, which is finite
    True
    >>> diagnose.first_nonfinite(jnp.exp, jnp.array([99.0])).primitive
    'exp'
    """

    primitive: str
    file: str
    line: int
    source: str
    function: str
    module: str
    phase: str
    iteration: tuple[int, ...]
    branch: int | None
    operands: tuple[Stats, ...]
    result: Stats
    chain: tuple[str, ...]
    cause: str
    remedies: tuple[str, ...]
    confidence: float
    device: int | None = None

    def summary(self) -> str:
        """The finding as text of at most 80 columns."""
        return _words.summary(self)

    @property
    def headline(self) -> str:
        """What happened, in one line: "NaN born in the backward pass, by div"."""
        return _words.headline(self)

    @property
    def place(self) -> str:
        """The user's file and line, "model.py:16", or "" if unknown."""
        return _words.place(self) if self.file else ""

    @property
    def why(self) -> str:
        """One sentence about the numbers of this run."""
        return _words.why(self)

    def to_json(self) -> str:
        """The finding as one JSON object; a number that is not finite is null."""
        return _text.to_json(self)

    def __repr__(self) -> str:
        kind = "nan" if self.result.num_nan else "inf"
        place = f"{self.file}:{self.line}" if self.file else "?"
        return (
            f"Finding({self.primitive} -> {kind} at {place}, phase={self.phase!r}, "
            f"cause={self.cause!r}, confidence={self.confidence:.2g})"
        )


def from_plain(plain: dict[str, Any]) -> Finding:
    """The finding that was written as JSON."""
    known = {field.name for field in dataclasses.fields(Finding)}
    values = {name: value for name, value in plain.items() if name in known}
    for name in ("iteration", "chain", "remedies"):
        values[name] = tuple(values[name])
    values["operands"] = tuple(map(_stats, values["operands"]))
    values["result"] = _stats(values["result"])
    return Finding(**values)


def _stats(plain: dict[str, Any]) -> Stats:
    bounds = {n: math.nan if plain[n] is None else plain[n] for n in _BOUNDS}
    index = plain["first_index"]
    return Stats(
        **{
            **plain,
            **bounds,
            "shape": tuple(plain["shape"]),
            "first_index": None if index is None else tuple(index),
        }
    )
