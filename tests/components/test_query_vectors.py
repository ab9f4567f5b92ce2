"""A query is embedded once for a model, whatever collections it is asked of; with the real model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from morgan.background.ipc.records import QueryJob, TaskType
from morgan.background.ipc.settings import RerankSettings, WorkerSettings
from morgan.background.workers.models import SentenceTransformerEmbedder
from morgan.background.workers.qdrant import QdrantStore
from morgan.background.workers.query_vectors import QueryVectors
from morgan.background.workers.reranker import LateInteractionReranker
from morgan.background.workers.task import Job, Outcome, Tools, Verdict, drive
from morgan.background.workers.tasks import TASKS
from morgan.background.workers.vectors import Vectors
from tests.conftest import SIZE, Fill


class Counting:
    """The embedder, and what it was asked to embed."""

    def __init__(self, embedder: SentenceTransformerEmbedder, name: str = "") -> None:
        self._embedder, self.name, self.embedded = embedder, name or embedder.name, list[str]()
        self.revision, self.size, self.token_vectors = "r", embedder.size, embedder.token_vectors

    def embed(self, texts: Sequence[str], *, pace: Callable[[], None] | None = None) -> Vectors:
        self.embedded += texts
        return self._embedder.embed(texts, pace=pace)


@pytest.fixture
def counting(embedder: SentenceTransformerEmbedder) -> Counting:
    return Counting(embedder)


def test_vectors_are_those_of_the_model_in_the_order_of_the_texts(
    counting: Counting, embedder: SentenceTransformerEmbedder
) -> None:
    kept = QueryVectors()
    texts = ["zinc", "iron", "zinc", "gold"]
    for wanted in (texts, texts[:1], ["gold", "lead", "iron"]):
        np.testing.assert_allclose(kept.embed(counting, wanted), embedder.embed(wanted), atol=1e-5)
    assert counting.embedded == ["zinc", "iron", "gold", "lead"]


def test_another_model_embeds_for_itself(counting: Counting, embedder: SentenceTransformerEmbedder) -> None:
    kept, other = QueryVectors(), Counting(embedder, "other")
    kept.embed(counting, ["zinc"])
    kept.embed(other, ["zinc"])
    assert counting.embedded == other.embedded == ["zinc"]


def test_of_more_than_there_is_room_for_those_used_last_are_kept(counting: Counting) -> None:
    kept = QueryVectors(kept_bytes=2 * SIZE * 4)
    kept.embed(counting, ["a", "b"])
    kept.embed(counting, ["a"])
    kept.embed(counting, ["c"])
    counting.embedded.clear()
    assert kept.embed(counting, ["a", "c", "b"]).shape == (3, SIZE)
    assert counting.embedded == ["b"]
    QueryVectors(kept_bytes=0).embed(counting, ["d"])


def test_warming_two_collections_embeds_a_shared_query_once(fill: Fill, counting: Counting) -> None:
    store = QdrantStore(fill("docs", "memories"))
    settings = WorkerSettings(rerank=RerankSettings(candidates=3, top_k=2))
    tools = Tools(store, counting, LateInteractionReranker(counting), settings, lambda: 0.0, lambda: None)
    published = {}
    for name, texts in (("docs", ["zinc uptake", "price of gold"]), ("memories", ["lead paint", "zinc uptake"])):
        job = Job("t", TaskType.WARM, name, queries=tuple(QueryJob(text=text) for text in texts))
        task = TASKS[TaskType.WARM]
        assert callable(task)
        results = []
        ended = drive(task(job, tools), lambda step, held=results: held.extend(step.results) or Verdict.GO_ON)  # type: ignore[misc]
        assert isinstance(ended, Outcome)
        published[name] = {one.query_text: one for one in results}
    assert counting.embedded == ["zinc uptake", "price of gold", "lead paint"]
    shared = [published[name]["zinc uptake"] for name in ("docs", "memories")]
    assert shared[0].ids == shared[1].ids
    assert shared[0].embedding == shared[1].embedding
