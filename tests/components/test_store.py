"""The writing side of the result store on a real file: what is put, replaced, removed and found again."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from morgan.background.ipc import entry as knowing
from morgan.background.ipc import layout
from morgan.background.ipc import reader as reading
from morgan.background.ipc import store as writing
from morgan.background.ipc.arena import QUARANTINE, Arena
from morgan.background.ipc.errors import ResultStoreError
from morgan.background.ipc.layout import BLOCK
from morgan.background.ipc.reader import ResultReader
from morgan.background.ipc.records import ComputedResult, PointId
from morgan.background.ipc.store import MIN_ARENA_BYTES, ResultStore, StoreFull

LATER = 1e12
CAPACITY = 20


def made(
    text: str, version: int = 1, *, ids: tuple[PointId, ...] = (1, 2), size: int = 10, **more: Any
) -> ComputedResult:
    """Return a result all of whose parts carry `version`; the first row's text has `size` characters."""
    rows = len(ids)
    fields: dict[str, Any] = {
        "query_text": text,
        "collection": "docs",
        "ids": ids,
        "scores": np.full(rows, version, "<f4").tobytes(),
        "contents": (f"{version} ".ljust(size, "x"), *("",) * (rows - 1)),
        "sources": ("",) * rows,
        "metadata": ({"version": version},) * rows,
        "computed_at": float(version),
    }
    return ComputedResult(**fields | more)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def store(path: Path) -> Iterator[ResultStore]:
    found = ResultStore(path, capacity=CAPACITY)
    yield found
    found.close()


def put(store: ResultStore, text: str, version: int = 1, **more: Any) -> None:
    store.put(made(text, version, **more), expires_at=LATER)


def version_of(store: ResultStore, text: str, collection: str = "docs", scope: str = "") -> int | None:
    """Return the version that the writer and a fresh reader find; they agree."""
    held = store.get(text, collection, scope)
    found = ResultReader(store.path).get(text, collection, scope)
    assert (held is None) == (found is None)
    if held is None or found is None:
        return None
    assert held.computed_at == found.computed_at == found.scores[0] == found.metadata[0]["version"]
    return int(found.computed_at)


def word_of(store: ResultStore, text: str) -> int:
    (entry,) = [entry for entry in store.entries() if entry.query_text == text]
    return entry.pointer


# --- put, replace, remove ---------------------------------------------------------------------------------------------


def test_a_replaced_record_is_written_elsewhere_and_the_old_bytes_stand(store: ResultStore, path: Path) -> None:
    put(store, "a", 1)
    old = word_of(store, "a")
    _, blocks, offset = layout.unpack_pointer(old)
    before = path.read_bytes()[offset : offset + blocks * BLOCK]
    put(store, "a", 2)
    assert layout.unpack_pointer(word_of(store, "a"))[2] != offset
    assert word_of(store, "a") >> layout.VERSION_SHIFT == (old >> layout.VERSION_SHIFT) + 1
    assert path.read_bytes()[offset : offset + blocks * BLOCK] == before
    assert version_of(store, "a") == 2
    assert len(store) == 1


def test_a_query_is_found_by_its_normal_form(store: ResultStore) -> None:
    put(store, "What  IS it? ")
    assert version_of(store, "what is it?") == 1
    assert version_of(store, "what is it") is None


def test_results_of_one_collection_or_scope_are_never_anothers(store: ResultStore) -> None:
    names = [
        ("docs", ""),
        ("docs", "tenant"),
        ("docs", "tenant2"),
        ("docstenant", ""),
        ("doc", "stenant"),
        ("", "docs"),
    ]
    for version, (collection, scope) in enumerate(names):
        put(store, "a", version, collection=collection, scope=scope)
    for version, (collection, scope) in enumerate(names):
        assert version_of(store, "a", collection, scope) == version
    assert version_of(store, "a", "docs", "tenant3") is None
    assert store.remove("a", "docs", "tenant")
    assert [version_of(store, "a", *name) is None for name in names] == [False, True, False, False, False, False]


