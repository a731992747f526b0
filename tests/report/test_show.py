"""The terminal shows every word of the record, within 80 columns."""

import io
import sys

import numpy as np
import pytest

from jaxsafe import clean, report
from tests.report.test_page import finding


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(record, stream=None):
    stream = stream or io.StringIO()
    report.show(record, file=stream)
    return stream.getvalue()


RECORDS = [
    finding(source="y = x[0] + [bold]z[/bold] :smile:"),
    clean.audit(np.array([[1.0, np.nan], [2.0, 3.0]])),
]


@pytest.mark.parametrize("record", RECORDS)
def test_every_word_of_the_summary_within_80_columns(record):
    text = shown(record)
    assert max(map(len, text.splitlines())) <= 80
    for line in record.summary().splitlines():
        assert line.strip() in text


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_colour_only_in_a_terminal(monkeypatch, variable):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in shown(RECORDS[0], Terminal())
    monkeypatch.setenv(variable, "1")
    assert "\x1b[" not in shown(RECORDS[0])


def test_a_long_path_is_not_cut():
    path = "/".join(["folder"] * 20) + ".py"
    assert f"{path}:42" in shown(finding(file=path))


def test_plain_text_without_rich(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    assert shown(RECORDS[0]) == RECORDS[0].summary() + "\n"


def test_standard_output_by_default(capsys):
    report.show(RECORDS[1])
    assert "Audit(2 rows" in capsys.readouterr().out


@pytest.mark.parametrize("record", ["text", 3, type(RECORDS[0])])
def test_a_record_must_have_a_summary(record):
    with pytest.raises(TypeError, match=r"show: record must have a summary\(\)"):
        report.show(record)
