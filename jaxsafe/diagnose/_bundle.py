"""A fault in one file: program, inputs, what came out, machine, finding.

A bundle is a zip of `bundle.json`, the bytes of each array, and the program as
`jax.export` writes it. Nothing in it is pickled and nothing is imported when it is
read, so a bundle from somebody else can be opened; its program runs like any jax
program, and calls no Python.
"""

import dataclasses
import hashlib
import json
import linecache
import os
import zipfile
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxsafe import _machine, _program, _text
from jaxsafe._errors import error
from jaxsafe._program import RawArray
from jaxsafe.diagnose import _containers
from jaxsafe.diagnose._diagnose import first_nonfinite
from jaxsafe.diagnose._finding import Finding, from_plain

FORMAT = 1
_MANIFEST, _PROGRAM = "bundle.json", "program.bin"
_LINES_AROUND = 5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What one output held, without its numbers.

    Attributes:
      name: `result['loss']`.
      dtype: its dtype.
      shape: its shape.
      num_nan: how many entries are NaN.
      num_inf: how many are infinite.
      digest: of all bits, every NaN taken as the same one.

    >>> from jaxsafe import diagnose
    >>> made = {"name": "result", "dtype": "float32", "shape": (2,), "digest": ""}
    >>> diagnose.Output(**made, num_nan=1, num_inf=0).bad
    True
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_nan: int
    num_inf: int
    digest: str

    @property
    def bad(self) -> bool:
        """Whether anything in it is non-finite."""
        return self.num_nan + self.num_inf > 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What a bundle holds.

    Attributes:
      function: name of the function.
      versions: of Python and the packages that made it.
      settings: of jax and XLA, where they were not the default.
      devices: platform, kind and number.
      arguments: (args, kwargs) as JSON, or None if a container in it is unknown.
      leaves: for each leaf its name, and its array or value.
      arrays: the program's inputs, in order.
      outputs: what came out where it was saved.
      finding: the diagnosis, or None.
      lines: source lines around it: file, first line, text.
      program: bytes of the exported program, empty if it cannot be exported.
      note: why it cannot.
    """

    function: str
    versions: dict[str, str]
    settings: dict[str, str]
    devices: dict[str, str]
    arguments: Any
    leaves: list[dict[str, Any]]
    arrays: list[RawArray]
    outputs: tuple[Output, ...]
    finding: Finding | None
    lines: list[dict[str, Any]]
    program: bytes
    note: str


def save_bundle(
    path: str | os.PathLike[str],
    fn: Callable[..., Any],
    *args: Any,
    finding: Finding | None = None,
    **kwargs: Any,
) -> None:
    """Write a fault into one file that `python -m jaxsafe replay FILE` reproduces.

    In it: the program of `fn(*args, **kwargs)` for CPU, CUDA and TPU (without what it
    prints), all its inputs, which outputs were NaN or infinite, versions, platform and
    settings, the finding, and the source lines around it. So the one who gets it needs
    jaxsafe, but not your code; and sees your data.

    A function that calls back into Python cannot be exported: its bundle has no
    program, and says so.

    Args:
      path: the file; written beside and moved into place when it is complete.
      fn: the function, as for `first_nonfinite`.
      *args: its arguments: arrays of any dtype, numbers, random keys, in any pytree.
      finding: the diagnosis, if it is known; None finds it.
      **kwargs: its keyword arguments.

    Raises:
      TypeError: an argument is a tracer, or `fn` cannot be traced.
      ValueError: an argument was donated and is gone, or other processes hold parts
        of it.

    Example:
      >>> import os, tempfile
      >>> import jax.numpy as jnp
      >>> from jaxsafe import diagnose
      >>> path = os.path.join(tempfile.mkdtemp(), "fault.zip")
      >>> diagnose.save_bundle(path, lambda x: jnp.log(x).sum(), jnp.zeros(3))
      >>> diagnose.replay(path).outcome
      'again'
    """
    if finding is None:
        finding = first_nonfinite(fn, *args, **kwargs)
    traced = _program.trace("save_bundle", fn, args, kwargs)
    try:
        arrays = [_program.raw(value) for value in traced.values]
    except _program.NotPortable as reason:
        raise error(
            ValueError,
            "save_bundle",
            "an argument is not here as a whole",
            reason,
            "Gather it first, for example with jax.experimental.multihost_utils.",
        ) from reason
    program, note = b"", ""
    platforms: tuple[str, ...] = ()
    outputs: tuple[Output, ...] = ()
    try:
        program, platforms = _program.export(traced, arrays)
        results = _program.run_exported(program, arrays)
        outputs = described(traced.outputs, results)
    except _program.NotPortable as reason:
        note = str(reason)
    tree, leaves = _containers.flatten(args, kwargs, traced.positions)
    manifest = {
        "format": FORMAT,
        "function": getattr(fn, "__name__", type(fn).__name__),
        "versions": _machine.versions(),
        "settings": _machine.settings(),
        "devices": _machine.devices(),
        "arguments": tree,
        "leaves": leaves,
        "arrays": [_about(a) for a in arrays],
        "outputs": [dataclasses.asdict(o) for o in outputs],
        "finding": None if finding is None else _text.to_plain(finding),
        "lines": _lines(finding),
        "platforms": platforms,
        "note": note,
    }
    _write(path, manifest, program, arrays)


def described(names: list[str], results: list[np.ndarray]) -> tuple[Output, ...]:
    """What the outputs hold."""
    return tuple(_described(n, x) for n, x in zip(names, results, strict=True))


def _described(name: str, array: np.ndarray) -> Output:
    bits, nans, infs = array.tobytes(), 0, 0
    if jnp.issubdtype(array.dtype, jnp.inexact):
        wide = np.complex128 if np.iscomplexobj(array) else np.float64
        nan = np.isnan(array.astype(wide))
        infs = int(np.isinf(array.astype(wide))[~nan].sum())
        nans = int(nan.sum())
        if nans:  # one NaN has many bit patterns, and machines differ in which
            rest = np.where(nan, np.zeros((), array.dtype), array)
            bits = rest.tobytes() + nan.tobytes()
    return Output(
        name=name,
        dtype=str(array.dtype),
        shape=array.shape,
        num_nan=nans,
        num_inf=infs,
        digest=hashlib.sha256(bits).hexdigest(),
    )


def _about(array: RawArray) -> dict[str, Any]:
    data = array.data
    return {
        "dtype": str(data.dtype),
        "shape": list(data.shape),
        "generator": array.generator,
    }


def _lines(finding: Finding | None) -> list[dict[str, Any]]:
    """The text around the finding's line."""
    if finding is None or not finding.source:
        return []
    first = max(1, finding.line - _LINES_AROUND)
    numbers = range(first, finding.line + _LINES_AROUND + 1)
    text = "".join(linecache.getline(finding.file, n) for n in numbers)
    return [{"file": finding.file, "first": first, "text": text}]


