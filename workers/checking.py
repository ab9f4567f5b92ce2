"""Owns whether a cached result still holds: search again by its kept query vector, compare candidates, scores and texts.

For stores that others write to behind our back. Costs one vector search a result and no embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..ipc.records import Hit, QueryJob
from ..ipc.result import CachedResult
from .candidates import find
from .task import Tools

AT_ONCE = 32  # searches a request
SCORE_SLACK = 1e-4  # float32 sums in another order differ by less; a new vector by more


def outdated(jobs: Sequence[QueryJob], collection: str, tools: Tools) -> Iterator[list[QueryJob]]:
    """Yield, a batch at a time, those of `jobs` whose result no longer is what a search would find."""
    size, depth = tools.store.info(collection).vector_size, tools.settings.rerank.candidates
    held = [(job, found) for job in jobs if (found := tools.cached(job.text, collection)) is not None]
    for start in range(0, len(held), AT_ONCE):
        some = held[start : start + AT_ONCE]
        same_model = [(job, found) for job, found in some if len(found.embedding) == size]
        gone = [job for job, found in some if len(found.embedding) != size]
        alike: dict[tuple[bool, int], list[tuple[QueryJob, CachedResult]]] = {}
        for job, found in same_model:
            alike.setdefault((len(found.rerank_scores) > 0, _wanted(found, depth)), []).append((job, found))
        for (is_reranked, limit), group in alike.items():
            gone += _gone(group, collection, tools, limit, is_reranked=is_reranked)
        tools.pace()
        yield gone


def _wanted(found: CachedResult, depth: int) -> int:
    """Return how many candidates a search for `found` had to look for; `depth` where it may have found fewer."""
    return max(len(found.candidates), depth) if found.cutoff is None else len(found.candidates)


def _gone(
    some: Sequence[tuple[QueryJob, CachedResult]], collection: str, tools: Tools, limit: int, *, is_reranked: bool
) -> list[QueryJob]:
    """Search again as these results were searched for; return the queries of those that no longer hold."""
    vectors = np.stack([found.embedding for _, found in some])
    texts = [job.text for job, _ in some]
    if is_reranked:
        lists = find(tools.store, collection, vectors, texts, tools.settings, limit=limit).hits
    else:
        lists = tools.store.search(collection, vectors, limit=limit)
    field, depth = tools.settings.model.text_field, tools.settings.rerank.candidates
    return [job for (job, found), hits in zip(some, lists, strict=True) if not still_holds(found, hits, depth, field)]


def still_holds(found: CachedResult, hits: Sequence[Hit], depth: int, text_field: str) -> bool:
    """Say whether `found` could have been made from `hits` (nearest first): the same candidates, scores and texts."""
    now = {hit.id: hit for hit in hits[: _wanted(found, depth)]}
    if now.keys() != set(found.candidates):
        return False
    return all(
        (hit := now.get(point_id)) is not None  # of an alias, rows may be another query's
        and abs(hit.score - score) <= SCORE_SLACK
        and str(hit.payload.get(text_field, "")) == content
        for point_id, score, content in zip(found.ids, found.scores.tolist(), found.contents, strict=True)
    )


def has_better(query: QueryJob, collection: str, candidates: Sequence[Hit], tools: Tools) -> bool:
    """Say whether the cache has a reranked result of a query that still holds: one that is not must not replace it."""
    held, settings = tools.cached(query.text, collection), tools.settings
    return (
        held is not None
        and len(held.rerank_scores) > 0
        and still_holds(held, candidates, settings.rerank.candidates, settings.model.text_field)
    )
