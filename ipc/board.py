"""Owns the control words that supervisor and workers share: one row a worker, one writer a word.

    row r, 128 bytes   line 0 (supervisor writes): duty_permille | is_small | threads | 5 spare words
                       line 1 (worker r writes):   heartbeat_ns | cpu_ns | steps | paces | 4 spare

A message would wait in a busy worker's socket; a word is read between any two sub-batches at 40 ns. The rule for
changing the layout: change MAGIC with it.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path

from .errors import ResultStoreError

MAGIC = int.from_bytes(b"MGBOARD4", "little")
HEADER_WORDS = 16
ROW_WORDS = 16  # two cache lines: neither side's stores disturb the other's loads
DUTY, SMALL, THREADS, HEARTBEAT, CPU, STEPS, PACES = 0, 1, 2, 8, 9, 10, 11


@dataclass(frozen=True, slots=True)
class Beat:
    """What a worker last wrote. Its watch thread: monotonic time and CPU time of its process in ns.

    Its task thread: steps since it started, and signs of life within them, also while it waits for CPU budget.
    """

    at_ns: int
    cpu_ns: int
    steps: int
    paces: int = 0


class Board:
    """A mapping of the board. `create` in the supervisor, `attach` in a worker."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._map = memory
        self._words = memoryview(memory).cast("Q")

    @classmethod
    def create(cls, path: Path, rows: int) -> Board:
        """Make a new board of zeroes at `path`, in place of any earlier one (its workers are gone or going)."""
        size = 8 * (HEADER_WORDS + rows * ROW_WORDS)
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        fd = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)  # a full tmpfs answers here, not with SIGBUS at the first store
            board = cls(mmap.mmap(fd, size))
        finally:
            os.close(fd)
        board._words[1] = rows
        board._words[0] = MAGIC
        os.replace(fresh, path)
        return board

    @classmethod
    def attach(cls, path: Path) -> Board:
        """Map an existing board. Raises ResultStoreError if it is another layout."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            board = cls(mmap.mmap(fd, os.fstat(fd).st_size))
        finally:
            os.close(fd)
        if board._words[0] != MAGIC:
            board.close()
            raise ResultStoreError(f"{path} is not a board of this version: restart the service")
        return board

    def _base(self, row: int) -> int:
        return HEADER_WORDS + row * ROW_WORDS

    def set_duty(self, row: int, permille: int) -> None:
        """Grant the worker of `row` a share of one CPU, 1000 for all of it, more for several. The supervisor's word."""
        self._words[self._base(row) + DUTY] = permille

    def duty(self, row: int) -> int:
        return self._words[self._base(row) + DUTY]

    def set_small(self, row: int, is_small: bool) -> None:
        """Say whether the worker of `row` is to compute as little at once as can be: memory is short. The supervisor's."""
        self._words[self._base(row) + SMALL] = is_small

    def is_small(self, row: int) -> bool:
        return bool(self._words[self._base(row) + SMALL])

    def set_threads(self, row: int, count: int) -> None:
        """Say how many threads of the worker of `row` may compute at once. The supervisor's word."""
        self._words[self._base(row) + THREADS] = count

    def threads(self, row: int) -> int:
        """Return that; at least 1."""
        return max(self._words[self._base(row) + THREADS], 1)

    def beat(self, row: int, at_ns: int, cpu_ns: int) -> None:
        """Say that the process of `row` is alive. The worker's words."""
        base = self._base(row)
        self._words[base + CPU] = cpu_ns
        self._words[base + HEARTBEAT] = at_ns

    def count_step(self, row: int) -> None:
        self._words[self._base(row) + STEPS] += 1

    def count_pace(self, row: int) -> None:
        self._words[self._base(row) + PACES] += 1

    def read(self, row: int) -> Beat:
        base = self._base(row)
        words = self._words
        return Beat(words[base + HEARTBEAT], words[base + CPU], words[base + STEPS], words[base + PACES])

    def clear(self, row: int) -> None:
        """Forget a dead worker's words before its successor starts. Only while no worker has the row."""
        base = self._base(row)
        for word in (HEARTBEAT, CPU, STEPS, PACES):
            self._words[base + word] = 0

    def close(self) -> None:
        self._words.release()
        self._map.close()
