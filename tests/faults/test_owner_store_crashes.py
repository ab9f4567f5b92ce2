"""The embedded store killed at any instant: what was acknowledged is there, nothing is there by half.

The writer acknowledges on its standard output; the test kills it after a seeded number of bytes, while the next
operation is under way.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from morgan.background.ipc.records import Point
from morgan.background.workers.edge import EdgeStore
from morgan.background.workers.vectors import STAMP_KEY

SIZE = 8
BATCH = 5
ROUNDS = 8

OPENING = f"""
import itertools, os, sys
from pathlib import Path
import numpy as np
from morgan.background.ipc.records import Point
from morgan.background.workers.edge import EdgeStore
from morgan.background.workers.fingerprint import fingerprint
from morgan.background.workers.vectors import Rewrite

SIZE, BATCH = {SIZE}, {BATCH}
store = EdgeStore(Path(sys.argv[1]))

def vector(number):
    return np.full(SIZE, number, "<f4")

def acknowledge(number):
    os.write(1, b"%d\\n" % number)
"""

# Every batch holds fresh points and, again, the points below BATCH: those show whether one was written by half.
UPSERTS = """
for batch in itertools.count(int(sys.argv[2])):
    ids = [*range(BATCH), *range((batch + 1) * BATCH, (batch + 2) * BATCH)]
    store.upsert("docs", [Point(id=i, payload={"batch": batch}, vector=vector(batch).tobytes()) for i in ids])
    acknowledge(batch)
"""

REWRITES = """
for turn in itertools.count(int(sys.argv[2])):
    mark = fingerprint("text")
    assert store.rewrite("docs", [Rewrite(i, vector(turn), "text", mark, {"turn": str(turn)}) for i in range(BATCH)])
    acknowledge(turn)
"""

# What a swap of collections does: make, fill, point the alias at it, drop the one before the last.
SWAPS = """
for turn in itertools.count(int(sys.argv[2])):
    store.create(f"docs_{turn}", SIZE, distance="dot")
    store.upsert(f"docs_{turn}", [Point(id=1, payload={"turn": turn}, vector=vector(turn).tobytes())])
    store.set_alias("live", f"docs_{turn}")
    if turn >= 2:
        store.drop(f"docs_{turn - 2}")
    acknowledge(turn)
