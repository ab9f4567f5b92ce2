"""The copy of the result store that survives a reboot: saved whole, brought back where there is none, never believed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from morgan.background.ipc import layout
from morgan.background.ipc.errors import ResultStoreError
from morgan.background.ipc.paths import RuntimePaths
from morgan.background.ipc.reader import ResultReader
from morgan.background.ipc.records import ComputedResult
from morgan.background.ipc.store import ResultStore
from morgan.background.supervisor.assemble import core_settings, make_core
from morgan.background.supervisor.config import load
from morgan.background.supervisor.journal import Journal
from morgan.background.supervisor.snapshot import restore, save

LATER = 1e12
ENTRIES = 10


def made(text: str, version: int = 1, size: int = 10) -> ComputedResult:
    return ComputedResult(
        query_text=text,
        collection="docs",
        ids=(version,),
        scores=bytes(4),
        contents=("x" * size,),
        sources=("",),
        metadata=({},),
        computed_at=float(version),
    )


def version_of(path: Path, text: str) -> int | None:
    found = ResultReader(path).get(text, "docs")
    return None if found is None else int(found.computed_at)


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state" / "results"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "runtime").mkdir()
    return tmp_path / "runtime" / "results"


@pytest.fixture
def store(path: Path) -> Iterator[ResultStore]:
    found = ResultStore(path, capacity=20)
    for number in range(ENTRIES):
        found.put(made(f"q{number}", number), expires_at=LATER, soft_at=float(number))
    yield found
    found.close()


def reboot(path: Path) -> None:
    """Take away what lies in the runtime folder, as an empty tmpfs does."""
    shutil.rmtree(path.parent)
    path.parent.mkdir()


def test_the_entries_are_there_again_after_a_reboot(store: ResultStore, path: Path, snapshot: Path) -> None:
    store.remove("q0", "docs")
    store.put(made("q1", 50), expires_at=LATER)
    before = sorted(store.entries(), key=lambda entry: entry.slot)
    save(store, snapshot)
    store.put(made("q2", 60), expires_at=LATER)  # not in the copy
    reboot(path)
    assert restore(snapshot, path)
    again = ResultStore(path, capacity=20)
    assert again.rebuilt_because is None
    assert sorted(again.entries(), key=lambda entry: entry.slot) == before
    assert [version_of(path, f"q{number}") for number in range(4)] == [None, 50, 2, 3]
    again.put(made("new"), expires_at=LATER)
    assert version_of(path, "new") == 1
    again.close()


def test_a_reader_goes_over_from_the_old_store_to_the_one_brought_back(path: Path, snapshot: Path) -> None:
    store, reader = ResultStore(path), ResultReader(path)
    store.put(made("a"), expires_at=LATER)
    assert all(reader.get("a", "docs") for _ in range(4))
    save(store, snapshot)
    store.destroy()
    assert reader.get("a", "docs") is None
    assert restore(snapshot, path)
    deadline = time.monotonic() + 10
    while reader.get("a", "docs") is None:
        assert time.monotonic() < deadline
    store = ResultStore(path)
    store.put(made("a", 2), expires_at=LATER)
    found = reader.get("a", "docs")
    assert found is not None
    assert found.computed_at == 2
    store.close()


def test_what_is_in_shared_memory_is_never_replaced_by_the_copy(store: ResultStore, path: Path, snapshot: Path) -> None:
    save(store, snapshot)
    store.put(made("q1", 70), expires_at=LATER)
    assert not restore(snapshot, path)
    assert version_of(path, "q1") == 70


def test_nothing_saved_is_nothing_to_bring_back(path: Path, snapshot: Path) -> None:
    assert not restore(snapshot, path)
    for content in (b"", b"x" * (layout.HEADER_BYTES - 1)):  # as a power cut can leave it
        snapshot.write_bytes(content)
        assert not restore(snapshot, path)
    assert list(path.parent.iterdir()) == []


def test_a_later_copy_takes_the_place_of_an_earlier_one(store: ResultStore, path: Path, snapshot: Path) -> None:
    save(store, snapshot)
    store.put(made("q1", 80), expires_at=LATER)
    snapshot.with_name("results.new").write_bytes(b"of a service killed while it saved")
    save(store, snapshot)
    assert [item.name for item in snapshot.parent.iterdir()] == ["results"]
    assert snapshot.stat().st_mode & 0o077 == 0
    reboot(path)
    assert restore(snapshot, path)
    assert version_of(path, "q1") == 80


def test_a_copy_takes_no_more_room_than_what_is_in_it(store: ResultStore, path: Path, snapshot: Path) -> None:
    save(store, snapshot)
    assert snapshot.stat().st_size == path.stat().st_size
    assert 512 * snapshot.stat().st_blocks < path.stat().st_size // 4


@pytest.mark.parametrize(
    ("at", "reason"),
    [
        (8 * layout.W_VERSION, "layout"),
        (8 * layout.W_MAGIC, "result store"),
        (8 * layout.W_SLOTS, "header"),
        (-1, "record"),
    ],
)
def test_a_damaged_copy_is_found_out_and_the_store_begins_anew(
    store: ResultStore, path: Path, snapshot: Path, at: int, reason: str
) -> None:
    save(store, snapshot)
    raw = bytearray(snapshot.read_bytes())
    if at < 0:
        (entry,) = [entry for entry in store.entries() if entry.query_text == "q3"]
        at = layout.unpack_pointer(entry.pointer)[2] + 100
    raw[at] ^= 0xFF
    snapshot.write_bytes(raw)
    reboot(path)
    assert restore(snapshot, path)
    again = ResultStore(path, capacity=20)
    assert reason in (again.rebuilt_because or "")
    assert len(again) == 0
    again.put(made("q3", 90), expires_at=LATER)
    assert version_of(path, "q3") == 90
    assert path.with_name("results.corrupt-1").read_bytes()[at] == raw[at]
    again.close()


def test_a_copy_cut_short_is_found_out(store: ResultStore, path: Path, snapshot: Path) -> None:
    save(store, snapshot)
    whole = snapshot.read_bytes()
    for length in (layout.HEADER_BYTES, 8000, len(whole) // 2, len(whole) - 8):
        snapshot.write_bytes(whole[:length])
        reboot(path)
        assert restore(snapshot, path)
        again = ResultStore(path, capacity=20)
        assert again.rebuilt_because is not None
        assert len(again) == 0
        again.close()


@pytest.fixture
def small() -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = Path(tempfile.mkdtemp(prefix="morgan-test-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        folder.rmdir()
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


def test_a_full_disk_is_a_clear_error_and_the_earlier_copy_stays(store: ResultStore, path: Path, small: Path) -> None:
    save(store, small / "results")
    for number in range(ENTRIES):
        store.put(made(f"q{number}", 100, size=120_000), expires_at=LATER)
    with pytest.raises(ResultStoreError, match=r"could not be saved to .*: No space left on device"):
        save(store, small / "results")
    assert [item.name for item in small.iterdir()] == ["results"]
    reboot(path)
    assert restore(small / "results", path)
    assert version_of(path, "q1") == 1


def test_a_missing_state_folder_is_a_clear_error(store: ResultStore, tmp_path: Path) -> None:
    with pytest.raises(ResultStoreError, match="could not be saved"):
        save(store, tmp_path / "none" / "results")


def test_shared_memory_without_room_for_the_copy_is_a_clear_error(
    store: ResultStore, snapshot: Path, small: Path
) -> None:
    save(store, snapshot)
    (small / "filler").write_bytes(bytes(500_000))
    with pytest.raises(ResultStoreError, match="no room for the saved results"):
        restore(snapshot, small / "results")
    assert [item.name for item in small.iterdir()] == ["filler"]


def test_a_service_that_cannot_save_says_so_works_on_and_forgets_no_dropped_result(tmp_path: Path) -> None:
    config = load(env={"HOME": "/nonexistent", "MORGAN_SERVICE_TIMEZONE": "UTC", "MORGAN_SCHEDULE_AUTO": "false"})
    runtime = RuntimePaths(tmp_path / "runtime")
    runtime.readers.mkdir(parents=True)
    journal, saved = Journal(None), tmp_path / "state" / "results"
    core = make_core(config, core_settings(config), runtime, journal, own_pids=list, saved_results=saved)
    now = time.time()
    core.publish([made("a"), made("b")], now, is_asked_for=True)
    core.keeper.invalidate("docs", "a")
    void = core.keeper.take_void()
    journal.void_results(void)
    core.save(now, is_last=True)
    assert "could not be saved" in core.problems["saved results"]
    assert journal.voided_results() == void != set()
    saved.parent.mkdir()
    core.save(now, is_last=True)
    assert "saved results" not in core.problems
    assert journal.voided_results() == set()
    core.keeper.store.close()
    reboot(runtime.results)
    assert restore(saved, runtime.results)
    assert (version_of(runtime.results, "a"), version_of(runtime.results, "b")) == (None, 1)
