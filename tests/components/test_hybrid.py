"""Candidates by dense and sparse vectors together, where it can be found out what made the sparse ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from qdrant_edge import Bm25, Bm25Config

from bench.fake_embedder import FakeEmbedder
from morgan.background.ipc.reader import ResultReader
from morgan.background.ipc.records import QueryJob, TaskType
from morgan.background.ipc.settings import RerankSettings, WorkerSettings
from morgan.background.ipc.store import ResultStore
from morgan.background.workers.candidates import how
from morgan.background.workers.checking import outdated
from morgan.background.workers.qdrant import QdrantStore
from morgan.background.workers.reranker import as_reranker
from morgan.background.workers.search import compute
from morgan.background.workers.sparse import encoder_of
from morgan.background.workers.task import Job, Outcome, Tools, Verdict, drive
from morgan.background.workers.tasks import TASKS

SIZE = 16
# To a model that sees no more than a length's parity all even ones are alike: only its word tells the last one apart.
TEXTS = [f"running water in the river number {number}" for number in range(10, 40)] + [
    "uptake of zinc in running mice!"
]
ZINC = len(TEXTS)


def qdrant(language: str = "english", *, named: bool = True, title: str = "") -> QdrantClient:
    """Return a client of a collection "c" whose sparse vectors are BM25's of `title` and text."""
    client = QdrantClient(":memory:")
    dense = models.VectorParams(size=SIZE, distance=models.Distance.COSINE)
    words = models.SparseVectorParams(modifier=models.Modifier.IDF)
    client.create_collection(
        "c", vectors_config={"dense": dense} if named else dense, sparse_vectors_config={"words": words}
    )
    bm25, blind = Bm25(Bm25Config(language=language)), FakeEmbedder("model", SIZE)
    blind.is_blind = True
    for number, (text, vector) in enumerate(zip(TEXTS, blind.embed(TEXTS).tolist(), strict=True), start=1):
        found = bm25.embed_document(f"{title} {text}")
        sparse = models.SparseVector(indices=found.indices, values=found.values)
        point = models.PointStruct(
            id=number, vector={"dense" if named else "": vector, "words": sparse}, payload={"text": text}
        )
        client.upsert("c", [point])
    return client


def tools_of(client: QdrantClient, **settings: Any) -> Tools:
    by_length = as_reranker(SimpleNamespace(rerank=lambda _, texts: [float("zinc" in text) for text in texts]))
    blind = FakeEmbedder("model", SIZE)
    blind.is_blind = True
    rerank = RerankSettings(**{"top_k": 3, "candidates": 10} | settings)
    return Tools(QdrantStore(client), blind, by_length, WorkerSettings(rerank=rerank), lambda: 1000.0, lambda: None)


def found(tools: Tools, text: str = "zinc", **options: Any) -> Any:
    ((_, result, hits),) = compute(
        [QueryJob(text=text)], "c", tools, **{"limit": 3, "candidates": 10, "is_reranked": True} | options
    )
    return result, hits


@pytest.mark.parametrize("fusion", ["rrf", "dbsf"])
@pytest.mark.parametrize("named", [True, False])
def test_a_document_that_only_its_words_find_becomes_a_candidate_with_its_similarity(fusion: str, named: bool) -> None:
    client = qdrant(named=named)
    dense_only, hits = found(tools_of(client, fusion="none"))
    assert ZINC not in [hit.id for hit in hits]
    assert dense_only.cutoff is not None
    result, hits = found(tools_of(client, fusion=fusion))
    assert len(hits) == 10
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert max(scores) <= 1.0001  # a cosine, and no fused score
    assert result.ids[0] == ZINC
    assert result.cutoff is None  # a new document may come in by its words
    assert found(tools_of(client, fusion=fusion), is_reranked=False)[0].ids[0] != ZINC


def test_a_filter_holds_for_both_searches() -> None:
    _, hits = found(tools_of(qdrant()), query_filter={"text": [TEXTS[0], TEXTS[1]]})
    assert {hit.id for hit in hits} == {1, 2}


@pytest.mark.parametrize("language", ["english", "german", "russian"])
def test_the_language_is_found_out_from_the_documents(language: str) -> None:
    texts = ["the running of the mice and the rivers", "die laufenden Flüsse und Häuser", "реки и дома бежали"]
    bm25 = Bm25(Bm25Config(language=language))
    encoder = encoder_of("words", [(text, bm25.embed_document(text).indices) for text in texts])
    assert encoder is not None
    assert encoder.language == language
    assert encoder.encode("zinc zinc").indices == tuple(bm25.embed_query("zinc").indices)


