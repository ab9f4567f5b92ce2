"""Owns the process: `python -m bench.fake_qdrant` prints two ports and serves until its stdin is closed.

The first port has the faults and the calls that ask for them. The second is a door beside it where none strikes: for whoever
plays the application, or looks at what came of it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from .forwarder import Forwarder
from .front import Desk, Front


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fake_qdrant", description=__doc__)
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keep the collections here (else until it ends)")
    parser.add_argument("--api-key", default="", metavar="KEY", help="refuse calls without it")
    parser.add_argument(
        "--version", default="", metavar="X.Y.Z", help="say so when asked; it does as 1.19 all the same"
    )
    parser.add_argument("--forward", metavar="URL", help="put the faults before the Qdrant server at URL instead")
    given = parser.parse_args()
    with ExitStack() as stack:
        if given.forward:
            answer = Forwarder(given.forward).answer
        else:
            from .engine import Engine
            from .routes import VERSION, Routes

            shm = Path("/dev/shm")
            folder = given.folder or stack.enter_context(
                tempfile.TemporaryDirectory(
                    prefix=f"fake-qdrant-{os.getpid()}-", dir=shm if os.access(shm, os.W_OK) else None
                )
            )
            engine = Engine(Path(folder))
            stack.callback(engine.close)
            answer = Routes(engine, given.api_key, given.version or VERSION).answer
        doors = [Front(answer, Desk()), Front(answer, None)]
        print(*(door.port for door in doors), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that nothing is left in /dev/shm
    main()
