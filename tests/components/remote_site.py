"""Owns the scene of the tests of remote mode: a server, the service's store over HTTP with faults, an application beside it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from bench.fake_embedder import FakeEmbedder, FakeReranker
from bench.fake_qdrant.running import FakeQdrant
from morgan.background.ipc.errors import StoreUnavailable
from morgan.background.ipc.records import CollectionInfo, Point, PointId, QueryJob, TaskType
from morgan.background.ipc.settings import GateSettings, ModelSettings, WorkerSettings
from morgan.background.workers.qdrant import QdrantStore
from morgan.background.workers.reindexing import reindex
from morgan.background.workers.serving import Serving
from morgan.background.workers.task import Job, Outcome, Step, Tools, Verdict, drive
from morgan.background.workers.texts import Maker
from morgan.background.workers.vectors import STAMP_KEY
from morgan.background.workers.versions import kept_alias

OLD, NEW = FakeEmbedder("old", 16), FakeEmbedder("new", 24)
TEXTS = {number: f"document {number} on topic {number % 7}" for number in range(12)}
STRICT = models.StrictModeConfig(enabled=True, unindexed_filtering_update=False, unindexed_filtering_retrieve=False)
"""As collections of Qdrant Cloud have it."""

SETTINGS = WorkerSettings(
    model=ModelSettings(name="new"),
    scroll_size=6,
    gate=GateSettings(queries=4, latency_ratio=100.0, latency_floor_ms=60_000.0),
)
NOW = 1_800_000_000.0  # Unix seconds
HASTY_S = 0.2  # for a call, where running out of time is the fault
PATIENT_S = 30.0
ATTEMPTS = 40  # of a task, before it counts as one that never ends


class OwnAlone:
    """A qdrant-client that shows and deletes the collections of one test alone: a re-index drops what has expired on the
    whole server, and on a real one that would be somebody's."""

    def __init__(self, client: QdrantClient, prefix: str) -> None:
        self._other, self._prefix = client, prefix

    def __getattr__(self, name: str) -> Any:
        return getattr(self._other, name)

    def get_collections(self) -> Any:
        found = self._other.get_collections()
        found.collections = [one for one in found.collections if one.name.startswith(self._prefix)]
        return found

    def get_aliases(self) -> Any:
        found = self._other.get_aliases()
        found.aliases = [one for one in found.aliases if one.alias_name.startswith(self._prefix)]
        return found

    def delete_collection(self, name: str) -> Any:
        assert name.startswith(self._prefix), f"{name!r} is not this test's"
        return self._other.delete_collection(name)