@pytest.mark.parametrize(
    "ids", [(0, 2**64 - 1), tuple(str(uuid.UUID(int=n)) for n in (1, 2)), (7, str(uuid.UUID(int=7))), (-1, 1), ()]
)
def test_ids_come_back_as_they_were_put(store: ResultStore, ids: tuple[PointId, ...]) -> None:
    store.put(made("a", ids=ids, contents=("",) * len(ids), candidates=ids), expires_at=LATER)
    found = ResultReader(store.path).get("a", "docs")
    assert found is not None
    assert (found.ids, found.candidates, len(found.contents)) == (ids, ids, len(ids))


def test_an_entry_is_a_miss_from_its_own_expiry_on(store: ResultStore) -> None:
    store.put(made("a"), expires_at=100.0)
    store.put(made("b"), expires_at=200.0)
    reader = ResultReader(store.path)
    for now, found in ((99.9, (True, True)), (100.0, (False, True)), (200.0, (False, False))):
        assert tuple(reader.get_at(text, "docs", "", now) is not None for text in "ab") == found
        assert tuple(store.get(text, "docs", now=now) is not None for text in "ab") == found


def test_a_removed_entry_is_gone_and_its_place_is_used_again(store: ResultStore, path: Path) -> None:
    put(store, "a")
    size = path.stat().st_size
    assert store.remove("A ", "docs")
    assert not store.remove("a", "docs")
    assert version_of(store, "a") is None
    for version in range(3 * QUARANTINE * MIN_ARENA_BYTES // (MIN_ARENA_BYTES // 4)):
        put(store, "a", version)
        assert store.remove("a", "docs")
    assert path.stat().st_size == size
    assert store.size_bytes == len(store) == 0


def test_making_an_entry_stale_changes_its_soft_expiry_alone(store: ResultStore) -> None:
    put(store, "a", 4)
    before = ResultReader(store.path).get("a", "docs")
    assert store.make_stale("a", "docs", "", 50.0)
    after = ResultReader(store.path).get("a", "docs")
    assert before is not None
    assert after is not None
    assert (before.soft_at, after.soft_at) == (LATER, 50.0)
    assert [entry.soft_at for entry in store.entries()] == [50.0]
    assert (after.expires_at, after.ids, after.contents) == (before.expires_at, before.ids, before.contents)
    assert not store.make_stale("b", "docs", "", 50.0)


def test_making_a_damaged_entry_stale_does_not_pass_it_off_as_sound(store: ResultStore, path: Path) -> None:
    put(store, "a")
    _, _, offset = layout.unpack_pointer(word_of(store, "a"))
    flip(path, offset + 200)
    assert not store.make_stale("a", "docs", "", 50.0)
    assert version_of(store, "a") is None
    assert len(store) == 0


def test_what_is_known_of_the_use_of_an_entry_is_its_own(store: ResultStore) -> None:
    put(store, "a")
    reader = ResultReader(store.path)
    (entry,) = store.entries()
    store.count_use(entry.slot, 3, 77.9)
    found = reader.get("a", "docs")
    assert found is not None
    assert reader.use_of(found) == (3, 77.0)
    store.remove("a", "docs")
    put(store, "a")
    assert ResultReader(store.path).use_of(found) == (0, None)


# --- collections ------------------------------------------------------------------------------------------------------


def test_one_word_invalidates_a_collection_for_readers(path: Path) -> None:
    store = ResultStore(path, capacity=CAPACITY)
    for number in range(6):
        put(store, f"q{number}", collection=("docs", "news")[number % 2])
    reader = ResultReader(path)
    assert all(reader.get(f"q{number}", ("docs", "news")[number % 2]) for number in range(6))
    words = np.fromfile(path, "<u8")
    (pair,) = np.flatnonzero(
        words[layout.W_GENERATIONS :: 2][: layout.GENERATION_PAIRS] == layout.collection_hash("docs")
    )
    word = layout.generation_word(int(pair))
    overwrite(path, 8 * word, (int(words[word]) + 1).to_bytes(8, "little"))  # what a writer killed right then leaves
    assert [reader.get(f"q{number}", ("docs", "news")[number % 2]) is None for number in range(6)] == [True, False] * 3
    store.close()
    again = ResultStore(path, capacity=CAPACITY)
    assert again.rebuilt_because is None
    assert sorted(entry.query_text for entry in again.entries()) == ["q1", "q3", "q5"]
    again.close()


def test_an_invalidated_collection_can_be_filled_again(store: ResultStore) -> None:
    for text in "abc":
        put(store, text)
    put(store, "a", collection="news")
    assert store.invalidate_collection("docs") == 3
    assert store.invalidate_collection("docs") == 0
    assert [version_of(store, text) for text in "abc"] == [None] * 3
    assert version_of(store, "a", "news") == 1
    put(store, "a", 2)
    assert version_of(store, "a") == 2


def test_collections_without_a_word_of_their_own_are_invalidated_together(path: Path) -> None:
    count = layout.GENERATION_PAIRS + 3
    store = ResultStore(path, capacity=count)
    for number in range(count):
        put(store, "a", number + 1, collection=f"c{number}")
    assert store.invalidate_collection("c5") == 1
    assert store.invalidate_collection(f"c{count - 1}") == 4
    shared = [f"c{number}" for number in range(layout.GENERATION_PAIRS - 1, count)]
    assert [version_of(store, "a", name) for name in shared] == [None] * 4
    assert version_of(store, "a", f"c{layout.GENERATION_PAIRS - 2}") == layout.GENERATION_PAIRS - 1
    assert len(store) == count - 5
    store.close()


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_full_store_refuses_new_entries_and_takes_new_versions(store: ResultStore) -> None:
    for number in range(CAPACITY):
        put(store, f"q{number}")
    with pytest.raises(StoreFull, match=str(CAPACITY)):
        put(store, "one more")
    put(store, "q3", 2)
    assert version_of(store, "q3") == 2
    assert version_of(store, "one more") is None
    store.remove("q0", "docs")
    put(store, "one more")
    assert version_of(store, "one more") == 1
    assert len(store) == CAPACITY


def test_a_result_that_is_too_large_is_refused_and_what_it_would_replace_stays(store: ResultStore) -> None:
    put(store, "a", 1, size=layout.MAX_BLOCKS * BLOCK - 1000)
    with pytest.raises(ResultStoreError, match="too large"):
        put(store, "a", 2, size=layout.MAX_BLOCKS * BLOCK)
    assert version_of(store, "a") == 1


def test_a_store_too_large_to_address_is_refused(path: Path) -> None:
    with pytest.raises(ResultStoreError, match="max_cached_queries"):
        ResultStore(path, arena_bytes=layout.MAX_OFFSET + BLOCK)
    assert not path.exists()
    ResultStore(path).close()  # and the lock is free


def test_the_store_grows_with_what_is_in_it_and_a_restart_can_shrink_it(path: Path) -> None:
    store = ResultStore(path, capacity=CAPACITY)
    reader, small = ResultReader(path), path.stat().st_size
    for version in range(1, 4):
        for number in range(CAPACITY):
            put(store, f"q{number}", version, size=200_000)
            found = reader.get(f"q{number}", "docs")
            assert found is not None
            assert found.computed_at == version
    assert path.stat().st_size > CAPACITY * 200_000 > small
    for number in range(CAPACITY):
        put(store, f"q{number}", 4)
    store.close()
    store = ResultStore(path, capacity=2 * CAPACITY)
    assert path.stat().st_size < 2 * small
    assert [version_of(store, f"q{number}") for number in range(CAPACITY)] == [4] * CAPACITY
    assert sorted(item.name for item in path.parent.iterdir()) == ["results", "results.lock"]
    store.close()


def test_the_index_is_renewed_when_removed_keys_fill_it(path: Path) -> None:
    store = ResultStore(path, capacity=2)
    epoch = store.epoch
    put(store, "stays", 7)
    for number in range(3 * store.slots):
        put(store, f"q{number}")
        assert version_of(store, f"q{number}") == 1
        store.remove(f"q{number}", "docs")
    assert store.epoch != epoch
    assert version_of(store, "stays") == 7
    store.close()


def test_use_and_generations_move_with_their_entries(store: ResultStore) -> None:
    put(store, "a", collection="news")
    store.invalidate_collection("news")
    put(store, "a", 2, collection="news")
    put(store, "b", 3)
    epoch = store.epoch
    (slot,) = [entry.slot for entry in store.entries() if entry.query_text == "b"]
    store.count_use(slot, 5, 10.0)
    for version in range(12):  # until it is compacted
        put(store, "c", version, size=300_000 + 1000 * version)
    assert store.epoch != epoch
    reader = ResultReader(store.path)
    found = reader.get("b", "docs")
    assert found is not None
    assert reader.use_of(found) == (5, 10.0)
    assert version_of(store, "a", "news") == 2
    assert store.invalidate_collection("news") == 1
    assert version_of(store, "a", "news") is None


def test_two_keys_with_one_hash_never_get_each_others_result(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def narrow(key: bytes) -> int:
        """Return one of two hashes: real keys of one 64-bit hash cannot be had."""
        return 1 + len(key) % 2

    for module in (layout, writing, knowing, reading):
        monkeypatch.setattr(module, "key64", narrow)
    store = ResultStore(path, capacity=CAPACITY)
    put(store, "a", 1)
    put(store, "bb", 2)
    put(store, "c", 3)
    assert [version_of(store, text) for text in ("a", "bb", "c")] == [None, 2, 3]
    assert not store.remove("a", "docs")
    assert version_of(store, "c") == 3
    assert len(store) == 2
    store.close()
    again = ResultStore(path, capacity=CAPACITY)
    assert again.rebuilt_because is None
    assert [version_of(again, text) for text in ("a", "bb", "c")] == [None, 2, 3]
    again.close()


def test_a_freed_extent_rests_before_it_is_used_again() -> None:
    arena = Arena(0, 1000 * BLOCK)
    first = arena.take(3)
    assert first == 0
    arena.give_back(first, 3)
    for _ in range(QUARANTINE):
        offset = arena.take(3)
        assert offset not in (None, first)
        arena.give_back(offset or 0, 3)
    assert arena.take(3) == first


def test_a_full_arena_splits_larger_extents_and_then_says_so() -> None:
    arena = Arena(0, 10 * BLOCK, taken=[(0, 2), (6 * BLOCK, 4)])
    assert [arena.take(1), arena.take(2), arena.take(2), arena.take(1), arena.take(1)] == [
        2 * BLOCK,
        3 * BLOCK,
        None,
        5 * BLOCK,
        None,
    ]


# --- attaching --------------------------------------------------------------------------------------------------------


def overwrite(path: Path, at: int, raw: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(raw)


def flip(path: Path, at: int) -> None:
    overwrite(path, at, bytes([path.read_bytes()[at] ^ 0xFF]))


def test_a_restarted_writer_finds_every_entry(path: Path) -> None:
    store = ResultStore(path, capacity=CAPACITY)
    for number in range(CAPACITY):
        put(store, f"q{number}", number + 1, candidates=(1,) if number % 2 else ())
    store.remove("q0", "docs")
    before = sorted(store.entries(), key=lambda entry: entry.slot)
    store.close()
    store = ResultStore(path, capacity=CAPACITY)
    assert store.rebuilt_because is None
    assert sorted(store.entries(), key=lambda entry: entry.slot) == before
    put(store, "q0", 50)
    put(store, "q1", 51)
    assert [version_of(store, f"q{number}") for number in range(3)] == [50, 51, 3]
    store.close()


@pytest.mark.parametrize("capacity", [2, 5, 10, CAPACITY, 500])
def test_another_capacity_keeps_what_was_computed_last(path: Path, capacity: int) -> None:
    store, reader = ResultStore(path, capacity=100), ResultReader(path)
    for number in range(CAPACITY):
        put(store, f"q{number}", number + 1)
        assert reader.get(f"q{number}", "docs") is not None
    store.close()
    store = ResultStore(path, capacity=capacity)
    assert store.rebuilt_because is None
    assert store.slots == layout.slots_for(capacity)
    kept = min(capacity, CAPACITY)
    assert len(store) == kept
    expected = [number + 1 if number >= CAPACITY - kept else None for number in range(CAPACITY)]
    assert [version_of(store, f"q{number}") for number in range(CAPACITY)] == expected
    assert [reader.get(f"q{number}", "docs") is not None for number in range(CAPACITY)] == [
        v is not None for v in expected
    ]
    put(store, f"q{CAPACITY - 1}", 99)
    if kept == capacity:
        with pytest.raises(StoreFull):
            put(store, "one more")
    store.close()


def refill(path: Path) -> ResultStore:
    """Open the store anew and see that it serves again."""
    store = ResultStore(path, capacity=CAPACITY)
    assert len(store) == 0
    put(store, "a", 9)
    assert version_of(store, "a") == 9
    return store


@pytest.mark.parametrize(
    ("word", "value", "reason"),
    [
        (layout.W_MAGIC, 5, "is not a result store"),
        (layout.W_VERSION, layout.LAYOUT_VERSION + 1, f"layout {layout.LAYOUT_VERSION + 1}, this program needs"),
        (layout.W_VERSION, layout.LAYOUT_VERSION - 1, f"layout {layout.LAYOUT_VERSION - 1}, this program needs"),
        (layout.W_SLOTS, 0, "damaged header"),
        (layout.W_SLOTS, 100, "damaged header"),
        (layout.W_SLOTS, 2**40, "damaged header"),
        (layout.W_ARENA_START, 0, "damaged header"),
        (layout.W_ARENA_END, 2**63, "damaged header"),
        (layout.W_ARENA_END, 0, "damaged header"),
    ],
)
def test_a_file_that_cannot_be_used_is_moved_aside_with_the_reason(
    path: Path, word: int, value: int, reason: str
) -> None:
    for number in (1, 2):
        store = refill(path)
        store.close()
        overwrite(path, 8 * word, value.to_bytes(8, "little"))
        store = refill(path)
        assert store.rebuilt_because is not None
        assert reason in store.rebuilt_because
        assert str(path) in store.rebuilt_because
        aside = path.with_name(f"results.corrupt-{number}")
        assert int.from_bytes(aside.read_bytes()[8 * word : 8 * word + 8], "little") == value
        store.close()
        path.unlink()


@pytest.mark.parametrize("content", [b"", b"x", bytes(layout.HEADER_BYTES), b"not a store " * 4000])
def test_a_foreign_file_is_moved_aside_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    store = refill(path)
    assert store.rebuilt_because is not None
    assert "result store" in store.rebuilt_because
    assert path.with_name("results.corrupt-1").read_bytes() == content
    store.close()


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_what_is_no_plain_file_is_moved_aside(path: Path, kind: str) -> None:
    target = path.with_name("elsewhere")
    target.write_bytes(b"not ours")
    if kind == "link":
        path.symlink_to(target)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    assert ResultReader(path).get("a", "docs") is None
    store = refill(path)
    assert store.rebuilt_because is not None
    assert "no result store" in store.rebuilt_because
    assert target.read_bytes() == b"not ours"
    assert path.is_file()
    assert not path.is_symlink()
    store.close()


@pytest.mark.parametrize("at", [0, 8, 60, 150, 250])
def test_a_damaged_record_is_found_when_a_writer_attaches(path: Path, at: int) -> None:
    store = refill(path)
    _, _, offset = layout.unpack_pointer(word_of(store, "a"))
    store.close()
    flip(path, offset + at)
    store = refill(path)
    assert "damaged record" in (store.rebuilt_because or "")
    store.close()


def test_readers_drop_what_they_kept_of_a_file_that_was_moved_aside(path: Path) -> None:
    store, reader = refill(path), ResultReader(path)
    put(store, "b", 1)
    assert [reader.get("b", "docs") is not None for _ in range(4)] == [True] * 4  # kept by now
    _, _, offset = layout.unpack_pointer(word_of(store, "a"))
    store.close()
    flip(path, offset + 100)
    store = refill(path)
    assert store.rebuilt_because is not None
    put(store, "b", 2)
    found = reader.get("b", "docs")
    assert found is not None
    assert found.computed_at == 2
    store.close()


def test_what_a_writer_killed_while_compacting_left_is_removed(path: Path) -> None:
    left = path.with_name("results.new")
    left.write_bytes(b"half")
    refill(path).close()
    assert not left.exists()


# --- one writer -------------------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_until_the_first_has_closed(path: Path) -> None:
    store = refill(path)
    with pytest.raises(ResultStoreError, match="another process writes"):
        ResultStore(path)
    put(store, "a", 3)
    store.close()
    again = ResultStore(path, capacity=CAPACITY)
    assert version_of(again, "a") == 3
    again.close()


def test_a_destroyed_store_is_gone_for_its_readers_at_once(path: Path) -> None:
    store, reader = refill(path), ResultReader(path)
    assert [reader.get("a", "docs") is not None for _ in range(4)] == [True] * 4
    store.destroy()
    assert reader.get("a", "docs") is None
    assert not path.exists()
    store = refill(path)
    assert store.rebuilt_because is None
    store.close()
