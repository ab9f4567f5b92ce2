"""Owns the rerank and the warm task: search and rerank the queries handed in, publish each result as it is ready."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from ..ipc.records import Hit, QueryJob, TaskProgress
from .checking import AT_ONCE, outdated
from .fingerprint import fingerprint
from .in_place import eta_s
from .quality import is_judged, ndcg
from .search import K, compute
from .sizes import check_size
from .task import Job, Outcome, Step, Steps, Tools

QUERIES_PER_STEP = 4  # a step of some seconds on one core: 50 candidates of 250 tokens each


class Checkpoint(msgspec.Struct):
    """Where a rerank stands: which queries are done, and sums over them.

    Named, not counted: the next attempt is handed what is popular, and not cached, by then.
    """

    done: list[str] = msgspec.field(default_factory=list)  # fingerprints of the texts
    published: int = 0
    without_results: int = 0
    judged: int = 0
    before_sum: float = 0.0
    after_sum: float = 0.0
    cost_s: float = 0.0  # CPU seconds of the queries
    elapsed_s: float = 0.0


def rerank(job: Job, tools: Tools) -> Steps:
    """Rerank the queries of the job. Before and after are nDCG@10 of the vector search's and the reranker's order."""
    at, info = msgspec.convert(job.checkpoint or {}, Checkpoint), tools.store.info(job.collection)
    done = set(at.done)
    todo = [query for query in job.queries if fingerprint(query.text) not in done]
    if not (todo or done) or info.points == 0:
        reason = "no popular queries yet: searches are counted by track_query" if info.points else "empty collection"
        return Outcome(result=_result(job, at, tools) | {"reason": reason}, is_skipped=True)
    check_size(info, tools.searching(job.collection))
    began_at, elapsed_before_s, done_before = tools.clock(), at.elapsed_s, len(at.done)
    settings = tools.settings.rerank
    for start in range(0, len(todo), QUERIES_PER_STEP):
        chunk = todo[start : start + QUERIES_PER_STEP]
        results = []
        for query, result, candidates in compute(
            chunk,
            job.collection,
            tools,
            limit=settings.top_k,
            candidates=settings.candidates,
            is_reranked=True,
        ):
            if result is None:
                at.without_results += 1
                continue
            results.append(result)
            at.cost_s += result.cost_s
            if is_judged(query.judgments):
                at.judged += 1
                at.before_sum += ndcg(_ids(candidates)[: settings.top_k], query.judgments, K)
                at.after_sum += ndcg(result.ids, query.judgments, K)
        at.done += [fingerprint(query.text) for query in chunk]
        at.published += len(results)
        at.elapsed_s = elapsed_before_s + tools.clock() - began_at
        left = len(todo) - start - len(chunk)
        progress = TaskProgress(
            done=len(at.done),
            total=len(at.done) + left,
            note="reranking queries",
            eta_s=eta_s(at.elapsed_s - elapsed_before_s, len(at.done) - done_before, left),
        )
        yield Step(progress, msgspec.to_builtins(at), tuple(results))
    before, after = _means(at)
    return Outcome(
        result=_result(job, at, tools),
        metric=f"nDCG@{K}" if at.judged else None,
        before_score=before,
        after_score=after,
    )


def warm(job: Job, tools: Tools) -> Steps:
    """Compute what the cache lacks, and anew what no longer holds.

    The supervisor hands in the queries that are not cached (unless forced), and the cached ones that are to be checked.
    """
    tools.store.info(job.collection)  # a collection that does not exist is an error, not an idle one
    again: list[QueryJob] = []
    if not job.checkpoint:
        checked = 0
        for gone in outdated(job.cached, job.collection, tools):
            again += gone
            checked = min(checked + AT_ONCE, len(job.cached))
            yield Step(TaskProgress(done=checked, total=len(job.cached), note="checking what is cached"))
    if not job.queries and not again and not job.checkpoint:
        reason = "every popular query is cached, or there is none"
        result = _result(job, Checkpoint(), tools) | {"reason": reason, "queries_checked": len(job.cached)}
        return Outcome(result=result, is_skipped=True)
    ended = yield from rerank(replace(job, queries=(*job.queries, *again)), tools)
    return replace(ended, result=ended.result | {"queries_checked": len(job.cached), "queries_outdated": len(again)})


def _ids(hits: Sequence[Hit]) -> list[int | str]:
    return [hit.id for hit in hits]


def _means(at: Checkpoint) -> tuple[float | None, float | None]:
    return (at.before_sum / at.judged, at.after_sum / at.judged) if at.judged else (None, None)


def _result(job: Job, at: Checkpoint, tools: Tools) -> dict[str, object]:
    before, after = _means(at)
    return {
        "success": True,
        "collection_name": job.collection,
        "queries_processed": len(at.done),
        "precomputed_count": at.published,
        "queries_without_results": at.without_results,
        "processing_time_seconds": at.elapsed_s,
        "cpu_seconds_per_query": at.cost_s / at.published if at.published else 0.0,
        "reranker": tools.reranker.name,
        "judged_queries": at.judged,
        "quality_metric": f"nDCG@{K}" if at.judged else None,
        "quality_before": before,
        "quality_after": after,
        "quality_improvement": None if before is None or after is None else after - before,
        "error_message": None,
    }