class Site:
    """An alias `name`, what it means at first is `name__v1`, of the model "old"; the configured model is "new".

    `texts`: what the application has written, and so what has to be there in the end. It has a client of its own, which no
    fault strikes, and looks at the alias wherever a task reaches a point or fails: `problems` says what it should not have seen.
    `struck`: a client of the service's, which faults do strike.
    """

    def __init__(self, fake: FakeQdrant, application: QdrantClient, struck: QdrantClient, folder: Path) -> None:
        self.fake = fake
        self.name = f"morgan_test_{uuid.uuid4().hex[:12]}"
        self.application = OwnAlone(application, self.name)
        self.direct = QdrantStore(self.application)
        self.store = QdrantStore(OwnAlone(struck, self.name), where=fake.url)
        serving = Serving(self.store, NEW, {"old": OLD}.__getitem__, clock=iter(range(0, 10**9, 60)).__next__)
        self.reached: Callable[[str], None] = lambda _: None
        self.between: Callable[[], None] = lambda: None  # called after an attempt that failed
        self.on_step: Callable[[Step], None] = lambda _: None
        self.now = NOW
        settings = msgspec.structs.replace(SETTINGS, rebuild_folder=str(folder))
        self.tools = Tools(
            *(self.store, NEW, FakeReranker(), settings, lambda: self.now, lambda: None),
            models=serving,
            reached=self._reached,
        )
        self.strict: models.StrictModeConfig | None = None  # of collections that the application makes
        self.texts: dict[PointId, str] = {}
        self.problems: list[str] = []
        self.failures: list[str] = []  # of attempts
        fake.clear()

    def fill(self, made_by: FakeEmbedder = OLD, *, alias: bool = True, texts: Mapping[PointId, str] = TEXTS) -> Site:
        """Make the first version: under the alias, or else under the name itself."""
        real = f"{self.name}__v1" if alias else self.name
        self._create(real, made_by.size)
        if alias:
            pointed = models.CreateAlias(collection_name=real, alias_name=self.name)
            self.application.update_collection_aliases([models.CreateAliasOperation(create_alias=pointed)])
        self.write(texts)
        return self

    def _create(self, name: str, size: int) -> None:
        params = models.VectorParams(size=size, distance=models.Distance.COSINE)
        self.application.create_collection(name, params, strict_mode_config=self.strict)

    def fill_swapped(self) -> Site:
        """Make two versions, as a swap leaves them: the second is served, the first kept for an hour."""
        self.fill()
        real = f"{self.name}__v2"
        self._create(real, NEW.size)
        self.write(TEXTS, real)
        self.direct.swap(f"{self.name}__v1", real, kept_as=kept_alias(self.name, NOW + 3600), rename_to="")
        return self

    def close(self) -> None:
        """Drop whatever has this test's name."""
        self.fake.clear()
        for one in self.application.get_collections().collections:
            self.application.delete_collection(one.name)

    # --- the application ----------------------------------------------------------------------------------------------

    def write(self, texts: Mapping[PointId, str], to: str = "") -> None:
        """Write with the model that the collection has, as an application with a client of its own does."""
        structs = [
            models.PointStruct(id=one.id, vector=np.frombuffer(one.vector or b"", "<f4").tolist(), payload=one.payload)
            for one in self.points(texts, to)
        ]
        self.application.upsert(to or self.name, structs, wait=True)
        self.texts |= texts

    def points(self, texts: Mapping[PointId, str], to: str = "") -> list[Point]:
        size = self.application.get_collection(to or self.name).config.params.vectors.size
        embedder = OLD if size == OLD.size else NEW
        maker = Maker(embedder.name, embedder.revision)
        rows = zip(texts.items(), embedder.embed(list(texts.values())), strict=True)
        return [
            Point(id=number, payload={"text": text, STAMP_KEY: maker.stamp(text)}, vector=vector.tobytes())
            for (number, text), vector in rows
        ]

    def delete(self, *ids: PointId, of: str = "") -> None:
        self.application.delete(of or self.name, models.PointIdsList(points=list(ids)), wait=True)
        for one in ids:
            self.texts.pop(one, None)

    def at(self, wanted: str, do: Callable[[], None]) -> None:
        """Do something when a task first reaches a point of its way."""

        def once(point: str) -> None:
            if point == wanted:
                self.reached = lambda _: None
                do()

        self.reached = once

    def look(self) -> None:
        """See that the name means a whole collection."""
        try:
            seen = self.application.count(self.name, exact=True).count
        except Exception as error:  # noqa: BLE001 - whatever a reader gets is what it should not
            self.problems.append(f"{type(error).__name__}: {error}")
            return
        if seen < len(TEXTS) - 4:
            self.problems.append(f"a collection of {seen} points was seen")

    def _reached(self, point: str) -> None:
        self.look()
        self.reached(point)

    # --- the service --------------------------------------------------------------------------------------------------

    def run(self, name: str = "", queries: tuple[QueryJob, ...] = (), **params: Any) -> dict[str, Any]:
        """Run the task as the supervisor does: again from its last checkpoint where the store did not answer."""
        checkpoint: dict[str, Any] | None = None

        def on_step(step: Step) -> Verdict:
            nonlocal checkpoint
            self.on_step(step)
            if step.checkpoint is not None:
                checkpoint = json.loads(json.dumps(step.checkpoint))
            return Verdict.GO_ON

        while True:
            job = Job("t", TaskType.REINDEX, name or self.name, params, queries, checkpoint)
            try:
                ended = drive(reindex(job, self.tools), on_step)
            except StoreUnavailable as error:
                self.look()
                self.failures.append(str(error))
                assert len(self.failures) < ATTEMPTS, self.failures
                self.between()
                continue
            assert isinstance(ended, Outcome)
            return ended.result

    # --- what came of it ----------------------------------------------------------------------------------------------

    def served(self) -> str:
        """Return the end of the name of the version that is served: "v1", "v2"."""
        return self.direct.info(self.name).name.rpartition("__")[2]

    def versions(self) -> list[CollectionInfo]:
        return self.direct.collections()

    def check(self, embedder: FakeEmbedder = NEW, *, but_for: Collection[PointId] = ()) -> None:
        """Every live point has the vector of its current text; what was deleted is not back, what was written not lost.

        `but_for`: points that may be back.
        """
        held = {point.id: point for point in self.direct.scroll(self.name, limit=1000, with_vectors=True)[0]}
        found = {number: point.payload["text"] for number, point in held.items()}
        wrong = {
            "lost": {number: text for number, text in self.texts.items() if number not in found},
            "back": {number: text for number, text in found.items() if number not in {*self.texts, *but_for}},
            "overwritten": {number: text for number, text in found.items() if self.texts.get(number, text) != text},
            "of another vector": [number for number, point in held.items() if not _is_vector_of(point, embedder)],
            "seen by readers": self.problems,
        }
        assert not any(wrong.values()), {what: which for what, which in wrong.items() if which}

    def check_one_way_back(self) -> None:
        """One version is served and one kept, and nothing is half built."""
        served = self.direct.info(self.name).name
        others = [info for info in self.versions() if info.name != served]
        assert [len(info.aliases) for info in others] == [1], f"served {served!r}, beside it {others}"
        assert "__kept_until_" in others[0].aliases[0], others


def _is_vector_of(point: Point, embedder: FakeEmbedder) -> bool:
    vector = np.frombuffer(point.vector or b"", "<f4")
    (wanted,) = embedder.embed([point.payload["text"]])
    return len(vector) == len(wanted) and bool(vector @ wanted == pytest.approx(1.0, abs=1e-5))
