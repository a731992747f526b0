"""Rows of a run: kept as JSON, shown as a table, compared with an earlier run."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from benchmarks._measure import Ratio

# By how much a ratio must have grown, beyond both intervals, to be called slower.
_WORSE = 1.05
UNKNOWN = Ratio(math.nan, math.nan, math.nan)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One contender in one case; nan for what was not measured.

    Attributes:
      suite: of the case.
      case: its name.
      contender: who did the work.
      baseline: to whom the ratios are taken.
      seconds: median of one run.
      spread: half the distance of the quartiles over the median.
      ratio: of run times to those of the baseline.
      compile_seconds: lowering and compiling.
      compile_ratio: to that of the baseline.
      temporary: bytes of temporary memory.
      peak: bytes in use at most, on an accelerator that says.
      flops: of one run.
      traffic: bytes read and written by one run.
      floor: share of what the device can do at best, between 0 and about 1.
      bar: largest ratio demanded.
      compile_bar: largest compile ratio demanded.
      memory_ratio: of temporary memory to that of the baseline.
      memory_bar: largest memory ratio demanded.
      error: why there is no number.
    """

    suite: str
    case: str
    contender: str
    baseline: str
    seconds: float = math.nan
    spread: float = math.nan
    ratio: Ratio = UNKNOWN
    compile_seconds: float = math.nan
    compile_ratio: float = math.nan
    temporary: float = math.nan
    peak: float = math.nan
    flops: float = math.nan
    traffic: float = math.nan
    floor: float = math.nan
    bar: float | None = None
    compile_bar: float | None = None
    memory_ratio: float = math.nan
    memory_bar: float | None = None
    error: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it the same row in another run."""
        return self.suite, self.case, self.contender

    @property
    def missed(self) -> list[str]:
        """The bars that it misses, in words."""
        pairs = (
            ("time", self.ratio.median, self.bar),
            ("compile time", self.compile_ratio, self.compile_bar),
            ("memory", self.memory_ratio, self.memory_bar),
        )
        return [
            f"{what} {value:.3g} above {bar:g}"
            for what, value, bar in pairs
            if bar is not None and value > bar
        ]


def save(path: pathlib.Path, context: dict[str, Any], rows: Sequence[Row]) -> None:
    """Write a run."""
    plain = [_without_nan(dataclasses.asdict(row)) for row in rows]
    text = json.dumps({"context": context, "rows": plain}, indent=1, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", "utf-8")


def load(path: pathlib.Path) -> tuple[dict[str, Any], list[Row]]:
    """Read a run."""
    stored = json.loads(path.read_text("utf-8"))
    return stored["context"], [_row(plain) for plain in stored["rows"]]


def regressions(old: Sequence[Row], new: Sequence[Row]) -> list[str]:
    """What became slower against its baseline, or has no number any more."""
    before, found = {row.key: row for row in old}, []
    for row in new:
        past = before.get(row.key)
        if past is None or past.error:
            continue
        name = " / ".join(row.key)
        if row.error:
            found.append(f"{name}: {row.error}")
        elif row.ratio.low > _WORSE * past.ratio.high:
            found.append(
                f"{name}: {past.ratio.median:.3g} -> {row.ratio.median:.3g} times "
                f"{row.baseline}"
            )
    return found


HEADER = ("", "time", "ratio", "95 %", "compile", "memory", "floor", "bar")


def cells(row: Row) -> tuple[str, ...]:
    """One line of a table."""
    if row.error:
        return (row.contender, row.error, *[""] * 6)
    return (
        row.contender,
        _time(row.seconds),
        _ratio(row.ratio.median),
        f"{_ratio(row.ratio.low)}-{_ratio(row.ratio.high)}",
        f"{row.compile_ratio:.2f}" if math.isfinite(row.compile_ratio) else "",
        size(row.temporary),
        f"{row.floor:.0%}" if math.isfinite(row.floor) else "",
        _bar(row),
    )


def markdown(rows: Sequence[Row]) -> str:
    """A table of Markdown for every case."""
    text = []
    for suite, case in dict.fromkeys((row.suite, row.case) for row in rows):
        text += [f"### {suite}: {case}", ""]
        text += ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
        mine = [row for row in rows if (row.suite, row.case) == (suite, case)]
        text += ["| " + " | ".join(cells(row)) + " |" for row in mine]
        text.append("")
    return "\n".join(text)


def _bar(row: Row) -> str:
    bars = [b for b in (row.bar, row.compile_bar, row.memory_bar) if b is not None]
    met = " / ".join(f"{bar:g}" for bar in bars)
    return f"{met} missed" if row.missed else met


def _ratio(ratio: float) -> str:
    """Two digits at least: 0.07 would not tell 0.066 from 0.074."""
    return f"{ratio:.3f}" if ratio < 0.1 else f"{ratio:.2f}"


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def size(count: float) -> str:
    """Bytes for people."""
    if not math.isfinite(count):
        return ""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _row(plain: dict[str, Any]) -> Row:
    """Back from JSON, where what is not a number is null."""
    numbers = {f.name for f in dataclasses.fields(Row) if f.type is float}
    lost = {k: math.nan for k, v in plain.items() if v is None and k in numbers}
    triple = {k: math.nan if v is None else v for k, v in plain["ratio"].items()}
    filled: dict[str, Any] = {**plain, **lost, "ratio": Ratio(**triple)}
    return Row(**filled)
