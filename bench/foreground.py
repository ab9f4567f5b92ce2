"""Owns what runs beside the service in `bench governor`: a search process, a load that comes suddenly, naive background.

bench ──a line of JSON──▶ process of a session of its own ──a line of JSON──▶ bench      it ends with its stdin

Search and load are open loops: a request is due at its time whether the one before is done or not, and what it is late
by counts. A closed loop asks less often of a slow machine and so reports little of the slowness (coordinated omission).
"""

from __future__ import annotations

import gc
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROWS, SIZE, TOP = 10_000, 384, 10  # of the vectors searched: 15 MB, more than an L2 cache has
QUERIES = 64
GEMM = 256  # rows of a square matrix: half a MiB of two of them, a millisecond
UNIT_S = 0.0002  # CPU time of a piece of the load: 80 pieces in a slice of two CPUs at 80 %, so 95 % is four less
SLICE_S = 0.01
CALIBRATION = 200
START_S = 0.2  # from a command to what it starts: every process has it by then
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
NICE_0, NICE_19, IDLE = "nice 0", "nice 19", "SCHED_IDLE"
ROOT = Path(__file__).parents[1]


def schedule(rate_hz: float, seconds: float, seed: int) -> list[int]:
    """Return when requests are due, in ns from the start: `rate_hz` a second, each at a random time in its own period.

    Evenly spaced ones would keep step with the kernel's ticks and with the budget's period.
    """
    chance, period_ns = random.Random(seed), 1e9 / rate_hz
    return [int((i + chance.random()) * period_ns) for i in range(int(rate_hz * seconds))]


def corrected(due_ns: Sequence[int], ended_ns: Sequence[int]) -> list[int]:
    """Return each request's latency from the time it was due, not from when the process got round to it."""
    return [ended - due for due, ended in zip(due_ns, ended_ns, strict=True)]


def slices(ended_ns: Sequence[int], seconds: float) -> list[int]:
    """Return how many ended in each slice of SLICE_S from the start on."""
    counts = [0] * round(seconds / SLICE_S)
    for ended in ended_ns:
        if 0 <= (at := ended // int(SLICE_S * 1e9)) < len(counts):
            counts[at] += 1
    return counts


class Helper:
    """A process of this module in a session of its own, as a user's program is. Raises RuntimeError if it ends."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.foreground", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=os.environ | ONE_THREAD,
            start_new_session=True,
        )
        self.pid = self._process.pid

    def hear(self) -> Any:
        """Return what it says next."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"bench.foreground ended by itself: exit status {self._process.wait()}")
        return json.loads(line)

    def tell(self, **command: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """End it. What it forked ends with it."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


# --- in the process -----------------------------------------------------------------------------------------------------


def _say(answer: Any) -> None:
    print(json.dumps(answer), flush=True)


def _cost_s(action: Callable[[], object]) -> float:
    """Return the median CPU time of `action`: wall time would be that of others, too."""
    found = []
    for _ in range(CALIBRATION):
        began = time.process_time_ns()
        action()
        found.append(time.process_time_ns() - began)
    return statistics.median(found) / 1e9


def _open_loop(action: Callable[[], object], start_ns: int, due_ns: Sequence[int]) -> list[int]:
    """Do `action` for each time it is due; return when each was done, in ns from the start."""
    now, ended = time.monotonic_ns, []
    for due in due_ns:
        wait_ns = start_ns + due - now()
        if wait_ns > 0:
            time.sleep(wait_ns / 1e9)
        action()
        ended.append(now() - start_ns)
    return ended


def _serve(action: Callable[[], object], answer: Callable[[list[int], float], list[int]]) -> None:
    _say({"cost_s": _cost_s(action)})
    gc.disable()
    for line in sys.stdin:
        given = json.loads(line)
        due_ns = schedule(given["rate_hz"], given["seconds"], given["seed"])
        _say(answer(_open_loop(action, given["start_ns"], due_ns), given["seconds"]))
        gc.collect()


def _search() -> None:
    import numpy as np

    chance = np.random.default_rng(1)
    rows = chance.standard_normal((ROWS, SIZE), dtype=np.float32)
    queries = chance.standard_normal((QUERIES, SIZE), dtype=np.float32)
    turn = 0

    def search() -> None:
        nonlocal turn
        turn += 1
        scores = rows @ queries[turn % QUERIES]
        best = np.argpartition(scores, -TOP)[-TOP:]
        best[np.argsort(scores[best])]

    _serve(search, lambda ended, _: ended)


def _load() -> None:
    numbers = range(1000)
    for _ in range(CALIBRATION):
        sum(numbers)  # the interpreter has specialized it by then
    numbers = range(max(1, round(1000 * UNIT_S / _cost_s(lambda: sum(numbers)))))
    _serve(lambda: sum(numbers), slices)


def _burn(kind: str, processes: int) -> None:
    """Multiply matrices in so many processes at full speed until stdin ends."""
    import numpy as np

    if kind == NICE_19:
        os.nice(19)
    elif kind == IDLE:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    matrix = np.random.default_rng(2).standard_normal((GEMM, GEMM), dtype=np.float32)
    leader, pids = os.getpid(), []
    for _ in range(processes):
        if pid := os.fork():
            pids.append(pid)
            continue
        while os.getppid() == leader:  # it ends with the leader, however that ends
            matrix @ matrix
        os._exit(0)
    _say({"pids": pids})
    sys.stdin.read()


def main(arguments: Sequence[str]) -> None:
    match arguments:
        case ["search"]:
            _search()
        case ["load"]:
            _load()
        case ["burn", kind, processes]:
            _burn(kind, int(processes))
        case _:
            raise SystemExit(f"search, load, or burn KIND PROCESSES; not {arguments}")


if __name__ == "__main__":
    main(sys.argv[1:])
