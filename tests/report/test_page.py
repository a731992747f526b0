"""A page is one well-formed file, keeps every word and loads nothing."""

import math
import re
import sys

import numpy as np
import pytest

from jaxsafe import clean, report
from jaxsafe.diagnose import Finding, Stats
from jaxsafe.report import _style
from tests.report._html import Reader, svgs

EVIL = "<script>alert('x')</script> & \"[0]\" $x$ \x0c"


def finding(word="word", **fields):
    stats = Stats(
        name=f"{word}-stats",
        shape=(4,),
        dtype=f"{word}-dtype",
        minimum=0.0,
        maximum=2.5,
        num_nan=1,
        num_inf=0,
        num_zero=3,
        first_index=(2,),
    )
    given = {
        "primitive": f"{word}-primitive",
        "file": f"{word}-file.py",
        "line": 42,
        "source": f"y = x[0] / {word}-source",
        "function": f"{word}-function",
        "module": f"{word}-module",
        "phase": "forward",
        "iteration": (3, 17),
        "branch": 1,
        "operands": (stats,),
        "result": stats,
        "chain": (f"{word}-chain",),
        "cause": "activation",
        "remedies": (f"{word}-remedy",),
        "confidence": 0.92,
    }
    return Finding(**(given | fields))


def sections(word="word"):
    values = [1.0, 2.0, math.nan, math.inf, 3.0]
    curves = [report.Series(f"{word}-label", values, broke_at=2)]
    plot = report.Plot(
        f"{word}-plot", curves, ylabel=f"{word}-ylabel", xlabel=f"{word}-xlabel"
    )
    rows = [[f"{word}-cell", 1.5], [None, math.nan]]
    table = report.Table([f"{word}-head", "n"], rows, caption=f"{word}-caption")
    return [
        report.Section(f"{word}-first", [report.Text(f"{word}-text"), table]),
        report.Section(f"{word}-second", [plot, finding(word), plot]),
    ]


def make(word="word"):
    return report.page(f"{word}-title", sections(word), subtitle=f"{word}-subtitle")


def test_tags_balance_ids_are_unique_and_links_lead_somewhere():
    reader = Reader(make())
    assert len(reader.ids) == len(set(reader.ids))
    inside = [link[1:] for link in reader.links]
    assert all(link.startswith("#") for link in reader.links)
    assert set(inside) <= set(reader.ids)
    assert {"section-1", "section-2"} <= set(inside)


def test_every_field_is_on_the_page():
    text = " ".join(Reader(make()).text)
    names = (
        "title subtitle first second text head cell caption plot label ylabel xlabel "
        "primitive source function module chain remedy stats dtype"
    )
    for name in names.split():
        assert f"word-{name}" in text
    assert "word-file.py:42" in text
    assert "iteration 3, 17" in text
    assert text.count("word-second") == 2  # heading and table of contents


def test_strings_are_escaped_in_every_field():
    page = make(EVIL)
    reader = Reader(page)
    assert "script" not in reader.tags
    assert "<script" not in page
    assert "\x0c" not in page
    assert len(svgs(page)) == 2


def test_nothing_is_loaded_and_nothing_runs():
    page = re.sub(r' xmlns(:\w+)?="[^"]*"', "", make())
    assert "http:" not in page
    assert "https:" not in page
    assert "@import" not in page
    assert not set(Reader(page).tags) & {"script", "link", "img", "iframe", "object"}


def test_head_speaks_to_phones_screens_and_readers():
    page = make()
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert 'name="viewport" content="width=device-width' in page
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_same_input_same_bytes():
    assert make() == make()


