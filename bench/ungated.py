"""Owns the model test of the swap where nobody sees the writes: applications write to a server through clients of their own.

    writers ──(alias is looked up)──▶ in flight ──▶ the collection it meant then
    re-index ──▶ build, compare, swap the alias, then compare again under conditions

The server is a stand-in: qdrant-client's local mode, one request at a time. It looks an alias up when a request arrives and
carries the request out a little later, so that a write may reach the old version after the swap, as with a real one. It knows
what every point should be, so it sees each request of the re-index that makes a point wrong, or right.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models

from morgan.background.ipc.records import TaskType
from morgan.background.ipc.settings import GateSettings, ModelSettings, WorkerSettings
from morgan.background.workers.qdrant import QdrantStore
from morgan.background.workers.reindexing import reindex
from morgan.background.workers.serving import Serving
from morgan.background.workers.task import Job, Outcome, Tools, Verdict, drive

from .fake_embedder import FakeEmbedder, FakeReranker

NAME, SIZE = "docs", 24
IDS = 500  # of each writer
BATCH = 10  # points a write
DELETES, PAYLOADS = 0.3, 0.2  # of the writes
LIKE = 0.9999  # cosine of a vector of its own text
SETTINGS = WorkerSettings(model=ModelSettings(name="new"), gate=GateSettings(queries=10))
BACK = "deleted just after the swap, never copied: back again"
OVERWRITTEN = "payload set just after the swap on a copy of what had changed before: overwritten"
UNCHANGED = "payload set just after the swap on a copy of what had not changed: overwritten"
OTHER = "other"


class StandInServer:
    """qdrant-client's local mode behind a lock, with a ledger of what each point should be."""

    def __init__(self) -> None:
        self.engine = QdrantClient(":memory:")
        self.lock = threading.RLock()
        self.embedder = FakeEmbedder("new", SIZE)
        self.wanted: dict[int, dict[str, Any]] = {}  # id -> payload; a point that is not there should not be
        self.last: dict[int, tuple[str, str]] = {}  # id -> the last write of it, and the collection that it reached
        self.old: dict[int, dict[str, Any] | None] = {}  # id -> as a copy was made of it last
        self.before: str = ""  # the version before the one that is served
        self.missed = self.late = self.healed = self.refused = 0
        self.made_wrong: Counter[str] = Counter()
        self.wrong: set[int] = set()  # now, in the version that is served; kept up to date from a swap to its end
        self.is_settling = False

    # --- what applications do -----------------------------------------------------------------------------------------

    def served(self) -> str:
        return next(one.collection_name for one in self.engine.get_aliases().aliases if one.alias_name == NAME)

    def write(self, kind: str, payloads: dict[int, dict[str, Any]]) -> set[int]:
        """Carry out a write of an application; return the points that were not there to have their payload set."""
        with self.lock:
            name = self.served()
        # in flight: whoever else waits for the lock goes first
        vectors = self.embedder.embed([one.get("text", "") for one in payloads.values()]) if kind == "upsert" else []
        missing: set[int] = set()
        with self.lock:
            self.late += name != self.served()
            if kind == "delete":
                self.engine.delete(name, models.PointIdsList(points=list(payloads)))
            elif kind == "upsert":
                rows = zip(payloads.items(), vectors, strict=True)
                structs = [models.PointStruct(id=n, vector=row.tolist(), payload=payload) for (n, payload), row in rows]
                self.engine.upsert(name, structs)
            else:
                missing = {number for number, payload in payloads.items() if not self._set(name, number, payload)}
                self.refused += len(missing)
            for number in payloads.keys() - missing:
                held = self.wanted.pop(number, {})
                if kind != "delete":
                    self.wanted[number] = (held if kind == "payload" else {}) | payloads[number]
                self.last[number] = (kind, name)
            if self.is_settling:
                self.wrong = (self.wrong - payloads.keys()) | self.wrong_among(payloads)
        return missing

    def _set(self, name: str, number: int, payload: dict[str, Any]) -> bool:
        try:
            self.engine.set_payload(name, payload, points=[number])
        except KeyError:  # a server answers 404: the application knows
            return False
        return True

    # --- what the re-index does ---------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return a method of the client, for QdrantStore: a request of the re-index."""
        method = getattr(self.engine, name)
        if not callable(method):
            return method  # type: ignore[no-any-return]

        def ask(*given: Any, **named: Any) -> Any:
            with self.lock:
                answer = method(*given, **named)
                self._look(name, given, named)
                return answer

        return ask

    def _look(self, request: str, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        if request == "update_collection_aliases" and self.before and self.served() != self.before:
            self.wrong, self.is_settling = self.wrong_among(self._every()), True
            self.missed += len(self.wrong)
        elif request == "upsert":
            ids = [point.id for point in named["points"]]
            if self.is_settling:
                self._judge(ids)
            else:
                self.old |= {number: self.wanted.get(number) for number in ids}
        elif request == "delete" and self.is_settling:
            selector = named["points_selector"]
            self._judge(selector.filter.must[0].has_id)

    def _judge(self, ids: Iterable[int]) -> None:
        """Count what a request of the re-index made right, and what it made wrong."""
        known = set(ids)
        wrong = self.wrong_among(known)
        for number in wrong - self.wrong:
            self.made_wrong[self._kind(number)] += 1
        self.healed += len((self.wrong & known) - wrong)
        self.wrong = (self.wrong - known) | wrong

    def _kind(self, number: int) -> str:
        kind, name = self.last[number]
        if name == self.before:
            return OTHER
        if kind == "delete":
            return BACK
        if kind != "payload":
            return OTHER
        old = self.engine.retrieve(self.before, [number])
        was = self.old.get(number)
        return UNCHANGED if old and was is not None and dict(old[0].payload or {}) == was else OVERWRITTEN

    # --- the ledger ---------------------------------------------------------------------------------------------------

    def _every(self) -> set[int]:
        points, _ = self.engine.scroll(NAME, limit=10**6, with_payload=False)
        return {int(point.id) for point in points} | self.wanted.keys()

    def wrong_among(self, ids: Iterable[int]) -> set[int]:
        """Return the points that are not, in the version that is served, what they should be."""
        known = list(ids)
        held = {point.id: point for point in self.engine.retrieve(NAME, known, with_vectors=True)}
        wrong = {number for number in known if (number in held) != (number in self.wanted)}
        for number, point in held.items():
            if number not in wrong:
                (vector,) = self.embedder.embed([self.wanted[number]["text"]])
                payload = {key: value for key, value in point.payload.items() if not key.startswith("_")}
                is_like = float(np.asarray(point.vector) @ vector) >= LIKE
                wrong |= set() if payload == self.wanted[number] and is_like else {number}
        return wrong

    def begin(self) -> None:
        with self.lock:
            self.before, self.is_settling, self.old = self.served(), False, {}

    def end(self) -> Counter[str]:
        """Count what is wrong after a rebuild; from here on it is taken as it is."""
        with self.lock:
            self.is_settling = False
            wrong = self.wrong_among(self._every())
            left = Counter(self._kind(number) for number in wrong)
            held = {point.id: point.payload for point in self.engine.retrieve(NAME, list(wrong))}
            for number in wrong:
                self.wanted.pop(number, None)
                if number in held:
                    self.wanted[number] = {k: v for k, v in held[number].items() if not k.startswith("_")}
            return left


def application(
    server: StandInServer, which: int, count: int, batch: int, points_per_s: float, took_ms: list[float]
) -> None:
    """Write `count` points: replace, delete, or set the payload of some that are there. Its ids are its own.

    Writes come at random times, so many points a second on average, as far as answers come that fast.
    """
    rng = np.random.default_rng(which)
    mine: set[int] = set()
    due_at = time.monotonic()
    for turn in range(count // batch):
        chosen, draw = {which * IDS + int(one) for one in rng.choice(IDS, batch, replace=False)}, rng.random()
        due_at += rng.exponential(batch / points_per_s)
        time.sleep(max(due_at - time.monotonic(), 0.0))
        began = time.perf_counter()
        if draw < DELETES:
            server.write("delete", {number: {} for number in chosen})
            mine -= chosen
        elif draw < DELETES + PAYLOADS:
            server.write("payload", {number: {"seen": turn} for number in chosen & mine})
        else:
            server.write("upsert", {number: {"text": f"turn {turn} of {number}"} for number in chosen})
            mine |= chosen
        took_ms.append((time.perf_counter() - began) * 1000)


def run(writes: int, writer_count: int, batch: int, points_per_s: float) -> dict[str, Any]:
    """Rebuild and swap while applications write through clients of their own; return what went wrong, by kind."""
    server = StandInServer()
    store = QdrantStore(server)
    store.create(f"{NAME}__v1", SIZE)
    store.set_alias(NAME, f"{NAME}__v1")
    first = {10**9: {"text": "the first"}}
    server.write("upsert", first)
    embedder = FakeEmbedder("new", SIZE)
    tools = Tools(
        *(store, embedder, FakeReranker(), SETTINGS, time.time, lambda: None),
        models=Serving(store, embedder, lambda name: FakeEmbedder(name, SIZE)),
    )
    each = writes // writer_count // batch * batch
    took_ms: list[float] = []
    writers = [
        threading.Thread(target=application, args=(server, which, each, batch, points_per_s / writer_count, took_ms))
        for which in range(writer_count)
    ]
    began = time.monotonic()
    for writer in writers:
        writer.start()
    swaps, left = 0, Counter[str]()
    job = Job("races", TaskType.REINDEX, NAME, {"force_rebuild": True, "without_gate": True})
    while any(writer.is_alive() for writer in writers):
        server.begin()
        ended = drive(reindex(job, tools), lambda _: Verdict.GO_ON)
        swaps += isinstance(ended, Outcome) and bool(ended.result["swapped"])
        left += server.end()
    for writer in writers:
        writer.join()
    seconds = time.monotonic() - began
    known = (BACK, OVERWRITTEN)
    return {
        "bench": "races, ungated",
        "server": "a stand-in: qdrant-client's local mode, one request at a time; writers in threads beside it",
        "writes": each * writer_count,
        "points_a_write": batch,
        "writers": writer_count,
        "writes_per_s": round(each * writer_count / seconds),
        "swaps": swaps,
        "requests_on_their_way_during_a_swap": server.late,
        "points_wrong_at_a_swap": server.missed,
        "healed_by_the_passes": server.healed,
        "made_wrong_by_the_passes": {kind: server.made_wrong[kind] for kind in (BACK, OVERWRITTEN, UNCHANGED, OTHER)},
        "left_wrong": {kind: left[kind] for kind in (BACK, OVERWRITTEN, UNCHANGED, OTHER)},
        "payloads_refused_point_not_there": server.refused,
        "call_ms_p99": round(float(np.percentile(took_ms, 99)), 2),
        "wrong_points": sum(count for kind, count in left.items() if kind not in known),
    }
