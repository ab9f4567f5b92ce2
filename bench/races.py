"""Owns the model test of the swap: applications write and delete all the time while a collection is rebuilt and swapped.

    python -m bench.races [--writes 1000000] [--writers 3]

A real owner process on a real embedded store, writers in processes of their own, one rebuild after another; the embedding
model is fake, so that writes are what takes the time. Each writer owns its ids and knows what it was acknowledged last. At
the end every point must have its last text and that text's vector, and nothing deleted may be there. Exit code 1 if not.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from morgan.background.ipc.errors import ServiceUnavailable, StoreUnavailable
from morgan.background.ipc.records import Point
from morgan.background.workers.remote import RemoteStore

from .fake_embedder import FakeEmbedder
from .reindex_house import MODELS, run_task

IDS = 1500  # of each writer
BATCH = 10  # points a write
DELETES = 0.3  # of the writes
PAGE = 500
LIKE = 0.9999  # cosine of a vector of its own text
START_S = 30.0


def write(socket: Path, which: int, count: int, found: Any) -> None:
    """Write `count` points in batches; put what was acknowledged last, and how long each call took in ms."""
    store, rng = RemoteStore(socket, 30.0), np.random.default_rng(which)
    texts: dict[int, str] = {}
    took_ms: list[float] = []
    for turn in range(count // BATCH):
        numbers = [which * IDS + int(one) for one in rng.choice(IDS, BATCH, replace=False)]
        began = time.perf_counter()
        if rng.random() < DELETES:
            store.delete("docs", numbers)
            for number in numbers:
                texts.pop(number, None)
        else:
            fresh = {number: f"turn {turn} of {number}" for number in numbers}
            store.upsert("docs", [Point(id=number, payload={"text": text}) for number, text in fresh.items()])
            texts |= fresh
        took_ms.append((time.perf_counter() - began) * 1000)
    found.put((texts, took_ms))
    store.close()


def wrong_points(store: RemoteStore, texts: dict[int, str], embedder: FakeEmbedder) -> int:
    """Return how many points are not as they were acknowledged last."""
    held: dict[Any, Point] = {}
    after = None
    while True:
        points, after = store.scroll("docs", after=after, limit=PAGE, with_vectors=True)
        held |= {point.id: point for point in points}
        if after is None:
            break
    wrong = len(held.keys() ^ texts.keys())
    for number, point in held.items():
        if number in texts:
            (vector,) = embedder.embed([texts[number]])
            is_like = float(np.frombuffer(point.vector or b"", "<f4") @ vector) >= LIKE
            wrong += not (point.payload["text"] == texts[number] and is_like)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.races", description="Swap collections while they are written."
    )
    parser.add_argument("--writes", type=int, default=1_000_000, help="points written or deleted in all")
    parser.add_argument("--writers", type=int, default=3)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="morgan-races-"))
    socket = folder / "owner"
    owner = subprocess.Popen([sys.executable, "-m", "bench.reindex_house", "owner", str(folder), str(socket), "new"])
    try:
        store = RemoteStore(socket, START_S)
        store.create("docs", MODELS["new"])
        store.upsert("docs", [Point(id=10**9, payload={"text": "the first"})])
        found: Any = multiprocessing.Queue()
        each = given.writes // given.writers
        writers = [
            multiprocessing.Process(target=write, args=(socket, which, each, found)) for which in range(given.writers)
        ]
        began = time.monotonic()
        for writer in writers:
            writer.start()
        swaps: list[dict[str, Any]] = []
        given_up = 0
        ended: list[Any] = []
        while len(ended) < len(writers):
            try:
                swaps.append(run_task(folder, socket, "new", params={"force_rebuild": True, "without_gate": True}))
            except (StoreUnavailable, ServiceUnavailable):
                given_up += 1  # written faster than it can be caught up with: the next attempt goes on
            while not found.empty():
                ended.append(found.get())
        seconds = time.monotonic() - began
        texts = {10**9: "the first"}
        took_ms: list[float] = []
        for one, took in ended:
            texts |= one
            took_ms += took
        result = {
            "bench": "races",
            "writes": each * given.writers,
            "writes_per_s": round(each * given.writers / seconds),
            "swaps": len(swaps),
            "attempts_given_up": given_up,
            "points_copied_again": sum(one["documents_changed_meanwhile"] for one in swaps),
            "swaps_that_held_writes": sum(one["writes_held_ms"] > 0 for one in swaps),
            "held_ms_p99": round(float(np.percentile([one["writes_held_ms"] for one in swaps] or [0.0], 99)), 1),
            "call_ms_p50": round(float(np.percentile(took_ms, 50)), 2),
            "call_ms_p99": round(float(np.percentile(took_ms, 99)), 2),
            "call_ms_max": round(max(took_ms), 1),
            "wrong_points": wrong_points(store, texts, FakeEmbedder("new", MODELS["new"])),
        }
        for name, value in result.items():
            print(f"{name:<24} {value}")
        print("RESULT " + json.dumps(result))
        store.close()
        return int(result["wrong_points"] != 0)
    finally:
        owner.kill()
        owner.wait()
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