@pytest.mark.parametrize("palette", [_style._LIGHT, _style._DARK])
def test_every_colour_of_text_and_curves_has_contrast(palette):
    def luminance(colour):
        channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return float(linear @ [0.2126, 0.7152, 0.0722])

    paper = luminance(palette["paper"])
    for name in palette.keys() - {"paper", "card", "line", "shade"}:
        low, high = sorted([paper, luminance(palette[name])])
        assert (high + 0.05) / (low + 0.05) >= 4.5, name  # WCAG AA


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (True, "yes"),
        (None, "&mdash;"),
        (0.1 + 0.2, "0.3"),
        (1e-8, "1e-8"),
        (1e30, "1e30"),
        (-math.inf, "-Inf"),
        (np.float32(0.5), "0.5"),
        (np.bool_(False), "no"),
    ],
)
def test_cells(value, text):
    page = report.page("t", [report.Section("s", [report.Table(["a"], [[value]])])])
    assert re.search(rf"<td[^>]*>{text}</td>", page)


def test_without_matplotlib_the_figures_stay(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = make()
    Reader(page)
    assert svgs(page) == []
    assert "pip install 'jaxsafe[report]'" in page
    # first, last finite, min, max, not finite, broke at
    numbers = re.search(r"word-label</td>(.*?)</tr>", page)[1]
    assert re.findall(r">([^<>]+)</td>", numbers) == ["1", "3", "1", "3", "2", "2"]


def test_write_makes_folders_and_leaves_no_draft(tmp_path):
    path = report.write(tmp_path / "a" / "b.html", "é", sections())
    path = report.write(str(path), "ü", sections())
    assert path.read_bytes().decode("utf-8") == report.page("ü", sections())
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_page(tmp_path, monkeypatch):
    path = report.write(tmp_path / "x.html", "old", [])
    before = path.read_bytes()

    def fail(self, target):
        raise OSError("disk")

    monkeypatch.setattr(type(path), "replace", fail)
    with pytest.raises(OSError, match="disk"):
        report.write(path, "new", [])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_name_that_is_not_text_is_written(tmp_path):
    block = finding(file="\udc80.py")
    path = report.write(tmp_path / "x.html", "t", [report.Section("s", [block])])
    assert "?.py:42" in path.read_text("utf-8")


_S = report.Series("a", [1.0])


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (lambda: report.Section("s", [3]), TypeError, r"blocks must hold .*got int"),
        (lambda: report.Section(" ", []), ValueError, "Section: title must not be"),
        (lambda: report.page("", []), ValueError, "page: title must not be empty"),
        (lambda: report.page("t", [_S]), TypeError, "sections must hold Section"),
        (lambda: report.Table([], []), ValueError, "headers must not be empty"),
        (
            lambda: report.Table(["a"], [[1], [1, 2]]),
            ValueError,
            r"row 1 must have 1 cells, one per header \(got 2\)",
        ),
        (lambda: report.Table(["a"], [[{}]]), TypeError, r"a cell must .*got dict"),
        (
            lambda: report.Series("a", [[1.0], [2.0]]),
            ValueError,
            r"one per step \(got shape \(2, 1\)\)",
        ),
        (lambda: report.Series("a", ["x"]), ValueError, "got not numbers"),
        (
            lambda: report.Series("a", [1.0], broke_at=2),
            ValueError,
            r"broke_at must be a step from 0 to 1 of 'a' \(got 2\)",
        ),
        (lambda: report.Plot("", [_S], ylabel=""), ValueError, "Plot: title"),
        (lambda: report.Plot("p", [], ylabel=""), ValueError, "series must not be"),
        (lambda: report.Plot("p", [1], ylabel=""), TypeError, "series must hold"),
    ],
)
def test_refusals(build, kind, message):
    with pytest.raises(kind, match=message):
        build()


def test_an_audit_becomes_a_section_with_histograms():
    table = np.asarray([[1.0, np.nan], [2.0, 3.0], [2.0, np.inf]])
    section = report.audit(clean.audit(table), title="Batch 3")
    html = report.page("Audit", [section])
    assert "Batch 3" in html
    assert "█" in html
    first, second = section.blocks[1].rows
    assert (first[0], *first[2:4]) == ("x0", 0, 0)
    assert (second[0], *second[2:4]) == ("x1", 1, 1)
    # A page is read from the left: what lies beyond its edge is not seen.
    assert section.blocks[1].headers[1] == "histogram"
