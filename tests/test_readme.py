"""README is true: its Python runs and prints what it says, CI runs its two lines."""

import contextlib
import io
import linecache
import pathlib
import re

import pytest

from benchmarks import _results, _workloads

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def blocks():
    """(source, what it prints) of every Python block, in order."""
    pattern = r"```python\n(.*?)```\n+```text\n(.*?)```"
    return re.findall(pattern, README, flags=re.DOTALL)


def run(source, namespace):
    # A diagnosis quotes source lines, which it finds through linecache.
    linecache.cache["README.md"] = (len(source), None, source.splitlines(True), "")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, "README.md", "exec"), namespace)
    return printed.getvalue()


def test_python_blocks_print_what_they_say():
    assert len(blocks()) == README.count("```python")
    namespace = {"__name__": "readme"}
    for source, printed in blocks():
        lines = [line.rstrip() for line in run(source, namespace).splitlines()]
        assert lines == printed.splitlines()


def test_public_names_in_the_tables_exist():
    import jaxsafe
    import jaxsafe.layers.linen
    import jaxsafe.layers.nnx

    for room, name in re.findall(r"`(\w+)\.(\w+)[`(]", README):
        if room in jaxsafe.__all__ and name != "html":  # `report.html` is a file
            assert hasattr(getattr(jaxsafe, room), name), f"{room}.{name}"


def test_the_house_lists_every_op():
    import jaxsafe

    (line,) = re.findall(r"^.*`jaxsafe/ops/` \|(.*)$", README, flags=re.MULTILINE)
    names = " ".join(re.findall(r"`([\w ]+)`", line)).split()
    assert sorted(set(names) - {"where"}) == sorted(
        set(jaxsafe.ops.__all__) - {"where"}
    )


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_accuracy_table_is_an_extract():
    text = (ROOT / "benchmarks" / "accuracy.md").read_text("utf-8")
    rows = re.findall(r"^\| `[a-z]+\.\w.*$", text, flags=re.MULTILINE)
    full = {row[0]: row for row in map(cells, rows)}
    _, section = README.split("## Right in value and derivative")
    table = re.findall(r"^\| `(?:ops|losses)\..*$", section, flags=re.MULTILINE)
    assert len(table) >= 12
    for row in map(cells, table):
        (name, *rest), wide = row, full[row[0]]
        assert [name, *rest] == [name, *(wide[i] for i in (1, 4, 6, 7, 8, 9))]


def test_the_table_of_costs_is_an_extract():
    def ratios(stored):
        _, rows = _results.load(ROOT / "benchmarks" / "results" / stored)
        return {(r.case, r.contender): f"{r.ratio.median:.2f}" for r in rows}

    columns = [(_workloads.MLP, "epyc.json"), (_workloads.TRANSFORMER, "epyc.json")]
    columns += [(_workloads.SMALL_LEAVES, "epyc.json")]
    columns += [(_workloads.LARGE_LEAVES, "epyc.json")]
    columns += [(_workloads.HUGE_LEAVES, "h200.json")]
    _, table = README.split("| times plain adamw |")
    lines = table.split("\n\n")[0].splitlines()[2:]
    assert len(lines) == 13
    for name, *shown in map(cells, lines):
        want = [
            ratios(file).get((work.name, name.strip("`")), "-")
            for work, file in columns
        ]
        assert shown == want, name


def test_the_table_of_who_names_what_is_the_measured_one():
    text = (ROOT / "benchmarks" / "diagnosis.md").read_text("utf-8")
    text, _, _ = text.partition("# What a diagnosis costs")
    table = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    assert len(table.splitlines()) == 7
    assert table in README


def test_the_campaign_table_is_an_extract():
    text = (ROOT / "tests" / "campaign" / "results.md").read_text("utf-8")
    assert "Nothing failed." in text
    ours = cells(re.search(r"^\| all \|.*$", text, flags=re.MULTILINE)[0])
    every, nonfinite, poisoned, missed, healthy = (ours[i] for i in (1, 2, 5, 6, 8))
    assert (poisoned, missed, healthy) == ("0", "0", "0")
    assert int(every) >= 10_000
    _, peers = text.split("## The same faults at what people use today")
    full = {row[0]: row for row in map(cells, peers.splitlines()) if len(row) == 7}
    rows = re.findall(
        r"^\| (?:jaxsafe|MLP|transformer)[, ].*$", README, flags=re.MULTILINE
    )
    assert cells(rows[0])[1:] == [every, nonfinite, poisoned, missed, healthy]
    assert len(rows) == 4
    for row in map(cells, rows[1:]):
        wide = full[row[0].replace("`", "")]
        assert row[1:] == [wide[i] for i in (1, 2, 4, 5, 6)]


def test_ci_takes_its_lines_from_here():
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    assert "grep '^python3 -m venv ' README.md" in script
    lines = re.findall(r"^python3 -m venv .*$", README, flags=re.MULTILINE)
    assert [line.split()[-1] for line in lines] == ["experiments", "-q"]


@pytest.mark.parametrize("extra", ["experiments", "test"])
def test_the_extras_of_the_two_lines_exist(extra):
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f"'.[{extra}]'" in README
    assert re.search(rf"^{extra} = \[", text, flags=re.MULTILINE)
