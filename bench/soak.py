"""Owns the soak of the result store: SIGKILLs of its writer, and reads under a writer at full speed.

parent ──fork──▶ writer ──put, remove, invalidate; grows and compacts──▶ store ◀──get, every part touched── readers
       ◀──────────────── shared words: of each key the operation begun last, and acknowledged last ──────────────▶

Every part of a result carries the number of the operation that wrote it: a lookup that begins after operation `low` was
acknowledged and ends before one after `high` was begun may return what `low` to `high` wrote, whole, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from morgan.background.ipc.counters import CounterFold
from morgan.background.ipc.reader import ResultReader
from morgan.background.ipc.records import ComputedResult
from morgan.background.ipc.result import CachedResult
from morgan.background.ipc.store import ResultStore

KEYS = 16
CAPACITY = 32
COLLECTION = "docs"
TEXTS = tuple(f"Query {key}" for key in range(KEYS))
EXPIRES_AT = 4e9  # nothing expires
MAX_ACKS = 120  # of a writer before it is killed
MAX_SPIN = 3000  # turns of an empty loop, about 0.1 ms: the kill comes anywhere in an operation
KILLS_A_TURN, READS_A_TURN = 500, 500_000
SPREAD, LARGE, HUGE = 2_000, 10_000, 100_000  # characters of a row's text
STRETCH = 128  # operations in a row with huge texts, of every 8 times as many
HIGHEST = 1 << 24  # of the numbers: float32 holds no more of them


# --- what is written --------------------------------------------------------------------------------------------------


def drops_all(number: int) -> bool:
    return number % 251 == 7


def drops_one(number: int) -> bool:
    return number % 11 == 3


def is_drop(number: int, key: int) -> bool:
    return drops_all(number) or (drops_one(number) and number % KEYS == key)


def text_size(number: int) -> int:
    """Return the characters of an operation's first row: of all sizes, so that free blocks fit badly; some are large."""
    size = number * 7919 % SPREAD
    if number // STRETCH % 8 == 7:
        return HUGE + size  # 16 of them are more than the arena: it grows, and is small again later
    return LARGE + 20 * size if number % 7 == 0 else size


def written(number: int) -> ComputedResult:
    rows = np.full(3, number, "<f4").tobytes()
    return ComputedResult(
        query_text=TEXTS[number % KEYS],
        collection=COLLECTION,
        ids=(number, number + 1, number + 2),
        scores=rows,
        rerank_scores=rows,
        contents=(f"{number} ".ljust(text_size(number), "x"), str(number), str(number)),
        sources=(str(number),) * 3,
        metadata=({"n": number},) * 3,
        embedding=np.full(8, number, "<f4").tobytes(),
        candidates=(number,) * 5,
        computed_at=float(number),
    )


def number_of(result: CachedResult) -> int | None:
    """Return the operation that wrote a result; None if parts of it are of different ones."""
    numbers = {
        int(result.computed_at),
        result.ids[0],
        result.ids[2] - 2 if isinstance(result.ids[2], int) else None,
        int(result.scores[0]),
        int(result.rerank_scores[2]),
        int(result.embedding[7]),
        result.candidates[4],
        int(result.contents[0].split(" ", 1)[0]),
        int(result.contents[2]),
        int(result.sources[1]),
        result.metadata[2]["n"],
    }
    (found,) = numbers if len(numbers) == 1 and None not in numbers else (None,)
    return found if isinstance(found, int) else None


class Ledger:
    """Words shared with forked children: per key the operations begun and acknowledged last; whether to stop."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        words = memoryview(self._memory).cast("Q")
        self.begun, self.acknowledged, self.stop = words[:KEYS], words[KEYS : 2 * KEYS], words[2 * KEYS : 2 * KEYS + 1]
        self.absent = [0] * KEYS  # the operation up to which a key is rightly not there: its writer was killed in it

    def last(self) -> int:
        return max(self.begun)

    def verdict(self, key: int, low: int, result: CachedResult | None, high: int) -> str:
        """Return what a lookup between `low` and `high` was."""
        if result is None:
            is_due = low > self.absent[key] and not any(is_drop(number, key) for number in range(low, high + 1))
            return "missing" if is_due else "misses"
        number = number_of(result)
        if number is None:
            return "mixed"
        return "hits" if low <= number <= high and number % KEYS == key else "stale"


FAULTS = ("missing", "mixed", "stale")


def operate(store: ResultStore, ledger: Ledger, number: int) -> None:
    """Do an operation and acknowledge it."""
    keys = range(KEYS) if drops_all(number) else (number % KEYS,)
    for key in keys:
        ledger.begun[key] = number
    if drops_all(number):
        store.invalidate_collection(COLLECTION)
    elif drops_one(number):
        store.remove(TEXTS[number % KEYS], COLLECTION)
    else:
        store.put(written(number), expires_at=EXPIRES_AT)
    for key in keys:
        ledger.acknowledged[key] = number


def child(work: Callable[[], None]) -> int:
    """Fork a process that does `work` and nothing else; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


