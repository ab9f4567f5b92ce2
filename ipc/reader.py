"""Owns the reading side of the result store: no message, no lock, no write to it.

load the slot's word ─▶ same as when decoded last? hand that object out (0.3-0.5 us)
                      └▶ copy the record ─▶ load the word again, equal? ─▶ checksum, key, generation, expiry
"""

from __future__ import annotations

import mmap
import os
import time
import weakref
from pathlib import Path

from . import layout
from .counters import ReaderCounters
from .layout import BLOCK, read_head
from .query import key64, key_bytes
from .result import CachedResult

LOCAL_COPIES = 256  # decoded results kept by each process: about 4 MB
LOOK_S = 1.0  # how often a reader makes sure that its file is still the one at the path
RETRY_S = 0.01  # between attempts to open a file that is not there


class _Kept:
    """A decoded result and the words that tell whether it is still the store's."""

    __slots__ = ("expires_at", "generation", "generation_word", "pointer", "pointer_word", "result", "slot")

    def __init__(
        self, result: CachedResult, slot: int, pointer_word: int, pointer: int, generation_word: int, generation: int
    ) -> None:
        self.result, self.slot = result, slot
        self.pointer_word, self.pointer = pointer_word, pointer
        self.generation_word, self.generation = generation_word, generation
        self.expires_at = result.expires_at


class ResultReader:
    """Reads the store at `path`, also one that appears later or is replaced. Any number of processes and threads.

    With `counters_dir`, lookups and hits are counted there (counters.py). A missing or foreign file makes every lookup
    a miss, never an error: the application then searches as it would without us.
    """

    def __init__(self, path: Path, *, counters_dir: Path | None = None, local_copies: int = LOCAL_COPIES) -> None:
        self._path, self._counters_dir, self._local_copies = path, counters_dir, local_copies
        self._local: dict[tuple[str, str, str], _Kept] = {}
        self._map: mmap.mmap | None = None
        self._words: memoryview[int] = memoryview(bytes(layout.HEADER_BYTES)).cast("Q")
        self._inode = 0
        self._look_at = 0.0
        self._counters: ReaderCounters | None = None
        _readers.add(self)

    def get(self, text: str, collection: str, scope: str = "", now: float | None = None) -> CachedResult | None:
        """Return the precomputed result of a query, or None. `now` is Unix time, for tests; the clock's if not given."""
        at = time.time() if now is None else now
        if not self._look_at - LOOK_S <= at < self._look_at:  # also when the clock was set back
            self._look(at)
        counters = self._counters
        if counters is not None:
            counters.lookup()
        words = self._words
        kept = self._local.get((text, collection, scope))
        if (
            kept is not None
            and words[kept.pointer_word] == kept.pointer
            and words[kept.generation_word] == kept.generation
            and not words[layout.W_SUPERSEDED]
            and at < kept.expires_at
        ):
            if counters is not None:
                counters.hit(kept.slot)
            return kept.result
        if self._words[layout.W_SUPERSEDED]:
            self._look(at)
        found = self._find(text, collection, scope, at)
        if found is None:
            self._local.pop((text, collection, scope), None)
            return None
        if len(self._local) >= self._local_copies:
            self._local.pop(next(iter(self._local)), None)
        self._local[text, collection, scope] = found
        if self._counters is not None:
            self._counters.hit(found.slot)
        return found.result

    def _find(self, text: str, collection: str, scope: str, at: float) -> _Kept | None:
        memory, words = self._map, self._words
        if memory is None:
            return None
        key = key_bytes(text, collection, scope)
        wanted = key64(key)
        mask = words[layout.W_SLOTS] - 1
        slot = wanted & mask
        while (seen := words[layout.index_word(slot)]) != wanted:
            if seen == 0:
                return None
            slot = (slot + 1) & mask
        pointer_word = layout.index_word(slot) + 1
        while True:
            pointer = words[pointer_word]
            _, blocks, offset = layout.unpack_pointer(pointer)
            if not blocks:
                return None  # removed
            raw = memory[offset : offset + blocks * BLOCK]
            if words[pointer_word] == pointer:
                break  # else replaced while it was copied: the new one is there already
        head = read_head(raw, key)
        if head is None:
            return None
        generation_word = layout.W_GENERATIONS + 2 * head.pair + 1
        if words[generation_word] != head.generation or at >= head.expires_at:
            return None
        return _Kept(CachedResult(raw, head), slot, pointer_word, pointer, generation_word, head.generation)

    # --- the file -----------------------------------------------------------------------------------------------------

    def _look(self, at: float) -> None:
        """Make sure that the mapped file is the one at the path; a writer that died in between leaves no other sign."""
        self._look_at = at + (LOOK_S if self._map is not None else RETRY_S)
        try:
            inode = self._path.stat().st_ino
        except FileNotFoundError:
            if self._map is not None and self._words[layout.W_SUPERSEDED]:
                self._let_go()
            return
        if inode != self._inode:
            self._open()
            if self._map is not None:
                self._look_at = at + LOOK_S

    def _open(self) -> None:
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        try:
            found = os.fstat(fd)
            if found.st_size < layout.HEADER_BYTES:
                return
            # MAP_POPULATE: page faults here, once, instead of 0.4-3.4 us in the first lookup of each page
            memory = mmap.mmap(fd, found.st_size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        words = memoryview(memory).cast("Q")
        if words[layout.W_MAGIC] != layout.MAGIC or words[layout.W_VERSION] != layout.LAYOUT_VERSION:
            words.release()
            memory.close()
            return  # being made, or another program's
        self._local = {}
        self._map, self._words, self._inode = memory, words, found.st_ino
        self._open_counters()

    def _open_counters(self) -> None:
        if self._counters_dir is not None and self._counters is None and self._counters_dir.is_dir():
            self._counters = ReaderCounters(self._counters_dir, self._words[layout.W_SLOTS])

    def _let_go(self) -> None:
        # Another thread may be reading through the old view: it is left to the garbage collector, not closed under it.
        self._local = {}
        self._map, self._inode = None, 0
        self._words = memoryview(bytes(layout.HEADER_BYTES)).cast("Q")

    def close(self) -> None:
        self._let_go()
        if self._counters is not None:
            self._counters.close()
            self._counters = None

    def _after_fork(self) -> None:
        self._counters = None  # the parent's row is the parent's; it is not mapped here
        if self._map is not None:
            self._open_counters()


_readers: weakref.WeakSet[ResultReader] = weakref.WeakSet()


def _in_child() -> None:
    for reader in list(_readers):
        reader._after_fork()


os.register_at_fork(after_in_child=_in_child)
