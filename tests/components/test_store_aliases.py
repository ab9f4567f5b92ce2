"""Aliases in the result store, on a real file: a small record that shares the texts of another entry's rows."""

from __future__ import annotations

import mmap
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morgan.background.ipc import entry as knowing
from morgan.background.ipc import layout
from morgan.background.ipc import reader as reading
from morgan.background.ipc import store as writing
from morgan.background.ipc.entry import EntryInfo
from morgan.background.ipc.reader import ResultReader
from morgan.background.ipc.records import ComputedResult
from morgan.background.ipc.result import CachedResult
from morgan.background.ipc.store import ResultStore, StoreFull
from morgan.background.supervisor.snapshot import restore, save

LATER = 1e12
CAPACITY = 8


def made(text: str, score: int = 1, rows: str = "a", **more: Any) -> ComputedResult:
    """Return a result whose own parts carry `score` and whose rows' texts carry `rows`."""
    fields: dict[str, Any] = {
        "query_text": text,
        "collection": "docs",
        "ids": (7, 8),
        "scores": np.full(2, score, "<f4").tobytes(),
        "contents": (rows * 400, rows),
        "sources": (rows, ""),
        "metadata": ({"rows": rows}, {}),
        "computed_at": float(score),
        "embedding": np.full(8, score, "<f4").tobytes(),
        "candidates": (7, 8, 9),
        "cutoff": 0.5,
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


def entry(store: ResultStore, text: str, collection: str = "docs", scope: str = "") -> EntryInfo:
    (found,) = (
        one for one in store.entries() if (one.query_text, one.collection, one.scope) == (text, collection, scope)
    )
    return found


def put(store: ResultStore, text: str, score: int = 1, rows: str = "a", **more: Any) -> None:
    store.put(made(text, score, rows, **more), expires_at=LATER)


def lean(store: ResultStore, text: str, of: str, score: int = 2, rows: str = "a", **more: Any) -> bool:
    return store.put_alias(made(text, score, rows, **more), entry(store, of), expires_at=LATER)


def seen(result: CachedResult | None) -> tuple[int, str] | None:
    """Return score and rows of a result, all of whose parts agree."""
    if result is None:
        return None
    (score,) = {int(result.scores[0]), int(result.scores[1]), int(result.computed_at)}
    (rows,) = {result.contents[0][0], result.contents[1], result.sources[0], str(result.metadata[0]["rows"])}
    assert len(result.contents[0]) == 400
    assert result.ids == (7, 8)
    return score, rows


def read(path: Path, text: str) -> tuple[int, str] | None:
    return seen(ResultReader(path).get(text, "docs"))


# --- what it is --------------------------------------------------------------------------------------------------------


def test_an_alias_gives_what_a_record_of_its_own_would_and_takes_less(store: ResultStore, path: Path) -> None:
    put(store, "the entry", 1)
    own = made(
        "Another Query", 2, quality=0.5, quality_basis="similarity", language="en", cost_s=0.25, rerank_scores=bytes(8)
    )
    assert store.put_alias(own, entry(store, "the entry"), expires_at=LATER - 1, soft_at=5.0)
    reader = ResultReader(path)
    results = [
        store.get("another query", "docs"),
        reader.get("ANOTHER query", "docs"),
        reader.get("another query", "docs"),
    ]
    results += [reader.get("another query", "docs")]  # the kept copy
    for found in results:
        assert seen(found) == (2, "a")
        assert found is not None
        assert (found.query_text, found.collection, found.scope) == ("Another Query", "docs", "")
        assert (found.expires_at, found.soft_at, found.cost_s, found.cutoff) == (LATER - 1, 5.0, 0.25, 0.5)
        assert (found.quality, found.quality_basis, found.language) == (0.5, "similarity", "en")
        assert (len(found.rerank_scores), found.embedding.tolist(), found.candidates) == (2, [2.0] * 8, (7, 8, 9))
        assert [hit.payload["metadata"] for hit in found.hits()] == [{"rows": "a"}, {}]
        assert found.fresh_metadata() == ({"rows": "a"}, {})
    alias, whole = entry(store, "Another Query"), entry(store, "the entry")
    assert (alias.alias_of, whole.alias_of, alias.is_ours) == (whole.key_hash, "", True)
    assert alias.size_bytes < whole.size_bytes
    assert reader.use_of(results[0]) == (3, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("ids", [("x", "y"), ("9f3c1a52-0000-4000-8000-000000000001",) * 2, (1, "x")])
def test_an_alias_has_ids_of_every_kind_also_for_the_next_writer(path: Path, ids: tuple[int | str, ...]) -> None:
    with_store = ResultStore(path, capacity=CAPACITY)
    put(with_store, "the entry", ids=ids)
    assert lean(with_store, "alias", "the entry", ids=ids)
    with_store.close()
    again = ResultStore(path, capacity=CAPACITY)
    found = ResultReader(path).get("alias", "docs")
    assert again.rebuilt_because is None
    assert found is not None
    assert found.ids == ids
    again.close()


def test_what_cannot_be_an_alias_is_refused_and_changes_nothing(store: ResultStore) -> None:
    put(store, "entry")
    put(store, "other", rows="b")
    put(store, "entry", collection="code")
    put(store, "entry", scope="tenant")
    assert lean(store, "alias", "entry")
    missing = entry(store, "other")
    store.remove("other", "docs")
    before = {(one.query_text, one.collection, one.scope, one.pointer) for one in store.entries()}
    assert not lean(store, "new", "entry", rows="b")  # other texts
    assert not lean(store, "new", "alias")  # an alias itself
    assert not lean(store, "entry", "entry")
    assert not store.put_alias(made("new"), entry(store, "entry", "code"), expires_at=LATER)
    assert not store.put_alias(made("new"), entry(store, "entry", "docs", "tenant"), expires_at=LATER)
    assert not store.put_alias(made("new", rows="b"), missing, expires_at=LATER)
    put(store, "third")
    before |= {(one.query_text, one.collection, one.scope, one.pointer) for one in store.entries()}
    assert not lean(store, "entry", "third")  # it has an alias
    assert {(one.query_text, one.collection, one.scope, one.pointer) for one in store.entries()} == before


def test_aliases_take_no_entrys_room_and_are_as_many_at_most(store: ResultStore) -> None:
    for n in range(CAPACITY):
        put(store, f"entry {n}", rows="ab"[n % 2])
    for n in range(CAPACITY):
        assert lean(store, f"alias {n}", "entry 0")
    with pytest.raises(StoreFull, match="8 aliases"):
        lean(store, "one more", "entry 0")
    with pytest.raises(StoreFull, match="8 entries"):
        put(store, "alias 0")  # it would need a record of its own
    assert lean(store, "alias 0", "entry 2", 5)
    assert read(store.path, "alias 0") == (5, "a")
    store.remove("entry 1", "docs")
    put(store, "alias 0", 6, "b")
    assert read(store.path, "alias 0") == (6, "b")
    assert entry(store, "alias 0").alias_of == ""
    assert len(store) == 2 * CAPACITY - 1


# --- what becomes of it ------------------------------------------------------------------------------------------------


def test_an_alias_stays_while_its_entry_is_replaced_by_the_same_texts_and_goes_with_others(store: ResultStore) -> None:
    put(store, "entry", 1)
    assert lean(store, "alias", "entry", 2)
    reader = ResultReader(store.path)
    assert [seen(reader.get("alias", "docs")) for _ in range(3)] == [(2, "a")] * 3
    put(store, "entry", 3)
    assert [seen(reader.get(text, "docs")) for text in ("alias", "alias", "entry")] == [(2, "a"), (2, "a"), (3, "a")]
    assert store.make_stale("entry", "docs", "", 0.0)
    assert store.make_stale("alias", "docs", "", 1.0)
    found = reader.get("alias", "docs")
    assert seen(found) == (2, "a")
    assert found is not None
    assert found.soft_at == 1.0
    put(store, "entry", 4, "b")
    assert (reader.get("alias", "docs"), seen(reader.get("entry", "docs"))) == (None, (4, "b"))
    assert [one.query_text for one in store.entries()] == ["entry"]
    put(store, "alias", 5, "c")
    assert seen(reader.get("alias", "docs")) == (5, "c")


def test_an_alias_goes_with_its_entry_its_generation_and_its_own_expiry(store: ResultStore) -> None:
    reader = ResultReader(store.path)
    put(store, "entry")
    assert store.put_alias(made("short", 2), entry(store, "entry"), expires_at=50.0)
    assert lean(store, "alias", "entry")
    assert reader.get_at("short", "docs", "", 49.0) is not None
    assert reader.get_at("short", "docs", "", 50.0) is None
    assert [reader.get("alias", "docs") is not None for _ in range(3)] == [True] * 3
    assert store.invalidate_collection("docs") == 3
    assert reader.get("alias", "docs") is None
    put(store, "entry")
    assert lean(store, "alias", "entry")
    assert [reader.get("alias", "docs") is not None for _ in range(3)] == [True] * 3
    assert store.remove("entry", "docs")
    assert reader.get("alias", "docs") is None
    assert not store.remove("alias", "docs")
    assert store.size_bytes == 0


def test_an_alias_of_a_record_that_is_not_the_one_it_was_made_of_is_a_miss(path: Path) -> None:
    """What a reader would meet if the blocks of the shared record were another's: the checksum is the alias's own."""
    store = ResultStore(path, capacity=CAPACITY)
    put(store, "entry")
    assert lean(store, "alias", "entry")
    _, blocks, offset = layout.unpack_pointer(entry(store, "entry").pointer)
    other = layout.pack_record(made("entry", 9), LATER, LATER, 0, 0)
    assert len(other) == blocks * layout.BLOCK
    with store.path.open("r+b") as file:
        file.seek(offset)
        file.write(other)
    assert (read(store.path, "entry"), read(store.path, "alias")) == ((9, "a"), None)
    store.close()
    store = ResultStore(path, capacity=CAPACITY)
    assert store.rebuilt_because is None
    assert [one.query_text for one in store.entries()] == ["entry"]
    store.close()


def test_an_alias_is_of_its_collections_generation(path: Path) -> None:
    """As a writer leaves it that was killed between the word that invalidates a collection and the removals."""
    store = ResultStore(path, capacity=CAPACITY)
    put(store, "entry")
    assert lean(store, "alias", "entry")
    store._words[layout.generation_word(0)] += 1
    assert (read(path, "entry"), read(path, "alias")) == (None, None)
    store.close()
    store = ResultStore(path, capacity=CAPACITY)
    assert (store.rebuilt_because, len(store)) == (None, 0)
    store.close()


def test_an_alias_goes_where_another_key_of_one_hash_takes_its_entrys_slot(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (layout, writing, knowing, reading):
        monkeypatch.setattr(module, "key64", lambda key: 1 + len(key) % 2)
    store = ResultStore(path, capacity=CAPACITY)
    put(store, "a")
    assert lean(store, "bb", "a")
    put(store, "c", 3)  # in the slot of "a", with the same texts
    assert [read(path, text) for text in ("a", "bb", "c")] == [None, None, (3, "a")]
    assert lean(store, "bb", "c", 4)
    put(store, "dddd", 5)  # in the slot of the alias
    assert [read(path, text) for text in ("bb", "c", "dddd")] == [None, (3, "a"), (5, "a")]
    assert not store.remove("bb", "docs")
    store.close()
    again = ResultStore(path, capacity=CAPACITY)
    assert (again.rebuilt_because, len(again)) == (None, 2)
    again.close()


def test_aliases_outlive_growth_restart_another_capacity_and_a_snapshot(path: Path, tmp_path: Path) -> None:
    store = ResultStore(path, capacity=CAPACITY)
    put(store, "entry", 1)
    assert lean(store, "alias", "entry", 2)
    reader = ResultReader(path)
    epoch = store.epoch
    for n in range(4):
        put(store, f"large {n}", contents=("x" * 500_000, ""))
    assert store.epoch != epoch
    assert seen(reader.get("alias", "docs")) == (2, "a")
    store.count_use(entry(store, "alias").slot, 3, 9.0)
    store.close()
    store = ResultStore(path, capacity=10 * CAPACITY)
    assert (store.rebuilt_because, seen(reader.get("alias", "docs"))) == (None, (2, "a"))
    assert entry(store, "alias").alias_of == entry(store, "entry").key_hash
    save(store, tmp_path / "saved")
    store.destroy()
    assert restore(tmp_path / "saved", path)
    store = ResultStore(path, capacity=3)
    assert (store.rebuilt_because, read(path, "alias")) == (None, (2, "a"))
    put(store, "entry", 3, "b")
    assert read(path, "alias") is None
    store.close()


# --- killed anywhere ---------------------------------------------------------------------------------------------------


WRITING = {
    "_append",
    "_move_aliases",
    "_remove",
    "_compact",
    "_supersede",
}  # what changes the file is in these functions


def killed_at(path: Path, line: int, work: Callable[[ResultStore], object]) -> bool:
    """Have a process attach and do `work`, and kill it at its `line`-th line of those; False where it ended before."""
    pid = os.fork()
    if not pid:
        left = line
        try:
            store = ResultStore(path, capacity=CAPACITY)

            def trace(frame: FrameType, event: str, _: object) -> Any:
                nonlocal left
                if frame.f_code.co_name not in WRITING:
                    return None
                left -= event == "line"
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return trace

            sys.settrace(trace)
            work(store)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def replace_with_others(store: ResultStore) -> None:
    put(store, "entry", 3, "b")


KILLS: dict[str, tuple[Callable[[ResultStore], object], tuple[int, str] | None, tuple[int, str] | None]] = {
    "replaced by the same texts": (lambda store: put(store, "entry", 3), (3, "a"), (2, "a")),
    "replaced by other texts": (replace_with_others, (3, "b"), None),
    "removed": (lambda store: store.remove("entry", "docs"), None, None),
    "verified again": (lambda store: lean(store, "alias", "entry", 4), (1, "a"), (4, "a")),
    "given a record of its own": (lambda store: put(store, "alias", 5, "c"), (1, "a"), (5, "c")),
    "moved": (lambda store: store._compact(0), (1, "a"), (2, "a")),
}


@pytest.mark.parametrize("what", KILLS)
def test_a_writer_killed_at_any_line_leaves_an_alias_that_is_right_or_a_miss(tmp_path: Path, what: str) -> None:
    work, entry_after, alias_after = KILLS[what]
    saved, path = tmp_path / "saved", tmp_path / "results"
    store = ResultStore(path, capacity=CAPACITY)
    put(store, "entry", 1)
    assert lean(store, "alias", "entry", 2)
    save(store, saved)
    store.destroy()
    line = 1
    while True:
        assert restore(saved, path)
        kept = ResultReader(path)
        for text in ("alias", "entry") * 3:
            assert kept.get(text, "docs") is not None
        was_killed = killed_at(path, line, work)
        of_kept = seen(kept.get("entry", "docs")), seen(kept.get("alias", "docs"))
        assert of_kept == (read(path, "entry"), read(path, "alias"))
        assert of_kept[0] in ((1, "a"), entry_after)
        assert of_kept[1] in ((2, "a"), alias_after)
        store = ResultStore(path, capacity=CAPACITY)
        assert store.rebuilt_because is None
        after = read(path, "entry"), read(path, "alias")
        assert after == (seen(store.get("entry", "docs")), seen(store.get("alias", "docs")))
        assert after[0] == of_kept[0]
        assert after[1] in (of_kept[1], None)
        put(store, "entry", 6)  # what is left can be worked with
        assert lean(store, "alias", "entry", 7)
        assert (read(path, "entry"), read(path, "alias")) == ((6, "a"), (7, "a"))
        store.destroy()
        if not was_killed:
            assert after == (entry_after, alias_after)
            break
        line += 1 if line < 60 else 97  # past what is written first: moving a file is a loop over its slots
    assert line > 15


# --- read while it is written ------------------------------------------------------------------------------------------

WRITES = 3000


def write_number(store: ResultStore, number: int) -> None:
    match number % 8:
        case 1 | 5:
            lean(store, "alias", "entry", number, rows_at(number))
        case 3:
            store.make_stale("entry", "docs", "", 0.0)
        case 7:
            store._compact(0) if number % 64 == 63 else store.make_stale("alias", "docs", "", 1.0)
        case _:
            put(store, "entry", number, rows_at(number))


def rows_at(number: int) -> str:
    return "ab"[number // 24 % 2]


def states() -> list[dict[str, tuple[int, str] | None]]:
    """Return what each text gives after each write."""
    found: list[dict[str, tuple[int, str] | None]] = [{"entry": None, "alias": None}]
    for number in range(1, WRITES + 1):
        now, rows = dict(found[-1]), rows_at(number)
        if number % 8 in (1, 5):
            if now["entry"] is not None and now["entry"][1] == rows:
                now["alias"] = number, rows
        elif number % 8 not in (3, 7):
            now["entry"] = number, rows
            if now["alias"] is not None and now["alias"][1] != rows:
                now["alias"] = None
        found.append(now)
    return found


def test_no_lookup_under_writes_at_full_speed_is_torn_stale_or_missing(path: Path) -> None:
    after = states()
    ResultStore(path, capacity=CAPACITY).close()
    words = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")  # the write begun last, and the one that was done last
    pid = os.fork()
    if not pid:
        try:
            store = ResultStore(path, capacity=CAPACITY)
            for number in range(2, WRITES + 1):  # the first would be an alias of nothing
                words[0] = number
                write_number(store, number)
                words[1] = number
            os._exit(0)
        finally:
            os._exit(1)
    reader, found, turn = ResultReader(path), {"hits": 0, "misses": 0}, 0
    while words[1] < WRITES:
        text = "alias" if turn // 3 % 3 else "entry"  # three in a row: from the file, kept, from the kept copy
        turn += 1
        low = words[1]
        result = seen(reader.get(text, "docs"))
        high = words[0]
        assert result in [after[number][text] for number in range(low, high + 1)]
        found["misses" if result is None else "hits"] += 1
        if os.waitpid(pid, os.WNOHANG)[0]:
            break
    else:
        assert os.waitpid(pid, 0)[1] == 0
    assert words[1] == WRITES
    assert found["hits"] > 1000
    assert found["misses"] > 10


# --- histories ---------------------------------------------------------------------------------------------------------

TEXTS = tuple(f"query {n}" for n in range(5))
steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "alias", "alias", "alias", "remove", "stale", "invalidate", "grow", "restart"]),
        st.integers(0, len(TEXTS) - 1),
        st.integers(0, len(TEXTS) - 1),
        st.sampled_from("ab"),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=60)
@given(steps=steps)
def test_a_reader_finds_what_was_written_last_whatever_was_done_before(steps: list[tuple[str, int, int, str]]) -> None:
    held: dict[str, tuple[int, str]] = {}
    leans: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results"
        store = ResultStore(path, capacity=len(TEXTS))
        reader = ResultReader(path)

        def drop(text: str) -> None:
            held.pop(text, None)
            leans.pop(text, None)
            for alias in [alias for alias, of in leans.items() if of == text]:
                drop(alias)

        for score, (what, n, m, rows) in enumerate(steps, 1):
            text, of = TEXTS[n], TEXTS[m]
            match what:
                case "put":
                    put(store, text, score, rows)
                    if text in held and held[text][1] != rows:
                        drop(text)
                    leans.pop(text, None)
                    held[text] = (score, rows)
                case "alias" if of in held:
                    can = of not in leans and text != of and text not in leans.values() and held[of][1] == rows
                    assert lean(store, text, of, score, rows) == can
                    if can:
                        held[text], leans[text] = (score, rows), of
                case "remove":
                    assert store.remove(text, "docs") == (text in held)
                    drop(text)
                case "stale":
                    assert store.make_stale(text, "docs", "", 0.0) == (text in held)
                case "invalidate":
                    assert store.invalidate_collection("docs") == len(held)
                    held.clear()
                    leans.clear()
                case "grow":
                    store._compact(0)
                case "restart":
                    store.close()
                    store = ResultStore(path, capacity=len(TEXTS))
                    assert store.rebuilt_because is None
            for one in TEXTS:
                assert seen(reader.get(one, "docs")) == held.get(one) == seen(store.get(one, "docs"))
            names = {entry.key_hash: entry.query_text for entry in store.entries()}
            assert {one.query_text: names[one.alias_of] for one in store.entries() if one.alias_of} == leans
        store.close()
