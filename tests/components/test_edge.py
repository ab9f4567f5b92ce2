"""What is the embedded store's own: one opener at a time, what a reopened one holds, the folders on disk.

The contract it shares with QdrantStore: test_qdrant.py. Killed at any instant: faults/test_owner_store_crashes.py.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from morgan.background.ipc.errors import ConfigError, StoreLocked
from morgan.background.ipc.records import Point
from morgan.background.workers.edge import EdgeStore
from morgan.background.workers.fingerprint import fingerprint
from morgan.background.workers.vectors import Rewrite

SIZE = 8
VECTORS = np.random.default_rng(3).normal(size=(50, SIZE)).astype("<f4")

HOLDER = """
import sys
from pathlib import Path
from morgan.background.workers.edge import EdgeStore
store = EdgeStore(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def points(count: int = 50) -> list[Point]:
    return [Point(id=n, payload={"text": f"text {n}"}, vector=VECTORS[n].tobytes()) for n in range(count)]


def filled(path: Path) -> EdgeStore:
    store = EdgeStore(path)
    store.create("docs", SIZE, distance="dot")
    store.upsert("docs", points())
    store.set_alias("live", "docs")
    return store


def shards(path: Path) -> set[str]:
    return {folder.name for folder in (path / "shards").iterdir()}


def test_a_second_opener_in_this_process_is_refused_until_the_first_has_closed(tmp_path: Path) -> None:
    store = filled(tmp_path)
    with pytest.raises(StoreLocked, match=r"another process has the embedded store .* open: use it through"):
        EdgeStore(tmp_path)
    assert store.info("docs").points == 50  # and the first goes on
    store.close()
    EdgeStore(tmp_path).close()


def test_another_process_has_the_store_until_it_ends_even_by_sigkill(tmp_path: Path) -> None:
    filled(tmp_path).close()
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(StoreLocked):
            EdgeStore(tmp_path)
        holder.kill()
    assert holder.returncode == -signal.SIGKILL
    store = EdgeStore(tmp_path)
    assert store.info("live").points == 50
    store.close()


def test_a_store_reopened_holds_everything_and_goes_on(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.create("named", SIZE, distance="euclid", vector_name="dense")
    store.delete("docs", [0])
    before = store.collections(), store.scroll("docs", limit=100, with_vectors=True)
    hits = store.search("live", VECTORS[:3], exact=True)
    store.close()
    again = EdgeStore(tmp_path)
    assert (again.collections(), again.scroll("docs", limit=100, with_vectors=True)) == before
    assert again.search("live", VECTORS[:3], exact=True) == hits
    again.upsert("live", points(1))
    assert again.info("docs").points == 50
    again.drop("named")
    again.close()
    last = EdgeStore(tmp_path)
    assert [one.name for one in last.collections()] == ["docs"]
    last.close()


def test_the_folder_of_a_dropped_collection_goes_with_it_and_no_other(tmp_path: Path) -> None:
    store = filled(tmp_path)
    kept = shards(tmp_path)
    store.create("other", SIZE)
    assert len(shards(tmp_path)) == 2
    store.drop("other")
    assert shards(tmp_path) == kept
    store.close()
    again = EdgeStore(tmp_path)
    again.drop("docs")  # one that was never opened
    assert shards(tmp_path) == set()
    again.close()


def test_a_name_is_no_path(tmp_path: Path) -> None:
    store = EdgeStore(tmp_path / "vectors")
    for name in ("../up", "a/b", "é", "with space"):
        assert store.create(name, SIZE).name == name
    store.close()
    assert {path.name for path in tmp_path.iterdir()} == {"vectors"}
    assert all(len(name) == 32 for name in shards(tmp_path / "vectors"))


def test_a_folder_no_collection_has_is_removed_at_the_next_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path).close()
    kept = shards(tmp_path)
    orphan = tmp_path / "shards" / "orphan"
    (orphan / "segments").mkdir(parents=True)
    store = EdgeStore(tmp_path)
    assert shards(tmp_path) == kept
    assert "orphan: no collection has it" in caplog.text
    assert store.info("docs").points == 50
    store.close()


def test_a_damaged_catalog_refuses_to_open_and_touches_no_vector(tmp_path: Path) -> None:
    filled(tmp_path).close()
    catalog = tmp_path / "catalog.json"
    whole, kept = catalog.read_bytes(), shards(tmp_path)
    catalog.write_bytes(whole[:-10])
    with pytest.raises(ConfigError, match=r"catalog\.json cannot be read"):
        EdgeStore(tmp_path)
    assert shards(tmp_path) == kept
    catalog.write_bytes(whole)  # and the lock is free again
    store = EdgeStore(tmp_path)
    assert store.info("docs").points == 50
    store.close()


def test_a_lost_catalog_refuses_to_open_and_touches_no_vector(tmp_path: Path) -> None:
    filled(tmp_path).close()
    catalog = tmp_path / "catalog.json"
    whole, kept = catalog.read_bytes(), shards(tmp_path)
    catalog.unlink()
    with pytest.raises(ConfigError, match=r"catalog\.json is missing, but there are shards"):
        EdgeStore(tmp_path)
    assert shards(tmp_path) == kept
    catalog.write_bytes(whole)
    store = EdgeStore(tmp_path)
    assert store.info("docs").points == 50
    store.close()


def test_a_rewrite_keeps_the_number_of_points_and_makes_none_of_a_deleted_one(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.delete("docs", [3])
    rewrites = [Rewrite(n, VECTORS[n] + 1, "text", fingerprint(f"text {n}"), {"fp": "x"}) for n in range(50)]
    assert store.rewrite("docs", rewrites) == 49
    assert store.info("docs").points == 49
    assert store.fetch("docs", [3]) == []
    store.close()