"""


def killed(program: str, path: Path, first: int, after_bytes: int) -> int:
    """Run a writer from number `first` on, kill it after it wrote `after_bytes`; return the last number acknowledged."""
    command = [sys.executable, "-c", OPENING + program, str(path), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as writer:
        assert writer.stdout is not None
        seen = b""
        while len(seen) < after_bytes:
            chunk = writer.stdout.read(after_bytes - len(seen))
            assert chunk, "the writer ended by itself"
            seen += chunk
        writer.kill()
        seen += writer.stdout.read()
    assert writer.returncode == -signal.SIGKILL
    return max([first - 1, *(int(line) for line in seen.split(b"\n")[:-1])])


def folders(path: Path) -> set[str]:
    return {folder.name for folder in (path / "shards").iterdir()}


def folders_of_catalog(path: Path) -> set[str]:
    held = json.loads((path / "catalog.json").read_bytes())["collections"]
    return {entry["folder"] for entry in held.values()}


def test_no_acknowledged_point_is_lost_and_no_batch_is_torn(tmp_path: Path) -> None:
    rng, acknowledged, survived = random.Random(11), -1, 0
    store = EdgeStore(tmp_path)
    store.create("docs", SIZE, distance="dot")
    store.set_alias("live", "docs")
    store.close()
    for _ in range(ROUNDS):
        acknowledged = killed(UPSERTS, tmp_path, acknowledged + 1, rng.randrange(1, 400))
        store = EdgeStore(tmp_path)
        points, after = store.scroll("live", limit=1_000_000, with_vectors=True)
        assert after is None
        assert store.info("live").points == len(points)
        hot = {point.payload["batch"] for point in points[:BATCH]}
        assert len(hot) == 1, "a batch was written by half"
        (last,) = hot
        assert last in (acknowledged, acknowledged + 1)
        survived += last == acknowledged + 1  # written, killed before it could say so
        assert [point.id for point in points] == list(range((last + 2) * BATCH))
        for point in points[BATCH:]:
            assert isinstance(point.id, int)
            batch = point.id // BATCH - 1
            assert point.payload == {"batch": batch}
            assert point.vector == np.full(SIZE, batch, "<f4").tobytes()
        if last:
            query = np.full((1, SIZE), 1, "<f4")
            assert store.search("live", query, limit=1, exact=True)[0][0].score == pytest.approx(SIZE * last)
        store.close()
        acknowledged = last
    assert acknowledged > ROUNDS
    assert folders(tmp_path) == folders_of_catalog(tmp_path)


@pytest.mark.parametrize("vector_name", ["", "dense"])
def test_a_killed_rewrite_leaves_no_point_with_the_stamp_of_another_vector(tmp_path: Path, vector_name: str) -> None:
    rng, acknowledged = random.Random(12), 0
    store = EdgeStore(tmp_path)
    store.create("docs", SIZE, distance="dot", vector_name=vector_name)
    zero = np.zeros(SIZE, "<f4").tobytes()
    store.upsert("docs", [Point(id=n, payload={"text": "text", "n": n}, vector=zero) for n in range(BATCH)])
    store.close()
    for _ in range(ROUNDS):
        acknowledged = killed(REWRITES, tmp_path, acknowledged + 1, rng.randrange(1, 400))
        store = EdgeStore(tmp_path)
        points, _ = store.scroll("docs", with_vectors=True)
        assert [point.payload["n"] for point in points] == list(range(BATCH))
        found = set()
        for point in points:
            assert point.payload["text"] == "text"
            turn = int(np.frombuffer(point.vector or b"", "<f4")[0])
            stamped = int(point.payload[STAMP_KEY]["turn"])
            assert acknowledged <= turn <= acknowledged + 1
            # a new vector under an old stamp is embedded once more; an old vector under a new stamp never again
            assert stamped == turn or (vector_name and stamped == turn - 1)
            found.add(turn)
        assert len(found) == 1, "a batch was written by half"
        store.close()
        acknowledged = max(found)
    assert acknowledged > ROUNDS


def test_a_kill_during_create_swap_or_drop_leaves_a_whole_catalog_and_no_orphan(tmp_path: Path) -> None:
    rng, done = random.Random(13), -1
    for _ in range(ROUNDS):
        done = killed(SWAPS, tmp_path, done + 1, rng.randrange(2, 16))
        store = EdgeStore(tmp_path)
        assert folders(tmp_path) == folders_of_catalog(tmp_path)
        turns = sorted(int(one.name.removeprefix("docs_")) for one in store.collections())
        live = int(store.info("live").name.removeprefix("docs_"))
        ways = ([done - 1, done], [done - 1, done, done + 1], [done, done + 1])
        assert turns in [[turn for turn in way if turn >= 0] for way in ways]
        assert live == done or (live == done + 1 and live in turns)
        assert done - 1 in turns or live == done + 1 or done == 0  # the old one goes after the swap, not before
        for turn in turns:
            points, _ = store.scroll(f"docs_{turn}", with_vectors=True)
            if turn <= live:
                (point,) = points
                assert point.payload == {"turn": turn}
                assert point.vector == np.full(SIZE, turn, "<f4").tobytes()
        # end the turn that was under way, or undo it, so that the next writer begins with a whole one
        if (begun := done + 1) in turns and live == done:
            store.drop(f"docs_{begun}")
        elif live == begun and done - 1 in turns:
            store.drop(f"docs_{done - 1}")
        done = live
        store.close()
    assert done > ROUNDS
