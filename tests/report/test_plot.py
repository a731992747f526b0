"""A curve shows what is finite, ends where the run broke, and never crashes."""

import math
import re

import matplotlib
import pytest

from jaxsafe import report
from jaxsafe.report import _plot, _style
from tests.report._html import svgs

_SVG = "{http://www.w3.org/2000/svg}"


def draw(*series, log_y=False, limit=None):
    plot = report.Plot("p", series, ylabel="y", log_y=log_y, limit=limit)
    page = report.page("t", [report.Section("s", [plot])])
    (svg,) = svgs(page)
    return page, svg


def strokes(svg, rank=0):
    """Path data of curve `rank`."""
    mark = f"stroke: var(--series-{rank})"
    paths = svg.iter(f"{_SVG}path")
    return [p.get("d") for p in paths if mark in p.get("style", "")]


def marks(svg):
    """Markers in the colour of the first curve."""
    uses = svg.iter(f"{_SVG}use")
    return [use for use in uses if "var(--series-0)" in use.get("style", "")]


def labels(svg):
    return [text.text for text in svg.iter(f"{_SVG}text")]


def test_a_gap_stays_a_gap():
    _, whole = draw(report.Series("a", [1.0, 2.0, 3.0, 4.0, 5.0]))
    _, broken = draw(report.Series("a", [1.0, 2.0, math.nan, 4.0, 5.0]))
    assert strokes(whole)[0].count("M") == 1
    assert strokes(broken)[0].count("M") == 2


def test_a_lonely_value_is_a_dot():
    _, svg = draw(report.Series("a", [math.nan, 2.0, math.inf]))
    _, line = draw(report.Series("a", [1.0, 2.0, 3.0]))
    assert len(marks(svg)) == 1
    assert marks(line) == []


def test_the_break_is_drawn_and_spoken():
    page, svg = draw(report.Series("a", [1.0, 2.0, math.nan], broke_at=2))
    assert "broke at step 2" in labels(svg)
    assert "broke at step 2" in svg.find(f"{_SVG}title").text
    assert len(marks(svg)) == 1  # at the last finite value
    assert page.count("broke at step 2") == 3  # legend, picture, title


@pytest.mark.parametrize("log_y", [False, True])
def test_what_is_above_the_limit_leaves_the_picture(log_y):
    exploding = report.Series("a", [1.0, 1e30, 1e35], broke_at=3)
    calm = report.Series("b", [1.0, 2.0, 3.0])
    _, svg = draw(exploding, calm, log_y=log_y, limit=100.0)
    ticks = [float(t) for t in labels(svg) if re.fullmatch(r"[\d.e-]+", t or "")]
    assert max(ticks) <= 100
    low = [report.Series("a", [1.0, 2.0])]
    assert labels(draw(*low, limit=100.0)[1]) == labels(draw(*low)[1])


def test_a_limit_is_positive():
    with pytest.raises(ValueError, match=r"report.Plot: limit must be a finite"):
        draw(report.Series("a", [1.0]), limit=-1.0)


def test_log_axis_counts_what_it_cannot_show():
    page, svg = draw(report.Series("a", [1.0, 0.0, -3.0, 2.0, 4.0]), log_y=True)
    assert "2 at or below 0 not shown" in page
    assert strokes(svg)[0].split()[::3] == ["M", "M", "L"]  # no line over the gap
    assert len(marks(svg)) == 1  # the lonely 1


@pytest.mark.parametrize("log_y", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        [],
        [math.nan] * 4,
        [math.inf, -math.inf],
        [0.0, 0.0],
        [1.7e308, -1.7e308, 1.0],
        [5e-324, 1.0],
        [1.0],
        [3.4e38, math.inf],
    ],
)
def test_any_values_give_a_picture(values, log_y):
    _, svg = draw(report.Series("a", values, broke_at=0), log_y=log_y)
    drawable = [v for v in values if math.isfinite(v) and (v > 0 or not log_y)]
    assert ("no value to draw" in labels(svg)) == (not drawable)


def test_no_colour_is_fixed_and_size_is_the_containers():
    page, svg = draw(*[report.Series(f"s{k}", [1.0, k]) for k in range(8)])
    assert svg.get("width") is None
    assert svg.get("viewBox")
    picture = page[page.index("<svg xmlns") : page.index("<details")]
    assert not re.search(r"(fill|stroke): #", picture)
    assert "DejaVu" not in picture
    assert "currentColor" in picture


def test_colours_are_those_of_the_style_sheet_and_dashes_differ():
    light = [_style._LIGHT[f"series-{k}"] for k in range(len(_plot.COLOURS))]
    assert tuple(light) == _plot.COLOURS
    assert len(set(_plot._DASHES)) == len(_plot.COLOURS)


def test_the_users_matplotlib_is_left_alone_and_leaves_us_alone():
    before, _ = draw(report.Series("a", [1.0, 2.0]))
    with matplotlib.rc_context({"lines.linewidth": 9.0, "font.size": 30.0}):
        held = dict(matplotlib.rcParams)
        after, _ = draw(report.Series("a", [1.0, 2.0]))
        assert dict(matplotlib.rcParams) == held
    assert after == before
