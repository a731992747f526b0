"""The shape of the house: import order, public names, docstrings, light import."""

import ast
import importlib
import inspect
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import jaxsafe

ROOT = pathlib.Path(jaxsafe.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# A module may import from its own room and from rooms with a lower number.
RANKS = {
    "_errors": 0,
    "_machine": 0,
    "_floats": 0,
    "_pin": 0,
    "_causes": 0,
    "_text": 0,
    "_varying": 0,
    "_tree": 1,
    "_pieces": 0,
    "_gate": 2,
    "_catalog": 2,
    "ops": 3,
    "losses": 4,
    "layers": 4,
    "clean": 4,
    "transforms": 4,
    "_program": 5,
    "diagnose": 6,
    "guard": 7,
    "tune": 8,
    "report": 8,
    "testing": 8,
    "__main__": 9,
}
PUBLIC = [
    "clean",
    "diagnose",
    "guard",
    "layers",
    "losses",
    "ops",
    "report",
    "testing",
    "transforms",
    "tune",
]
ADAPTERS = [
    "clean.sklearn",
    "guard.nnx",
    "guard.linen",
    "layers.nnx",
    "layers.linen",
]
HEAVY = {
    "flax",
    "matplotlib",
    "rich",
    "orbax",
    "optuna",
    "pandas",
    "polars",
    "pyarrow",
    "sklearn",
    "mpmath",
}


def room(path):
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path, *, top_level_only=False):
    """Names of modules imported by a file, `from x import y` as both x and x.y."""
    tree = ast.parse(path.read_text("utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_room_has_its_place_in_the_order():
    rooms = {room(path) for path in FILES} - {"__init__"}
    assert rooms == set(RANKS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
class TestFile:
    def test_nothing_imports_upward(self, path):
        here = room(path)
        if here == "__init__":
            return
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "jaxsafe" and len(parts) > 1 and parts[1] in RANKS:
                there = parts[1]
                assert there == here or RANKS[there] < RANKS[here], name

    def test_nothing_imports_what_only_the_project_has(self, path):
        tops = {name.split(".")[0] for name in imports(path)}
        assert tops.isdisjoint({"tests", "benchmarks", "experiments"})

    def test_only_the_program_walker_touches_jax_internals(self, path):
        for name in imports(path):
            assert not name.startswith("jax._src"), name
            if name.startswith(("jax.extend", "jax.interpreters")):
                assert room(path) == "_program", name
        text = path.read_text("utf-8")
        assert "jax._src" not in text

    def test_heavy_libraries_are_imported_on_use(self, path):
        if f"{room(path)}.{path.stem}" in ADAPTERS:
            return
        tops = {name.split(".")[0] for name in imports(path, top_level_only=True)}
        assert tops.isdisjoint(HEAVY)

    def test_it_says_what_it_is_and_stays_short(self, path):
        text = path.read_text("utf-8")
        assert ast.get_docstring(ast.parse(text))
        assert len(text.splitlines()) <= 400


def test_modules_are_private_except_the_adapters():
    public = {
        module.name.removeprefix("jaxsafe.")
        for module in pkgutil.walk_packages([str(ROOT)], "jaxsafe.")
        if not any(part.startswith("_") for part in module.name.split("."))
    }
    assert public == {*PUBLIC, *ADAPTERS}


def constants_first(name):
    """The order that ruff keeps: constants, classes, functions."""
    return not name.isupper(), not name[0].isupper(), name


@pytest.mark.parametrize("name", ["", *PUBLIC, *ADAPTERS])
def test_all_is_what_is_defined(name):
    module = importlib.import_module(f"jaxsafe.{name}".rstrip("."))
    assert list(module.__all__) == sorted(module.__all__, key=constants_first)
    assert all(hasattr(module, public) for public in module.__all__)
    if name in ADAPTERS:  # a module of its own: what it defines, not what it imports
        defined = {
            public
            for public, value in vars(module).items()
            if not public.startswith("_")
            and getattr(value, "__module__", None) == module.__name__
            and (inspect.isfunction(value) or inspect.isclass(value))
        }
    else:
        defined = {
            public
            for public, value in vars(module).items()
            if not public.startswith("_")
            and (name == "" or not inspect.ismodule(value))
            and public != "importlib"
        }
    assert defined == set(module.__all__)


def public_objects():
    for name in ["", *PUBLIC, *ADAPTERS]:
        module = importlib.import_module(f"jaxsafe.{name}".rstrip("."))
        for public in module.__all__:
            value = getattr(module, public)
            if inspect.isfunction(value) or inspect.isclass(value):
                yield pytest.param(value, id=f"{name}.{public}".lstrip("."))


@pytest.mark.parametrize("value", list(public_objects()))
def test_every_public_name_has_a_docstring_with_a_doctest(value):
    # that they run is pytest's --doctest-modules
    assert ">>> " in (inspect.getdoc(value) or "")


def test_importing_jaxsafe_is_light():
    code = (
        "import sys, jaxsafe; "
        f"print(sorted({HEAVY!r} & {{m.split('.')[0] for m in sys.modules}}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_two_tables_agree_with_the_experiments():
    from experiments import __main__ as command
    from jaxsafe.diagnose import CAUSES

    assert {cause.experiment for cause in CAUSES.values()} <= set(command.NAMES)
    groups = {"input data", "learning rate", "activation", "loss"}
    assert {cause.group for cause in CAUSES.values()} == groups
