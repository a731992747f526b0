"""pytest plugin: puts our functions into a peer's modules, notes what every test did.

Loaded by `python -m tests.peers` in a process of its own. The record says which of our
functions a test called, so that tests of other things do not count.
"""

import functools
import importlib
import json
import os
import pathlib
import types

import pytest

# Peer module -> our room. Names are the same unless listed in RENAMED.
OPTAX = {
    f"optax.losses._{name}": "losses"
    for name in (
        "classification",
        "regression",
        "self_supervised",
        "segmentation",
        "ranking",
        "smoothing",
        "fenchel_young",
    )
}
JAX = {"jax.nn": "ops", "jax.scipy.special": "ops"}
MODULES = {"optax": OPTAX, "jax": JAX}
RENAMED = {"soft_sign": "softsign", "expit": "sigmoid", "log_sigmoid": "log_sigmoid"}

# Arguments that choose one of several implementations; ours is one, "xla".
CHOICES = ("implementation", "algorithm")

called: set[str] = set()
declined: set[str] = set()
record: dict[str, dict] = {}


def _noting(name, function, *, is_ours):
    @functools.wraps(function)
    def noted(*args, **kwargs):
        called.add(name)
        if is_ours:
            kwargs = {k: v for k, v in kwargs.items() if k not in CHOICES}
        return function(*args, **kwargs)

    return noted


def _replace(suite, ours):
    """Replace what both have; theirs stays where we re-export it."""
    for path, room in MODULES[suite].items():
        module = importlib.import_module(path)
        own = importlib.import_module(f"jaxsafe.{room}")
        for name in dir(module):
            their, our = (
                getattr(module, name),
                getattr(own, RENAMED.get(name, name), None),
            )
            plain = isinstance(our, types.FunctionType) or callable(our)
            if our is None or not plain or our is their or name.startswith("_"):
                continue
            chosen = our if ours else their
            setattr(module, name, _noting(name, chosen, is_ours=ours))


def pytest_configure():
    if os.environ["PEERS_SUITE"] == "sklearn":
        if os.environ["PEERS_FUNCTIONS"] == "ours":
            from tests.peers import _sklearn

            _sklearn.replace(called, declined)
        return
    _replace(os.environ["PEERS_SUITE"], os.environ["PEERS_FUNCTIONS"] == "ours")


def _key(item):
    return f"{item.path.name}::{item.nodeid.partition('::')[2]}"


def pytest_collection_modifyitems(items):
    only = set(json.loads(os.environ["PEERS_ONLY"]))
    if only:
        items[:] = [item for item in items if _key(item) in only]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    called.clear()
    declined.clear()
    try:
        return (yield)
    finally:
        record[_key(item)] = {
            "called": sorted(called),
            "declined": sorted(declined),
            "outcome": "passed",
            "says": "",
        }


def pytest_runtest_logreport(report):
    key = f"{pathlib.Path(report.location[0]).name}::{report.nodeid.partition('::')[2]}"
    if report.when == "call" and key in record and report.outcome != "passed":
        lines = str(report.longrepr).splitlines()
        says = next(
            (s for s in lines if s.startswith("E ")), lines[-1] if lines else ""
        )
        record[key].update(outcome=report.outcome, says=says.removeprefix("E").strip())


def pytest_sessionfinish():
    pathlib.Path(os.environ["PEERS_OUT"]).write_text(json.dumps(record), "utf-8")
