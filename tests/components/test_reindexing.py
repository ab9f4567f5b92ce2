from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient

from morgan.background.data import documents
from morgan.background.ipc.errors import CollectionNotFound, TextFieldNotFound, VectorSizeMismatch
from morgan.background.ipc.records import Point, QueryJob, TaskType
from morgan.background.ipc.settings import ModelSettings, WorkerSettings
from morgan.background.workers.fingerprint import fingerprint, stamp
from morgan.background.workers.models import SentenceTransformerEmbedder
from morgan.background.workers.qdrant import QdrantStore
from morgan.background.workers.reindexing import reindex
from morgan.background.workers.reranker import LateInteractionReranker
from morgan.background.workers.task import Job, Outcome, Step, Tools, Verdict, drive
from morgan.background.workers.vectors import STAMP_KEY, Vectors

TITLES = {one["id"]: one["title"] for one in documents()[:20]}
JUDGED = tuple(QueryJob(text=text, judgments={str(i): 1.0}) for i, text in list(TITLES.items())[:6])


class Watched:
    """The embedder, telling what it is asked to embed; `during` runs in the middle of it."""

    def __init__(self, inner: SentenceTransformerEmbedder) -> None:
        self.inner, self.texts, self.during = inner, list[str](), lambda: None
        self.name, self.revision, self.size = inner.name, inner.revision, inner.size

    def embed(self, texts: Sequence[str], *, pace: Callable[[], None] | None = None) -> Vectors:
        self.texts += texts
        self.during()
        return self.inner.embed(texts, pace=pace)

    def token_vectors(self, texts: Sequence[str], *, pace: Callable[[], None] | None = None) -> list[Vectors]:
        return self.inner.token_vectors(texts, pace=pace)


@pytest.fixture
def tools(embedder: SentenceTransformerEmbedder) -> Tools:
    """A collection "c" in memory: titles as texts, each with vector and stamp of another one, that it had before."""
    store, watched = QdrantStore(QdrantClient(":memory:")), Watched(embedder)
    store.create("c", 384)
    vectors = np.roll(embedder.embed(list(TITLES.values())), 1, axis=0)
    texts = list(TITLES.values())
    marks = [stamp(fingerprint(text), watched.name, watched.revision) for text in [texts[-1], *texts[:-1]]]
    rows = zip(TITLES.items(), vectors, marks, strict=True)
    payloads = [({"text": t, "n": 1, STAMP_KEY: mark}, i, v) for (i, t), v, mark in rows]
    store.upsert("c", [Point(id=i, payload=payload, vector=v.tobytes()) for payload, i, v in payloads])
    settings = WorkerSettings(scroll_size=8)
    clock = iter(range(1000)).__next__
    return Tools(store, watched, LateInteractionReranker(watched), settings, lambda: float(clock()), lambda: None)


def run(tools: Tools, queries: tuple[QueryJob, ...] = (), name: str = "c", **params: Any) -> dict[str, Any]:
    ended = drive(reindex(Job("t", TaskType.REINDEX, name, params, queries), tools), lambda _: Verdict.GO_ON)
    assert isinstance(ended, Outcome)
    return ended.result | {"is_skipped": ended.is_skipped, "metric": ended.metric}


def first_steps(tools: Tools, count: int, queries: tuple[QueryJob, ...] = ()) -> list[Step]:
    """Run until `count` steps are reported, then stop there, as a pause does."""
    seen: list[Step] = []

    def on_step(step: Step) -> Verdict:
        seen.append(step)
        return Verdict.PAUSE if len(seen) == count else Verdict.GO_ON

    assert drive(reindex(Job("t", TaskType.REINDEX, "c", {}, queries), tools), on_step) is Verdict.PAUSE
    return seen


def resume(tools: Tools, step: Step, queries: tuple[QueryJob, ...] = ()) -> dict[str, Any]:
    checkpoint = json.loads(json.dumps(step.checkpoint))
    ended = drive(reindex(Job("t", TaskType.REINDEX, "c", {}, queries, checkpoint), tools), lambda _: Verdict.GO_ON)
    assert isinstance(ended, Outcome)
    return ended.result


def test_only_what_changed_is_embedded_again(tools: Tools) -> None:
    first = run(tools)
    assert (first["documents_embedded"], first["documents_unchanged"], first["documents_processed"]) == (20, 0, 20)
    tools.embedder.texts.clear()
    assert run(tools)["documents_unchanged"] == 20
    assert tools.embedder.texts == []
    changed = next(iter(TITLES))
    (point,) = tools.store.fetch("c", [changed], with_vectors=True)
    tools.store.upsert("c", [Point(id=changed, payload=point.payload | {"text": "zinc"}, vector=point.vector)])
    assert run(tools)["documents_embedded"] == 1
    assert tools.embedder.texts == ["zinc"]
    assert run(tools, force_rebuild=True)["documents_embedded"] == 20


