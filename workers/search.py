"""Owns one search: embed, find candidates, rerank, and lay the rows out as a result to be published."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ..ipc.records import ComputedResult, Hit, QueryJob
from ..ipc.settings import ModelSettings
from .candidates import Candidates, find
from .quality import is_judged, ndcg
from .recency import by_recency
from .scoring import Question, score_each
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
    told: Callable[[QueryJob, str], None] = lambda _job, _problem: None,
) -> Iterator[tuple[QueryJob, ComputedResult | None, Sequence[Hit]]]:
    """Yield for each job its result (None where nothing was found) and the candidates in the vector search's order.

    The result has at most `limit` rows out of `candidates`; without `is_reranked` the vector search's order stands. It
    does as well where the reranker failed: the result then has no rerank scores, and `told` is given the reason.
    """
    if not jobs:
        return
    cpu_before_s = time.process_time()
    distance = tools.store.info(collection).distance
    if is_reranked:
        tools = replace(tools, reranker=tools.reranking(collection))
    vectors = tools.query_vectors.embed(tools.searching(collection), [job.text for job in jobs], pace=tools.pace)
    depth = max(candidates, limit) if is_reranked else limit
    hit_lists, is_hybrid = _candidates(jobs, collection, vectors, tools, depth, query_filter, is_reranked=is_reranked)
    as_of = tools.as_of()
    shared_s = (time.process_time() - cpu_before_s) / len(jobs)
    scored = _scored(jobs, hit_lists, tools) if is_reranked else [Ranking()] * len(jobs)
    for job, vector, hits, ranking in zip(jobs, vectors, hit_lists, scored, strict=True):
        cpu_before_s = time.process_time()
        if ranking.problem:
            told(job, ranking.problem)
        ranked = in_order(hits, ranking.scores)
        if tools.settings.recency is not None:
            ranked = by_recency(ranked, tools.settings.recency, tools.clock())
        ranked = ranked[:limit]
        cost_s = shared_s + ranking.cost_s + time.process_time() - cpu_before_s
        result = None
        if ranked:
            result = msgspec.structs.replace(
                _result(job, collection, ranked, tools.settings.model, has_cosine=distance == "cosine"),
                scope=scope,
                embedding=vector.astype("<f4").tobytes(),
                candidates=tuple(hit.id for hit in hits),
                cutoff=None if is_hybrid else cutoff_of(hits, depth, distance),
                as_of=as_of,
                computed_at=tools.clock(),
                cost_s=cost_s,
            )
        yield job, result, hits


def _candidates(
    jobs: Sequence[QueryJob],
    collection: str,
    vectors: Vectors,
    tools: Tools,
    depth: int,
    query_filter: Mapping[str, Any] | None,
    *,
    is_reranked: bool,
) -> Candidates:
    """Return what a reranker is to choose from, or what a plain vector search finds."""
    if not is_reranked:
        hits = tools.store.search(collection, vectors, limit=depth, query_filter=query_filter)
        return Candidates(hits, is_hybrid=False)
    texts = [job.text for job in jobs]
    return find(tools.store, collection, vectors, texts, tools.settings, limit=depth, query_filter=query_filter)


def cutoff_of(hits: Sequence[Hit], depth: int, distance: str) -> float | None:
    """Return the similarity (higher is nearer) a document must reach to become one of `depth` candidates."""
    if len(hits) < depth:
        return None  # there is room for any
    return -hits[-1].score if distance in ("euclid", "manhattan") else hits[-1].score


class Ranking(NamedTuple):
    """The reranker's scores of a query's hits (None: there are none), why there are none, and their CPU seconds."""

    scores: Floats | None = None
    problem: str = ""
    cost_s: float = 0.0


def _scored(jobs: Sequence[QueryJob], hit_lists: Sequence[Sequence[Hit]], tools: Tools) -> list[Ranking]:
    """Rerank the hits of all jobs together. Its cost is each query's by the length of its texts."""
    field = tools.settings.model.text_field
    asked = [row for row, hits in enumerate(hit_lists) if hits]
    questions = [
        Question(jobs[row].text, [_text(hit, field) for hit in hit_lists[row]], _higher_is_better(hit_lists[row]))
        for row in asked
    ]
    cpu_before_s = time.process_time()
    scored = score_each(tools.reranker, questions, tools.pace)
    used_s = time.process_time() - cpu_before_s
    lengths = [sum(map(len, question.texts)) + len(question.texts) for question in questions]
    rankings = [Ranking()] * len(jobs)
    for row, one, length in zip(asked, scored, lengths, strict=True):
        rankings[row] = Ranking(one.scores, one.problem, used_s * length / sum(lengths))
    return rankings


