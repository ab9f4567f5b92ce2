"""Owns the counts of hits and lookups: one small file a reader, written by that reader alone, summed by the supervisor.

    words  0 magic | 1 pid | 2 start time of the pid | 3 lookups | 4 hits | 5 slots counted | 16... hits of each index slot

Readers stay read-only on the store itself. A row of a dead reader is added to the sum and removed.
"""

from __future__ import annotations

import itertools
import mmap
import os
from dataclasses import dataclass, field
from pathlib import Path

MAGIC = int.from_bytes(b"MGREADR1", "little")
W_MAGIC, W_PID, W_START, W_LOOKUPS, W_HITS, W_SLOTS = range(6)
W_OF_SLOT = 16


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
    """This process's row. Threads share it; `itertools.count` makes their counting exact without a lock."""

    _numbers = itertools.count()

    def __init__(self, folder: Path, slots: int) -> None:
        pid = os.getpid()
        self.path = folder / f"{pid}-{start_time(pid)}-{next(self._numbers)}"
        size = 8 * (W_OF_SLOT + slots)
        fd = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)
            self._map = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self._map.madvise(mmap.MADV_DONTFORK)
        self._words = memoryview(self._map).cast("Q")
        self.slots = slots
        self._words[W_PID], self._words[W_START], self._words[W_SLOTS] = pid, start_time(pid) or 0, slots
        self._words[W_MAGIC] = MAGIC
        self._lookups, self._hits = itertools.count(1), itertools.count(1)

    def lookup(self) -> None:
        self._words[W_LOOKUPS] = next(self._lookups)

    def hit(self, slot: int) -> None:
        self._words[W_HITS] = next(self._hits)
        if slot < self.slots:  # a store that grew since has more: those count in the total alone
            self._words[W_OF_SLOT + slot] += 1

    def close(self) -> None:
        """Let go of the row and leave its file: the supervisor folds it in once this process has ended."""
        self._words.release()
        self._map.close()


@dataclass(frozen=True, slots=True)
class CounterTotals:
    """`lookups` and `hits` since the fold began; `per_slot` hits since the last fold."""

    lookups: int
    hits: int
    per_slot: dict[int, int] = field(default_factory=dict)
    readers: int = 0


class CounterFold:
    """Sums the rows in `folder`. Never makes a reader wait."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._base_lookups = self._base_hits = 0
        self._seen: dict[str, tuple[int, dict[int, int]]] = {}  # file -> hits and hits of slots at the last fold

    def fold(self) -> CounterTotals:
        lookups = hits = readers = 0
        per_slot: dict[int, int] = {}
        for path in sorted(self._folder.iterdir()) if self._folder.is_dir() else []:
            # liveness first: what a reader counted before it was seen dead is in the row that is read after
            is_alive = _is_alive(path.name)
            row = _read(path)
            if row is None:
                continue
            row_lookups, row_hits, of_slot = row
            seen_hits, seen = self._seen.get(path.name, (0, {}))
            if row_hits != seen_hits:
                for slot, count in of_slot.items():
                    if fresh := count - seen.get(slot, 0):
                        per_slot[slot] = per_slot.get(slot, 0) + fresh
            if is_alive:
                readers += 1
                self._seen[path.name] = row_hits, of_slot
                lookups += row_lookups
                hits += row_hits
            else:
                self._base_lookups += row_lookups
                self._base_hits += row_hits
                self._seen.pop(path.name, None)
                path.unlink(missing_ok=True)
        return CounterTotals(self._base_lookups + lookups, self._base_hits + hits, per_slot, readers)


def _is_alive(name: str) -> bool:
    pid, started, _ = name.split("-")
    return str(start_time(int(pid))) == started


def _read(path: Path) -> tuple[int, int, dict[int, int]] | None:
    """Return lookups, hits and the slots' hits of a row; None for a file that is no row (yet)."""
    raw = path.read_bytes()
    if len(raw) < 8 * W_OF_SLOT:
        return None
    words = memoryview(raw).cast("Q")
    if words[W_MAGIC] != MAGIC:
        return None
    of_slot = {slot: count for slot, count in enumerate(words[W_OF_SLOT:]) if count}
    return words[W_LOOKUPS], words[W_HITS], of_slot
