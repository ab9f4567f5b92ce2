"""The reading side of the result store: in other processes, over replaced files, forks and threads; counted exactly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from morgan.background.ipc import layout
from morgan.background.ipc.counters import CounterFold
from morgan.background.ipc.errors import ResultStoreError
from morgan.background.ipc.reader import LOOK_S, ResultReader
from morgan.background.ipc.records import ComputedResult
from morgan.background.ipc.result import ReadyResult
from morgan.background.ipc.store import ResultStore
from morgan.background.supervisor.popularity import Popularity
from morgan.background.supervisor.results import CachePolicy, ResultKeeper

LATER = 1e12


def made(text: str, version: int = 1, *, size: int = 10, collection: str = "docs", scope: str = "") -> ComputedResult:
    return ComputedResult(
        query_text=text,
        collection=collection,
        scope=scope,
        ids=(version,),
        scores=np.full(1, version, "<f4").tobytes(),
        contents=("x" * size,),
        sources=("",),
        metadata=({},),
        computed_at=float(version),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "readers").mkdir()
    return tmp_path / "results"


@pytest.fixture
def store(path: Path) -> Iterator[ResultStore]:
    found = ResultStore(path, capacity=20)
    yield found
    found.close()


def kept(reader: ResultReader, text: str, collection: str = "docs", scope: str = "") -> ReadyResult:
    """Read until the reader hands out its own copy."""
    found = [reader.get(text, collection, scope) for _ in range(4)][-1]
    assert isinstance(found, ReadyResult)
    assert reader.get(text, collection, scope) is found
    return found


def version_of(reader: ResultReader, text: str, collection: str = "docs", scope: str = "") -> int | None:
    found = reader.get(text, collection, scope)
    return None if found is None else int(found.computed_at)


def lookups_and_hits(path: Path) -> tuple[int, int]:
    totals = CounterFold(path.with_name("readers")).fold()
    return totals.lookups, totals.hits


# --- acknowledged writes ----------------------------------------------------------------------------------------------

WRITER = """
import mmap, os, sys
from pathlib import Path
import numpy as np
from morgan.background.ipc.records import ComputedResult
from morgan.background.ipc.store import ResultStore

KEYS, TURNS = 4, int(sys.argv[3])
with open(sys.argv[2], "r+b") as file:
    words = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")
store, epochs = ResultStore(Path(sys.argv[1]), capacity=8), set()
for turn in range(1, TURNS + 1):
    size = 400_000 if turn % 5 == 0 else 100  # four of them are more than the arena: a new file
    for key in range(KEYS):
        words[key] = turn  # begun
    if turn % 7 == 3:
        for key in range(KEYS):
            store.remove(f"q{key}", "docs")
            words[8 + key] = turn  # acknowledged
        continue
    if turn % 7 == 5:
        store.invalidate_collection("docs")
    else:
        for key in range(KEYS):
            store.put(ComputedResult(
                query_text=f"q{key}", collection="docs", ids=(turn,), scores=np.full(1, turn, "<f4").tobytes(),
                contents=(f"{turn} " + "x" * size,), sources=("",), metadata=({},), computed_at=float(turn),
            ), expires_at=1e12)
            words[8 + key] = turn
    for key in range(KEYS):
        words[8 + key] = turn
    epochs.add(store.epoch)
words[16] = 1
print(len(epochs))
"""

READER = """
import collections, json, mmap, sys
from pathlib import Path
from morgan.background.ipc.reader import ResultReader

with open(sys.argv[2], "rb") as file:
    words = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)).cast("Q")
reader, found = ResultReader(Path(sys.argv[1])), collections.Counter()
print("ready", flush=True)
last = None
while not words[16]:
    for key in (0, 0, 0, 0, 1, 1, 1, 2, 2, 3):
        low = words[8 + key]
        result = reader.get(f"q{key}", "docs")
        high = words[key]
        if result is None:
            is_right = low == 0 or any(turn % 7 in (3, 5) for turn in range(low, high + 1))
            found["gone" if is_right else "missing"] += 1
            continue
        whole = result.computed_at == result.ids[0] == result.scores[0] == int(result.contents[0].split()[0])
        found["right" if whole and low <= result.computed_at <= high else "wrong"] += 1
        found["kept"] += result is last
        last = result
