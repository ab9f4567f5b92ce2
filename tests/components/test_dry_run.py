"""What a dry run says is what the task then does, on a real index; and it changes nothing."""

from __future__ import annotations

from typing import Any

import pytest

from morgan.background.ipc.errors import CollectionNotFound, VectorSizeMismatch
from morgan.background.ipc.records import Point, QueryJob, TaskType
from morgan.background.ipc.settings import WorkerSettings
from morgan.background.workers.models import SentenceTransformerEmbedder
from morgan.background.workers.qdrant import QdrantStore
from morgan.background.workers.reranker import LateInteractionReranker
from morgan.background.workers.task import Job, Outcome, Step, Tools, Verdict, drive
from morgan.background.workers.tasks import TASKS
from tests.conftest import DOCUMENTS, SIZE, Fill

QUERIES = (QueryJob(text="zinc uptake"), QueryJob(text="price of gold"))


@pytest.fixture
def tools(fill: Fill, embedder: SentenceTransformerEmbedder) -> Tools:
    store = QdrantStore(fill("docs", shift=1))
    return Tools(store, embedder, LateInteractionReranker(embedder), WorkerSettings(), lambda: 0.0, lambda: None)


def run(kind: TaskType, tools: Tools, collection: str = "docs", **params: Any) -> tuple[dict[str, Any], list[Step]]:
    steps: list[Step] = []
    task = TASKS[kind]
    assert callable(task)
    queries = () if kind is TaskType.REINDEX else QUERIES
    job = Job("t", kind, collection, params, queries)
    ended = drive(task(job, tools), lambda step: steps.append(step) or Verdict.GO_ON)  # type: ignore[func-returns-value]
    assert isinstance(ended, Outcome)
    return ended.result, steps


def stored(tools: Tools) -> list[Any]:
    points, _ = tools.store.scroll("docs", after=None, limit=100, with_vectors=True)
    return sorted((point.id, point.payload, point.vector) for point in points)


def test_a_dry_reindex_counts_what_the_reindex_embeds_and_embeds_nothing(tools: Tools) -> None:
    before = stored(tools)
    would, steps = run(TaskType.REINDEX, tools, dry_run=True)
    assert stored(tools) == before
    assert all(step.checkpoint is None and not step.changes for step in steps)
    assert (would["dry_run"], would["documents_processed"], would["documents_to_embed"]) == (True, DOCUMENTS, DOCUMENTS)
    did, _ = run(TaskType.REINDEX, tools)
    assert did["documents_embedded"] == would["documents_to_embed"]
    again, _ = run(TaskType.REINDEX, tools, dry_run=True)
    assert (again["documents_to_embed"], again["documents_unchanged"]) == (0, DOCUMENTS)
    rebuilt, _ = run(TaskType.REINDEX, tools, dry_run=True, force_rebuild=True)
    assert rebuilt["documents_to_embed"] == DOCUMENTS


@pytest.mark.parametrize("kind", [TaskType.RERANK, TaskType.WARM])
def test_a_dry_run_lists_the_queries_and_publishes_nothing(tools: Tools, kind: TaskType) -> None:
    would, steps = run(kind, tools, dry_run=True)
    assert would["queries_to_compute"] == [query.text for query in QUERIES]
    assert [result for step in steps for result in step.results] == []
    did, steps = run(kind, tools)
    assert did["queries_processed"] == len(would["queries_to_compute"])
    assert [result.query_text for step in steps for result in step.results] == would["queries_to_compute"]


@pytest.mark.parametrize("kind", [TaskType.REINDEX, TaskType.RERANK, TaskType.WARM])
def test_a_dry_run_finds_the_errors_that_the_task_would(tools: Tools, kind: TaskType) -> None:
    with pytest.raises(CollectionNotFound):
        run(kind, tools, "nothing", dry_run=True)


def test_a_dry_reindex_finds_vectors_of_another_size(tools: Tools) -> None:
    assert isinstance(tools.store, QdrantStore)
    tools.store.create("small", SIZE // 2)
    (point, *_), _ = tools.store.scroll("docs", after=None, limit=1, with_vectors=True)
    assert point.vector is not None
    unstamped = {"text": point.payload["text"]}
    tools.store.upsert("small", [Point(id=point.id, payload=unstamped, vector=point.vector[: 4 * SIZE // 2])])
    with pytest.raises(VectorSizeMismatch):
        run(TaskType.REINDEX, tools, "small", dry_run=True)
