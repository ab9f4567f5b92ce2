"""Owns the model test of the swap: applications write and delete all the time while a collection is rebuilt and swapped.

    python -m bench.races [--writes 1000000] [--writers 3] [--batch 10]
    python -m bench.races --ungated [--writes 100000] [--rate 1000]

A real owner process on a real embedded store, writers in processes of their own, one rebuild after another; the embedding
model is fake, so that writes are what takes the time. Each writer owns its ids and knows what it was acknowledged last. At
the end every point must have its last text and that text's vector, and nothing deleted may be there. Exit code 1 if not.

With --ungated writes do not pass through us (ungated.py): the races that remain are counted, and exit code 1 means others.
"""

from __future__ import annotations

import argparse
import json
import math
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

from . import ungated
from .fake_embedder import FakeEmbedder
from .reindex_house import MODELS, run_task
from .report import Noise

IDS = 1500  # of each writer
DELETES = 0.3  # of the writes
PAGE = 500
LIKE = 0.9999  # cosine of a vector of its own text
START_S = 30.0


def write(socket: Path, which: int, count: int, batch: int, found: Any) -> None:
    """Write `count` points in batches; put what was acknowledged last, how long each call took in ms, and when all was done."""
    store, rng = RemoteStore(socket, 30.0), np.random.default_rng(which)
    texts: dict[int, str] = {}
    took_ms: list[float] = []
    for turn in range(count // batch):
        numbers = [which * IDS + int(one) for one in rng.choice(IDS, batch, replace=False)]
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
    found.put((texts, took_ms, time.monotonic()))
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


def percentiles(name: str, values_ms: list[float]) -> dict[str, float]:
    """Return the median, the 99th percentile and the worst of some times, in ms; nothing of none."""
    if not values_ms:
        return {}
    ordered = sorted(values_ms)
    return {
        f"{name}_ms_p50": round(ordered[len(ordered) // 2], 2),
        f"{name}_ms_p99": round(ordered[math.ceil(0.99 * len(ordered)) - 1], 2),
        f"{name}_ms_max": round(ordered[-1], 1),
    }


def gated(writes: int, writer_count: int, batch: int) -> dict[str, Any]:
    """Write through the store's owner, from processes of their own, while one rebuild after another is swapped in."""
    folder = Path(tempfile.mkdtemp(prefix="morgan-races-"))
    socket = folder / "owner"
    owner = subprocess.Popen([sys.executable, "-m", "bench.reindex_house", "owner", str(folder), str(socket), "new"])
    try:
        store = RemoteStore(socket, START_S)
        store.create("docs", MODELS["new"])
        store.upsert("docs", [Point(id=10**9, payload={"text": "the first"})])
        found: Any = multiprocessing.Queue()
        each = writes // writer_count // batch * batch
        writers = [
            multiprocessing.Process(target=write, args=(socket, which, each, batch, found))
            for which in range(writer_count)
        ]
        began = time.monotonic()
        for writer in writers:
            writer.start()
        swaps: list[dict[str, Any]] = []
        given_up: list[str] = []
        holds_ms: list[float] = []
        slows_ms: list[float] = []
        ended: list[Any] = []
        after_s = 0.0  # of the rebuild that goes on when the writers have ended
        while len(ended) < len(writers):
            try:
                swaps.append(
                    run_task(
                        folder,
                        socket,
                        "new",
                        params={"force_rebuild": True, "without_gate": True},
                        holds_ms=holds_ms,
                        slows_ms=slows_ms,
                    )
                )
            except (StoreUnavailable, ServiceUnavailable) as error:
                given_up.append(str(error))  # the next attempt goes on where it was left
            while not found.empty():
                ended.append(found.get())
        texts = {10**9: "the first"}
        took_ms: list[float] = []
        for one, took, ended_at in ended:
            texts |= one
            took_ms += took
            after_s = max(after_s, ended_at)
        seconds = after_s - began
        slowed_to = [one["writes_slowed_to_per_s"] for one in swaps if one["writes_slowed_to_per_s"]]
        result = {
            "bench": "races",
            "server": "ours: the embedded store's owner, every write through it",
            "writes": each * writer_count,
            "points_a_write": batch,
            "writers": writer_count,
            "writes_per_s": round(each * writer_count / seconds),
            "swaps": len(swaps),
            "attempts_given_up": len(given_up),
            "points_copied_again": sum(one["documents_changed_meanwhile"] for one in swaps),
            "slowed": len(slows_ms),
            "slowed_to_per_s_least": round(min(slowed_to, default=0.0)),
            **percentiles("slowed", slows_ms),
            "holds": len(holds_ms),
            **percentiles("hold", holds_ms),
            **percentiles("call", took_ms),
            "wrong_points": wrong_points(store, texts, FakeEmbedder("new", MODELS["new"])),
        }
        store.close()
        for reason in sorted(set(given_up)):
            print(f"given up: {reason}")
        return result
    finally:
        owner.kill()
        owner.wait()
        shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.races", description="Swap collections while they are written."
    )
    parser.add_argument("--writes", type=int, default=1_000_000, help="points written or deleted in all")
    parser.add_argument("--writers", type=int, default=3)
    parser.add_argument("--batch", type=int, default=10, help="points a write")
    parser.add_argument("--ungated", action="store_true", help="writes that do not pass through us")
    parser.add_argument("--rate", type=float, default=1000.0, help="points a second, with --ungated alone")
    given = parser.parse_args()
    before = Noise.now()
    if given.ungated:
        result = ungated.run(given.writes, given.writers, given.batch, given.rate)
    else:
        result = gated(given.writes, given.writers, given.batch)
    result |= {name: round(value, 2) for name, value in before.until(Noise.now()).items()}
    for name, value in result.items():
        print(f"{name:<26} {value}")
    print("RESULT " + json.dumps(result))
    return int(result["wrong_points"] != 0)


if __name__ == "__main__":
    sys.exit(main())
