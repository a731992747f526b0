"""Curves as inline SVG, drawn by matplotlib; a table of numbers without it.

Colours leave matplotlib as CSS: `currentColor` for text and axes, `var(--series-k)` for
curves, so that one picture serves light and dark pages. Ids carry the number of the
plot on the page, so that two pictures do not share one. A legend in HTML wraps on a
phone and is read aloud. Never pyplot, never a lasting change of rcParams.
"""

import io
import re
from typing import Any

from jaxsafe.report import _html
from jaxsafe.report._blocks import Plot, Series, Table

# Okabe and Ito's colours, darkened where they are too pale for a white page. They
# stand in for the CSS variables of the same rank in the style sheet.
COLOURS = ("#0072b2", "#c04a00", "#00795a", "#a4478a", "#806000", "#5a5f66")
_DASHES: tuple[tuple[int, ...], ...] = (
    (),
    (6, 2),
    (2, 2),
    (8, 2, 2, 2),
    (4, 4),
    (1, 3),
)
_INK = "#010203"  # stands for currentColor
_LARGEST = 1e150  # drawn at this edge if beyond: ticks and margins would overflow
_HEADERS = ("curve", "first", "last finite", "min", "max", "not finite", "broke at")


def figure(plot: Plot, number: int) -> str:
    """The `<figure>` of a plot, `number` being its rank on the page, from 1."""
    caption = f"<figcaption>{_html.inline(plot.title)}</figcaption>"
    numbers = _html.table(Table(_HEADERS, [_figures(s) for s in plot.series]))
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        body = (
            f"{numbers}\n<p>To see the curves, install matplotlib: "
            "<code>pip install 'jaxsafe[report]'</code></p>"
        )
    else:
        legend = "".join(_key(s, k, plot.log_y) for k, s in enumerate(plot.series))
        body = (
            f'<ul class="legend">{legend}</ul>\n{_svg(plot, number)}\n'
            f"<details><summary>Numbers</summary>\n{numbers}</details>"
        )
    return f'<figure class="plot">{caption}\n{body}</figure>'


def _figures(series: Series) -> list[object]:
    finite = series.finite
    ends = (finite[-1], min(finite), max(finite)) if finite else (None,) * 3
    first = series.values[0] if series.values else None
    return [series.label, first, *ends, series.num_bad, series.broke_at]


def _key(series: Series, rank: int, log_y: bool) -> str:
    """One legend entry: the dash, the label and what the curve cannot show."""
    notes = []
    if series.broke_at is not None:
        notes.append(f"broke at step {series.broke_at}")
    elif series.num_bad:
        notes.append(f"{series.num_bad} of {len(series.values)} not finite")
    hidden = sum(value <= 0 for value in series.finite) if log_y else 0
    if hidden:
        notes.append(f"{hidden} at or below 0 not shown")
    note = f' <span class="quiet">{", ".join(notes)}</span>' if notes else ""
    style, dash = rank % len(COLOURS), _DASHES[rank % len(_DASHES)]
    return (
        '<li><svg class="swatch" viewBox="0 0 28 8" aria-hidden="true">'
        f'<line x1="0" y1="4" x2="28" y2="4" style="stroke: var(--series-{style}); '
        f'stroke-width: 2; stroke-dasharray: {" ".join(map(str, dash)) or "none"}"/>'
        f"</svg><span>{_html.inline(series.label)}{note}</span></li>"
    )


def _svg(plot: Plot, number: int) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        # A user's own style must not reach the page; the context restores it.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "jaxsafe"})
        drawing = Figure(figsize=(6.0, 2.8))
        FigureCanvasSVG(drawing)
        axes = drawing.add_axes((0.1, 0.16, 0.87, 0.75))
        _axes(axes, plot)
        for rank, series in enumerate(plot.series):
            _curve(axes, series, rank, plot)
        if plot.limit is not None and axes.get_ylim()[1] > plot.limit:
            axes.set_ylim(top=plot.limit)
        if not axes.lines:
            middle: dict[str, Any] = {"ha": "center", "transform": axes.transAxes}
            axes.text(0.5, 0.5, "no value to draw", color=_INK, **middle)
            axes.set_yticks([])
        _breaks(axes, plot)
        out = io.StringIO()
        bare = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        drawing.savefig(out, format="svg", transparent=True, metadata=bare)
    return _inline(out.getvalue(), plot, number)