print(json.dumps(found))
"""


def test_what_was_replaced_or_removed_is_never_returned_after_the_write_was_acknowledged(tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.write_bytes(bytes(4096))
    names = [str(tmp_path / "results"), str(words)]
    ResultStore(tmp_path / "results", capacity=8).close()
    readers = [
        subprocess.Popen([sys.executable, "-c", READER, *names], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
    done = subprocess.run([sys.executable, "-c", WRITER, *names, "400"], capture_output=True, text=True, check=False)
    if done.returncode:
        words.write_bytes(b"\1" * 4096)
    found = [json.loads(reader.communicate()[0]) for reader in readers]
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 30  # files in all
    for counts in found:
        assert counts.get("wrong", 0) == counts.get("missing", 0) == 0, counts
        assert min(counts["right"], counts["gone"], counts["kept"]) > 100, counts


def test_kept_copies_are_dropped_by_every_kind_of_write(store: ResultStore, path: Path) -> None:
    reader = ResultReader(path)
    for text in "abc":
        store.put(made(text), expires_at=LATER)
        kept(reader, text)
    store.put(made("a", 2), expires_at=LATER)
    store.remove("b", "docs")
    assert [version_of(reader, text) for text in "abc"] == [2, None, 1]
    store.make_stale("c", "docs", "", 5.0)
    assert kept(reader, "c").soft_at == 5.0
    kept(reader, "a")
    store.invalidate_collection("docs")
    assert [version_of(reader, text) for text in "abc"] == [None] * 3


def test_one_text_in_several_collections_and_scopes_is_never_mixed_up(store: ResultStore, path: Path) -> None:
    names = [("docs", ""), ("docs", "x"), ("news", ""), ("news", "x")]
    for version, (collection, scope) in enumerate(names):
        store.put(made("a", version, collection=collection, scope=scope), expires_at=LATER)
    reader = ResultReader(path)
    for _ in range(3):
        for version, name in enumerate(names):
            assert kept(reader, "a", *name).computed_at == version
    assert version_of(reader, "a", "docs", "y") is None


def test_no_more_copies_are_kept_than_configured(store: ResultStore, path: Path) -> None:
    reader = ResultReader(path, local_copies=3)
    for number in range(10):
        store.put(made(f"q{number}", number), expires_at=LATER)
        kept(reader, f"q{number}")
    assert len(reader._local) == 3
    assert [version_of(reader, f"q{number}") for number in range(10)] == list(range(10))


# --- expiry -----------------------------------------------------------------------------------------------------------


def test_a_kept_copy_is_never_returned_after_it_has_expired(store: ResultStore, path: Path) -> None:
    expired = []
    for number, later_s in enumerate((0.05, 0.1, 0.2, LOOK_S + 0.1)):
        expired.append(time.time() + later_s)
        store.put(made(f"q{number}"), expires_at=expired[-1])
    reader, left = ResultReader(path), set(range(len(expired)))
    seen = dict.fromkeys(left, 0)
    while left:
        for number in list(left):
            asked_at = time.time()
            if reader.get(f"q{number}", "docs") is None:
                assert time.time() >= expired[number]
                left.remove(number)
            else:
                assert asked_at < expired[number]
                seen[number] += 1
    assert all(count > 4 for count in seen.values())


def test_an_expired_copy_is_not_returned_where_the_file_has_gone(store: ResultStore, path: Path) -> None:
    expires_at = time.time() + LOOK_S + 0.2
    store.put(made("a"), expires_at=expires_at)
    reader = ResultReader(path)
    kept(reader, "a")
    path.unlink()
    asked_at = time.time()
    while reader.get("a", "docs") is not None:
        assert asked_at < expires_at
        asked_at = time.time()
    assert time.time() >= expires_at


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_store_that_appears_later_is_found(path: Path) -> None:
    reader = ResultReader(path)
    assert reader.get("a", "docs") is None
    assert "No such file" in (reader.problem or "")
    store = ResultStore(path)
    store.put(made("a"), expires_at=LATER)
    deadline = time.monotonic() + 10
    while reader.get("a", "docs") is None:
        assert time.monotonic() < deadline
    assert reader.problem is None
    store.close()


def test_a_superseded_file_is_left_at_once_and_the_new_one_counted(store: ResultStore, path: Path) -> None:
    reader = ResultReader(path, counters_dir=path.with_name("readers"))
    store.put(made("a", 1), expires_at=LATER)
    kept(reader, "a")
    epoch = store.epoch
    for version in range(2, 8):
        store.put(made("a", version, size=400_000), expires_at=LATER)
        assert version_of(reader, "a") == version
    assert store.epoch != epoch
    assert lookups_and_hits(path) == (11, 11)


def test_a_file_replaced_without_a_word_is_followed_within_a_second(
    store: ResultStore, path: Path, tmp_path: Path
) -> None:
    store.put(made("a", 1), expires_at=LATER)
    reader = ResultReader(path)
    kept(reader, "a")
    other = ResultStore(tmp_path / "other")
    other.put(made("a", 2), expires_at=LATER)
    began = time.monotonic()
    os.replace(tmp_path / "other", path)
    while version_of(reader, "a") == 1:
        assert time.monotonic() - began < 10
    assert kept(reader, "a").computed_at == 2
    other.close()


@pytest.mark.parametrize("content", [b"", bytes(8192), b"MGRESULT" + bytes(8184)])
def test_a_file_replaced_by_one_that_cannot_be_read_is_not_read_any_more(
    store: ResultStore, path: Path, tmp_path: Path, content: bytes
) -> None:
    store.put(made("a", 1), expires_at=LATER)
    reader = ResultReader(path)
    kept(reader, "a")
    (tmp_path / "other").write_bytes(content)  # as a service of another version leaves it
    os.replace(tmp_path / "other", path)
    deadline = time.monotonic() + 10
    while reader.get("a", "docs") is not None:
        assert time.monotonic() < deadline
    assert "result store" in (reader.problem or "")


def test_readers_keep_hitting_while_the_writer_is_down_and_after_it_is_back(path: Path) -> None:
    reader = ResultReader(path)
    for version in range(1, 4):
        store = ResultStore(path)
        store.put(made("a", version), expires_at=LATER)
        assert version_of(reader, "a") == version
        store.close()
        assert kept(reader, "a").computed_at == version


def test_a_file_that_its_dead_writer_was_about_to_replace_is_read_on(path: Path) -> None:
    store, reader = ResultStore(path), ResultReader(path)
    store.put(made("a", 1), expires_at=LATER)
    kept(reader, "a")
    store.close()
    with path.open("r+b") as file:
        file.seek(8 * layout.W_SUPERSEDED)
        file.write(layout.SOON.to_bytes(8, "little"))
    assert version_of(reader, "a") == 1
    assert reader.get("b", "docs") is None
    store = ResultStore(path)
    store.put(made("a", 2), expires_at=LATER)
    assert kept(reader, "a").computed_at == 2
    store.close()


def test_a_closed_reader_counts_nothing_more_and_can_be_asked_again(store: ResultStore, path: Path) -> None:
    reader = ResultReader(path, counters_dir=path.with_name("readers"))
    store.put(made("a"), expires_at=LATER)
    kept(reader, "a")
    reader.close()
    fold = CounterFold(path.with_name("readers"))
    assert (fold.fold().lookups, fold.fold().readers) == (5, 0)
    assert list(path.with_name("readers").iterdir()) == []


def test_a_reader_that_may_not_count_reads(store: ResultStore, path: Path) -> None:
    store.put(made("a"), expires_at=LATER)
    reader = ResultReader(path, counters_dir=path.with_name("no such folder"))
    assert kept(reader, "a").computed_at == 1
    assert reader.get("b", "docs") is None
    assert "not counted" in (reader.problem or "")


def test_reports_that_were_dropped_are_counted(store: ResultStore, path: Path) -> None:
    reader = ResultReader(path, counters_dir=path.with_name("readers"))
    reader.count_dropped(2)
    assert reader.get("a", "docs") is None
    reader.count_dropped(3)
    assert CounterFold(path.with_name("readers")).fold().dropped == 3


def test_looking_at_another_time_changes_nothing_for_kept_copies(store: ResultStore, path: Path) -> None:
    expires_at = time.time() + 0.3
    store.put(made("a"), expires_at=expires_at)
    reader = ResultReader(path)
    found = kept(reader, "a")
    assert reader.get_at("a", "docs", "", expires_at) is None
    assert reader.get_at("a", "docs", "", 0.0) is not None
    assert found.expires_at == expires_at
    asked_at = time.time()
    while reader.get("a", "docs") is not None:
        assert asked_at < expires_at
        asked_at = time.time()


# --- forks and threads ------------------------------------------------------------------------------------------------


def in_child(program: str, path: Path) -> None:
    """Run `program` in a process of its own that forks: this one may have threads of other tests."""
    opening = """
