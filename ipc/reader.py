"""Owns the reading side of the result store: no message, no lock, no write to it.

kept copy, and its slot's pointer still stands? ─▶ hand it out (0.3 us)
else copy the record ─▶ load the pointer again, equal? ─▶ checksum, key, generation, expiry ─▶ keep it, hand it out
                                                     └▶ of an alias: copy the record it names as well, its checksum
"""

from __future__ import annotations

import itertools
import mmap
import os
import stat
import struct
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from xxhash import xxh3_64_intdigest as digest

from . import layout
from .counters import ReaderCounters
from .errors import ResultStoreError
from .layout import FIXED, OFFSET_MASK
from .query import key64, key_bytes
from .result import CachedResult, LazyResult, ReadyResult

LOCAL_COPIES = 256  # decoded results kept by each process: about 4 MB
LOOK_S = 1.0  # how often a reader makes sure that its file is still the one at the path
RETRY_S = 0.01  # between attempts to open a file that is not there
MAX_RETRIES = 1000  # copies of one record that was replaced meanwhile; a sane writer makes one or two necessary

MAX_TARGETS = (
    8  # records that one alias is found to share, each replaced while it was copied; a sane writer: one or two
)
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
        self._looking = threading.Lock()  # of what changes the file or `_look_at`; no kept copy waits for it
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
            self._look()
            file = self._file
        if file is None:
            return None
        found = file.find(text, collection, scope, at)
        while found is None and file.words[layout.W_SUPERSEDED]:
            self._look()
            if self._file is None:
                return None
            if self._file is file:
                break  # its writer died before it had put another in its place
            file = self._file  # it was replaced while it was looked into
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
            try:
                result = ReadyResult(result)
            except ResultStoreError:
                return result  # forged: it says so when it is touched
            word = layout.index_word(slot) + 1
            self._keep(file, text, (result, file.words, word, pointer, file.hits, slot, count, collection, scope))
        return result

    def _keep(self, file: _File, text: str, kept: Kept) -> None:
        with self._looking:
            if file is not self._file:
                return  # another thread has found a newer one meanwhile
            local = self._local
            if len(local) >= self._local_copies:
                local.pop(next(iter(local), text), None)
            self._look_at = min(self._look_at, _monotonic_at(kept[0].expires_at))
            local[text] = kept

    def get_at(self, text: str, collection: str, scope: str, now: float) -> CachedResult | None:
        """Return what `get` would at the Unix time `now`; neither counted nor kept."""
        self._look()
        found = None if self._file is None else self._file.find(text, collection, scope, now)
        return None if found is None else found[0]

    def use_of(self, result: CachedResult) -> tuple[int, float | None]:
        """Return how often readers of all processes were handed a result, and when last (Unix time; None: never).

        What other processes read in the last seconds is not in it yet.
        """
        return (0, None) if self._file is None else self._file.use_of(result)

    # --- the file -----------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """See that the mapped file is the one at the path, and drop what has expired.

        A writer that died between replacing the file and marking the old one leaves no other sign.
        """
        with self._looking:
            try:
                found = self._path.stat()
            except OSError as error:
                self.problem = f"{self._path}: {error.strerror}"
                if self._file is not None and self._file.words[layout.W_SUPERSEDED]:
                    self._let_go()
            else:
                is_the_same = self._file is not None and self._file.identity == (found.st_ino, found.st_size)
                if not is_the_same and not self._open():
                    self._let_go()  # what took its place cannot be read, and it is out of date
            look_at = monotonic() + (LOOK_S if self._file is not None else RETRY_S)
            for text, kept in list(self._local.items()):
                expires_at = kept[0].expires_at
                if expires_at <= time.time():
                    self._local.pop(text, None)
                else:
                    look_at = min(look_at, _monotonic_at(expires_at))
            self._look_at = look_at  # last: until then no kept copy is handed out

    def _open(self) -> bool:
        """Map the file at the path; False, and `problem` says why, where that cannot be."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            self.problem = f"{self._path}: {error.strerror}"
            return False
        try:
            found = os.fstat(fd)
            size = found.st_size
            if not stat.S_ISREG(found.st_mode) or not layout.HEADER_BYTES <= size <= layout.MAX_OFFSET or size % 8:
                self.problem = f"{self._path} is no result store: {size} bytes"
                return False
            # MAP_POPULATE: page faults here, once, instead of 0.4-3.4 us in the first lookup of each page
            memory = mmap.mmap(fd, found.st_size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            self.problem = f"{self._path} cannot be mapped: {error}"
            return False
        finally:
            os.close(fd)
        words = memoryview(memory).cast("Q")
        slots = words[layout.W_SLOTS]
        is_ours = words[layout.W_MAGIC] == layout.MAGIC and words[layout.W_VERSION] == layout.LAYOUT_VERSION
        if not is_ours or not slots or slots & (slots - 1) or layout.arena_start(slots) > found.st_size:
            self.problem = f"{self._path} is being made, or is not a result store of layout {layout.LAYOUT_VERSION}"
            return False
        self.problem = None
        counters = self._open_counters(slots, words[layout.W_EPOCH])
        self._let_go(_File(memory, words, slots, (found.st_ino, size), counters))
        return True

    def _open_counters(self, slots: int, epoch: int) -> ReaderCounters | None:
        if self._counters_dir is None:
            return None
        try:
            return ReaderCounters(self._counters_dir, slots, epoch)
        except OSError as error:  # another user's reader may be allowed to read the results and not to count
            self.problem = f"lookups are not counted: {error}"
            return None

    def _let_go(self, successor: _File | None = None) -> None:
        # Another thread may be reading through the old view: it is left to the garbage collector, not closed under it.
        file, self._file, self._local, self._once = self._file, successor, {}, {}
        if file is not None and file.counters is not None:
            file.counters.close()

    def timed(self, response_s: float) -> None:
        """Count how long a search took that this reader's results served, as its caller saw it."""
        if self._file is not None and self._file.counters is not None:
            self._file.counters.timed(response_s)

    def count_dropped(self, count: int) -> None:
        """Report how many searches of this process could not be counted so far."""
        if self._file is not None and self._file.counters is not None:
            self._file.counters.set_dropped(count)

    def close(self) -> None:
        with self._looking:
            self._let_go()

    def _after_fork(self) -> None:
        self._looking, self._local = threading.Lock(), {}  # the lock may have been another thread's of the parent
        file = self._file
        if file is not None:  # the parent's row of counters is the parent's
            self._file = file.with_counters(self._open_counters(file.slots, file.words[layout.W_EPOCH]))


class _File:
    """A mapped store, and this process's counters of its slots. Immutable, so that threads may swap it."""

    def __init__(
        self,
        memory: mmap.mmap,
        words: memoryview[int],
        slots: int,
        identity: tuple[int, int],
        counters: ReaderCounters | None,
    ) -> None:
        self.words, self.slots, self.identity, self.counters = words, slots, identity, counters  # inode and size
        self._memory = memory
        self.hits = memoryview(bytearray(8 * slots)).cast("Q") if counters is None else counters.hits
        self.count_of: dict[int, Callable[[], int]] = {}
        self._slot_of: dict[tuple[str, str, str], tuple[int, bytes]] = {}  # a key keeps its slot as long as the file

    def with_counters(self, counters: ReaderCounters | None) -> _File:
        return _File(self._memory, self.words, self.slots, self.identity, counters)

    def find(
        self, text: str, collection: str, scope: str, at: float, tries: int = MAX_TARGETS
    ) -> tuple[CachedResult, int, int] | None:
        """Return a query's result, its slot and its pointer."""
        found = self._slot_of.get((text, collection, scope)) or self._locate(text, collection, scope)
        if found is None:
            return None
        slot, key = found
        words, word = self.words, _FIRST_POINTER + 2 * slot
        pointer = words[word]
        try:
            for _ in _TRIES:
                # layout.unpack_pointer, without the call; the body begins behind the checksum
                offset = (pointer & OFFSET_MASK) << 8
                body = self._memory[offset + 8 : offset + (pointer >> 20 & 0xFFF00)]
                checksum = words[offset >> 3]
                if words[word] == pointer:
                    break
                pointer = words[word]  # replaced while it was copied: the new one is there already
            else:
                body = b""
            if digest(body) != checksum:
                return None  # removed, or torn
            fields: layout.Fields = _unpack(body)
        except (IndexError, struct.error):
            return None  # a forged pointer
        _, expires_at, generation, pair, _, key_length, _, _, _, _, _ = fields
        if at >= expires_at or body[FIXED : FIXED + key_length] != key:
            return None
        result: CachedResult | None = None
        if pair >= layout.GENERATION_PAIRS:  # of an alias; else forged
            result = self._shared(body, fields)
            if result is None and words[word] != pointer and tries:  # replaced, with what it shares
                return self.find(text, collection, scope, at, tries - 1)
        elif words[_FIRST_GENERATION + 2 * pair] == generation:
            result = LazyResult(body, fields)
        return None if result is None else (result, slot, pointer)

    def _shared(self, body: bytes, fields: layout.Fields) -> CachedResult | None:
        """Return an alias's result: its own, with the texts of the record it names, if that is the one it was made of."""
        pair = fields[3] ^ layout.ALIAS
        if pair >= layout.GENERATION_PAIRS or self.words[_FIRST_GENERATION + 2 * pair] != fields[2]:
            return None
        try:
            place, checksum = layout.shared_of(body, fields)
            _, blocks, offset = layout.unpack_pointer(place)
            other = self._memory[offset + layout.CHECKSUM_BYTES : offset + blocks * layout.BLOCK]
            whole = layout.joined(body, fields, other) if digest(other) == checksum else None
            return None if whole is None else LazyResult(whole, fields)
        except struct.error:
            return None

    def _locate(self, text: str, collection: str, scope: str) -> tuple[int, bytes] | None:
        """Return a query's slot and key, None if it has no slot."""
        words, slots = self.words, self.slots
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
        word = layout.use_word(self.slots, slot)
        last_at = self.words[word + 1]
        return max(self.words[word], self.hits[slot]), float(last_at) if last_at else None


def _monotonic_at(at: float) -> float:
    """Return what the monotonic clock will show at a Unix time, rather a little less than more."""
    now = monotonic()
    return now + at - time.time()


_readers: weakref.WeakSet[ResultReader] = weakref.WeakSet()


def _in_child() -> None:
    for reader in list(_readers):
        reader._after_fork()


os.register_at_fork(after_in_child=_in_child)
