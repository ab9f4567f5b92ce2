"""Owns the command line of the benchmarks: `python -m bench list` and `python -m bench NAME [--quick] [--json FILE]`.

Exit codes: 0 it ran, whatever its goals say; 2 it was called wrongly; 1 (and a traceback) it broke.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from .cases import load
from .report import MissingInput, Noise, Options, show


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure, beside what a user would pick instead."
    )
    parser.add_argument("name", metavar="NAME", help="a benchmark's name, or `list`")
    parser.add_argument("--quick", action="store_true", help="at most 60 s: fewer rounds, less data")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the RESULT object to FILE as well")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where the data set is (benchmarks that need one)")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a trained cross-encoder (`rerank`)")
    given = parser.parse_args(arguments)
    cases = load()
    if given.name == "list":
        for name, case in sorted(cases.items()):
            print(f"{name:<12} {case.SUMMARY}")
        return 0
    if given.name not in cases:
        print(f"no benchmark {given.name!r}; there are: {', '.join(sorted(cases))}", file=sys.stderr)
        return 2
    noise = Noise.now()
    try:
        result = cases[given.name].run(Options(is_quick=given.quick, data=given.data, model=given.model))
    except MissingInput as missing:
        print(missing, file=sys.stderr)
        return 2
    show(result, noise, given.json)
    return 0


if __name__ == "__main__":
    # an exception like any other, so that the servers a benchmark started are stopped
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
