"""Owns one search: embed, find candidates, rerank, and lay the rows out as a result to be published."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..ipc.records import ComputedResult, Hit, QueryJob
from ..ipc.settings import ModelSettings
from .quality import ndcg
from .task import Floats, Tools
from .vectors import STAMP_KEY, Vectors

K = 10  # of nDCG@10


def compute(
    jobs: Sequence[QueryJob],
    collection: str,
    tools: Tools,
    *,
    limit: int,
    candidates: int,
    is_reranked: bool,
    query_filter: Mapping[str, Any] | None = None,
    scope: str = "",
) -> Iterator[tuple[QueryJob, ComputedResult | None, Sequence[Hit]]]:
    """Yield for each job its result (None where nothing was found) and the candidates in the vector search's order.

    The result has at most `limit` rows out of `candidates`; without `is_reranked` the vector search's order stands.
    """
    if not jobs:
        return
    cpu_before_s = time.process_time()
    vectors = tools.embedder.embed([job.text for job in jobs], pace=tools.pace)
    depth = max(candidates, limit) if is_reranked else limit
    hit_lists = tools.store.search(collection, vectors, limit=depth, query_filter=query_filter)
    shared_s = (time.process_time() - cpu_before_s) / len(jobs)
    for job, vector, hits in zip(jobs, vectors, hit_lists, strict=True):
        cpu_before_s = time.process_time()
        ranked = rerank_hits(job.text, hits, tools)[:limit] if is_reranked and hits else hits[:limit]
        cost_s = shared_s + time.process_time() - cpu_before_s
        result = None
        if ranked:
            result = _result(job, collection, scope, vector, ranked, tools.settings.model, tools.clock(), cost_s)
        yield job, result, hits


def rerank_hits(text: str, hits: Sequence[Hit], tools: Tools) -> list[Hit]:
    """Return `hits` in the reranker's order, with its scores; equal scores keep the vector search's order."""
    field = tools.settings.model.text_field
    dense = np.array([hit.score for hit in hits], dtype=np.float32)
    texts = [str(hit.payload.get(field, "")) for hit in hits]
    scores = tools.reranker.score(text, texts, dense, pace=tools.pace)
    order = np.argsort(-scores, kind="stable")
    return [
        Hit(id=hits[row].id, score=hits[row].score, payload=hits[row].payload, rerank_score=float(scores[row]))
        for row in order
    ]


def _result(
    job: QueryJob,
    collection: str,
    scope: str,
    vector: Vectors,
    hits: Sequence[Hit],
    model: ModelSettings,
    now: float,
    cost_s: float,
) -> ComputedResult:
    scores: Floats = np.array([hit.score for hit in hits], dtype="<f4")
    reranked = [hit.rerank_score for hit in hits]
    if job.judgments:
        quality, basis = ndcg([hit.id for hit in hits], job.judgments, K), "judgments"
    else:
        quality, basis = float(np.clip(scores.mean(), 0.0, 1.0)), "similarity"
    hidden = {model.text_field, model.source_field, STAMP_KEY}
    return ComputedResult(
        query_text=job.text,
        collection=collection,
        scope=scope,
        ids=tuple(hit.id for hit in hits),
        scores=scores.tobytes(),
        rerank_scores=b"" if None in reranked else np.array(reranked, dtype="<f4").tobytes(),
        contents=tuple(str(hit.payload.get(model.text_field, "")) for hit in hits),
        sources=tuple(str(hit.payload.get(model.source_field, "")) for hit in hits),
        metadata=tuple({k: v for k, v in hit.payload.items() if k not in hidden} for hit in hits),
        embedding=vector.astype("<f4").tobytes(),
        computed_at=now,
        quality=quality,
        quality_basis=basis,
        cost_s=cost_s,
    )