import os, sys, time
from pathlib import Path
import numpy as np
from morgan.background.ipc.errors import ResultStoreError
from morgan.background.ipc.reader import ResultReader
from morgan.background.ipc.records import ComputedResult
from morgan.background.ipc.store import ResultStore

path = Path(sys.argv[1])

def made(text, version=1):
    return ComputedResult(query_text=text, collection="docs", ids=(1,), scores=bytes(4), contents=("",), sources=("",),
                          metadata=({},), computed_at=float(version))

def fork(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
            sys.exit(0)  # as an application ends: everything is finalised
        except Exception:
            import traceback
            traceback.print_exc()
            os._exit(1)
    return pid

def join(*pids):
    for pid in pids:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code:
            sys.exit(f"a child ended with {code}")

def refused(call, *arguments, **named):
    try:
        call(*arguments, **named)
    except ResultStoreError as error:
        assert "forked child" in str(error), error
    else:
        raise AssertionError("not refused")

store = ResultStore(path, capacity=20)
store.put(made("a"), expires_at=1e12)
"""
    done = subprocess.run(
        [sys.executable, "-c", opening + program, str(path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_forked_child_reads_and_counts_in_a_row_of_its_own(path: Path) -> None:
    in_child(
        """
reader = ResultReader(path, counters_dir=path.with_name("readers"))
for _ in range(5):
    assert reader.get("a", "docs")

def work():
    for _ in range(100):
        assert reader.get("a", "docs")
    assert reader.get("b", "docs") is None

pids = [fork(work) for _ in range(3)]
for _ in range(5):
    assert reader.get("a", "docs")
join(*pids)
store.put(made("a", 2), expires_at=1e12)
assert reader.get("a", "docs").computed_at == 2
assert len(list(path.with_name("readers").iterdir())) == 4
""",
        path,
    )
    assert lookups_and_hits(path) == (3 * 101 + 11, 3 * 100 + 11)


def test_a_forked_child_of_a_reading_thread_is_not_stuck(path: Path) -> None:
    in_child(
        """
import threading
reader, stop = ResultReader(path, counters_dir=path.with_name("readers")), False

def read():
    while not stop:
        reader._look()  # holds the lock most of the time
        assert reader.get("a", "docs")

threads = [threading.Thread(target=read) for _ in range(2)]
for thread in threads:
    thread.start()

def work():
    for _ in range(10):
        assert reader.get("a", "docs")
    reader._look()
    os._exit(0)

for _ in range(20):
    join(fork(work))
stop = True
for thread in threads:
    thread.join()
""",
        path,
    )


def test_a_forked_child_of_the_writer_is_refused_and_harms_nothing(path: Path) -> None:
    in_child(
        """
def work():
    refused(store.put, made("b"), expires_at=1e12)
    refused(store.remove, "a", "docs")
    refused(store.invalidate_collection, "docs")
    refused(store.make_stale, "a", "docs", "", 1.0)
    refused(store.count_use, 0, 1, 1.0)
    refused(store.get, "a", "docs")
    refused(store.destroy)
    refused(lambda: store.epoch)
    blocks = [bytearray(4 << 20) for _ in range(20)]  # new mappings, where the parent's would have been
    store.close()
    for block in blocks:
        block[:] = b"x" * len(block)
    assert ResultReader(path).get("a", "docs")

join(fork(work), fork(work))
store.put(made("a", 2), expires_at=1e12)
assert store.get("a", "docs").computed_at == 2
try:
    ResultStore(path)
except ResultStoreError as error:
    assert "another process writes" in str(error)
else:
    raise AssertionError("the lock is gone")
""",
        path,
    )


def test_a_living_child_does_not_hold_the_lock_of_a_dead_writer(path: Path) -> None:
    in_child(
        """
hears, tells = os.pipe()

def wait():
    os.close(tells)
    os.write(telling, b"it lives")  # only now: a lock is let go of in the child itself, when the fork returns there
    os.read(hears, 1)

def writer():
    other = ResultStore(path.with_name("other"))
    fork(wait)
    os.close(tells)
    os._exit(0)

hearing, telling = os.pipe()
join(fork(writer))
assert os.read(hearing, 20)
ResultStore(path.with_name("other")).close()
os.close(tells)
""",
        path,
    )


def test_threads_share_a_reader_and_count_exactly(path: Path) -> None:
    store = ResultStore(path, capacity=20)
    for number in range(10):
        store.put(made(f"q{number}", 0), expires_at=LATER)
    reader = ResultReader(path, counters_dir=path.with_name("readers"), local_copies=5)
    wrong: list[object] = []
    turns, threads_count = 3000, 4

    def read(seed: int) -> None:
        for turn in range(turns):
            number = (seed + turn) % 11
            found = reader.get(f"q{number}", "docs")
            if (found is None) != (number == 10) or (found is not None and found.ids[0] != int(found.computed_at)):
                wrong.append((number, found))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(threads_count)]
        for thread in threads:
            thread.start()
        version = 0
        while any(thread.is_alive() for thread in threads):
            version += 1
            store.put(made(f"q{version % 10}", version, size=100_000 * (version % 3)), expires_at=LATER)
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert wrong == []
    for number in range(11):  # puts right what a thread that was put aside stored late: see counters.py
        reader.get(f"q{number}", "docs")
    totals = CounterFold(path.with_name("readers")).fold(store.epoch)
    # a row of a file that was replaced may have been left one short of such a late store
    expected = threads_count * turns + 11
    assert expected - threads_count * 10 <= totals.lookups <= expected
    store.close()


def test_threads_that_stay_on_one_file_count_exactly(store: ResultStore, path: Path) -> None:
    store.put(made("a"), expires_at=LATER)
    reader = ResultReader(path, counters_dir=path.with_name("readers"))

    def read() -> None:
        for _ in range(5000):
            reader.get("a", "docs")
            reader.get("b", "docs")

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reader.get("a", "docs")
    reader.get("b", "docs")
    assert lookups_and_hits(path) == (40_002, 20_001)


def test_a_killed_readers_lookups_are_counted_and_reach_the_entries(store: ResultStore, path: Path) -> None:
    store.put(made("a"), expires_at=LATER)
    program = """
import sys
from pathlib import Path
from morgan.background.ipc.reader import ResultReader
reader = ResultReader(Path(sys.argv[1]), counters_dir=Path(sys.argv[2]))
for _ in range(7):
    reader.get("a", "docs")
print("read", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", program, str(path), str(path.with_name("readers"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"read\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    keeper = ResultKeeper(store, CounterFold(path.with_name("readers")), Popularity(), CachePolicy())
    assert keeper.collect_counts(1000.0) == 7
    reader = ResultReader(path)
    found = reader.get("a", "docs")
    assert found is not None
    assert reader.use_of(found) == (7, 1000.0)


def test_a_result_is_whole_after_its_store_has_gone(path: Path) -> None:
    store = ResultStore(path)
    store.put(made("a", 3), expires_at=LATER)
    found = ResultReader(path).get("a", "docs")
    store.destroy()
    assert found is not None
    assert (found.ids, found.contents, found.scores.tolist()) == ((3,), ("x" * 10,), [3.0])
    with pytest.raises(ResultStoreError, match="forged"):
        type(found)(b"", found._fields).contents  # noqa: B018 - touched
