"""`python -m jaxsafe`: what it prints, and how it ends."""

import json
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import pytest

from jaxsafe import __main__ as command
from jaxsafe import diagnose, report

ROOT = pathlib.Path(__file__).parent.parent


def run(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "jaxsafe", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )


CODE = """
import jax.numpy as jnp


def loss(x):
    return jnp.log(x).sum()
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle of a function whose module lies beside it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "training.py").write_text(CODE)
    namespace = {}
    exec(compile(CODE, str(folder / "training.py"), "exec"), namespace)
    diagnose.save_bundle(folder / "fault.zip", namespace["loss"], jnp.zeros(3))
    return folder / "fault.zip"


@pytest.mark.slow
def test_selftest_in_a_process_of_its_own():
    done = run("selftest")
    assert (done.returncode, done.stderr) == (0, "")
    assert "jaxsafe works here" in done.stdout
    assert "Subnormals that come in" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_selftest_as_json_and_its_exit_code(monkeypatch, capsys):
    def result(ok):
        check = report.Check(name="select", ok=ok, seen="seen", relied_on=True)
        return report.Selftest(machine="m", versions=(), settings=(), checks=(check,))

    for ok, code in ((True, 0), (False, 1)):
        monkeypatch.setattr(report, "selftest", lambda ok=ok: result(ok))
        assert command.main(["selftest", "--json"]) == code
        assert json.loads(capsys.readouterr().out)["ok"] is ok


def test_replay_without_the_code(bundle, tmp_path):
    done = run("replay", str(bundle))
    assert (done.returncode, done.stderr) == (0, "")
    # The same machine, but one device where the tests have several.
    assert done.stdout.startswith("The fault shows again here, the same bits")
    assert "Inf born in the forward pass, by log" in done.stdout
    assert "> " in done.stdout


def test_replay_with_the_code(bundle):
    found = run("replay", str(bundle), "--function", "training:loss", cwd=bundle.parent)
    assert (found.returncode, found.stderr) == (0, "")
    assert "The code here gives the same finding." in found.stdout


def test_replay_as_json(bundle, capsys):
    assert command.main(["replay", str(bundle), "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert (plain["outcome"], plain["bitwise"]) == ("again", True)


def test_a_fault_that_is_gone_ends_with_1(tmp_path, capsys):
    path = tmp_path / "healthy.zip"
    diagnose.save_bundle(path, jnp.exp, jnp.zeros(2))
    assert command.main(["replay", str(path)]) == 1
    assert "Nothing was non-finite" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.zip"], "replay: there is no such file"),
        ([__file__], "replay: the file is no bundle"),
        ([__file__, "--function", "training"], "--function must have the form"),
        ([__file__, "--function", "no_such_module:f"], "no_such_module"),
    ],
)
def test_a_mistake_ends_with_2_and_one_line(arguments, message, capsys):
    assert command.main(["replay", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1


def test_help_without_a_command(capsys):
    assert command.main([]) == 0
    text = capsys.readouterr().out
    assert "selftest" in text
    assert "replay" in text
    assert max(map(len, text.splitlines())) <= 80
    with pytest.raises(SystemExit) as stop:
        command.main(["replay", "--help"])
    assert stop.value.code == 0
    assert "Exit code: 0 if the fault shows again" in capsys.readouterr().out
