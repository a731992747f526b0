"""`python -m tests.peers`: run a peer's own tests against our functions.

optax ships its loss tests inside its wheel, scikit-learn all of its tests; jax's tests
of `jax.nn` and `jax.scipy.special` need a source checkout of the installed version
(`--source DIR`).
Tests that call a function of ours count: they have to pass, unless they fail with the
peer's own function as well or stand in `_differences.py` with a reason. Of the others
it is said how many stay with scikit-learn's transformer, and why.
"""

import argparse
import collections
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from tests.peers._differences import DIFFERENCES

ROOT = pathlib.Path(__file__).parents[2]
JAX_FILES = ("nn_test.py", "lax_scipy_test.py", "lax_scipy_special_functions_test.py")
SKLEARN_FILES = (
    "impute/tests/test_impute.py",
    "preprocessing/tests/test_data.py",
    "preprocessing/tests/test_encoders.py",
)
PACKAGES = {"sklearn": "scikit-learn"}


def test_files(suite, source):
    """The peer's test files; an empty list if they are not there."""
    if suite == "jax":
        found = [source / "tests" / name for name in JAX_FILES] if source else []
        return [path for path in found if path.exists()]
    if suite == "sklearn":
        base = pathlib.Path(importlib.util.find_spec("sklearn").origin).parent
        return [base / name for name in SKLEARN_FILES]
    base = source or pathlib.Path(importlib.util.find_spec("optax").origin).parents[1]
    return sorted((base / "optax" / "losses").glob("*_test.py"))


def run(suite, files, functions, only=()):
    """The record of one pass over the files, or over a few tests; see `_plugin`."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "record.json"
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PEERS_SUITE": suite,
            "PEERS_FUNCTIONS": functions,
            "PEERS_OUT": str(out),
            "PEERS_ONLY": json.dumps(list(only)),
        }
        command = [
            sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p",
            "tests.peers._plugin", "-p", "no:cacheprovider", "-p", "no:xdist",
            f"--rootdir={folder}", *map(str, files),
        ]  # fmt: skip
        done = subprocess.run(
            command,
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if not out.exists():
            raise SystemExit(
                f"peers: the tests did not run.\n{done.stdout}{done.stderr}"
            )
        return json.loads(out.read_text("utf-8"))


def judge(suite, files, record):
    """(passed, listed, surprising) names of the tests that call a function of ours.

    A test that stops before it calls one is surprising too, if it passes with theirs.
    """
    ours = {name: result for name, result in record.items() if result["called"]}
    passed = [name for name, result in ours.items() if result["outcome"] == "passed"]
    failed = [n for n, result in record.items() if result["outcome"] == "failed"]
    reasons = {name: reason_for(suite, name) for name in failed if name in ours}
    listed = {name: why for name, why in reasons.items() if why}
    surprising = [name for name in failed if name not in listed]
    if surprising:
        theirs = run(suite, files, "theirs", surprising)
        surprising = [n for n in surprising if theirs[n]["outcome"] == "passed"]
    return passed, listed, {name: record[name]["says"] for name in surprising}


def reason_for(suite, name):
    """Why a test may differ, or None."""
    for part, reason in DIFFERENCES[suite].items():
        if part in name:
            return reason
    return None


def show_declined(record):
    """Print how many tests stayed with the peer's function, and why."""
    tests = [result for result in record.values() if not result["called"]]
    said = [why for result in tests for why in result["declined"]]
    counts = collections.Counter(said).most_common()
    table = Table(Column("tests", justify="right"), Column("stay with theirs, because"))
    for why, count in counts:
        table.add_row(str(count), why)
    others = sum(not result["declined"] for result in tests)
    table.add_row(str(others), "they transform nothing with what is replaced")
    Console(width=120).print(table)


def report(suite, passed, listed, surprising, functions):
    """Print what passed and every difference; True if all is as stated."""
    version = importlib.metadata.version(PACKAGES.get(suite, suite))
    console = Console(width=120)
    total = len(passed) + len(listed) + len(surprising)
    console.print(
        f"{suite} {version}: {total} tests call {len(functions)} functions of ours; "
        f"{len(passed)} pass, {len(listed)} differ as stated, {len(surprising)} fail"
    )
    table = Table(Column("test", overflow="fold"), "why")
    for name, reason in sorted(listed.items()):
        table.add_row(escape(name), reason)
    for name, says in sorted(surprising.items()):
        table.add_row(f"[bold red]{escape(name)}", escape(says))
    if table.row_count:
        console.print(table)
    stale = [
        part for part in DIFFERENCES[suite] if not any(part in name for name in listed)
    ]
    for part in stale:
        console.print(f"no longer differs, delete its reason: {part}")
    return not surprising and not stale


def main(arguments=None):
    """Run the suites that are there; 0 if every difference is a stated one."""
    parser = argparse.ArgumentParser(prog="python -m tests.peers", description=__doc__)
    names = ("optax", "jax", "sklearn")
    parser.add_argument("--suite", choices=names, help="only this one")
    parser.add_argument("--source", type=pathlib.Path, help="a source checkout")
    options = parser.parse_args(arguments)
    fine = True
    for suite in [options.suite] if options.suite else names:
        files = test_files(suite, options.source)
        if not files:
            Console().print(f"{suite}: no tests here. Pass --source DIR, its checkout.")
            fine = fine and not options.suite
            continue
        record = run(suite, files, "ours")
        functions = {name for result in record.values() for name in result["called"]}
        fine &= report(suite, *judge(suite, files, record), functions)
        if any(result["declined"] for result in record.values()):
            show_declined(record)
    return 0 if fine else 1


if __name__ == "__main__":
    raise SystemExit(main())
