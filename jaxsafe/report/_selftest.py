"""Is this machine honest: what its backend makes of NaN, of small and large numbers.

Two lists. What differs from the program is no fault of anybody; a user should know.
What jaxsafe relies on must hold, or nothing that jaxsafe says here is worth much.
"""

import dataclasses
import json
import textwrap
from collections.abc import Callable

from jaxsafe import _machine

_WIDTH = 76  # a frame of the terminal takes four columns


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question to the machine, and its answer.

    Attributes:
      name: what was asked.
      ok: the machine does what the program says, or what jaxsafe relies on.
      seen: what was seen.
      means: what that means for a user, if it is not ok.
      remedy: what jaxsafe does about it.
      relied_on: whether jaxsafe rests on it.

    >>> from jaxsafe import report
    >>> report.Check(name="NaN in sort", ok=True, seen="kept").relied_on
    False
    """

    name: str
    ok: bool
    seen: str
    means: str = ""
    remedy: str = ""
    relied_on: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Selftest:
    """What `selftest` found.

    Attributes:
      machine: platform, kind and number of devices.
      versions: (package, version).
      settings: (setting, value) of jax and XLA, those that differ from the default.
      checks: all answers.

    >>> from jaxsafe import report
    >>> check = report.Check(name="select", ok=False, seen="NaN", relied_on=True)
    >>> report.Selftest(machine="cpu", versions=(), settings=(), checks=(check,)).ok
    False
    """

    machine: str
    versions: tuple[tuple[str, str], ...]
    settings: tuple[tuple[str, str], ...]
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether everything holds that jaxsafe relies on."""
        return all(check.ok for check in self.checks if check.relied_on)

    def summary(self) -> str:
        """The answers as text of at most 76 columns."""
        relied_on = [c for c in self.checks if c.relied_on]
        facts = [c for c in self.checks if not c.relied_on]
        holding = sum(c.ok for c in relied_on)
        works = "jaxsafe works here" if self.ok else "jaxsafe does not work here"
        lines = [f"{works}: {holding} of {len(relied_on)} foundations hold"]
        about = [self.machine, *(f"{name} {v}" for name, v in self.versions)]
        lines += _wrap(", ".join(about))
        lines += [line for n, v in self.settings for line in _wrap(f"{n}={v}")]
        lines += _listed("Failing, although jaxsafe relies on it:", relied_on, ok=False)
        lines += _explained([c for c in facts if not c.ok])
        lines += _listed("As the program says:", facts, ok=True)
        lines += _listed("What jaxsafe relies on:", relied_on, ok=True)
        return "\n".join(lines)

    def to_json(self) -> str:
        """The answers as one JSON object."""
        plain = dataclasses.asdict(self)
        pairs = {name: dict(plain[name]) for name in ("versions", "settings")}
        return json.dumps({"ok": self.ok, **plain, **pairs})


def selftest() -> Selftest:
    """Ask the default backend what it does to NaN, Inf, and small and large numbers.

    Two dozen small programs are compiled and run on the first device: on CPU it takes
    a few seconds. The command `python -m jaxsafe selftest` prints the answer.

    Returns:
      A `Selftest`; its `ok` is False if something fails that jaxsafe relies on.

    Example:
      >>> from jaxsafe import report
      >>> result = report.selftest()
      >>> result.ok
      True
      >>> print(result.summary())
      jaxsafe works here: 8 of 8 foundations hold
      ...
    """
    from jaxsafe.report._backend import EXPERIMENTS
    from jaxsafe.report._reliance import RELIANCES

    facts = []
    for name, ask, means, remedy in EXPERIMENTS:
        ok, seen = _ask(ask)
        facts.append(Check(name=name, ok=ok, seen=seen, means=means, remedy=remedy))
    relied_on = []
    for name, ask in RELIANCES:
        ok, seen = _ask(ask)
        relied_on.append(Check(name=name, ok=ok, seen=seen, relied_on=True))
    return Selftest(
        machine=_describe(_machine.devices()),
        versions=tuple(_machine.versions().items()),
        settings=tuple(_machine.settings().items()),
        checks=(*facts, *relied_on),
    )


def _ask(ask: Callable[[], tuple[bool, str]]) -> tuple[bool, str]:
    # A backend that cannot even run a question has answered it.
    try:
        return ask()
    except Exception as reason:
        first_line = next(iter(str(reason).splitlines()), "")
        return False, f"not run: {type(reason).__name__}: {first_line}"


def _describe(machine: dict[str, str]) -> str:
    name, kind, count = machine["platform"], machine["device"], machine["devices"]
    of_kind = "" if kind == name else f" ({kind})"
    return f"{name}{of_kind}, {count} device{'s' * (count != '1')}"


def _explained(checks: list[Check]) -> list[str]:
    if not checks:
        return []
    lines = ["", "Not as the program says:"]
    for check in checks:
        lines += ["", f"  {check.name}"]
        for title, text in (
            ("seen", check.seen),
            ("for you", check.means),
            ("jaxsafe", check.remedy),
        ):
            lines += _wrap(text, title=title)
    return lines


def _listed(title: str, checks: list[Check], *, ok: bool) -> list[str]:
    chosen = [check for check in checks if check.ok is ok]
    lines = [line for c in chosen for line in _wrap(f"{c.name}: {c.seen}")]
    return ["", title, *lines] if lines else []


def _wrap(text: str, *, title: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"    {title:9}" if title else "  ",
        subsequent_indent=" " * 13 if title else "    ",
        break_on_hyphens=False,
    )
