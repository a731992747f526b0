"""What a watch says: frozen records of plain Python values, the nearest leaf first."""

import dataclasses
import math

from jaxsafe import _text

_MOST = 12


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LeafHeadroom:
    """How far one leaf is from the edge of its dtype.

    Attributes:
      path: where it stands in the watched tree.
      dtype: its dtype, as a string.
      largest: its largest magnitude in the last step.
      headroom: how often that can be doubled before it overflows; infinite if it is 0,
        0 if it has overflowed or is NaN.
      slope: doublings per step; 0 unless it clearly rises or falls.
      overflow_step: the step, from 0, that overflows at this rate, or None.
      bad_step: the first step still remembered in which it was not finite, or None.

    >>> from jaxsafe import diagnose
    >>> leaf = diagnose.LeafHeadroom(path="['w']", dtype="float16", largest=2.0,
    ...     headroom=15.0, slope=0.0, overflow_step=None, bad_step=None)
    >>> leaf.ok
    True
    """

    path: str
    dtype: str
    largest: float
    headroom: float
    slope: float
    overflow_step: int | None
    bad_step: int | None

    @property
    def ok(self) -> bool:
        """Whether the last step was finite and no overflow is in sight."""
        return math.isfinite(self.largest) and self.overflow_step is None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Headroom:
    """How far the leaves of a watched tree are from overflow.

    Attributes:
      steps: steps watched so far; the last one has number `steps - 1`.
      leaves: the leaf that is nearest to the edge of its dtype first.

    >>> from jaxsafe import diagnose
    >>> diagnose.Headroom(steps=0, leaves=()).summary()
    'Headroom(0 steps, nothing watched)'
    """

    steps: int
    leaves: tuple[LeafHeadroom, ...]

    @property
    def nearest(self) -> LeafHeadroom | None:
        """The leaf nearest to the edge of its dtype, or None if none is watched."""
        return self.leaves[0] if self.leaves else None

    @property
    def soonest(self) -> LeafHeadroom | None:
        """The leaf that overflows first at this rate, or None if none does."""
        coming = [leaf for leaf in self.leaves if leaf.overflow_step is not None]
        return min(coming, key=lambda leaf: leaf.overflow_step or 0, default=None)

    def summary(self) -> str:
        """A table of at most 80 columns, the nearest leaves first."""
        shown = self.leaves[:_MOST]
        # An overflow that is coming must not stand below the cut.
        if self.soonest is not None and self.soonest not in shown:
            shown = (*shown[:-1], self.soonest)
        lines = [repr(self)]
        if shown:
            lines.append(_text.table(_HEADER, [_cells(leaf) for leaf in shown]))
        if len(self.leaves) > len(shown):
            lines.append(f"... and {len(self.leaves) - len(shown)} leaves further away")
        return "\n".join(lines)

    def to_json(self) -> str:
        """The record as one JSON object; a number that is not finite is null."""
        return _text.to_json(self)

    def __repr__(self) -> str:
        if self.nearest is None:
            return f"Headroom({self.steps} steps, nothing watched)"
        name, room = self.nearest.path, self.nearest.headroom
        near = f"{_text.tail(name, 30)} has {room:.3g} doublings left"
        if self.nearest.bad_step is not None and room == 0:
            near = f"{_text.tail(name, 30)} is not finite"
        return f"Headroom({self.steps} steps, {near})"


_HEADER = ("leaf", "dtype", "largest", "doublings left", "a step", "overflow")


def _cells(leaf: LeafHeadroom) -> tuple[str, ...]:
    when = "" if leaf.overflow_step is None else f"step {leaf.overflow_step}"
    if leaf.bad_step is not None:
        when = f"at step {leaf.bad_step}"
    return (
        _text.tail(leaf.path, 26),
        leaf.dtype,
        f"{leaf.largest:.3g}",
        f"{leaf.headroom:.3g}",
        f"{leaf.slope:+.2g}" if leaf.slope else ".",
        when or ".",
    )
