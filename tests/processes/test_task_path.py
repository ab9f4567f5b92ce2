"""The path of a task through the real daemon: handed in, run by a worker, recorded, its results in shared memory."""

from __future__ import annotations

from typing import Any

import pytest

from morgan.background.data import documents, queries
from morgan.background.ipc import calls, messages
from morgan.background.ipc.client import expect
from morgan.background.ipc.query import query_hash
from morgan.background.ipc.records import ExecutionRecord, TaskStatus
from morgan.background.workers.quality import ndcg
from tests.processes.daemons import Daemon

pytestmark = pytest.mark.timeout(400)

SEARCH = """
import json, os, sys, threading
import msgspec
from morgan.background import Client

text, collection = sys.argv[1:]
with Client() as client:
    found = client.search(text, collection)
    held = client.reader.get(text, collection)
    print(json.dumps({
        "is_precomputed": found.is_precomputed,
        "ids": [hit.id for hit in found.hits],
        "sources": [hit.payload["source"] for hit in found.hits],
        "reranked": [hit.rerank_score for hit in found.hits],
        "quality": held.quality,
        "basis": held.quality_basis,
        "query_dimensions": len(held.embedding),
        "heavy": [name for name in ("torch", "sentence_transformers", "qdrant_client", "qdrant_edge") if name in sys.modules],
    }))
"""


def executions(daemon: Daemon, task_id: str) -> list[ExecutionRecord]:
    asked = daemon.client.request(messages.ListExecutions(limit=100))
    return [one for one in expect(messages.ExecutionList, asked).executions if one.task_id == task_id]


def test_a_reindex_is_followed_to_its_end_and_a_second_one_embeds_nothing(daemon: Daemon) -> None:
    # vectors of another model: each must be made anew
    client, some = daemon.client, documents()[:30]
    client.create_collection("path", 384)
    wrong = [0.0] * 383 + [1.0]
    client.upsert("path", [{"id": d["id"], "vector": wrong, "payload": dict(d)} for d in some])
    task_id = daemon.submit("reindex", "path")
    seen = daemon.history(task_id)
    ended = seen[-1]
    assert ended.status is TaskStatus.COMPLETED, ended.error_message
    versions = [record.version for record in seen]
    assert versions == sorted(set(versions))
    assert {record.status for record in seen[:-1]} <= {TaskStatus.PENDING, TaskStatus.RUNNING}
    assert (ended.progress.done, ended.progress.total, ended.progress.eta_s) == (30, 30, 0.0)
    assert ended.result is not None
    expected = {
        "success": True,
        "collection_name": "path",
        "documents_processed": 30,
        "documents_embedded": 30,
        "documents_unchanged": 0,
        "documents_without_text": 0,
        "quality_improvement": None,
        "error_message": None,
    }
    assert {key: ended.result[key] for key in expected} == expected
    assert ended.result["processing_time_seconds"] > 0

    (ran,) = executions(daemon, task_id)
    assert (ran.status, ran.attempt, ran.result) == (TaskStatus.COMPLETED, 1, ended.result)
    assert ran.started_at <= ran.completed_at
    assert ran.cpu_s > 0

    for payload, vector in daemon.points("path").values():
        assert payload.keys() == {"id", "title", "text", "source", "_morgan"}
        assert vector is not None
        assert len(vector) == 4 * 384
    found = client.search(some[7]["text"], "path")
    assert (found.is_precomputed, found.hits[0].id) == (False, some[7]["id"])

    before = daemon.points("path")
    again = daemon.run("reindex", "path")
    assert (again["documents_embedded"], again["documents_unchanged"]) == (0, 30)
    assert daemon.points("path") == before
    assert daemon.run("reindex", "path", force_rebuild=True)["documents_embedded"] == 30