def test_a_point_keeps_its_payload_and_gets_the_vector_of_its_text_and_a_stamp(tools: Tools) -> None:
    run(tools)
    text = next(iter(TITLES.values()))
    (point,) = tools.store.fetch("c", [next(iter(TITLES))], with_vectors=True)
    assert np.frombuffer(point.vector or b"", "<f4") @ tools.embedder.embed([text])[0] > 0.9999
    assert point.payload["text"] == text
    assert point.payload["n"] == 1
    assert point.payload[STAMP_KEY]["rev"] == tools.embedder.revision


def test_a_paused_reindex_goes_on_where_it_was_and_embeds_nothing_twice(tools: Tools) -> None:
    steps = first_steps(tools, 2)
    assert [step.progress.done for step in steps] == [8, 16]
    assert steps[0].progress.eta_s == pytest.approx(12 / 8 * 1.0)
    found = resume(tools, steps[-1])
    assert found["documents_processed"] == found["documents_embedded"] == 20
    assert sorted(tools.embedder.texts) == sorted(TITLES.values())


def test_the_time_left_is_told_from_the_embedding_and_not_from_the_measurement_before_it(tools: Tools) -> None:
    at, took_s = [0.0], iter([1000.0, 2.0])  # the judged queries, then the first page

    def during() -> None:
        at[0] += next(took_s)

    tools.embedder.during = during
    *_, page = first_steps(replace(tools, clock=lambda: at[0]), 3, JUDGED)
    assert page.progress.done == 8
    assert page.progress.eta_s == pytest.approx(12 / 8 * 2.0)


@pytest.mark.parametrize("params", [{}, {"force_rebuild": True}])
def test_a_reindex_that_was_stopped_after_its_last_page_sees_no_point_again(
    tools: Tools, params: dict[str, Any]
) -> None:
    last: list[Step] = []
    drive(
        reindex(Job("t", TaskType.REINDEX, "c", params, JUDGED), tools), lambda step: last.append(step) or Verdict.GO_ON
    )
    tools.embedder.texts.clear()  # type: ignore[attr-defined]
    checkpoint = json.loads(json.dumps(last[-1].checkpoint))
    job = Job("t", TaskType.REINDEX, "c", params, JUDGED, checkpoint)
    ended = drive(reindex(job, tools), lambda _: Verdict.GO_ON)
    assert isinstance(ended, Outcome)
    assert (ended.result["documents_processed"], ended.result["documents_embedded"]) == (20, 20)
    assert ended.after_score == 1.0
    assert sorted(tools.embedder.texts) == sorted(query.text for query in JUDGED)  # type: ignore[attr-defined]


def test_a_checkpoint_of_another_model_is_not_resumed(tools: Tools) -> None:
    (step,) = first_steps(tools, 1)
    tools.embedder.revision = "another"
    assert resume(tools, step)["documents_embedded"] == 20
    assert len(tools.embedder.texts) == 8 + 20


def test_a_text_changed_while_it_was_embedded_is_left_to_the_next_run(tools: Tools) -> None:
    changed = next(iter(TITLES))

    def write() -> None:
        tools.store.upsert("c", [Point(id=changed, payload={"text": "zinc"}, vector=bytes(4 * 383) + b"\0\0\x80?")])

    tools.embedder.during = write
    assert run(tools)["documents_changed_meanwhile"] == 1
    (point,) = tools.store.fetch("c", [changed])
    assert point.payload == {"text": "zinc"}
    tools.embedder.during = lambda: None
    assert run(tools)["documents_embedded"] == 1


def test_what_a_reindex_changed_is_measured_where_there_are_judgments(tools: Tools) -> None:
    found = run(tools, JUDGED)
    assert found["quality_before"] < 0.7
    assert found["quality_after"] > 0.99
    assert found["metric"] == found["quality_metric"] == "nDCG@10"
    assert run(tools, JUDGED)["quality_improvement"] == 0.0
    unjudged = run(tools, (QueryJob(text="zinc", judgments={"1": 0.0}),))
    assert unjudged["metric"] is unjudged["quality_before"] is unjudged["quality_after"] is None


def test_the_quality_before_the_first_write_survives_a_pause_and_other_judgments_measure_nothing(tools: Tools) -> None:
    whole = first_steps(tools, 3, JUDGED)
    assert resume(tools, whole[-1], JUDGED)["quality_before"] < 0.7
    assert resume(tools, whole[-1], JUDGED[:2])["quality_before"] is None
    assert resume(tools, whole[-1])["quality_after"] is None


