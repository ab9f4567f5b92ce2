"""Owns the reading side of the result store: no message, no lock, no write to it.

kept copy, and its slot's pointer still stands? ─▶ hand it out (0.3 us)
else copy the record ─▶ load the pointer again, equal? ─▶ checksum, key, generation, expiry ─▶ keep it, hand it out
"""

from __future__ import annotations

import itertools
import mmap
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from xxhash import xxh3_64_intdigest as digest

from . import layout
from .counters import ReaderCounters
from .layout import FIXED, OFFSET_MASK
from .query import key64, key_bytes
from .result import CachedResult, LazyResult, ReadyResult

LOCAL_COPIES = 256  # decoded results kept by each process: about 4 MB
LOOK_S = 1.0  # how often a reader makes sure that its file is still the one at the path
RETRY_S = 0.01  # between attempts to open a file that is not there
MAX_RETRIES = 1000  # copies of one record that was replaced meanwhile; a sane writer makes one or two necessary

MEMOS = 4096  # raw queries whose slot is remembered, so that they are normalised once: about 1.5 MB

_unpack = layout.FIRST.unpack_from
_FIRST_POINTER = layout.index_word(0) + 1
_FIRST_GENERATION = layout.generation_word(0)
_TRIES = range(MAX_RETRIES)

Kept = tuple[CachedResult, "memoryview[int]", int, int, "memoryview[int]", int, Callable[[], int], str, str]
"""A decoded result; the words, which of them is its pointer, and that pointer; its hits' words, which of them, the next;
collection and scope."""


