"""Owns the counts of hits and misses: one small file a reader, written by that reader alone, summed by the supervisor.

    words  0 magic | 1 pid | 2 start time of the pid | 3 misses | 4 dropped reports | 5 slots | 6 epoch of the store |
           7 closed | 16... response times of searches that were served, a count a bucket (durations.py) |
           136... hits of each index slot

Readers stay read-only on the store itself. A row that is closed, or whose process has ended, is added to the sum and
removed. A row counts the slots of one file of the store: it has that file's epoch.
"""

from __future__ import annotations

import itertools
import mmap
import os
import re
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from .durations import BUCKETS, bucket_of

MAGIC = int.from_bytes(b"MGREADR3", "little")
W_MAGIC, W_PID, W_START, W_MISSES, W_DROPPED, W_SLOTS, W_EPOCH, W_CLOSED = range(8)
W_OF_BUCKET = 16
W_OF_SLOT = W_OF_BUCKET + BUCKETS

_ROW_NAME = re.compile(r"(\d+)-(\d+)-\d+")  # pid, its start time, a number


def start_time(pid: int) -> int | None:
    """Return when a process started, in the kernel's ticks since boot; None if there is no such process.

    A pid alone is not a name: it is used again.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return int(stat.rpartition(b")")[2].split()[19])  # field 22; the name before may hold anything


class ReaderCounters:
    """This process's row for one file of the store. Raises OSError where it cannot be made."""

    _numbers = itertools.count()

    def __init__(self, folder: Path, slots: int, epoch: int) -> None:
        pid = os.getpid()
        self.path = folder / f"{pid}-{start_time(pid)}-{next(self._numbers)}"
        size = 8 * (W_OF_SLOT + slots)
        fd = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)
            memory = mmap.mmap(fd, size)
        except OSError:
            self.path.unlink()
            raise
        finally:
            os.close(fd)
        # Not MADV_DONTFORK: a child's first new mapping lands in the gap, and is unmapped when this one is forgotten.
        self._words = memoryview(memory).cast("Q")
        self.hits = self._words[W_OF_SLOT:]
        """Hits of each slot. Counted with one `itertools.count` a slot: exact over threads without a lock."""
        self._words[W_PID], self._words[W_START] = pid, start_time(pid) or 0
        self._words[W_SLOTS], self._words[W_EPOCH] = slots, epoch
        self._words[W_MAGIC] = MAGIC
        self._misses = itertools.count(1)
        self._timed = [itertools.count(1) for _ in range(BUCKETS)]

    def miss(self) -> None:
        self._words[W_MISSES] = next(self._misses)

    def timed(self, response_s: float) -> None:
        """Count how long a search took that was served."""
        bucket = bucket_of(response_s)
        self._words[W_OF_BUCKET + bucket] = next(self._timed[bucket])

    def set_dropped(self, count: int) -> None:
        self._words[W_DROPPED] = count

    def close(self) -> None:
        """Say that nothing more is counted. The views stay: another thread may be counting its last hit."""
        self._words[W_CLOSED] = 1


@dataclass(frozen=True, slots=True)
class CounterTotals:
    """`lookups`, `hits` and `dropped` since the fold began; since the last fold, `per_slot` the hits of one epoch's slots
    and `timed` the searches that were served by how long they took: bucket -> count.
    """

    lookups: int
    hits: int
    dropped: int = 0
    per_slot: dict[int, int] = field(default_factory=dict)
    readers: int = 0
    timed: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Row:
    misses: int
    hits: int
    dropped: int
    epoch: int
    is_closed: bool
    of_slot: dict[int, int]
    timed: dict[int, int] = field(default_factory=dict)

    def with_most(self, seen: _Row) -> _Row:
        """Return this row with no count below what was seen: a thread may store its number after a later one's."""
        of_slot, timed = _most(self.of_slot, seen.of_slot), _most(self.timed, seen.timed)
        misses, hits = max(self.misses, seen.misses), sum(of_slot.values())
        return replace(self, misses=misses, hits=hits, of_slot=of_slot, timed=timed)


def _most(now: dict[int, int], before: dict[int, int]) -> dict[int, int]:
    return now if now == before else before | {key: max(n, before.get(key, 0)) for key, n in now.items()}


def _add_fresh(sums: dict[int, int], now: dict[int, int], before: dict[int, int]) -> None:
    """Add to `sums` by how much counts have grown."""
    for key, count in now.items():
        if fresh := count - before.get(key, 0):
            sums[key] = sums.get(key, 0) + fresh


class CounterFold:
    """Sums the rows in `folder`. Never makes a reader wait."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._base = [0, 0, 0]  # misses, hits, dropped of the rows that are gone
        self._seen: dict[str, _Row] = {}  # file -> its row at the last fold

    def fold(self, epoch: int = 0) -> CounterTotals:
        """Return the sums; hits of slots are those of the store's file `epoch` alone."""
        sums, readers = list(self._base), 0
        per_slot: dict[int, int] = {}
        timed: dict[int, int] = {}
        for path in sorted(self._folder.iterdir()) if self._folder.is_dir() else []:
            if (name := _ROW_NAME.fullmatch(path.name)) is None:
                continue  # not ours: left alone
            # liveness first: what a reader counted before it was seen dead is in the row that is read after
            is_alive = str(start_time(int(name[1]))) == name[2]
            row = _read(path)
            if row is None:
                if not is_alive and path.is_file():  # killed while it made its row: it had counted nothing
                    path.unlink(missing_ok=True)
                continue
            seen = self._seen.get(path.name)
            if seen is not None:
                row = row.with_most(seen)
            if row.epoch == epoch and (seen is None or row.hits != seen.hits):
                _add_fresh(per_slot, row.of_slot, seen.of_slot if seen else {})
            _add_fresh(timed, row.timed, seen.timed if seen else {})
            counts = row.misses, row.hits, row.dropped
            sums = [total + count for total, count in zip(sums, counts, strict=True)]
            if is_alive and not row.is_closed:
                readers += 1
                self._seen[path.name] = row
            else:
                self._base = [total + count for total, count in zip(self._base, counts, strict=True)]
                self._seen.pop(path.name, None)
                path.unlink(missing_ok=True)
        misses, hits, dropped = sums
        return CounterTotals(misses + hits, hits, dropped, per_slot, readers, timed)


def _read(path: Path) -> _Row | None:
    """Return a row; None for a file that is no row (yet)."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return None
        raw = path.read_bytes()
    except FileNotFoundError:
        return None  # its reader found no room for it
    if len(raw) < 8 * W_OF_SLOT or len(raw) % 8:
        return None
    words = memoryview(raw).cast("Q")
    if words[W_MAGIC] != MAGIC:
        return None
    counts = np.frombuffer(raw, dtype="<u8", offset=8 * W_OF_BUCKET)  # 4,096 slots: 10 us; 150 us without numpy
    of_slot = _counted(counts[BUCKETS:])
    return _Row(
        misses=words[W_MISSES],
        hits=sum(of_slot.values()),
        dropped=words[W_DROPPED],
        epoch=words[W_EPOCH],
        is_closed=bool(words[W_CLOSED]),
        of_slot=of_slot,
        timed=_counted(counts[:BUCKETS]),
    )


def _counted(counts: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> dict[int, int]:
    """Return index -> count of those that are not 0."""
    places = counts.nonzero()[0]
    return dict(zip(places.tolist(), counts[places].tolist(), strict=True))