def test_what_cannot_be_reindexed_says_why(tools: Tools) -> None:
    tools.store.create("small", 3)
    tools.store.upsert("small", [Point(id=1, payload={"text": "zinc"}, vector=np.zeros(3, "<f4").tobytes())])
    with pytest.raises(VectorSizeMismatch, match=r"3 dimensions.*384"):
        run(tools, name="small")
    tools.store.create("empty", 384)
    empty = run(tools, name="empty")
    assert (empty["is_skipped"], empty["reason"]) == (True, "empty")
    with pytest.raises(CollectionNotFound, match="empty"):
        run(tools, name="none")
    other = replace(tools, settings=WorkerSettings(model=ModelSettings(text_field="body")))
    with pytest.raises(TextFieldNotFound, match="'text'"):
        run(other)


def test_points_without_a_text_are_counted_and_left_as_they_are(tools: Tools) -> None:
    vector = np.eye(1, 384, dtype="<f4").tobytes()
    tools.store.upsert("c", [Point(id=1, payload={"text": " "}, vector=vector), Point(id=2, vector=vector)])
    found = run(tools)
    assert (found["documents_without_text"], found["documents_embedded"]) == (2, 20)
    assert {tuple(point.payload) for point in tools.store.fetch("c", [1, 2])} == {("text",), ()}


def test_an_adoption_cut_off_in_its_first_page_goes_on_adopting(tools: Tools) -> None:
    """Its stamps are on some pages then, as a plain re-index leaves them: nothing but the checkpoint says what was decided."""
    texts = list(TITLES.values())
    rows = zip(TITLES, texts, tools.embedder.inner.embed(texts), strict=True)
    tools.store.upsert("c", [Point(id=i, payload={"text": t}, vector=v.tobytes()) for i, t, v in rows])
    checkpoints: list[Step] = []
    rewrite = tools.store.rewrite

    def cut(name: str, rewrites: Sequence[Any]) -> int:
        rewrite(name, rewrites)
        raise KeyboardInterrupt

    def on_step(step: Step) -> Verdict:
        checkpoints.append(step)
        return Verdict.GO_ON

    tools.store.rewrite = cut
    with pytest.raises(KeyboardInterrupt):
        drive(reindex(Job("t", TaskType.REINDEX, "c"), tools), on_step)
    tools.store.rewrite = rewrite
    ended = resume(tools, next(step for step in reversed(checkpoints) if step.checkpoint is not None))
    assert (ended["documents_unchanged"], ended["documents_adopted"], ended["documents_embedded"]) == (8, 12, 0)


class OneAtATime:
    """A store that threads may call: the client in memory, which they may not, behind a lock."""

    takes_threads = True

    def __init__(self, inner: QdrantStore) -> None:
        self._inner, self._lock = inner, threading.Lock()

    def __getattr__(self, name: str) -> Any:
        held = getattr(self._inner, name)
        if not callable(held):
            return held

        def call(*args: Any, **options: Any) -> Any:
            with self._lock:
                return held(*args, **options)

        return call


@pytest.mark.parametrize("died_at", range(1, 6))
def test_where_pieces_overlap_a_crash_has_no_more_embedded_twice_than_a_page(tools: Tools, died_at: int) -> None:
    tools = replace(tools, store=OneAtATime(tools.store))  # pieces of half a page
    steps: list[Step] = []

    def die(step: Step) -> Verdict:
        if len(steps) == died_at - 1:
            raise KeyboardInterrupt  # before anybody has heard of this step
        steps.append(step)
        return Verdict.GO_ON

    with pytest.raises(KeyboardInterrupt):
        drive(reindex(Job("t", TaskType.REINDEX, "c"), tools), die)
    checkpoint = json.loads(json.dumps(steps[-1].checkpoint)) if steps else None
    ended = drive(reindex(Job("t", TaskType.REINDEX, "c", {}, (), checkpoint), tools), lambda _: Verdict.GO_ON)
    assert isinstance(ended, Outcome)
    assert ended.result["documents_processed"] == 20
    twice = len(tools.embedder.texts) - len(set(tools.embedder.texts))
    assert twice <= tools.settings.scroll_size
    points, _ = tools.store.scroll("c", limit=100, with_vectors=True)
    wanted = tools.embedder.inner.embed([point.payload["text"] for point in points])
    for point, vector in zip(points, wanted, strict=True):
        assert np.frombuffer(point.vector, "<f4") @ vector == pytest.approx(1.0, abs=1e-5)