def _axes(axes: Any, plot: Plot) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set_title(_html.clean(plot.ylabel), loc="left", color=_INK, parse_math=False)
    axes.set_xlabel(_html.clean(plot.xlabel), color=_INK, parse_math=False)
    longest = max(len(series.values) for series in plot.series)
    axes.set_xlim(-0.02 * longest, max(1.02 * longest, 1.0))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if plot.log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axes.tick_params(colors=_INK, length=0)
    axes.grid(axis="y", color=_INK, alpha=0.12, linewidth=0.8)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.spines["bottom"].set(color=_INK, alpha=0.5)


def _tick(value: float) -> str:
    return re.sub(r"e([+-])0*", lambda m: "e" + m[1].strip("+"), f"{value:.10g}")


def _curve(axes: Any, series: Series, rank: int, plot: Plot) -> None:
    """Draw what is finite; a gap stays a gap, a lonely value becomes a dot."""
    import numpy as np

    y = np.array(series.values, np.float64)
    seen = np.isfinite(y) & ((y > 0) if plot.log_y else True)
    if not seen.any():
        return
    lowest = 1 / _LARGEST if plot.log_y else -_LARGEST
    y = np.where(seen, np.clip(np.where(seen, y, 1.0), lowest, _LARGEST), np.nan)
    colour, dash = COLOURS[rank % len(COLOURS)], _DASHES[rank % len(_DASHES)]
    (line,) = axes.plot(np.arange(y.size), y, color=colour, linewidth=1.6)
    if dash:
        line.set_dashes([length / 1.6 for length in dash])
    around = np.pad(seen, 1)
    lonely = seen & ~around[:-2] & ~around[2:]
    if lonely.any():
        axes.plot(np.flatnonzero(lonely), y[lonely], ".", color=colour)
    if series.broke_at is not None and seen[: series.broke_at].any():
        last = int(np.flatnonzero(seen[: series.broke_at])[-1])
        height = min(y[last], plot.limit or _LARGEST)
        axes.plot([last], [height], "X", color=colour, markersize=7, clip_on=False)


def _breaks(axes: Any, plot: Plot) -> None:
    """A line at every step at which a run broke, its label beside it."""
    longest = max(len(series.values) for series in plot.series)
    first: dict[int, int] = {}
    for rank, series in enumerate(plot.series):
        if series.broke_at is not None:
            first.setdefault(series.broke_at, rank)
    for row, step in enumerate(sorted(first)):
        colour = COLOURS[first[step] % len(COLOURS)]
        axes.axvline(step, color=colour, linewidth=1.0, dashes=(2, 2))
        left = 2 * step > longest
        axes.annotate(
            f"broke at step {step}",
            (step, 0.98 - 0.09 * (row % 8)),
            xycoords=axes.get_xaxis_transform(),
            xytext=(-5 if left else 5, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="top",
            color=colour,
        )


def _inline(text: str, plot: Plot, number: int) -> str:
    """Turn matplotlib's document into an element that lives inside a page."""
    body = text[text.index("<svg") :]
    body = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r"<g id=\"[^\"]*\">", "<g>", body)
    # Sizes and fonts belong to the style sheet, where a phone can have its own.
    body = re.sub(r"(?<=[\" ])font(-size|-family)?: [^;\"]*;? ?", "", body)
    body = re.sub(r'(?<=\bid=")|(?<=href="#)|(?<=url\(#)', f"plot-{number}-", body)
    body = body.replace(f": {_INK}", ": currentColor")
    for rank, colour in enumerate(COLOURS):
        body = body.replace(f": {colour}", f": var(--series-{rank})")
    name = f"plot-{number}-title"
    said = ". ".join([f"{plot.title}: {plot.ylabel} by {plot.xlabel}", *_spoken(plot)])
    head = f'role="img" aria-labelledby="{name}"><title id="{name}">'
    body = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", body, count=1)
    start, _, rest = body.partition(">")
    return f"{start} {head}{_html.escape(said)}</title>{rest}".strip()


def _spoken(plot: Plot) -> list[str]:
    words = []
    for series in plot.series:
        text = f"{series.label} has no finite value"
        if finite := series.finite:
            ends = _html.number(finite[0]), _html.number(finite[-1])
            text = f"{series.label} from {ends[0]} to {ends[1]}"
        if series.broke_at is not None:
            text += f", broke at step {series.broke_at}"
        words.append(text)
    return words
