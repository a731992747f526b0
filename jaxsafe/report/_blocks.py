"""What a page is made of: frozen records, checked when they are made.

A block holds plain Python values only; arrays are read once, on the host, when the
block is built. So a page drawn twice from the same blocks has the same bytes. A
`diagnose.Finding` is a block as it stands. Nothing here knows HTML.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from jaxsafe import _errors
from jaxsafe.diagnose import Finding

Cell: TypeAlias = str | int | float | bool | None


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """Paragraphs; an empty line parts two of them, `backticks` mark code.

    Attributes:
      text: plain text, never HTML.

    >>> Text("Training broke in `log`.")
    Text(text='Training broke in `log`.')
    """

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Pre:
    """Text whose lines and spaces stay as they are, such as a record's `summary()`.

    Attributes:
      text: plain text, never HTML.

    >>> Pre("step 3: rejected").text
    'step 3: rejected'
    """

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """Rows under headers; columns of numbers are aligned to the right.

    Attributes:
      headers: one per column.
      rows: cells are str, int, float, bool or None; numpy and jax scalars are read.
      caption: a line above the table.

    Raises:
      ValueError: no headers, or a row longer or shorter than the headers.
      TypeError: a cell of another type.

    >>> Table(["rate", "finite"], [[0.1, True], [10.0, False]]).rows
    ((0.1, True), (10.0, False))
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = dataclasses.field(default="", kw_only=True)

    def __post_init__(self) -> None:
        headers = tuple(self.headers)
        if not headers:
            raise _errors.error(
                ValueError,
                "report.Table",
                "headers must not be empty",
                self.headers,
                "Name every column.",
            )
        rows = tuple(tuple(_cell(value) for value in row) for row in self.rows)
        for number, row in enumerate(rows):
            if len(row) != len(headers):
                raise _errors.error(
                    ValueError,
                    "report.Table",
                    f"row {number} must have {len(headers)} cells, one per header",
                    len(row),
                    "Pass None for an empty cell.",
                )
        object.__setattr__(self, "headers", headers)
        object.__setattr__(self, "rows", rows)


@dataclasses.dataclass(frozen=True, slots=True)
class Series:
    """One curve: the value at position k is that of step k.

    Attributes:
      label: name of the curve.
      values: numbers, NaN and Inf included; any flat sequence or array.
      broke_at: step at which the run broke, or None; at most the number of values,
        for a run that was stopped before it could record that step.

    Raises:
      ValueError: values that are not flat numbers, or a step outside the curve.

    >>> Series("loss", [2.0, 1.0, float("nan")], broke_at=2).num_bad
    1
    """

    label: str
    values: Sequence[float]
    broke_at: int | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        values = _flat(self.label, self.values)
        step = self.broke_at
        if step is not None and not 0 <= step <= len(values):
            raise _errors.error(
                ValueError,
                "report.Series",
                f"broke_at must be a step from 0 to {len(values)} of {self.label!r}",
                step,
                "Steps count from 0, and position k of values is step k.",
            )
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "broke_at", None if step is None else int(step))

    @property
    def finite(self) -> tuple[float, ...]:
        """The values that are numbers, in order."""
        return tuple(value for value in self.values if math.isfinite(value))

    @property
    def num_bad(self) -> int:
        """How many values are NaN or infinite."""
        return len(self.values) - len(self.finite)


@dataclasses.dataclass(frozen=True, slots=True)
class Plot:
    """Curves over the same steps.

    Attributes:
      title: what the picture shows.
      series: the curves.
      ylabel: name of the vertical axis.
      xlabel: name of the horizontal axis.
      log_y: logarithmic vertical axis; values at or below 0 leave a gap and are counted
        in the legend.
      limit: upper end of the vertical axis; what lies above it leaves the picture, so
        that one run that explodes does not flatten the others. None shows everything.

    Raises:
      ValueError: an empty title, no series, or a limit that is not above 0.
      TypeError: a series that is not a `Series`.

    >>> Plot("Loss", [Series("loss", [2.0, 1.0])], ylabel="loss").xlabel
    'step'
    """

    title: str
    series: Sequence[Series]
    ylabel: str = dataclasses.field(kw_only=True)
    xlabel: str = dataclasses.field(default="step", kw_only=True)
    log_y: bool = dataclasses.field(default=False, kw_only=True)
    limit: float | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_title("report.Plot", self.title)
        object.__setattr__(self, "series", tuple(self.series))
        if not self.series:
            raise _errors.error(
                ValueError,
                "report.Plot",
                "series must not be empty",
                (),
                "Pass at least one report.Series.",
            )
        check_types("report.Plot", "series", self.series, (Series,))
        if self.limit is not None:
            _errors.check_positive("report.Plot", "limit", self.limit)


@dataclasses.dataclass(frozen=True, slots=True)
class Section:
    """Blocks under a heading.

    Attributes:
      title: the heading, also the entry in the table of contents.
      blocks: `Text`, `Pre`, `Table`, `Plot`, or a `diagnose.Finding`.

    Raises:
      ValueError: an empty title.
      TypeError: a block of another type.

    >>> len(Section("What broke", [Text("Nothing.")]).blocks)
    1
    """

    title: str
    blocks: "Sequence[Block]"

    def __post_init__(self) -> None:
        check_title("report.Section", self.title)
        object.__setattr__(self, "blocks", tuple(self.blocks))
        check_types(
            "report.Section", "blocks", self.blocks, (Text, Pre, Table, Plot, Finding)
        )


Block: TypeAlias = Text | Pre | Table | Plot | Finding


def check_title(function: str, title: str) -> None:
    """Raise ValueError if a heading has no text."""
    if not title.strip():
        raise _errors.error(
            ValueError,
            function,
            "title must not be empty",
            repr(title),
            "Say in a few words what is shown.",
        )


def check_types(
    function: str, name: str, items: Iterable[object], allowed: tuple[type, ...]
) -> None:
    """Raise TypeError unless every item is an instance of an allowed type."""
    for item in items:
        if not isinstance(item, allowed):
            names = ", ".join(kind.__name__ for kind in allowed)
            raise _errors.error(
                TypeError,
                function,
                f"{name} must hold {names}",
                type(item).__name__,
                f"Build one of {names} from it.",
            )


def _cell(value: Any) -> Cell:
    if getattr(value, "shape", None) == ():
        value = value.item()
    if value is None or isinstance(value, str | int | float):
        return value
    raise _errors.error(
        TypeError,
        "report.Table",
        "a cell must be str, int, float, bool or None",
        type(value).__name__,
        "Pass str(value).",
    )


def _flat(label: str, values: Any) -> tuple[float, ...]:
    import numpy as np

    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        array = None
    if array is None or array.ndim != 1:
        got = "not numbers" if array is None else f"shape {array.shape}"
        raise _errors.error(
            ValueError,
            "report.Series",
            f"values of {label!r} must be a flat sequence of numbers, one per step",
            got,
            "Pass one number per step; make one Series per column.",
        )
    return tuple(array.tolist())
