"""`python -m jaxsafe`: is this machine honest, and does a fault show again here."""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jaxsafe
from jaxsafe import diagnose, report
from jaxsafe._errors import error

_ABOUT = """\
NaN and Inf in JAX training: what this machine does to them, and whether a fault
of another machine shows again here.

  python -m jaxsafe selftest            what this backend makes of NaN, and of
                                        small and large numbers
  python -m jaxsafe replay fault.zip    run a fault that was saved by
                                        diagnose.save_bundle or guard.run

JAX_PLATFORMS=cpu, cuda or tpu chooses the backend.
"""
_SELFTEST = """\
Asks the default backend two dozen questions: what it does to NaN in max, min, sort
and relu, to subnormal numbers, to half precision and casts beyond the range, which
arithmetic it rewrites, how exact its matrix products are; and whether everything
works that jaxsafe relies on.

Exit code: 0, or 1 if something fails that jaxsafe relies on.
"""
_REPLAY = """\
Runs the program in a bundle on its inputs, on this machine, without the code it
came from, and says whether the fault shows again, whether the bits are the same,
what is different here, and what the diagnosis was. Nothing in the file is unpickled
or imported.

Exit code: 0 if the fault shows again; 1 if not, or if the program cannot be run
here; 2 if the file is no bundle.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.command is None:
        parser.print_help()
        return 0
    try:
        return int(options.run(options))
    except (ValueError, OSError, ImportError, AttributeError) as reason:
        sys.stderr.write(f"{reason}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m jaxsafe", description=_ABOUT, formatter_class=raw
    )
    parser.add_argument("--version", action="version", version=jaxsafe.__version__)
    commands = parser.add_subparsers(dest="command", title="commands")

    def command(name: str, run: Callable[[Any], int], short: str, long: str) -> Any:
        added = commands.add_parser(
            name, help=short, description=long, formatter_class=raw
        )
        added.add_argument("--json", action="store_true", help="print one JSON object")
        added.set_defaults(run=run)
        return added

    command("selftest", _selftest, "ask this backend what it does to NaN", _SELFTEST)
    replay = command("replay", _replay, "run a saved fault again", _REPLAY)
    replay.add_argument("file", help="the bundle, such as batch-000012.zip")
    replay.add_argument(
        "--function",
        metavar="MODULE:NAME",
        help="your function, if it can be imported here: it is diagnosed on the saved "
        "inputs, which names lines of the code as it is now",
    )
    return parser


def _selftest(options: Any) -> int:
    result = report.selftest()
    _print(result, options)
    return 0 if result.ok else 1


def _replay(options: Any) -> int:
    fn = _imported(options.function) if options.function else None
    result = diagnose.replay(options.file, fn=fn)
    _print(result, options)
    return 0 if result.reproduced else 1


def _print(record: Any, options: Any) -> None:
    if options.json:
        sys.stdout.write(record.to_json() + "\n")
    else:
        report.show(record)


def _imported(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    if not function:
        raise error(
            ValueError,
            "replay",
            "--function must have the form MODULE:NAME",
            name,
            "Write for example train:loss_fn.",
        )
    sys.path.insert(0, os.getcwd())
    found: Any = importlib.import_module(module)
    for part in function.split("."):
        found = getattr(found, part)
    return found


if __name__ == "__main__":
    sys.exit(main())
