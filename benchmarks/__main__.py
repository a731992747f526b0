"""`python -m benchmarks`: what each part of jaxsafe costs, and how right it is.

Without `--suite` all suites of times are run. `accuracy`, `diagnosis` (who
names which line), `diagnose` (what that costs) and `compile` measure
something else.
"""

import argparse
import importlib
import os
import pathlib
import sys

from benchmarks import _allocator

# Of times, in the order in which they are run.
TIMES = ("ops", "losses", "transforms", "guard", "clean")
OTHERS = ("accuracy", "diagnosis", "diagnose", "compile")


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; the exit status is 0 if every demand held."""
    options = _parser().parse_args(arguments)
    if options.device:
        os.environ["JAX_PLATFORMS"] = options.device
    if options.suite in OTHERS:
        module = options.suite.replace("-", "_")
        return importlib.import_module(f"benchmarks.{module}").main(options)
    if arguments is None:
        _allocator.settle("benchmarks", sys.argv[1:])
    suites = [options.suite] if options.suite else list(TIMES)
    return importlib.import_module("benchmarks._session").main(suites, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--suite", choices=(*TIMES, *OTHERS), help="one suite only")
    add(
        "--filter", "--only", nargs="+", default=[], dest="only", metavar="PART",
        help="cases whose name contains one of these parts",
    )  # fmt: skip
    add(
        "--contender", nargs="+", default=[], metavar="PART",
        help="beside the baseline only those whose name contains one of these parts",
    )  # fmt: skip
    add("--device", help="cpu, cuda or tpu; by default what jax finds")
    add("--quick", action="store_true", help="small cases, few rounds: a first look")
    add(
        "--seconds", type=float, default=5.0,
        help="how long to run each case, if its rounds are over before (default 5)",
    )  # fmt: skip
    add("--out", type=pathlib.Path, help="write the results here, as JSON")
    add(
        "--compare", type=pathlib.Path, metavar="JSON",
        help="tell what became slower since that run; the exit status is then 1",
    )  # fmt: skip
    add("--markdown", type=pathlib.Path, help="write the table here")
    add("--plot", type=pathlib.Path, metavar="FOLDER", help="write pictures here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
