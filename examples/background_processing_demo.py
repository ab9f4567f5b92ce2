"""A tour of the Python API on an in-memory Qdrant: python examples/background_processing_demo.py

A collection is filled with abstracts of papers, but its vectors are of the titles alone, as an importer in a hurry makes
them. The service puts that right, reranks what is asked often and keeps the answers. Every figure printed was measured
in this run; quality is nDCG@10 by the judgments that come with the corpus.
"""

from __future__ import annotations

import statistics
import time

from qdrant_client import QdrantClient, models

from morgan.background import BackgroundProcessingService
from morgan.background.cache import PrecomputedSearchCache
from morgan.background.data import Document, Query, documents, queries
from morgan.background.executor import TaskExecution
from morgan.background.ipc.settings import ModelSettings
from morgan.background.workers.models import SentenceTransformerEmbedder

COLLECTION = "morgan_knowledge"
DOCUMENTS = 100  # the whole corpus would take half a minute more
LOOKUPS = 1000


def main() -> None:
    client, asked = filled_client(), queries()
    # With a live client the tasks run in this process: see "lane" in the status.
    with BackgroundProcessingService(vector_db_client=client, enable_auto_scheduling=False) as service:
        heading("The machine")
        now = service.monitor.check_resources()
        print(f"CPU {now.cpu_usage:.0%}, memory {now.memory_usage:.0%}; a background task may run: {now.can_run_task}")
        print(f"because: {now.reason}")

        heading("The schedule")
        service.schedule_reindexing(COLLECTION, "weekly")
        service.schedule_reranking(COLLECTION, "daily")
        for task in service.scheduler.list_tasks():
            print(
                f"{task.task_type} {task.collection_name} {task.frequency.value}, next on {task.next_run:%a %d %b %H:%M}"
            )

        heading("What people ask")
        ask_and_judge(service, asked)
        for query in service.cache.get_popular_queries(COLLECTION, limit=3):
            print(f"{query.access_count} times: {query.query_text}")
        missing = [one for one in asked if service.get_cached_results(one["text"], COLLECTION) is None]
        print(f"{len(missing)} of {len(asked)} queries have no answer in the cache")

        heading("Re-index: embed every document whose vector is not of its text")
        reindexed = service.executor.execute_task_now("reindex", COLLECTION, force=True)
        report(reindexed, "documents_embedded")

        heading("Rerank what is popular, and keep the answers")
        reranked = service.executor.execute_task_now("rerank", COLLECTION, force=True)
        report(reranked, "queries_processed")
        best = service.get_cached_results(asked[0]["text"], COLLECTION)
        if best is not None:
            print(f"the best answer to {best.query_text!r} is {best.results[0].metadata['title']!r}")

        heading("Read the answers")
        computed_s, cached_s = search_times(service.cache, [query["text"] for query in asked])

        heading("Summary")
        status, activity = service.get_service_status(), service.get_recent_activity()
        for trend in reversed(activity["quality_trends"]):
            before, after = trend["before_score"], trend["after_score"]
            print(f"{trend['task_type']}: nDCG@10 {before:.3f} -> {after:.3f} ({trend['improvement']:+.3f})")
        execution, cache = status["execution"], status["cache"]
        print(f"tasks: {execution['completed']} completed, {execution['failed']} failed, in lane {status['lane']!r}")
        print(f"cache: {cache['total_cached_queries']} answers, {cache['cache_size_mb']:.2f} MiB, ", end="")
        print(f"{cache['cache_hits']} hits in {cache['cache_lookups']} lookups ({cache['cache_hit_rate']:.1%})")
        print(f"an answer: {computed_s * 1e3:.1f} ms computed, {cached_s * 1e6:.2f} us from the cache (medians)")


def filled_client() -> QdrantClient:
    """Return a client whose collection has the abstracts as texts and the titles' vectors."""
    judged = {int(name) for query in queries() for name in query["judgments"]}
    papers: list[Document] = sorted(documents(), key=lambda one: one["id"] not in judged)[:DOCUMENTS]
    embedder = SentenceTransformerEmbedder(ModelSettings())
    vectors = embedder.embed([paper["title"] for paper in papers])
    client = QdrantClient(":memory:")
    params = models.VectorParams(size=embedder.size, distance=models.Distance.COSINE)
    client.create_collection(COLLECTION, vectors_config=params)
    client.upsert(
        COLLECTION,
        [
            models.PointStruct(
                id=paper["id"],
                vector=vector.tolist(),
                payload={"title": paper["title"], "text": paper["text"], "source": paper["source"]},
            )
            for paper, vector in zip(papers, vectors, strict=True)
        ],
    )
    print(f"{len(papers)} documents in {COLLECTION!r}, {len(judged)} of them judged for {len(queries())} queries")
    return client


def ask_and_judge(service: BackgroundProcessingService, asked: list[Query]) -> None:
    """Count some searches for each query, and hand in the judgments that come with it."""
    for rank, query in enumerate(asked):
        for _ in range(3 + (len(asked) - rank) // 10):
            service.track_search_query(query["text"], COLLECTION)
        for document_id, grade in query["judgments"].items():
            service.record_feedback(query["text"], COLLECTION, document_id, grade)


def report(done: TaskExecution, counted: str) -> None:
    """Print what a task did; end the demo if it did not."""
    if done.result is None or done.status.value != "completed":
        raise SystemExit(f"{done.task_type} ended as {done.status.value}: {done.error_message}")
    count, seconds = done.result[counted], done.result["processing_time_seconds"]
    print(f"{done.status.value}: {count} {counted.replace('_', ' ')} in {seconds:.1f} s")


def search_times(cache: PrecomputedSearchCache, texts: list[str]) -> tuple[float, float]:
    """Return the median seconds of computing an answer and of reading one, over the same queries."""
    computed: list[float] = []
    for text in texts:
        began = time.perf_counter()
        cache.precompute_query_results(text, COLLECTION, force_refresh=True)
        computed.append(time.perf_counter() - began)
    cached: list[float] = []
    for lookup in range(LOOKUPS):
        text = texts[lookup % len(texts)]
        began = time.perf_counter()
        cache.get_cached_results(text, COLLECTION)
        cached.append(time.perf_counter() - began)
    print(f"{len(texts)} answers computed, {LOOKUPS} read")
    return statistics.median(computed), statistics.median(cached)


def heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


if __name__ == "__main__":
    main()
