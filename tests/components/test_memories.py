"""Collections with settings of their own: their text field, recency in the order, and new points without a full run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient

from morgan.background.ipc.commands import PointsChanged
from morgan.background.ipc.paths import RuntimePaths
from morgan.background.ipc.records import ExecutionRecord, Point, PointId, QueryJob, TaskStatus, TaskType
from morgan.background.ipc.settings import CollectionSettings, RerankSettings, WorkerSettings
from morgan.background.supervisor.assemble import core_settings, make_core
from morgan.background.supervisor.config import load
from morgan.background.supervisor.core import Core
from morgan.background.supervisor.journal import Journal
from morgan.background.workers.edge import EdgeStore
from morgan.background.workers.models import SentenceTransformerEmbedder
from morgan.background.workers.qdrant import QdrantStore
from morgan.background.workers.recency import FIGURES_KEY
from morgan.background.workers.reranker import LateInteractionReranker
from morgan.background.workers.search import compute
from morgan.background.workers.task import Job, Outcome, Tools, Verdict, drive
from morgan.background.workers.tasks import TASKS
from morgan.background.workers.vectors import MADE_BY_KEY, STAMP_KEY, Vectors, VectorStore

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC).timestamp()
DAY_S = 86400.0
NAME = "morgan_memories"
SAID = ["my cat is called Momo", "I like my coffee black", "the meeting is on Friday", "Momo is my cat's name"]
OWN = CollectionSettings(text_field="said", time_field="at", recency_half_life_days=10, new_points=True)


class Counting:
    """The store, telling how many points it was asked to read; the embedder, telling what it was asked to embed."""

    def __init__(self, inner: Any) -> None:
        self._inner, self.read, self.texts = inner, 0, list[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def scroll(self, name: str, **asked: Any) -> tuple[list[Point], PointId | None]:
        found, after = self._inner.scroll(name, **asked)
        self.read += len(found)
        return found, after

    def embed(self, texts: Sequence[str], *, pace: Callable[[], None] | None = None) -> Vectors:
        self.texts += texts
        return self._inner.embed(texts, pace=pace)  # type: ignore[no-any-return]


@pytest.fixture(params=["embedded", "client"])
def tools(request: pytest.FixtureRequest, tmp_path: Path, embedder: SentenceTransformerEmbedder) -> Iterator[Tools]:
    inner: VectorStore = EdgeStore(tmp_path) if request.param == "embedded" else QdrantStore(QdrantClient(":memory:"))
    store, watched = Counting(inner), Counting(embedder)
    store.create("memories__v1", 384)
    store.set_alias(NAME, "memories__v1")
    settings = WorkerSettings(collections={NAME: OWN}, scroll_size=8, rerank=RerankSettings(top_k=3, candidates=8))
    yield Tools(store, watched, LateInteractionReranker(embedder), settings, lambda: NOW, lambda: None).of(NAME)  # type: ignore[arg-type]
    inner.close()


def say(tools: Tools, texts: Sequence[str], start: int = 1, days_ago: float = 0.0) -> None:
    """Write memories as an application does: with vectors that are not the model's, and no stamp."""
    at = datetime.fromtimestamp(NOW - days_ago * DAY_S, UTC).isoformat()
    rows = [{"said": text, "text": "not this", "at": at} for text in texts]
    vector = np.full(384, 0.05, dtype="<f4").tobytes()
    tools.store.upsert(NAME, [Point(id=start + n, payload=row, vector=vector) for n, row in enumerate(rows)])


def run(tools: Tools, **params: Any) -> dict[str, Any]:
    ended = drive(TASKS[TaskType.REINDEX](Job("t", TaskType.REINDEX, NAME, params), tools), lambda _: Verdict.GO_ON)  # type: ignore[operator]
    assert isinstance(ended, Outcome)
    return ended.result | {"is_skipped": ended.is_skipped}