def _higher_is_better(hits: Sequence[Hit]) -> Floats:
    """Return the vector search's scores of hits that come best first: distances (euclid, manhattan) are negated."""
    dense = np.array([hit.score for hit in hits], dtype=np.float32)
    return -dense if dense[0] < dense[-1] else dense


def in_order(hits: Sequence[Hit], scores: Floats | None) -> Sequence[Hit]:
    """Return `hits` in the reranker's order, with its scores; equal scores keep the vector search's order.

    Without scores they stay as they are.
    """
    if scores is None:
        return hits
    return [
        Hit(id=hits[row].id, score=hits[row].score, payload=hits[row].payload, rerank_score=float(scores[row]))
        for row in np.argsort(-scores, kind="stable")
    ]


def _text(hit: Hit, field: str) -> str:
    value = hit.payload.get(field)
    return "" if value is None else str(value)


def _quality(job: QueryJob, hits: Sequence[Hit], *, has_cosine: bool) -> tuple[float | None, str]:
    """Return 0..1 and of what: nDCG@10 where judged, else the mean cosine, else (other distances) nothing."""
    if is_judged(job.judgments):
        return ndcg([hit.id for hit in hits], job.judgments, K), "judgments"
    if has_cosine:
        return float(np.clip(np.mean([hit.score for hit in hits]), 0.0, 1.0)), "similarity"
    return None, ""


def _result(
    job: QueryJob, collection: str, hits: Sequence[Hit], model: ModelSettings, *, has_cosine: bool
) -> ComputedResult:
    scores: Floats = np.array([hit.score for hit in hits], dtype="<f4")
    reranked = [hit.rerank_score for hit in hits]
    quality, basis = _quality(job, hits, has_cosine=has_cosine)
    hidden = (model.text_field, model.source_field, STAMP_KEY)
    return ComputedResult(
        query_text=job.text,
        collection=collection,
        ids=tuple(hit.id for hit in hits),
        scores=scores.tobytes(),
        rerank_scores=b"" if None in reranked else np.array(reranked, dtype="<f4").tobytes(),
        contents=tuple(_text(hit, model.text_field) for hit in hits),
        sources=tuple(_text(hit, model.source_field) for hit in hits),
        metadata=tuple(_plain({k: v for k, v in hit.payload.items() if k not in hidden}) for hit in hits),
        computed_at=0.0,
        quality=quality,
        quality_basis=basis,
        language=_language(hits),
    )


def _language(hits: Sequence[Hit]) -> str:
    """Return the language that most rows name in their payload ("language" or "lang"); "" where none does."""
    named = Counter(
        value for hit in hits for key in ("language", "lang") if isinstance(value := hit.payload.get(key), str)
    )
    return named.most_common(1)[0][0] if named else ""


def _plain(payload: dict[str, Any]) -> dict[str, Any]:
    """Return `payload` in types that msgpack and JSON know: a live client's may hold dates and arrays."""
    plain: dict[str, Any] = msgspec.to_builtins(
        payload, str_keys=True, enc_hook=lambda value: value.tolist() if hasattr(value, "tolist") else str(value)
    )
    return plain