def _write(
    path: str | os.PathLike[str],
    manifest: dict[str, Any],
    program: bytes,
    arrays: list[RawArray],
) -> None:
    path = os.fspath(path)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    partial = f"{path}.part"
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(_MANIFEST, json.dumps(manifest, allow_nan=False, indent=1))
        file.writestr(_PROGRAM, program)
        for i, array in enumerate(arrays):
            file.writestr(_array_file(i), array.data.tobytes())
    os.replace(partial, path)


def _array_file(number: int) -> str:
    return f"arrays/{number}.bin"


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read what `save_bundle` wrote; nothing is run.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no bundle, damaged, or of a later format.
    """
    try:
        with zipfile.ZipFile(path) as file:
            manifest = json.loads(file.read(_MANIFEST))
            if manifest["format"] > FORMAT:
                raise ValueError(f"format {manifest['format']}, known is {FORMAT}")
            arrays = [
                _array(file, _array_file(i), about)
                for i, about in enumerate(manifest["arrays"])
            ]
            return _assembled(manifest, arrays, file.read(_PROGRAM))
    except FileNotFoundError as reason:
        raise error(
            FileNotFoundError,
            "replay",
            "there is no such file",
            os.fspath(path),
            "Check the path.",
        ) from reason
    except Exception as reason:
        raise error(
            ValueError,
            "replay",
            "the file is no bundle of this version of jaxsafe, or damaged",
            f"{os.fspath(path)}: {type(reason).__name__}: {reason}",
            "Pass a file that jaxsafe.diagnose.save_bundle or guard.run has written.",
        ) from reason


def _array(file: zipfile.ZipFile, name: str, about: dict[str, Any]) -> RawArray:
    dtype, shape = jnp.dtype(about["dtype"]), tuple(about["shape"])
    if dtype.hasobject or file.getinfo(name).file_size != dtype.itemsize * int(
        np.prod(shape, dtype=object)
    ):
        raise ValueError(f"{name} is not {dtype}{list(shape)}")
    data = np.frombuffer(file.read(name), dtype).reshape(shape)
    return RawArray(data, about["generator"])


def _assembled(
    manifest: dict[str, Any], arrays: list[RawArray], program: bytes
) -> Bundle:
    outputs = [{**o, "shape": tuple(o["shape"])} for o in manifest["outputs"]]
    finding = manifest["finding"]
    plain = ("function", "versions", "settings", "devices", "arguments", "leaves")
    return Bundle(
        **{name: manifest[name] for name in (*plain, "lines", "note")},
        arrays=arrays,
        outputs=tuple(Output(**o) for o in outputs),
        finding=None if finding is None else from_plain(finding),
        program=program,
    )


def arguments(bundle: Bundle, *, home: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) as they were; `home` is the module of what was `__main__`.

    Raises:
      LookupError: they cannot be put together again; says what is unknown.
    """
    values = list(map(_program.from_raw, bundle.arrays))
    return _containers.unflatten(bundle.arguments, bundle.leaves, values, home)


def x64(bundle: Bundle) -> bool:
    """Whether it was saved with 64-bit numbers."""
    return bundle.settings.get("jax_enable_x64") == "True"