def test_only_new_and_rewritten_points_are_read_and_embedded_from_the_collections_own_field(
    tools: Tools, embedder: SentenceTransformerEmbedder
) -> None:
    say(tools, [f"note {n}" for n in range(40)])
    refused = run(tools, only_new=True)
    assert (refused["is_skipped"], tools.embedder.texts) == (True, [])  # type: ignore[attr-defined]
    assert refused["reason"].startswith("a full re-index comes first")
    assert run(tools, force_rebuild=False, without_gate=True)["documents_embedded"] == 40
    tools.store.read = 0  # type: ignore[attr-defined]
    tools.embedder.texts.clear()  # type: ignore[attr-defined]
    assert run(tools, only_new=True)["reason"] == "no new points"
    say(tools, SAID, start=100)
    say(tools, ["note 7, said otherwise"], start=8)
    tools.store.upsert(NAME, [Point(id=200, payload={"at": 3}, vector=np.ones(384, dtype="<f4").tobytes())])
    found = run(tools, only_new=True)
    assert (found["how"], found["documents_processed"], found["documents_embedded"]) == ("new_points", 6, 5)
    assert (found["documents_without_text"], found["is_skipped"]) == (1, False)
    assert sorted(tools.embedder.texts) == sorted([*SAID, "note 7, said otherwise"])  # type: ignore[attr-defined]
    assert tools.store.read == 2 * 8 + 6  # type: ignore[attr-defined] # a page to see whose it is, each time, and the new ones
    (point,) = tools.store.fetch(NAME, [100], with_vectors=True)
    assert np.frombuffer(point.vector or b"", "<f4") @ embedder.embed([SAID[0]])[0] > 0.9999
    assert point.payload[STAMP_KEY]["rev"] == embedder.revision
    if isinstance(tools.store._inner, EdgeStore):  # type: ignore[attr-defined]
        assert tools.store.index_info(NAME).payload == {MADE_BY_KEY: "keyword"}  # type: ignore[attr-defined]
    again = run(tools, only_new=True)  # the point without a text is looked at again
    assert (again["is_skipped"], again["documents_processed"]) == (True, 1)


def test_a_memory_of_today_goes_before_a_better_one_of_long_ago_and_both_scores_stay(tools: Tools) -> None:
    say(tools, SAID[:3], days_ago=1)
    say(tools, SAID[3:], start=4, days_ago=300)
    run(tools, without_gate=True)
    job = QueryJob(text="what is the name of my cat")

    def asked(now: Tools) -> Any:
        ((_, result, _),) = compute([job], NAME, now, limit=3, candidates=8, is_reranked=True)
        assert result is not None
        scores = [np.frombuffer(raw, "<f4").tolist() for raw in (result.scores, result.rerank_scores)]
        return result, dict(zip(result.ids, zip(*scores, strict=True), strict=True))

    plain, scores = asked(
        Tools(
            **{name: getattr(tools, name) for name in ("store", "embedder", "reranker")},
            settings=WorkerSettings(model=tools.settings.model),
            clock=tools.clock,
            pace=tools.pace,
        )
    )
    recent, own = asked(tools)
    assert (plain.ids[:2], recent.ids[:2]) == ((4, 1), (1, 4))
    assert plain.contents[0] == SAID[3]
    for point_id in (1, 4):
        assert own[point_id] == pytest.approx(scores[point_id])
    assert FIGURES_KEY not in plain.metadata[0]
    figures = [row[FIGURES_KEY] for row in recent.metadata]
    assert figures[0]["recency"] == pytest.approx(2**-0.1, abs=1e-5)
    assert figures[1]["recency"] == pytest.approx(2**-30, abs=1e-5)
    order = [row["order_score"] for row in figures]
    assert order == sorted(order, reverse=True)
    assert recent.rerank_scores != bytes(sorted(recent.rerank_scores))


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Core]:
    config = load(env={"HOME": "/nonexistent"})
    runtime = RuntimePaths(tmp_path / "run")
    runtime.readers.mkdir(parents=True)
    made = make_core(config, core_settings(config), runtime, Journal(None), own_pids=list)
    yield made
    made.keeper.store.close()
    made.journal.close()


def test_new_memories_are_looked_for_after_a_write_once_the_collection_was_reindexed(core: Core) -> None:
    def waiting() -> list[dict[str, Any]]:
        return [one.params for one in core.queue.open() if (one.task_type, one.collection) == (TaskType.REINDEX, NAME)]

    now, check_s = core.started_at, core.settings.check_interval_s
    core.turn(now := now + check_s)
    assert waiting() == []  # it may not even exist
    done = ExecutionRecord(
        task_id="t",
        task_type=TaskType.REINDEX,
        collection=NAME,
        status=TaskStatus.COMPLETED,
        started_at=now,
        completed_at=now,
    )
    core.journal.add_execution(done)
    core.turn(now := now + check_s)  # what was written before the start is not known
    assert waiting() == [{"only_new": True}]
    (task,) = core.queue.open()
    core.queue.cancel(task.task_id, now)
    core.turn(now := now + check_s)
    assert waiting() == []
    core._freshness.points_changed(PointsChanged(seq=1, names=("memories__v1", NAME), ids=(7,), is_soft=True), now)
    core.turn(now := now + check_s)
    assert waiting() == []  # that was a re-index
    core._freshness.points_changed(PointsChanged(seq=2, names=("memories__v1", NAME), ids=(7,)), now)
    core.turn(now + check_s)
    assert waiting() == [{"only_new": True}]
