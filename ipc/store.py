"""Owns the writing side of the result store: append a record, checksum it, then swing one 64-bit word to it.

A reader sees the old record or the new one, and a writer killed at any instant leaves one of the two. Layout: layout.py.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import mmap
import os
import stat
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from . import layout
from .arena import Arena
from .entry import EntryInfo, info_of_record, info_of_result, may_share
from .errors import ResultStoreError
from .layout import BLOCK, CHECKSUM_BYTES, first_of, key_of, opened
from .leaning import Leaning
from .query import key64, key_bytes
from .records import ComputedResult
from .result import CachedResult, LazyResult

BYTES_PER_ENTRY = 16 * 1024  # arena for each entry of the capacity: 2.7x a typical record of 10 results
MIN_ARENA_BYTES = 1024 * 1024


class StoreFull(ResultStoreError):
    """As many entries as the store was made for are in it: remove one first."""


class ResultStore:
    """The one writer of the file at `path`; raises ResultStoreError while another process is.

    Attaches to what an earlier writer left, if it is of this layout and sound; else moves it aside to
    `NAME.corrupt-N`, begins anew and says so in `rebuilt_because`. Of more entries than `capacity` those computed last
    stay; there is room for as many aliases more. A forked child cannot use it: every call that needs the file raises
    ResultStoreError there.
    """

    def __init__(self, path: Path, *, capacity: int = 1000, arena_bytes: int | None = None) -> None:
        self.path, self._capacity = path, capacity
        self._arena_bytes = max(arena_bytes or capacity * BYTES_PER_ENTRY, MIN_ARENA_BYTES)
        self.rebuilt_because: str | None = None
        self._pid = os.getpid()
        self._lock = self._take_lock()
        try:
            self._fresh.unlink(missing_ok=True)  # of a writer killed while it compacted
            if path.exists():
                self.rebuilt_because = self._attach()
                if self.rebuilt_because:
                    path.rename(_aside(path))
            if self.rebuilt_because or not path.exists():
                self._entries: dict[bytes, EntryInfo] = {}
                self._key_of_slot: dict[int, bytes] = {}
                self._leaning = Leaning()
                self._map_new(self._arena_bytes, path)
            else:
                self._drop_surplus()
                if self._words[layout.W_SLOTS] != layout.slots_for(capacity):
                    self._compact(0)  # made for another capacity
        except BaseException:
            os.close(self._lock)
            raise
        _stores.add(self)

    @property
    def _fresh(self) -> Path:
        return self.path.with_name(self.path.name + ".new")

    def _take_lock(self) -> int:
        fd = os.open(self.path.with_name(self.path.name + ".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise ResultStoreError(f"another process writes {self.path}: one service a runtime directory") from None
        return fd

    # --- the file -----------------------------------------------------------------------------------------------------

    def _adopt(self, memory: mmap.mmap) -> None:
        self._map = memory
        self._words = memoryview(memory).cast("Q")

    def _attach(self) -> str | None:
        """Map the existing file and index its entries; return why that cannot be done, None if it was."""
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise
            return f"{self.path} is no result store: {error.strerror}"
        try:
            found = os.fstat(fd)
            size = found.st_size
            if not stat.S_ISREG(found.st_mode) or size < layout.HEADER_BYTES or size % 8:
                return f"{self.path} is no result store: {size} bytes"
            memory = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        words = memoryview(memory).cast("Q")
        reason = _what_is_wrong(words, size)
        words.release()
        self._adopt(memory)
        reason = reason or self._index()
        if reason:
            self._send_readers_away(size)
            self._release()
            return f"{self.path} {reason}"
        return None

    def _send_readers_away(self, size: int) -> None:
        """Mark a file that cannot be used: its readers must not go on with what they have kept of it."""
        if self._words[layout.W_MAGIC] != layout.MAGIC or self._words[layout.W_VERSION] != layout.LAYOUT_VERSION:
            return  # nobody reads it, or by rules this program does not know
        for slots in (self._words[layout.W_SLOTS], layout.slots_for(self._capacity)):
            if slots and layout.arena_start(slots) <= size:
                _supersede(self._words, layout.SOON, slots)
                return

    def _index(self) -> str | None:
        """Read all entries of the mapped file; return what is wrong with one, None if all are sound."""
        self._entries, self._key_of_slot, self._leaning, taken = {}, {}, Leaning(), []
        self._used_slots = 0
        aliases: list[tuple[bytes, EntryInfo]] = []
        for slot in range(self._words[layout.W_SLOTS]):
            word = layout.index_word(slot)
            key, pointer = self._words[word], self._words[word + 1]
            if not key:
                self._words[word + 1] = 0  # killed before the key was written: no reader ever saw the record
                continue
            self._used_slots += 1
            _, blocks, offset = layout.unpack_pointer(pointer)
            if not blocks:
                continue  # removed
            body = opened(self._map[offset : offset + blocks * BLOCK])
            entry = None if body is None else info_of_record(body, slot, pointer)
            if body is None or entry is None or self._slot_of(key) != (slot, False):
                return f"has a damaged record in slot {slot}"
            first = first_of(body)
            pair = first.pair & ~layout.ALIAS
            if first.key64 != key or pair >= layout.GENERATION_PAIRS:
                return f"has a damaged record in slot {slot}"
            taken.append((offset, blocks))
            if first.generation == self._words[layout.generation_word(pair)]:
                if layout.is_alias(first):
                    aliases.append((body, entry))
                else:
                    self._note(key_of(body, first), entry)
            else:  # its collection was invalidated, and the writer killed before it had removed all entries
                self._words[word + 1] = layout.emptied(pointer)
        taken.sort()
        if any(at + blocks * BLOCK > following for (at, blocks), (following, _) in itertools.pairwise(taken)):
            return "has a damaged index: records overlap"
        self._arena = Arena(self._words[layout.W_ARENA_START], self._words[layout.W_ARENA_END], taken)
        self._index_aliases(aliases)
        self._words[layout.W_WRITER] = self._pid
        self._words[layout.W_SUPERSEDED] = 0  # set if an earlier writer was killed before its new file was in place
        return None

    def _index_aliases(self, aliases: list[tuple[bytes, EntryInfo]]) -> None:
        """Take in aliases of an attached file; drop those of a record that its entry has not got any more.

        The writer was killed between replacing or removing the entry and doing the same with its aliases.
        """
        by_place = {layout.place_of(entry.pointer): key for key, entry in self._entries.items()}
        for body, entry in aliases:
            place, checksum = layout.shared_of(body, first_of(body))
            key, its_key = key_of(body, first_of(body)), by_place.get(place)
            its = None if its_key is None else self._entries[its_key]
            if its_key is None or its is None or not may_share(entry, its) or self._checksum_of(its) != checksum:
                self._words[layout.index_word(entry.slot) + 1] = layout.emptied(entry.pointer)
                _, blocks, offset = layout.unpack_pointer(entry.pointer)
                self._arena.give_back(offset, blocks)
                continue
            self._note(key, replace(entry, alias_of=its.key_hash))
            self._leaning.add(key, its_key)

    def _map_new(self, arena_bytes: int, path: Path) -> None:
        """Create an empty file at `path` and adopt it. Raises ResultStoreError where that cannot be: tmpfs is full."""
        slots = layout.slots_for(self._capacity)
        start = layout.arena_start(slots)
        size = (start + arena_bytes) // BLOCK * BLOCK
        if size > layout.MAX_OFFSET:
            raise ResultStoreError(f"{size / 2**30:.0f} GiB of results are too many: lower max_cached_queries")
        try:
            path.unlink(missing_ok=True)
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise ResultStoreError(f"{path} cannot be made: {error.strerror}") from error
        try:
            os.posix_fallocate(fd, 0, size)  # a full tmpfs says so here, instead of a SIGBUS at some later store
            memory = mmap.mmap(fd, size)
        except OSError as error:
            path.unlink()
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM):
                reason = f"no room for {size / 2**20:.0f} MiB in {path.parent}: free some, or lower max_cached_queries"
            else:
                reason = f"{path} cannot be made: {error.strerror}"
            raise ResultStoreError(reason) from error
        finally:
            os.close(fd)
        self._adopt(memory)
        words = self._words
        words[layout.W_VERSION], words[layout.W_SLOTS] = layout.LAYOUT_VERSION, slots
        words[layout.W_ARENA_START], words[layout.W_ARENA_END] = start, size
        words[layout.W_WRITER], words[layout.W_EPOCH] = self._pid, time.time_ns()
        words[layout.W_MAGIC] = layout.MAGIC  # last: a file without it is not a store yet
        self._arena, self._used_slots = Arena(start, size), 0

    def _compact(self, needed: int) -> None:
        """Move live records into a new file, larger if need be, and mark the old one superseded: readers follow."""
        live_bytes = sum(entry.size_bytes for entry in self._entries.values())
        arena_bytes = max(self._arena_bytes, 2 * (live_bytes + needed))
        old_map, old_words, old_entries = self._map, self._words, self._entries
        old = (old_map, old_words, old_entries, self._key_of_slot, self._arena, self._used_slots, self._leaning)
        fresh = self._fresh
        self._map_new(arena_bytes, fresh)  # raises before it has changed anything of this object
        start, end = layout.W_GENERATIONS, layout.W_GENERATIONS + 2 * layout.GENERATION_PAIRS
        for word in range(start, end):
            self._words[word] = old_words[word]
        self._entries, self._key_of_slot, self._leaning = {}, {}, Leaning()
        old_slots, leaning = old_words[layout.W_SLOTS], old[-1]
        for key, entry in sorted(old_entries.items(), key=lambda item: item[0] in leaning):  # aliases last
            _, blocks, offset = layout.unpack_pointer(entry.pointer)
            raw = old_map[offset : offset + blocks * BLOCK]
            its_key = leaning.entry_of(key)
            if its_key is None:
                self._append(key, raw, entry)
            elif (moved := self._moved(raw, its_key)) is not None:
                self._append(key, moved, entry)
                self._leaning.add(key, its_key)
            else:
                continue
            use, old_use = self._use_word(self._entries[key].slot), layout.use_word(old_slots, entry.slot)
            self._words[use], self._words[use + 1] = old_words[old_use], old_words[old_use + 1]
        _supersede(old_words, layout.SOON, old_slots)
        try:
            os.replace(fresh, self.path)
        except OSError as error:
            self._release()
            self._map, self._words, self._entries, self._key_of_slot, self._arena, self._used_slots, self._leaning = old
            old_words[layout.W_SUPERSEDED] = 0
            raise ResultStoreError(f"{self.path} cannot be replaced: {error.strerror}") from error
        _supersede(old_words, layout.SUPERSEDED, old_slots)
        old_words.release()
        old_map.close()

    def _drop_surplus(self) -> None:
        """Remove what exceeds the capacity, the oldest first: the file may be of a larger one."""
        oldest = sorted(self._entries.values(), key=lambda entry: entry.computed_at)
        whole = [entry for entry in oldest if not entry.alias_of]
        for entry in whole[: max(len(whole) - self._capacity, 0)]:
            self.remove(entry.query_text, entry.collection, entry.scope)
        aliases = [entry for entry in oldest if entry.alias_of]
        for entry in aliases[: max(len(self._leaning) - self._capacity, 0)]:
            self.remove(entry.query_text, entry.collection, entry.scope)

    # --- entries ------------------------------------------------------------------------------------------------------

    def put(self, result: ComputedResult, *, expires_at: float, soft_at: float | None = None) -> None:
        """Publish `result`, in place of an earlier one of the same query; `soft_at` is `expires_at` if not given.

        Aliases of an entry whose rows' texts are the same as before stay, others go. Raises StoreFull where a new entry
        would exceed the capacity, ResultStoreError where it is too large or tmpfs is full. Whatever is raised, what was
        stored stays.
        """
        self._check_writer()
        key = key_bytes(result.query_text, result.collection, result.scope)
        is_new = key not in self._entries or key in self._leaning
        if is_new and len(self._entries) - len(self._leaning) >= self._capacity:
            raise StoreFull(f"the result store holds {self._capacity} entries")
        raw = self._packed(result, soft_at, expires_at)
        blocks = layout.blocks_of(len(raw))
        if blocks > layout.MAX_BLOCKS:
            raise ResultStoreError(f"a result of {len(raw)} bytes is too large: at most {layout.MAX_BLOCKS * BLOCK}")
        entry = info_of_result(result, soft_at, expires_at, blocks)
        if self._used_slots > self._words[layout.W_SLOTS] // 2 or not self._append(key, raw, entry):
            self._compact(blocks * BLOCK)
            if not self._append(key, raw, entry):
                raise ResultStoreError(f"a result of {len(raw)} bytes found no room after compaction")
        self._leaning.discard(key)  # of one that was an alias

    def put_alias(
        self, result: ComputedResult, of: EntryInfo, *, expires_at: float, soft_at: float | None = None
    ) -> bool:
        """Publish `result` in a small record that shares the rows' texts with the entry `of`; False where it cannot be.

        That is: the entry is not there, is an alias, is of another collection or scope, or has other texts; or `result`
        is of an entry that has aliases itself. Readers are given what a record of its own would give them. Raises
        StoreFull where there are as many aliases as the capacity.
        """
        self._check_writer()
        key = key_bytes(result.query_text, result.collection, result.scope)
        its_key = key_bytes(of.query_text, of.collection, of.scope)
        entry = info_of_result(result, soft_at, expires_at, 0)
        if not may_share(entry, of) or key == its_key or its_key in self._leaning or self._leaning.of(key):
            return False
        if key not in self._leaning and len(self._leaning) >= self._capacity:
            raise StoreFull(f"the result store holds {self._capacity} aliases")
        own = self._packed(result, soft_at, expires_at)
        for attempt in range(2):
            its = self._entries.get(its_key)
            raw = None if its is None else layout.pack_alias(own, layout.place_of(its.pointer), self._raw(its))
            if its is None or raw is None:
                return False
            blocks = layout.blocks_of(len(raw))
            if blocks > layout.MAX_BLOCKS:
                return False
            entry = replace(entry, size_bytes=blocks * BLOCK, alias_of=its.key_hash)
            if (attempt or self._used_slots <= self._words[layout.W_SLOTS] // 2) and self._append(key, raw, entry):
                self._leaning.add(key, its_key)
                return True
            if not attempt:
                self._compact(blocks * BLOCK)
        return False

    def _packed(self, result: ComputedResult, soft_at: float | None, expires_at: float) -> bytes:
        pair = self._pair_of(result.collection)
        generation = self._words[layout.generation_word(pair)]
        return layout.pack_record(result, expires_at if soft_at is None else soft_at, expires_at, pair, generation)

    def _append(self, key: bytes, raw: bytes, entry: EntryInfo) -> bool:
        """Write a record and swing its slot's word to it; False where the arena has no room."""
        offset = self._arena.take(layout.blocks_of(len(raw)))
        if offset is None:
            return False
        self._map[offset : offset + len(raw)] = raw
        slot, is_new = self._slot_of(key64(key))
        word = layout.index_word(slot)
        old = self._words[word + 1]
        pointer = layout.pack_pointer((old >> layout.VERSION_SHIFT) + 1, entry.size_bytes // BLOCK, offset)
        self._words[word + 1] = pointer  # the instant from which readers see it
        if is_new:
            self._words[word] = key64(key)
            self._used_slots += 1
        _, old_blocks, old_offset = layout.unpack_pointer(old)
        previous = self._key_of_slot.get(slot)
        self._note(key, replace(entry, slot=slot, pointer=pointer))
        if old_blocks:
            if previous is not None and (aliases := self._leaning.of(previous)):
                self._move_aliases(aliases, self._map[old_offset : old_offset + old_blocks * BLOCK], raw)
            self._arena.give_back(old_offset, old_blocks)  # last: until here what aliases share stood
        return True

    def _move_aliases(self, aliases: list[bytes], old: bytes, raw: bytes) -> None:
        """Have aliases share a record's successor, if it has the same rows' texts; else drop them."""
        before, after = opened(old), opened(raw)
        is_same = before is not None and after is not None and layout.has_rows_of(before, after)
        for alias in aliases:
            its_key = self._leaning.entry_of(alias)
            moved = self._moved(self._raw(self._entries[alias]), its_key) if is_same and its_key is not None else None
            if moved is None or not self._append(alias, moved, self._entries[alias]):
                self._remove(alias)

    def _moved(self, raw: bytes, its_key: bytes) -> bytes | None:
        """Return an alias's record for where its entry's record is now; None if it is damaged or there is none."""
        body, its = opened(raw), self._entries.get(its_key)
        if body is None or its is None:
            return None
        return layout.moved_alias(body, layout.place_of(its.pointer), self._raw(its))

    def _note(self, key: bytes, entry: EntryInfo) -> None:
        """Remember an entry. Of two keys with one 64-bit hash only the later has the slot: the other is a miss."""
        other = self._key_of_slot.get(entry.slot)
        if other is not None and other != key:
            del self._entries[other]
            self._leaning.discard(other)
        self._key_of_slot[entry.slot] = key
        self._entries[key] = entry

    def _slot_of(self, wanted: int) -> tuple[int, bool]:
        """Return the slot of a 64-bit key and whether it is a free one."""
        slots = self._words[layout.W_SLOTS]
        slot = wanted & (slots - 1)
        while (found := self._words[layout.index_word(slot)]) not in (0, wanted):
            slot = (slot + 1) & (slots - 1)
        return slot, found == 0

    def make_stale(self, text: str, collection: str, scope: str, soft_at: float) -> bool:
        """Set the time from which an entry is to be computed again; False if there is none. It is served meanwhile."""
        self._check_writer()
        key = key_bytes(text, collection, scope)
        entry = self._entries.get(key)
        if entry is None:
            return False
        body = opened(self._raw(entry))
        if body is None:  # damaged since it was written: a new checksum would pass it off as sound
            self.remove(text, collection, scope)
            return False
        changed = replace(entry, soft_at=soft_at)
        if not self._append(key, layout.with_soft_at(body, soft_at), changed):
            self._compact(entry.size_bytes)
            body = opened(self._raw(self._entries[key]))  # an alias's names where its entry's record is now
            return body is not None and self._append(key, layout.with_soft_at(body, soft_at), changed)
        return True

    def remove(self, text: str, collection: str, scope: str = "") -> bool:
        """Take a query's entry out, its aliases with it; False if there was none."""
        self._check_writer()
        key = key_bytes(text, collection, scope)
        if key not in self._entries:
            return False
        for alias in self._leaning.of(key):
            self._remove(alias)
        self._remove(key)
        return True

    def _remove(self, key: bytes) -> None:
        entry = self._entries.pop(key)
        self._leaning.discard(key)
        del self._key_of_slot[entry.slot]
        word = layout.index_word(entry.slot) + 1
        self._words[word] = layout.emptied(self._words[word])
        use = self._use_word(entry.slot)
        self._words[use] = self._words[use + 1] = 0
        _, blocks, offset = layout.unpack_pointer(entry.pointer)
        self._arena.give_back(offset, blocks)

    def invalidate_collection(self, name: str) -> int:
        """Make every entry of a collection invalid at once, by one word; return how many that were."""
        self._check_writer()
        pair = self._pair_of(name)
        self._words[layout.generation_word(pair)] += 1
        names = {name}
        if pair == layout.GENERATION_PAIRS - 1:  # shared
            held = {entry.collection for entry in self._entries.values()}
            names |= {one for one in held if self._pair_of(one) == pair}
        doomed = [entry for entry in self._entries.values() if entry.collection in names]
        for entry in doomed:
            self.remove(entry.query_text, entry.collection, entry.scope)
        return len(doomed)

    def _pair_of(self, collection: str) -> int:
        """Return a collection's pair in the generation table, claimed if need be.

        The last pair is shared by all that find none free: one's invalidation is then the others' too, which costs
        hits and is never wrong.
        """
        wanted = layout.collection_hash(collection)
        for pair in range(layout.GENERATION_PAIRS - 1):
            word = layout.W_GENERATIONS + 2 * pair
            if self._words[word] == wanted:
                return pair
            if self._words[word] == 0:
                self._words[word] = wanted
                return pair
        return layout.GENERATION_PAIRS - 1

    def count_use(self, slot: int, hits: int, at: float) -> None:
        """Add hits to what a slot's readers see of its use; `at` is the Unix time of the last one."""
        self._check_writer()
        word = self._use_word(slot)
        self._words[word] += hits
        self._words[word + 1] = int(at)

    def _use_word(self, slot: int) -> int:
        return layout.use_word(self._words[layout.W_SLOTS], slot)

    # --- looking ------------------------------------------------------------------------------------------------------

    def get(self, text: str, collection: str, scope: str = "", now: float = 0.0) -> CachedResult | None:
        """Return a query's entry if it is valid at `now`; not counted as a reader's lookup."""
        self._check_writer()
        key = key_bytes(text, collection, scope)
        entry = self._entries.get(key)
        if entry is None or entry.expires_at <= now:
            return None
        body = opened(self._raw(entry))
        if body is None:
            return None
        first = first_of(body)
        if entry.alias_of:
            its_key = self._leaning.entry_of(key)
            other = None if its_key is None else opened(self._raw(self._entries[its_key]))
            body = None if other is None else layout.joined(body, first, other)
        return None if body is None else LazyResult(body, first)

    def _raw(self, entry: EntryInfo) -> bytes:
        _, blocks, offset = layout.unpack_pointer(entry.pointer)
        return self._map[offset : offset + blocks * BLOCK]

    def _checksum_of(self, entry: EntryInfo) -> int:
        return int.from_bytes(self._raw(entry)[:CHECKSUM_BYTES], "little")

    def info(self, text: str, collection: str, scope: str = "") -> EntryInfo | None:
        """Return what is known of a query's entry, expired or not; None if there is none."""
        return self._entries.get(key_bytes(text, collection, scope))

    def entries(self) -> Iterator[EntryInfo]:
        return iter(list(self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def slots(self) -> int:
        self._check_writer()
        return self._words[layout.W_SLOTS]

    @property
    def epoch(self) -> int:
        """A number of this file's own: slots are those of one epoch."""
        self._check_writer()
        return self._words[layout.W_EPOCH]

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self._entries.values())

    def _check_writer(self) -> None:
        if os.getpid() != self._pid:
            raise ResultStoreError(f"{self.path} belongs to process {self._pid}; a forked child must not write it")

    def copy_to(self, target: BinaryIO) -> None:
        """Write the file as it is now; what was never used becomes a hole."""
        self._check_writer()
        used = self._arena.end_of_use
        with memoryview(self._map) as whole:
            target.write(whole[:used])
            target.truncate(len(whole))

    # --- the end ------------------------------------------------------------------------------------------------------

    def _release(self) -> None:
        self._words.release()
        self._map.close()

    def close(self) -> None:
        """Let go of the file and leave it: readers keep hitting, and the next writer attaches."""
        if os.getpid() != self._pid:
            return  # let go of when it was forked
        _stores.discard(self)
        self._release()
        os.close(self._lock)

    def destroy(self) -> None:
        """Close, and remove the file."""
        self._check_writer()
        _supersede(self._words, layout.SUPERSEDED, self.slots)
        self.path.unlink(missing_ok=True)
        self.close()  # last: from then on the path may be another writer's

    def _leave_to_parent(self) -> None:
        """In a forked child: let go of the map, and of the lock, which a living child would else hold for a dead parent.

        Not MADV_DONTFORK: a child's later mappings land in the gap, and are unmapped when this map is forgotten.
        """
        os.close(self._lock)
        with contextlib.suppress(BufferError):  # another thread of the parent was copying from it
            self._release()


def _supersede(words: memoryview[int], state: int, slots: int) -> None:
    """Tell the readers of a file that another one is about to take its place (SOON), or has (SUPERSEDED).

    A reader trusts its kept copy as long as the entry's pointer stands and looks at nothing else, so every pointer
    changes too: SOON to the next version of the same record, which can still be read, SUPERSEDED to nothing. A writer
    killed in between leaves a file that is whole.
    """
    words[layout.W_SUPERSEDED] = state
    for slot in range(slots):
        word = layout.index_word(slot) + 1
        if pointer := words[word]:
            version, blocks, offset = layout.unpack_pointer(pointer)
            gone = state == layout.SUPERSEDED
            words[word] = layout.emptied(pointer) if gone else layout.pack_pointer(version + 1, blocks, offset)


def _what_is_wrong(words: memoryview[int], size: int) -> str | None:
    if words[layout.W_MAGIC] != layout.MAGIC:
        return "is not a result store"
    if words[layout.W_VERSION] != layout.LAYOUT_VERSION:
        return f"has layout {words[layout.W_VERSION]}, this program needs {layout.LAYOUT_VERSION}"
    slots, start, end = words[layout.W_SLOTS], words[layout.W_ARENA_START], words[layout.W_ARENA_END]
    if slots == 0 or slots & (slots - 1) or layout.arena_start(slots) != start or not start < end <= size:
        return "has a damaged header"
    for slot in range(slots):
        pointer = words[layout.index_word(slot) + 1]
        _, blocks, offset = layout.unpack_pointer(pointer)
        if blocks and not start <= offset <= offset + blocks * BLOCK <= end:
            return f"has a damaged index: slot {slot} points outside the arena"
    return None


def _aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    return aside


_stores: weakref.WeakSet[ResultStore] = weakref.WeakSet()


def _in_child() -> None:
    for store in list(_stores):
        store._leave_to_parent()
    _stores.clear()


os.register_at_fork(after_in_child=_in_child)
