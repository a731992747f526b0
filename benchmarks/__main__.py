"""`python -m benchmarks`: run a suite, print its table, write it as Markdown."""

import argparse
import pathlib
import sys

from benchmarks import accuracy, diagnosis

SUITES = {"accuracy": accuracy.main, "diagnosis": diagnosis.main}


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; the exit status is 0 if every demand held."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--suite", choices=SUITES, default="accuracy")
    parser.add_argument("--only", nargs="+", default=[], help="parts of names")
    parser.add_argument("--quick", action="store_true", help="fewer arguments")
    parser.add_argument("--out", type=pathlib.Path, help="write the table here")
    options = parser.parse_args(arguments)
    return SUITES[options.suite](options)


if __name__ == "__main__":
    sys.exit(main())
