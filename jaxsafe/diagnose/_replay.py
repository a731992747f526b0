"""Does a fault from a bundle show again on this machine, and what differs here."""

import dataclasses
import json
import os
from collections.abc import Callable
from typing import Any

import jax

from jaxsafe import _machine, _program, _text
from jaxsafe._errors import error
from jaxsafe.diagnose import _bundle
from jaxsafe.diagnose._bundle import Bundle, Output
from jaxsafe.diagnose._diagnose import first_nonfinite
from jaxsafe.diagnose._finding import Finding

_WIDTH = 76
_HEADLINES = {
    "again": "The fault shows again here",
    "in part": "Part of the fault shows again here",
    "gone": "The fault does not show here",
    "finite": "Nothing was non-finite, then and now",
    "not run": "The program was not run here",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What came out when a bundle was run again.

    Attributes:
      path: the bundle.
      function: name of the function.
      outcome: "again" (the same outputs are non-finite), "in part" (some of them),
        "gone" (none of them), "finite" (none was and none is) or "not run".
      bitwise: whether all outputs have the same bits; None if it was not run.
      note: why it was not run.
      then: the outputs where it was saved.
      now: the outputs here.
      differences: (what, then, now) of versions, devices and settings.
      finding: the diagnosis that was saved, or None.
      lines: source lines around it, as they were then.
      finding_here: the diagnosis of the function that was handed in, or None.

    >>> from jaxsafe import diagnose
    >>> diagnose.Replay(path="a.zip", function="f", outcome="gone", bitwise=False)
    Replay('a.zip', 'f', 'gone', bitwise=False)
    """

    path: str
    function: str
    outcome: str
    bitwise: bool | None
    note: str = ""
    then: tuple[Output, ...] = ()
    now: tuple[Output, ...] = ()
    differences: tuple[tuple[str, str, str], ...] = ()
    finding: Finding | None = None
    lines: str = ""
    finding_here: Finding | None = None

    @property
    def reproduced(self) -> bool:
        """Whether the fault shows again, all of it or in part."""
        return self.outcome in ("again", "in part")

    def summary(self) -> str:
        """The outcome as text of at most 80 columns."""
        lines = [_headline(self), f"  {self.path}: {self.function}"]
        lines += _text.wrap(self.note, width=_WIDTH) if self.note else []
        for then, now in zip(self.then, self.now or self.then, strict=True):
            if then.bad or now.bad:
                lines += _text.wrap(
                    _compared(then, now if self.now else None), width=_WIDTH
                )
        if self.differences:
            lines += ["Different here:"]
            for what, then_value, now_value in self.differences:
                lines += _text.wrap(
                    f"{what}: {then_value} then, {now_value} here", width=_WIDTH
                )
        if self.finding is not None:
            lines += ["The finding, as it was saved:"]
            lines += _indented(self.finding.summary())
        if self.lines:
            lines += ["The lines, as they were:", *_indented(self.lines)]
        here = self.finding_here
        if here is not None and self.finding is not None:
            same = here.to_json() == self.finding.to_json()
            lines += ["The code here gives the same finding."] if same else []
            here = None if same else here
        if here is not None:
            lines += ["The finding here, from the code:", *_indented(here.summary())]
        return "\n".join(lines)

    def to_json(self) -> str:
        """The outcome as one JSON object."""
        plain = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self)
        }
        for name in ("finding", "finding_here"):
            plain[name] = plain[name] and _text.to_plain(plain[name])
        for name in ("then", "now"):
            plain[name] = [dataclasses.asdict(output) for output in plain[name]]
        return json.dumps({"reproduced": self.reproduced, **plain}, allow_nan=False)

    def __repr__(self) -> str:
        what = f"{self.path!r}, {self.function!r}, {self.outcome!r}"
        return f"Replay({what}, bitwise={self.bitwise})"


def replay(
    path: str | os.PathLike[str], *, fn: Callable[..., Any] | None = None
) -> Replay:
    """Run a bundle of `save_bundle` on this machine and compare.

    Nothing is imported and nothing unpickled; the program needs no code of its author.

    Args:
      path: the file.
      fn: the function itself, if it is at hand: it is diagnosed on the inputs of the
        bundle, which gives lines of the code as it is here. None leaves it out.

    Returns:
      A `Replay`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no bundle, or damaged; or `fn` is given, and the arguments hold
        containers that are not known here.

    Example:
      >>> import os, tempfile
      >>> import jax.numpy as jnp
      >>> from jaxsafe import diagnose
      >>> path = os.path.join(tempfile.mkdtemp(), "fault.zip")
      >>> diagnose.save_bundle(path, jnp.log, jnp.array([0.0, 1.0]))
      >>> result = diagnose.replay(path)
      >>> result.outcome, result.bitwise, result.finding.primitive
      ('again', True, 'log')
    """
    bundle = _bundle.read_bundle(path)
    now: tuple[Output, ...] | None = None
    note, here = bundle.note, None
    with jax.enable_x64(_bundle.x64(bundle)):
        if bundle.program:
            try:
                results = _program.run_exported(bundle.program, bundle.arrays)
            except _program.NotPortable as reason:
                note = str(reason)
            else:
                names = [output.name for output in bundle.outputs]
                now = _bundle.described(names, results)
        if fn is not None:
            args, kwargs = _arguments(bundle, fn)
            here = first_nonfinite(fn, *args, **kwargs)
    return Replay(
        path=os.fspath(path),
        function=bundle.function,
        outcome=_outcome(bundle.outputs, now),
        bitwise=None if now is None else now == bundle.outputs,
        note=note,
        then=bundle.outputs,
        now=now or (),
        differences=_differences(bundle),
        finding=bundle.finding,
        lines=_numbered(bundle),
        finding_here=here,
    )


def _arguments(
    bundle: Bundle, fn: Callable[..., Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    try:
        return _bundle.arguments(bundle, home=getattr(fn, "__module__", "__main__"))
    except LookupError as reason:
        raise error(
            ValueError,
            "replay",
            "the arguments of fn cannot be put together again",
            reason,
            "Leave out fn: the program in the bundle runs without it. Dictionaries, "
            "lists, tuples and named tuples of imported modules can be rebuilt.",
        ) from reason


def _outcome(then: tuple[Output, ...], now: tuple[Output, ...] | None) -> str:
    if now is None:
        return "not run"
    bad_then = {output.name for output in then if output.bad}
    bad_now = {output.name for output in now if output.bad}
    if bad_then == bad_now:
        return "again" if bad_then else "finite"
    return "in part" if bad_then & bad_now else "gone"


def _differences(bundle: Bundle) -> tuple[tuple[str, str, str], ...]:
    then = {**bundle.devices, **bundle.versions, **bundle.settings}
    now = {**_machine.devices(), **_machine.versions(), **_machine.settings()}
    names = [*then, *(name for name in now if name not in then)]
    return tuple(
        (name, then.get(name, "default"), now.get(name, "default"))
        for name in names
        if then.get(name) != now.get(name)
    )


def _numbered(bundle: Bundle) -> str:
    lines = []
    for part in bundle.lines:
        for number, text in enumerate(part["text"].splitlines(), part["first"]):
            mark = ">" if bundle.finding and number == bundle.finding.line else " "
            lines.append(f"{mark}{number:5} {text}"[:_WIDTH])
    return "\n".join(lines)


def _headline(result: Replay) -> str:
    headline = _HEADLINES[result.outcome]
    if result.bitwise is None:
        return headline
    return f"{headline}, {'the same bits' if result.bitwise else 'other bits'}"


def _compared(then: Output, now: Output | None) -> str:
    text = f"{then.name}: {then.dtype}{list(then.shape)}, {_counts(then)}"
    if now is None:
        return text
    if now == then:
        return f"{text}, the same here"
    return f"{text}; here {_counts(now)}"


def _counts(output: Output) -> str:
    return f"{output.num_nan} NaN, {output.num_inf} Inf"


def _indented(text: str) -> list[str]:
    return [f"  {line}".rstrip() for line in text.splitlines()]