class ResultReader:
    """Reads the store at `path`, also one that appears later or is replaced. Any number of processes and threads.

    With `counters_dir`, lookups and hits are counted there (counters.py). A missing, foreign or unreadable file makes
    every lookup a miss, never an error: the application then searches as it would without us. `problem` says why.
    """

    def __init__(self, path: Path, *, counters_dir: Path | None = None, local_copies: int = LOCAL_COPIES) -> None:
        self._path, self._counters_dir, self._local_copies = path, counters_dir, local_copies
        self.problem: str | None = None
        self._file: _File | None = None
        self._local: dict[str, Kept] = {}  # by raw text: a text that is asked of two collections by turns takes turns
        self._once: dict[str, int] = {}  # raw text -> pointer: read once since the entry was written
        self._look_at = 0.0
        _readers.add(self)

    def get(self, text: str, collection: str, scope: str = "") -> CachedResult | None:
        """Return the precomputed result of a query, or None."""
        kept = self._local.get(text)
        if kept is not None:
            result, words, word, pointer, hits, slot, count, its_collection, its_scope = kept
            if (
                words[word] == pointer
                and collection == its_collection
                and scope == its_scope
                and monotonic() < self._look_at
            ):
                hits[slot] = count()
                return result
        return self._get(text, collection, scope)

    def _get(self, text: str, collection: str, scope: str) -> CachedResult | None:
        """Read from the file. A result is kept when it is read for the second time: most are read only once."""
        at, file = time.time(), self._file
        if monotonic() >= self._look_at or (file is not None and file.words[layout.W_SUPERSEDED]):
            self._look(at)
            file = self._file
        if file is None:
            return None
        found = file.find(text, collection, scope, at)
        if found is None:
            self._local.pop(text, None)
            file.count_miss()
            return None
        result, slot, pointer = found
        count = file.count_of.get(slot) or file.counting(slot)
        file.hits[slot] = count()
        if self._once.get(text) != pointer:
            if len(self._once) >= self._local_copies:
                self._once.clear()
            self._once[text] = pointer
        elif not file.words[layout.W_SUPERSEDED]:
            result = ReadyResult(result)
            word = layout.index_word(slot) + 1
            self._keep(text, (result, file.words, word, pointer, file.hits, slot, count, collection, scope), at)
        return result

    def _keep(self, text: str, kept: Kept, at: float) -> None:
        local = self._local
        if len(local) >= self._local_copies:
            local.pop(next(iter(local), text), None)
        local[text] = kept
        expires_at = kept[0].expires_at
        if expires_at - at < LOOK_S:
            self._look_at = min(self._look_at, monotonic() + expires_at - at)

    def get_at(self, text: str, collection: str, scope: str, now: float) -> CachedResult | None:
        """Return what `get` would at the Unix time `now`; neither counted nor kept."""
        self._look(now)
        found = None if self._file is None else self._file.find(text, collection, scope, now)
        return None if found is None else found[0]

    def use_of(self, result: CachedResult) -> tuple[int, float | None]:
        """Return how often readers of all processes were handed a result, and when last (Unix time; None: never).

        What other processes read in the last seconds is not in it yet.
        """
        return (0, None) if self._file is None else self._file.use_of(result)

    # --- the file -----------------------------------------------------------------------------------------------------

    def _look(self, at: float) -> None:
        """See that the mapped file is the one at the path, and drop what has expired.

        A writer that died between replacing the file and marking the old one leaves no other sign.
        """
        self._look_at = monotonic() + (LOOK_S if self._file is not None else RETRY_S)
        try:
            found = self._path.stat()
        except OSError as error:
            self.problem = f"{self._path}: {error.strerror}"
            if self._file is not None and self._file.words[layout.W_SUPERSEDED]:
                self._let_go()
            return
        if self._file is None or self._file.identity != (found.st_ino, found.st_size):
            self._open()
        for key, kept in list(self._local.items()):
            if kept[0].expires_at <= at:
                self._local.pop(key, None)
            else:
                self._look_at = min(self._look_at, monotonic() + kept[0].expires_at - at)

    def _open(self) -> None:
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            self.problem = f"{self._path}: {error.strerror}"
            return
        try:
            found = os.fstat(fd)
            if found.st_size < layout.HEADER_BYTES or found.st_size % 8:
                self.problem = f"{self._path} is no result store: {found.st_size} bytes"
                return
            # MAP_POPULATE: page faults here, once, instead of 0.4-3.4 us in the first lookup of each page
            memory = mmap.mmap(fd, found.st_size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        words = memoryview(memory).cast("Q")
        slots = words[layout.W_SLOTS]
        is_ours = words[layout.W_MAGIC] == layout.MAGIC and words[layout.W_VERSION] == layout.LAYOUT_VERSION
        if not is_ours or not slots or slots & (slots - 1) or layout.arena_start(slots) > found.st_size:
            self.problem = f"{self._path} is being made, or is not a result store of layout {layout.LAYOUT_VERSION}"
            return
        self._let_go()
        self.problem = None
        self._file = _File(memory, words, (found.st_ino, found.st_size), self._open_counters(words))
        self._look_at = monotonic() + LOOK_S

    def _open_counters(self, words: memoryview[int]) -> ReaderCounters | None:
        if self._counters_dir is None:
            return None
        try:
            return ReaderCounters(self._counters_dir, words[layout.W_SLOTS], words[layout.W_EPOCH])
        except OSError as error:  # another user's reader may be allowed to read the results and not to count
            self.problem = f"lookups are not counted: {error}"
            return None

    def _let_go(self) -> None:
        # Another thread may be reading through the old view: it is left to the garbage collector, not closed under it.
        file, self._file, self._local, self._once = self._file, None, {}, {}
        if file is not None and file.counters is not None:
            file.counters.close()

    def count_dropped(self, count: int) -> None:
        """Report how many searches of this process could not be counted so far."""
        if self._file is not None and self._file.counters is not None:
            self._file.counters.set_dropped(count)

    def close(self) -> None:
        self._let_go()

    def _after_fork(self) -> None:
        self._local = {}
        if self._file is not None:  # the parent's row of counters is the parent's, and not mapped here
            self._file = self._file.with_counters(self._open_counters(self._file.words))


class _File:
    """A mapped store, and this process's counters of its slots. Immutable, so that threads may swap it."""

    def __init__(
        self, memory: mmap.mmap, words: memoryview[int], identity: tuple[int, int], counters: ReaderCounters | None
    ) -> None:
        self.words, self.identity, self.counters = words, identity, counters  # identity: inode and size
        self._memory = memory
        self._slots = words[layout.W_SLOTS]
        self.hits = memoryview(bytearray(8 * self._slots)).cast("Q") if counters is None else counters.hits
        self.count_of: dict[int, Callable[[], int]] = {}
        self._slot_of: dict[tuple[str, str, str], tuple[int, bytes]] = {}  # a key keeps its slot as long as the file

    def with_counters(self, counters: ReaderCounters | None) -> _File:
        return _File(self._memory, self.words, self.identity, counters)

    def find(self, text: str, collection: str, scope: str, at: float) -> tuple[CachedResult, int, int] | None:
        """Return a query's result, its slot and its pointer."""
        found = self._slot_of.get((text, collection, scope)) or self._locate(text, collection, scope)
        if found is None:
            return None
        slot, key = found
        words, word = self.words, _FIRST_POINTER + 2 * slot
        pointer = words[word]
        for _ in _TRIES:
            # layout.unpack_pointer, without the call; the body begins behind the checksum
            offset = (pointer & OFFSET_MASK) << 8
            body = self._memory[offset + 8 : offset + (pointer >> 20 & 0xFFF00)]
            if words[word] == pointer:
                break
            pointer = words[word]  # replaced while it was copied: the new one is there already
        try:
            if digest(body) != words[offset >> 3]:
                return None  # removed, or torn
        except IndexError:
            return None  # a forged pointer
        fields: layout.Fields = _unpack(body)
        _, expires_at, generation, pair, _, key_length, _, _, _, _, _ = fields
        if at >= expires_at or body[FIXED : FIXED + key_length] != key:
            return None
        if pair >= layout.GENERATION_PAIRS or words[_FIRST_GENERATION + 2 * pair] != generation:
            return None
        return LazyResult(body, fields), slot, pointer

    def _locate(self, text: str, collection: str, scope: str) -> tuple[int, bytes] | None:
        """Return a query's slot and key, None if it has no slot."""
        words, slots = self.words, self._slots
        key = key_bytes(text, collection, scope)
        wanted = key64(key)
        slot = wanted & (slots - 1)
        for _ in range(slots):
            seen = words[layout.index_word(slot)]
            if seen == wanted:
                break
            if seen == 0:
                return None
            slot = (slot + 1) & (slots - 1)
        else:
            return None
        if len(self._slot_of) >= MEMOS:
            self._slot_of = {}
        self._slot_of[text, collection, scope] = slot, key
        return slot, key

    def counting(self, slot: int) -> Callable[[], int]:
        """Return what gives the next number of a slot's hits; one a slot, so that threads count exactly."""
        return self.count_of.setdefault(slot, itertools.count(self.hits[slot] + 1).__next__)

    def count_miss(self) -> None:
        if self.counters is not None:
            self.counters.miss()

    def use_of(self, result: CachedResult) -> tuple[int, float | None]:
        found = self.find(result.query_text, result.collection, result.scope, 0.0)
        if found is None:
            return 0, None
        slot = found[1]
        word = layout.use_word(self._slots, slot)
        last_at = self.words[word + 1]
        return max(self.words[word], self.hits[slot]), float(last_at) if last_at else None


_readers: weakref.WeakSet[ResultReader] = weakref.WeakSet()


def _in_child() -> None:
    for reader in list(_readers):
        reader._after_fork()


os.register_at_fork(after_in_child=_in_child)
