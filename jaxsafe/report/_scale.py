"""Ranges of arrays as small pictures: a bar on a logarithmic scale with a sign.

Behind the bars lie two bands, what float16 and what bfloat16 and float32 can hold; a
bar that leaves a band at its outer edge overflows there, at its inner edge underflows.
Places are percentages, so that a picture fits a phone, and its words keep their size.
"""

import math

from jaxsafe.diagnose import Stats
from jaxsafe.report import _html

# Decades from the smallest number to the largest that the scale shows.
_NARROW = (-46.0, 40.0)
_WIDE = (-325.0, 310.0)
# Smallest normal and largest number; those of bfloat16 differ by less than a pixel.
_BANDS = {
    "float32": (1.1754944e-38, 3.4028235e38),
    "float16": (6.103515625e-5, 65504.0),
}
_LEAST = 0.8  # percent of the width, for a range of one number


def pictures(stats: list[Stats]) -> str:
    """One bar for each array, on one scale."""
    ends = [abs(x) for s in stats for x in (s.minimum, s.maximum) if not math.isnan(x)]
    fits = all(x == 0 or 1e-45 <= x < 1e39 for x in ends)
    scale = _NARROW if fits else _WIDE
    rows = "".join(_row(s, scale) for s in stats)
    return (
        f'<div class="ranges">\n{rows}'
        f'<div class="ticks" aria-hidden="true">{_ticks(scale)}</div>\n'
        '<p class="quiet">From the smallest to the largest finite entry, on a '
        "logarithmic scale; the bands are what bfloat16 and float32, and (darker) "
        "float16 can hold.</p></div>"
    )


def position(value: float, scale: tuple[float, float]) -> float:
    """Percent from the left edge; 0 is in the middle."""
    if value == 0:
        return 50.0
    low, high = scale
    decades = math.log10(abs(value))
    part = min(max((decades - low) / (high - low), 0.0), 1.0)
    return 50.0 + math.copysign(50.0 * part, value)


def _row(stats: Stats, scale: tuple[float, float]) -> str:
    bar = ""
    if not math.isnan(stats.minimum):
        left, right = (position(x, scale) for x in (stats.minimum, stats.maximum))
        width = max(right - left, _LEAST)
        left = min(left, 100.0 - width)
        bar = f'<span class="bar" style="{_place(left, width)}"></span>'
    bands = "".join(
        f'<span class="band {name}" style="{_place(left, width)}"></span>'
        for name, limits in _BANDS.items()
        for left, width in _band(limits, scale)
    )
    kinds = ((stats.num_nan, "NaN"), (stats.num_inf, "Inf"))
    bad = "".join(f' <b class="bad">{n} {kind}</b>' for n, kind in kinds if n)
    return (
        f'<div class="range"><span>{_html.escape(stats.name)}{bad}</span>'
        f'<div class="track" role="img" aria-label="{_html.escape(stats)}">'
        f'{bands}<span class="zero"></span>{bar}</div></div>\n'
    )


def _band(
    limits: tuple[float, float], scale: tuple[float, float]
) -> list[tuple[float, float]]:
    """(left, width) of the negative and the positive half of what a dtype holds."""
    near, far = (position(x, scale) for x in limits)
    return [(100.0 - far, far - near), (near, far - near)]


def _ticks(scale: tuple[float, float]) -> str:
    marks = [(50.0, "0")]
    for name, (_, largest) in _BANDS.items():
        marks += [(position(largest, scale), name), (position(-largest, scale), name)]
    return "".join(
        f'<span style="left: {at:.2f}%">{name}</span>' for at, name in sorted(marks)
    )


def _place(left: float, width: float) -> str:
    return f"left: {left:.2f}%; width: {width:.2f}%"
