"""Owns the rerank and the warm task: search and rerank the queries handed in, publish each result as it is ready."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from ..ipc.records import ComputedResult, Hit, Measure, QueryJob, TaskProgress
from .candidates import how
from .checking import AT_ONCE, has_better, outdated
from .fingerprint import fingerprint
from .in_place import eta_s
from .quality import is_judged, measured, ndcg
from .search import K, compute
from .sizes import check_size
from .task import Job, Outcome, Step, Steps, Tools

STEP_S = 2.0  # of a step: so soon a result is published, and so much is done again after a crash
MOST_AT_ONCE = 32  # queries of a step: their pairs fill a reranker's batches many times over


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
    unreranked: int = 0  # queries whose candidates the reranker could not score
    kept: int = 0  # of these, those whose earlier result is reranked, still holds, and stays
    problem: str = ""  # why, of the last of them
    candidates_from: str = ""  # how they were found, in words


def rerank(job: Job, tools: Tools) -> Steps:
    """Rerank the queries of the job. Before and after are nDCG@10 of the vector search's and the reranker's order."""
    at, info = msgspec.convert(job.checkpoint or {}, Checkpoint), tools.store.info(job.collection)
    done = set(at.done)
    todo = [query for query in job.queries if fingerprint(query.text) not in done]
    if not (todo or done) or info.points == 0:
        reason = "empty collection"
        if info.points:
            reason = job.why_none or "no popular queries yet: searches are counted by track_query"
        return Outcome(result=_result(job, at, tools) | {"reason": reason}, is_skipped=True)
    check_size(info, tools.searching(job.collection))
    at.candidates_from = how(tools.store, job.collection, tools.settings)
    began_at, elapsed_before_s, done_before = tools.clock(), at.elapsed_s, len(at.done)
    start, size = 0, 1  # one query first: its result is of use while the others are computed
    while start < len(todo):
        chunk = todo[start : start + size]
        step_began_at = tools.clock()
        results, measures = _computed(chunk, job.collection, tools, at)
        start += len(chunk)
        size = next_size(size, tools.clock() - step_began_at)
        at.done += [fingerprint(query.text) for query in chunk]
        at.published += len(results)
        at.elapsed_s = elapsed_before_s + tools.clock() - began_at
        left = len(todo) - start
        progress = TaskProgress(
            done=len(at.done),
            total=len(at.done) + left,
            note="reranking queries",
            eta_s=eta_s(at.elapsed_s - elapsed_before_s, len(at.done) - done_before, left),
        )
        yield Step(progress, msgspec.to_builtins(at), results, measures=measures)
    before, after = _means(at)
    return Outcome(
        result=_result(job, at, tools),
        metric=f"nDCG@{K}" if at.judged else None,
        before_score=before,
        after_score=after,
    )


def next_size(size: int, took_s: float) -> int:
    """Return how many queries the next step takes, after one of `size` took so long. Pure."""
    if took_s > 2 * STEP_S:
        return max(size // 2, 1)
    return min(2 * size, MOST_AT_ONCE) if took_s < STEP_S / 2 else size


def _computed(
    chunk: Sequence[QueryJob], collection: str, tools: Tools, at: Checkpoint
) -> tuple[tuple[ComputedResult, ...], tuple[Measure, ...]]:
    """Compute the results of some queries, and what reranking changed in each; add them to the sums."""
    settings, results, measures = tools.settings.rerank, [], []
    problems: dict[str, str] = {}
    for query, result, candidates in compute(
        chunk,
        collection,
        tools,
        limit=settings.top_k,
        candidates=settings.candidates,
        is_reranked=True,
        told=lambda job, problem: problems.update({job.text: problem}),
    ):
        if result is None:
            at.without_results += 1
            continue
        at.cost_s += result.cost_s
        if query.text in problems:
            at.unreranked += 1
            at.problem = problems[query.text]
            if has_better(query, collection, candidates, tools):
                at.kept += 1
                continue
        results.append(result)
        if result.rerank_scores:
            before_ids = _ids(candidates)[: len(result.ids)]
            measures.append(
                measured(query.text, order_name(tools, collection), before_ids, result.ids, query.judgments)
            )
        if is_judged(query.judgments):
            at.judged += 1
            at.before_sum += ndcg(_ids(candidates)[: settings.top_k], query.judgments, K)
            at.after_sum += ndcg(result.ids, query.judgments, K)
    return tuple(results), tuple(measures)


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
        reason = job.why_none or "every popular query is cached, or there is none"
        result = _result(job, Checkpoint(), tools) | {"reason": reason, "queries_checked": len(job.cached)}
        return Outcome(result=result, is_skipped=True)
    ended = yield from rerank(replace(job, queries=(*job.queries, *again)), tools)
    return replace(ended, result=ended.result | {"queries_checked": len(job.cached), "queries_outdated": len(again)})


def order_name(tools: Tools, collection: str) -> str:
    """Return what the order of results is by: figures of one order are never averaged with those of another."""
    recency = tools.settings.recency
    return tools.reranking(collection).name + ("" if recency is None else f", recency at {recency.weight:g}")


def _ids(hits: Sequence[Hit]) -> list[int | str]:
    return [hit.id for hit in hits]


def _means(at: Checkpoint) -> tuple[float | None, float | None]:
    return (at.before_sum / at.judged, at.after_sum / at.judged) if at.judged else (None, None)


def _result(job: Job, at: Checkpoint, tools: Tools) -> dict[str, object]:
    before, after = _means(at)
    reranked = at.published + at.kept - at.unreranked
    return {
        "success": not at.unreranked or reranked > 0,
        "collection_name": job.collection,
        "queries_processed": len(at.done),
        "precomputed_count": at.published,
        "queries_without_results": at.without_results,
        "processing_time_seconds": at.elapsed_s,
        "cpu_seconds_per_query": at.cost_s / at.published if at.published else 0.0,
        "reranker": tools.reranking(job.collection).name,
        "candidates_from": at.candidates_from,
        "reranked_count": reranked,
        "queries_not_reranked": at.unreranked,
        "reranker_problem": at.problem or None,
        "judged_queries": at.judged,
        "quality_metric": f"nDCG@{K}" if at.judged else None,
        "quality_before": before,
        "quality_after": after,
        "quality_improvement": None if before is None or after is None else after - before,
        "error_message": f"{at.unreranked} results keep the vector search's order: {at.problem}"
        if at.problem
        else None,
    }
