"""Owns the command line of the chaos soak: `python -m bench.chaos --seed N --kills N --log FILE`.

Exit codes: 0 every promise was kept, 1 one was broken (the last lines say which, the seed and the last faults),
2 called wrongly.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from . import means, plan
from .soak import Soak

RARE = 40  # one of each other fault for so many kills
OTHERS = (
    "zygote",
    "stop_worker",
    "hang_worker",
    "stop_supervisor",
    "journal_full",
    "journal_io",
    "clock",
    "fuzz",
    "flood",
    "qdrant_down",
    "qdrant_slow",
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.chaos",
        description=(
            "Harm a real daemon under load, in an order that the seed decides: SIGKILL of workers, fork server and"
            " supervisor, SIGSTOP, full disk, I/O errors, a set clock, fuzz, floods, a Qdrant that is down or slow. After"
            " each fault see that nothing acknowledged is lost, no effect was done twice, nothing is left behind. Prints"
            " progress, then one RESULT line with everything counted."
        ),
    )
    parser.add_argument("--kills", type=int, default=1000, metavar="N", help="SIGKILLs of workers (1000)")
    parser.add_argument("--supervisors", type=int, metavar="N", help="SIGKILLs of the supervisor (as --kills)")
    parser.add_argument("--others", type=int, metavar="N", help=f"of each other fault (a {RARE}th of --kills)")
    parser.add_argument("--only", metavar="FAULT,...", help=f"of the other faults, only these: {', '.join(OTHERS)}")
    parser.add_argument("--minutes", type=float, default=600.0, metavar="M", help="end after about M minutes (600)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of order, moments and details (1)")
    parser.add_argument("--log", type=Path, metavar="FILE", help="write a line for each fault to FILE")
    parser.add_argument("--faketime", type=Path, metavar="FILE", help="libfaketime.so.1, where it is not Debian's")
    given = parser.parse_args(arguments)
    only = OTHERS if given.only is None else tuple(filter(None, given.only.split(",")))
    if strange := set(only) - set(OTHERS):
        parser.error(f"no fault {', '.join(sorted(strange))}: there are {', '.join(OTHERS)}")
    shm = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="mb-chaos-", dir=shm if os.access(shm, os.W_OK) else None))
    try:
        found = means.find(root, given.faketime)
        others = given.kills // RARE if given.others is None else given.others
        counts = {"worker": given.kills, "supervisor": given.kills if given.supervisors is None else given.supervisors}
        counts |= {fault: others for fault in only if fault not in found.missing}
        with open(given.log or os.devnull, "w", encoding="utf-8") as log:
            soak = Soak(root, found, given.seed, log, lambda line: print(line, flush=True))
            soak.run(plan.plan(given.seed, counts), time.monotonic() + 60 * given.minutes)
            summary = soak.summary()
            log.write(json.dumps(summary) + "\n")
    finally:
        means.remove(root)
    if soak.violation:
        print(f"VIOLATION with --seed {given.seed}: {soak.violation}", file=sys.stderr)
        print(f"the last faults were: {', '.join(summary['last_actions'])}", file=sys.stderr)
    print(f"RESULT {json.dumps(summary)}")
    return 1 if soak.violation else 0


if __name__ == "__main__":
    # an exception like any other, so that the daemon is ended
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