# --- kills ------------------------------------------------------------------------------------------------------------


def kill_writers(folder: Path, rounds: int, rng: random.Random, ledger: Ledger) -> Counter[str]:
    """Kill a writer `rounds` times at random moments; after each see that every acknowledged operation is there."""
    found: Counter[str] = Counter()
    path = folder / "killed"
    reader = ResultReader(path)
    for turn in range(rounds):
        found["operations"] += killed_writer(path, rng, ledger, is_compacting=turn % 4 == 3)
        found["kills"] += 1
        found["killed while compacting"] += path.with_name("killed.new").exists()
        for key in range(KEYS):  # what is left serves
            result = reader.get(TEXTS[key], COLLECTION)
            verdict = ledger.verdict(key, ledger.acknowledged[key], result, ledger.begun[key])
            found[f"served {verdict}" if verdict in FAULTS else verdict] += 1
        store = ResultStore(path, capacity=CAPACITY)
        found["rebuilt"] += store.rebuilt_because is not None
        for key in range(KEYS):
            result = store.get(TEXTS[key], COLLECTION)
            verdict = ledger.verdict(key, ledger.acknowledged[key], result, ledger.begun[key])
            if verdict in FAULTS:
                found[f"attached {verdict}"] += 1
            # what this writer finds is what counts from now on, whichever way the last operation ended
            if result is None:
                ledger.acknowledged[key] = ledger.absent[key] = ledger.begun[key]
            else:
                ledger.acknowledged[key] = number_of(result) or 0
        store.close()
    return found


def killed_writer(path: Path, rng: random.Random, ledger: Ledger, *, is_compacting: bool) -> int:
    """Run a writer and kill it, some operations on or (`is_compacting`) soon after it began a new file.

    Return how many operations it began.
    """
    hears, tells = os.pipe()
    first = ledger.last() + 1
    if is_compacting:
        first += (7 * STRETCH - first) % (8 * STRETCH)  # to where all are huge

    def write() -> None:
        os.close(hears)
        store = ResultStore(path, capacity=CAPACITY)
        for number in range(first, HIGHEST):
            operate(store, ledger, number)
            os.write(tells, b".")

    writer = child(write)
    os.close(tells)
    wanted = 1 if is_compacting else rng.randrange(MAX_ACKS)  # 0: it may be killed while it attaches
    while wanted and (heard := os.read(hears, wanted)):
        wanted -= len(heard)
    fresh = f"{path}.new"
    while is_compacting and not os.path.exists(fresh) and not os.waitpid(writer, os.WNOHANG)[0]:
        pass
    for _ in range(rng.randrange(40 * MAX_SPIN if is_compacting else MAX_SPIN)):
        pass
    os.kill(writer, signal.SIGKILL)
    _, status = os.waitpid(writer, 0)
    os.close(hears)
    if not os.WIFSIGNALED(status) or wanted:
        raise RuntimeError(f"the writer ended by itself, status {status}")
    return max(0, ledger.last() - first + 1)


# --- reads ------------------------------------------------------------------------------------------------------------


