"""Bad batches on disk: which ones a run that starts again leaves out, and why.

A file is replaced as a whole, so that whoever reads it, or kills the writer, finds the
old one or the new one.

    noted by hand, or by a run without checkpoints  ---> settled: skipped from now on
    noted by a run with checkpoints -> tentative ------> settled, when the run halts or
                                                         a checkpoint lies behind it

A tentative entry is *tried* again by a run that resumes before it. It fails again, and
lowers the rate and counts again, so that the run that was killed goes on exactly as if
it had not been; skipping it would leave out what the rejection did to control state.
"""

import json
import os
from collections.abc import Iterator, MutableMapping
from typing import Any

from jaxsafe import _errors


class Ledger(MutableMapping[int, str]):
    """Bad batches, position -> reason, kept in a JSON file.

    Value:     a mapping like a dict; every change is on disk before the call returns.
               The file holds {"batches": {"12": "why"}, "tentative": [12]} and may be
               edited by hand. A directory that is missing is made.

    Args:
      path: the file; read if it is there. Several processes may write the same.

    Raises:
      ValueError: the file holds something else.
      TypeError: a position is no integer, or a reason no string.

    Example:
      >>> import pathlib, tempfile
      >>> from jaxsafe import guard
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "ledger.json"
      >>> guard.Ledger(path)[12] = "label out of range"
      >>> dict(guard.Ledger(path))
      {12: 'label out of range'}
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(os.fspath(path))
        self._reasons, self._tentative = _read(self.path)

    @property
    def tentative(self) -> frozenset[int]:
        """Positions that a run which resumes before them tries again."""
        return frozenset(self._tentative)

    def note(self, position: int, reason: str) -> None:
        """Add an entry that is tried again by a run that resumes before it."""
        self._set(position, reason)
        self._tentative.add(position)
        self._write()

    def settle(self, *, before: int | None = None) -> None:
        """Make the tentative entries before a position final; None for all."""
        left = {p for p in self._tentative if before is not None and p >= before}
        if left != self._tentative:
            self._tentative = left
            self._write()

    def __getitem__(self, position: int) -> str:
        return self._reasons[position]

    def __setitem__(self, position: int, reason: str) -> None:
        self._set(position, reason)
        self._tentative.discard(position)
        self._write()

    def __delitem__(self, position: int) -> None:
        del self._reasons[position]
        self._tentative.discard(position)
        self._write()

    def __iter__(self) -> Iterator[int]:
        return iter(self._reasons)

    def __len__(self) -> int:
        return len(self._reasons)

    def __repr__(self) -> str:
        return f"Ledger({self.path!r}, {self._reasons!r})"

    def _set(self, position: Any, reason: Any) -> None:
        _errors.check_count("Ledger", "a position", position, least=0)
        if not isinstance(reason, str):
            raise _errors.error(
                TypeError,
                "Ledger",
                "a reason must be a string",
                type(reason).__name__,
                "Say in words why the batch is bad.",
            )
        self._reasons[position] = reason

    def _write(self) -> None:
        batches = {str(position): why for position, why in self._reasons.items()}
        content = {"batches": batches, "tentative": sorted(self._tentative)}
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        # One name for each writer, so that no two write into the same file; and the
        # same one after a crash, so that what a crash left behind is used up.
        beside = f"{self.path}.{_process()}.tmp"
        with open(beside, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self.path)


def _process() -> int:
    import jax

    return jax.process_index()


def _read(path: str) -> tuple[dict[int, str], set[int]]:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        reasons = {int(position): why for position, why in content["batches"].items()}
        tentative = {int(position) for position in content.get("tentative", ())}
    except FileNotFoundError:
        return {}, set()
    except (ValueError, TypeError, KeyError, AttributeError) as wrong:
        raise _errors.error(
            ValueError,
            "Ledger",
            f"{path} is no ledger",
            wrong,
            'It must hold {"batches": {"12": "why"}}; repair it or move it away.',
        ) from wrong
    return reasons, tentative & reasons.keys()
