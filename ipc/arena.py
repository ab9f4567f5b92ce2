"""Owns which blocks of the arena are free. Lives in the writer alone: rebuilt from the index whenever it attaches."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from .layout import BLOCK

QUARANTINE = 64
"""Freed extents that are not reused yet: a reader that copies one while it is freed sees the old record, whole."""


class Arena:
    """Hands out extents of whole blocks between `start` and `end` (byte offsets)."""

    def __init__(self, start: int, end: int, taken: Iterable[tuple[int, int]] = ()) -> None:
        """`taken` lists (offset, blocks) in use; what lies between them is free."""
        self._end = end
        self._free: dict[int, list[int]] = {}
        self._quarantine: deque[tuple[int, int]] = deque()
        self._next = start
        for offset, blocks in sorted(taken):
            if offset > self._next:
                self._add_free(self._next, (offset - self._next) // BLOCK)
            self._next = offset + blocks * BLOCK

    @property
    def end_of_use(self) -> int:
        """The offset from which nothing was ever written."""
        return self._next

    def take(self, blocks: int) -> int | None:
        """Return the offset of a free extent of `blocks`; None where there is none without compaction."""
        if exact := self._free.get(blocks):
            return exact.pop()
        if self._next + blocks * BLOCK <= self._end:
            offset = self._next
            self._next += blocks * BLOCK
            return offset
        larger = min((size for size, offsets in self._free.items() if size > blocks and offsets), default=None)
        if larger is None:
            return None
        offset = self._free[larger].pop()
        self._add_free(offset + blocks * BLOCK, larger - blocks)
        return offset

    def give_back(self, offset: int, blocks: int) -> None:
        self._quarantine.append((offset, blocks))
        if len(self._quarantine) > QUARANTINE:
            self._add_free(*self._quarantine.popleft())

    def _add_free(self, offset: int, blocks: int) -> None:
        self._free.setdefault(blocks, []).append(offset)