def read_under_writes(folder: Path, reads: int, readers: int, ledger: Ledger) -> Counter[str]:
    """Look up `reads` times in `readers` processes while a writer works at full speed; return what the lookups were."""
    path, counters = folder / "read", folder / "readers"
    counters.mkdir(exist_ok=True)
    ledger.stop[0] = 0
    fold = CounterFold(counters)
    first = ledger.last() + 1
    begun, first_ack = os.pipe()

    def write() -> None:
        store = ResultStore(path, capacity=CAPACITY)
        epochs, sizes = {store.epoch}, {path.stat().st_size}
        for number in range(first, HIGHEST):
            operate(store, ledger, number)
            if number == first:
                os.write(first_ack, b".")
            if store.epoch not in epochs:
                epochs.add(store.epoch)
                sizes.add(path.stat().st_size)
            if ledger.stop[0]:
                report = {"writes": number - first + 1, "compactions": len(epochs) - 1, "sizes": len(sizes)}
                (folder / "writer.json").write_text(json.dumps(report))
                break
        store.close()

    def read(index: int, count: int) -> None:
        reader = ResultReader(path, counters_dir=counters)
        found: Counter[str] = Counter()
        begun, acknowledged, verdict = ledger.begun, ledger.acknowledged, ledger.verdict
        for turn in range(count):
            key = turn // 3 % KEYS  # three in a row: from the file, kept, from the kept copy
            low = acknowledged[key]
            result = reader.get(TEXTS[key], COLLECTION)
            found[verdict(key, low, result, begun[key])] += 1
        reader.close()
        (folder / f"reader-{index}.json").write_text(json.dumps(found))

    writer = child(write)
    os.close(first_ack)
    os.read(begun, 1)
    os.close(begun)
    pids = [child(lambda index=index: read(index, reads // readers)) for index in range(readers)]  # type: ignore[misc]
    ended = [os.waitpid(pid, 0)[1] for pid in pids]
    ledger.stop[0] = 1
    ended.append(os.waitpid(writer, 0)[1])
    found: Counter[str] = Counter({"crashed": sum(status != 0 for status in ended)})
    for index in range(readers):
        if (report := folder / f"reader-{index}.json").exists():
            found.update(json.loads(report.read_bytes()))
            report.unlink()
    if (report := folder / "writer.json").exists():
        found.update(json.loads(report.read_bytes()))
        report.unlink()
    found["reads"] = found["hits"] + found["misses"] + sum(found[fault] for fault in FAULTS)
    found["miscounted"] = abs(fold.fold().lookups - found["reads"])
    return found


# --- the command ------------------------------------------------------------------------------------------------------

WRONG = {
    "kills": ("rebuilt", *(f"{when} {fault}" for when in ("served", "attached") for fault in FAULTS)),
    "reads": ("crashed", "miscounted", *FAULTS),
}


def soak_store(kills: int, reads: int, readers: int, seed: int, until: float, folder: Path) -> dict[str, Counter[str]]:
    """Kill and read by turns, until both numbers are reached or the monotonic time `until` is."""
    rng, began = random.Random(seed), time.monotonic()
    found = {"kills": Counter[str](), "reads": Counter[str]()}
    ledgers = {"kills": Ledger(), "reads": Ledger()}
    while time.monotonic() < until:
        kills_left, reads_left = kills - found["kills"]["kills"], reads - found["reads"]["reads"]
        if kills_left <= 0 and reads_left < readers:
            break
        if kills_left > 0:
            found["kills"].update(kill_writers(folder, min(KILLS_A_TURN, kills_left), rng, ledgers["kills"]))
        if reads_left >= readers:
            found["reads"].update(read_under_writes(folder, min(READS_A_TURN, reads_left), readers, ledgers["reads"]))
        print(
            f"{time.monotonic() - began:7.1f} s  {found['kills']['kills']} kills,"
            f" {found['reads']['reads']} reads, {wrong(found)} wrong",
            flush=True,
        )
    return found


def wrong(found: dict[str, Counter[str]]) -> int:
    return sum(found[phase][name] for phase, names in WRONG.items() for name in names)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 nothing was wrong, 1 something was, 2 called wrongly."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description="Run for long what tests run briefly.")
    commands = parser.add_subparsers(dest="command", required=True)
    store = commands.add_parser(
        "store",
        help="the result store: kill its writer, read under writes",
        description=(
            "Kill the result store's writer at random moments, also while it compacts and grows, and see that every"
            " acknowledged operation is there; look up in several processes while a writer works at full speed, and see"
            " that no result is torn, mixed, older than acknowledged or missing. Prints progress, then one RESULT line"
            " with everything counted. Exit code 1 if anything was wrong."
        ),
    )
    store.add_argument("--kills", type=int, default=10_000, metavar="N", help="SIGKILLs of the writer (10000)")
    store.add_argument("--reads", type=int, default=10_000_000, metavar="N", help="lookups in all (10000000)")
    store.add_argument("--readers", type=int, default=2, metavar="N", help="reader processes (2)")
    store.add_argument("--minutes", type=float, default=600.0, metavar="M", help="end after about M minutes (600)")
    store.add_argument("--seed", type=int, default=1, metavar="N", help="of the moments of the kills (1)")
    given = parser.parse_args(arguments)
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="morgan-soak-", dir=shm if os.access(shm, os.W_OK) else None))
    began = time.monotonic()
    try:
        until = began + 60 * given.minutes
        found = soak_store(given.kills, given.reads, given.readers, given.seed, until, folder)
    finally:
        shutil.rmtree(folder)
    summary = {
        "soak": "store",
        "seed": given.seed,
        "readers": given.readers,
        "seconds": round(time.monotonic() - began, 1),
        "wrong": wrong(found),
    }
    for phase, names in WRONG.items():
        summary[phase] = dict.fromkeys(names, 0) | found[phase]
    print(f"RESULT {json.dumps(summary)}")
    return 1 if wrong(found) else 0


if __name__ == "__main__":
    sys.exit(main())
