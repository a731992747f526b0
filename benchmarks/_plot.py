"""Pictures of a run: ratios with their intervals, and how near the roof a row is."""

import collections
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from benchmarks._floor import Floor
from benchmarks._results import Row

_SIZED = re.compile(r"(.*, \d+ x \d+) x (\d+), gradient")
_OURS, _THEIRS = "#0b6e4f", "#8a8a8a"


def save(folder: pathlib.Path, rows: Sequence[Row], floor: Floor) -> list[pathlib.Path]:
    """Draw what there is to draw; the files written."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for suite in dict.fromkeys(row.suite for row in rows):
        mine = [row for row in rows if row.suite == suite and not row.error]
        for name, draw in _PICTURES.items():
            figure, axes = plt.subplots(layout="constrained")
            if draw(figure, axes, mine, floor):
                path = folder / f"{suite}-{name}.svg"
                figure.savefig(path)
                written.append(path)
            plt.close(figure)
    return written


def _ratios(figure: Any, axes: Any, rows: Sequence[Row], floor: Floor) -> bool:
    del floor
    shown = [row for row in rows if row.contender != row.baseline]
    for at, row in enumerate(shown):
        ratio = row.ratio
        color = _OURS if "jaxsafe" in row.contender else _THEIRS
        axes.plot([ratio.low, ratio.high], [at, at], color=color, linewidth=2)
        axes.plot(ratio.median, at, "o", color=color, markersize=4)
        if row.bar is not None:
            axes.plot(row.bar, at, "|", color="#c1121f", markersize=10)
    axes.axvline(1, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(shown)), _names(shown), fontsize=6)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.grid(axis="y", color="#eeeeee", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.tick_params(axis="x", top=True, labeltop=True)  # the list may be long
    axes.set_xlabel("time over that of the baseline; bar: what is demanded")
    figure.set_size_inches(8, 1 + 0.14 * max(len(shown), 8))
    return bool(shown)


def _names(rows: Sequence[Row]) -> list[str]:
    """What was measured, and who did it where that is not said by the case."""
    beside = collections.Counter(row.case for row in rows)
    return [f"{r.case}: {r.contender}" if beside[r.case] > 1 else r.case for r in rows]


def _roofline(figure: Any, axes: Any, rows: Sequence[Row], floor: Floor) -> bool:
    points = [
        (row.flops / row.traffic, row.flops / row.seconds, "jaxsafe" in row.contender)
        for row in rows
        if row.traffic > 0 and row.flops > 0 and math.isfinite(row.seconds)
    ]
    if not points:
        return False
    for intensity, speed, ours in points:
        axes.plot(intensity, speed, "o", color=_OURS if ours else _THEIRS, markersize=4)
    ridge = floor.arithmetic / floor.bandwidth
    low = min(ridge, *(p[0] for p in points)) / 2
    high = max(ridge, *(p[0] for p in points)) * 2
    roof = [low * floor.bandwidth, floor.arithmetic, floor.arithmetic]
    axes.plot([low, ridge, high], roof, color="black", linewidth=1)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="floating operations per byte, as XLA counts them",
        ylabel="floating operations per second",
    )
    axes.set_title(
        "green: jaxsafe; grey: peers; line: this device at best\n"
        "above it: what stays in a cache",
        fontsize=9,
    )
    figure.set_size_inches(6, 4)
    return True


def _memory(figure: Any, axes: Any, rows: Sequence[Row], floor: Floor) -> bool:
    """Temporaries against the vocabulary, where a case was run at several sizes."""
    del floor
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in rows:
        if sized := _SIZED.match(row.case):
            lines.setdefault((sized[1], row.contender), []).append(
                (int(sized[2]), row.temporary)
            )
    drawn = {key: sorted(points) for key, points in lines.items() if len(points) > 1}
    if not drawn:
        return False
    for (work, contender), points in drawn.items():
        color = _OURS if "jaxsafe" in contender else _THEIRS
        axes.plot(*zip(*points, strict=True), "o-", color=color, markersize=4)
        axes.annotate(contender, points[-1], fontsize=8, xytext=(4, 0),
                      textcoords="offset points", va="center")  # fmt: skip
        axes.set_title(f"{work} x vocabulary", fontsize=9)
    axes.set(
        xscale="log", yscale="log", xlabel="vocabulary", ylabel="bytes of temporaries"
    )
    axes.set_xticks([size for size, _ in points])
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.xaxis.set_minor_formatter("")
    axes.spines[["top", "right"]].set_visible(False)  # there the names stand
    figure.set_size_inches(8, 4)
    return True


_PICTURES = {"ratio": _ratios, "roofline": _roofline, "memory": _memory}