def test_a_rerank_is_measured_by_the_judgments_and_read_by_another_process_without_a_message(daemon: Daemon) -> None:
    client, judged = daemon.client, queries()[:5]
    wanted = {int(one) for query in judged for one in query["judgments"]}
    corpus = [d for d in documents() if d["id"] in wanted]
    corpus += [d for d in documents() if d["id"] not in wanted][: 40 - len(corpus)]
    client.create_collection("judged")
    assert client.upsert("judged", corpus) == 40
    for query in judged:
        for _ in range(3):  # a query asked less often is not popular
            tracked = client.request(messages.Track(query=query["text"], collection="judged", response_s=0.25))
            assert expect(messages.Tracked, tracked).query_hash == query_hash(query["text"], "judged")
        for document_id, grade in query["judgments"].items():
            client.request(
                messages.Feedback(query=query["text"], collection="judged", document_id=document_id, relevance=grade)
            )
    client.request(messages.Track(query="asked once", collection="judged"))
    before = vector_search_ndcg(daemon, judged)

    task_id = daemon.submit("rerank", "judged")
    ended = daemon.finished(task_id)
    assert ended.status is TaskStatus.COMPLETED, ended.error_message
    result = ended.result or {}
    assert (result["queries_processed"], result["precomputed_count"], result["judged_queries"]) == (5, 5, 5)
    assert result["quality_metric"] == "nDCG@10"
    assert result["quality_before"] == pytest.approx(before)
    assert result["quality_improvement"] == result["quality_after"] - result["quality_before"]

    elsewhere = [daemon.elsewhere(SEARCH, query["text"], "judged") for query in judged]
    assert [one["is_precomputed"] for one in elsewhere] == [True] * 5
    after = [ndcg(one["ids"], query["judgments"]) for one, query in zip(elsewhere, judged, strict=True)]
    assert result["quality_after"] == pytest.approx(sum(after) / len(after))
    for one, query, score in zip(elsewhere, judged, after, strict=True):
        assert one["sources"] == [f"scifact/{i}" for i in one["ids"]]
        assert one["reranked"] == sorted(one["reranked"], reverse=True)
        assert (one["quality"], one["basis"]) == (pytest.approx(score), "judgments")
        assert (len(one["ids"]), one["query_dimensions"], one["heavy"]) == (10, 384, [])
        held = client.reader.get(f"  {query['text'].upper()} ", "judged")  # the same query to us
        assert held is not None
        assert list(held.ids) == one["ids"]

    (ran,) = executions(daemon, task_id)
    assert (ran.metric, ran.before_score, ran.after_score) == (
        "nDCG@10",
        result["quality_before"],
        result["quality_after"],
    )
    (trend,) = [
        row
        for row in expect(messages.Report, client.request(messages.Activity())).report["quality_trends"]
        if row["task_id"] == task_id
    ]
    assert trend["improvement"] == result["quality_improvement"]
    popular = expect(messages.QueryList, client.request(messages.ListQueries(collection="judged", min_frequency=3)))
    assert {query.query_text for query in popular.queries} == {query["text"] for query in judged}
    of_all = expect(messages.Report, client.request(messages.Quality(days=1))).report["collections"]
    (known,) = [one for one in of_all if one["collection_name"] == "judged"]
    assert known["judged"]["note"] == "not enough yet: 5 of 20 judged queries"
    assert known["agreement"]["note"] == "not enough yet: 5 of 20 reranked queries"
    grades = [grade for query in judged for grade in query["judgments"].values()]
    assert known["satisfaction"]["count"] == len(grades)
    stats = expect(messages.Report, client.request(messages.CacheStats())).report
    assert stats["total_cached_queries"] >= 5
    assert stats["cache_hits"] >= 15  # the two reads of each process elsewhere, and ours


def vector_search_ndcg(daemon: Daemon, judged: list[Any]) -> float:
    """Return the mean nDCG@10 of the vector search alone, computed here from what the owner finds."""
    texts = tuple(query["text"] for query in judged)
    embedded = expect(calls.Embedded, daemon.client.call(calls.Embed(texts=texts)))
    assert (embedded.count, embedded.size, len(embedded.vectors)) == (len(texts), 384, len(texts) * 384 * 4)
    search = calls.SearchVectors(collection="judged", vectors=embedded.vectors, count=len(texts))
    lists = expect(calls.HitLists, daemon.client.call(search)).hits
    scores = [ndcg([hit.id for hit in hits], query["judgments"]) for hits, query in zip(lists, judged, strict=True)]
    return sum(scores) / len(scores)


def test_a_warm_task_computes_only_what_is_not_cached(daemon: Daemon, docs: str) -> None:
    texts = ["zinc in the gut", "heart failure in mice", "vitamin d"]
    assert daemon.run("warm", docs, queries=texts[:1])["precomputed_count"] == 1
    first = daemon.client.reader.get(texts[0], docs)
    assert first is not None
    assert daemon.run("warm", docs, queries=texts)["queries_processed"] == 2
    again = daemon.client.reader.get(texts[0], docs)
    assert again is not None
    assert again.computed_at == first.computed_at
    assert all(daemon.client.reader.get(text, docs) for text in texts)
    ended = daemon.finished(daemon.submit("warm", docs, queries=texts))
    assert ended.status is TaskStatus.SKIPPED
    assert "every popular query is cached" in (ended.result or {})["reason"]
    assert daemon.run("warm", docs, queries=texts, force_refresh=True)["queries_processed"] == 3
    dropped = daemon.client.request(messages.Invalidate(collection=docs, pattern="ZINC"))
    assert expect(messages.Done, dropped).count == 1
    assert daemon.client.reader.get(texts[0], docs) is None
    assert daemon.run("warm", docs, queries=texts)["queries_processed"] == 1


def test_a_search_that_misses_is_a_hit_the_next_time_and_in_its_own_scope_alone(daemon: Daemon, docs: str) -> None:
    client, text = daemon.client, "effects of exercise"
    first = client.search(text, docs, limit=5)
    assert (first.is_precomputed, len(first.hits)) == (False, 5)
    # the owner's result passes through the supervisor: a request behind it is answered after it
    daemon.run("warm", docs, queries=[text, "another one"])
    second = client.search(text, docs, limit=5)
    assert second.is_precomputed
    assert second.hits == first.hits
    third = client.search(text, docs, limit=5, query_filter={"source": first.hits[2].payload["source"]})
    assert not third.is_precomputed
    assert [hit.id for hit in third.hits] == [first.hits[2].id]
    assert not client.search(text, docs, limit=5, tenant="another").is_precomputed
    listed = expect(messages.QueryList, client.request(messages.ListQueries(collection=docs)))
    (asked,) = [one for one in listed.queries if (one.query_text, one.scope) == (text, "")]
    assert asked.access_count == 2  # the miss was tracked, the hit counted by its reader
    assert asked.timed_count == 1
