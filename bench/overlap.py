"""`python -m bench.overlap`: what it brings that a re-index reads and writes while it embeds, by how long the store takes.

Embedding and the store are waits of given lengths here, so that the figures are of the pipeline alone, on a machine with other
work too: real embedding and a real store are in `bench reindex`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np

from morgan.background.ipc.records import CollectionInfo, Point, PointId, TaskType
from morgan.background.ipc.settings import WorkerSettings
from morgan.background.workers.in_place import InPlace, refresh
from morgan.background.workers.task import Job, Outcome, Tools, Verdict, drive
from morgan.background.workers.vectors import Rewrite, Vectors, VectorStore

from .fake_embedder import FakeEmbedder, FakeReranker

POINTS = 640
ROUNDS = 3
RATES = (220, 440, 3500)  # texts/s: short ones on one, two and sixteen CPUs (`bench reindex`, the fast path)
CALLS_MS = (2, 10, 30)  # the embedded store's owner takes 1 to 3


class FakeStore:
    """Answers after a while."""

    def __init__(self, call_s: float, *, takes_threads: bool) -> None:
        self.call_s, self.takes_threads = call_s, takes_threads

    def scroll(
        self, _: str, *, after: PointId | None = None, limit: int, only_unstamped: bool = False
    ) -> tuple[list[Point], PointId | None]:
        time.sleep(self.call_s)
        start = int(after or 0)
        end = min(start + limit, POINTS)
        points = [Point(id=n, payload={"text": f"text {n}"}) for n in range(start, end)]
        return points, end if end < POINTS else None

    def rewrite(self, _: str, rewrites: Sequence[Rewrite]) -> int:
        time.sleep(self.call_s)
        return len(rewrites)


class FakeRate(FakeEmbedder):
    """Takes as long for a text as one of `rate` texts a second."""

    def __init__(self, rate: float) -> None:
        super().__init__("fake", 4)
        self._rate = rate

    def embed(self, texts: Sequence[str], *, pace: Callable[[], None] | None = None) -> Vectors:
        time.sleep(len(texts) / self._rate)
        return np.full((len(texts), self.size), 0.5, dtype=np.float32)


def points_per_s(rate: float, call_ms: float, *, takes_threads: bool) -> float:
    """Return how many points a second a re-index in place gets through."""
    store = cast(VectorStore, FakeStore(call_ms / 1000, takes_threads=takes_threads))
    tools = Tools(store, FakeRate(rate), FakeReranker(), WorkerSettings(), time.time, lambda: None)
    info = CollectionInfo(name="c", points=POINTS, vector_size=4, distance="cosine", vector_name="", aliases=())
    steps = refresh(Job("t", TaskType.REINDEX, "c"), tools, info, tools.maker, InPlace())
    began = time.monotonic()
    ended = drive(steps, lambda _: Verdict.GO_ON)
    elapsed_s = time.monotonic() - began
    assert isinstance(ended, Outcome)
    assert ended.result["documents_embedded"] == POINTS
    return POINTS / elapsed_s


def main() -> None:
    for rate in RATES:
        for call_ms in CALLS_MS:
            found: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(ROUNDS):
                for takes_threads, rates in found.items():
                    rates.append(points_per_s(rate, call_ms, takes_threads=takes_threads))
            after, beside = (statistics.median(found[one]) for one in (False, True))
            print(
                f"{rate} texts/s embedded, {call_ms} ms a call: {after:.0f} points/s one after the other,"
                f" {beside:.0f} overlapping, {beside / after:.2f}x"
            )


if __name__ == "__main__":
    main()