def test_vectors_of_more_than_the_text_are_known_and_those_of_another_encoder_are_not() -> None:
    assert "BM25 (english)" in how(tools_of(qdrant(title="A title of its own")).store, "c", WorkerSettings())
    rng = np.random.default_rng(0)
    assert encoder_of("words", [(text, rng.integers(30_522, size=60).tolist()) for text in TEXTS]) is None
    assert encoder_of("words", []) is None
    assert encoder_of("words", [("", [1, 2])]) is None


def test_a_collection_whose_sparse_vectors_nobody_knows_is_searched_by_the_dense_ones_and_the_result_says_so() -> None:
    client = qdrant()
    other = models.SparseVector(indices=[1, 2, 3], values=[0.1, 0.2, 0.3])
    client.update_vectors("c", [models.PointVectors(id=i + 1, vector={"words": other}) for i in range(len(TEXTS))])
    tools = tools_of(client)
    job = Job("t", TaskType.RERANK, "c", {}, (QueryJob(text="zinc"),))
    ended = drive(TASKS[TaskType.RERANK](job, tools), lambda _: Verdict.GO_ON)  # type: ignore[operator]
    assert isinstance(ended, Outcome)
    assert ended.result["candidates_from"].startswith("dense vectors alone: it is not known what made")
    assert ended.result["precomputed_count"] == 1
    assert ZINC not in [hit.id for hit in found(tools)[1]]


def test_a_result_of_both_searches_is_checked_by_both(tmp_path: Path) -> None:
    client = qdrant()
    tools = tools_of(client)
    assert how(tools.store, "c", tools.settings) == "dense vectors and 'words' by BM25 (english), fused by RRF"
    store, reader = ResultStore(tmp_path / "results"), ResultReader(tmp_path / "results")
    store.put(found(tools)[0], expires_at=2000.0)
    plain = found(tools, "water", is_reranked=False)[0]
    store.put(plain, expires_at=2000.0)
    held = replace(tools, cached=lambda text, collection: reader.get_at(text, collection, "", 1000.0))
    jobs = [QueryJob(text="zinc"), QueryJob(text="water")]
    assert list(outdated(jobs, "c", held)) == [[]]
    client.delete("c", [ZINC])
    (gone,) = outdated(jobs, "c", held)
    assert jobs[0] in gone
    reader.close()
    store.close()


def test_qdrants_own_engine_answers_the_same_request_alike(tmp_path: Path) -> None:
    """The client's local mode is a copy in Python; the engine is what a server runs."""
    import qdrant_edge as edge

    client = qdrant()
    store, blind = QdrantStore(client), FakeEmbedder("model", SIZE)
    blind.is_blind = True
    encoder, _ = store.sparse_encoder("c", "text")
    assert encoder is not None
    vectors, row = blind.embed(["zinc mice"]), encoder.encode("zinc mice")
    (wanted,) = store.search_hybrid("c", vectors, [row], using="words", fusion="rrf", limit=10)
    config = edge.EdgeConfig(
        vectors={"dense": edge.EdgeVectorParams(size=SIZE, distance=edge.Distance.Cosine)},
        sparse_vectors={"words": edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf)},
    )
    shard = edge.EdgeShard.create(str(tmp_path), config)
    for one in client.scroll("c", limit=100, with_vectors=True)[0]:
        held: Any = one.vector
        words = edge.SparseVector(held["words"].indices, held["words"].values)
        point = edge.Point(one.id, {"dense": held["dense"], "words": words}, one.payload)
        shard.update(edge.UpdateOperation.upsert_points([point]))
    dense = edge.Query.Nearest(vectors[0].tolist(), using="dense")
    by_words = edge.Query.Nearest(edge.SparseVector(list(row.indices), list(row.values)), using="words")
    both = [edge.Prefetch(10, query=dense), edge.Prefetch(10, query=by_words)]
    fused = edge.Prefetch(10, query=edge.Fusion.Rrf(2), prefetches=both)
    request = edge.QueryRequest(10, query=dense, prefetches=[fused])
    (answer,) = shard.query_batch(edge.QueryBatchRequest([request]))
    assert answer[0].id == wanted[0].id == ZINC
    assert np.allclose([one.score for one in answer], [hit.score for hit in wanted], atol=1e-5)
    shard.close()
