"""Owns whether a cached result still holds: search again by its kept query vector, compare candidates, scores and texts.

For stores that others write to behind our back. Costs one vector search a result and no embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..ipc.records import Hit, QueryJob
from ..ipc.result import CachedResult
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
        if same_model:
            vectors = np.stack([found.embedding for _, found in same_model])
            limit = max(max(len(found.candidates), depth) for _, found in same_model)
            lists = tools.store.search(collection, vectors, limit=limit)
            field = tools.settings.model.text_field
            gone += [
                job
                for (job, found), hits in zip(same_model, lists, strict=True)
                if not still_holds(found, hits, depth, field)
            ]
        tools.pace()
        yield gone


def still_holds(found: CachedResult, hits: Sequence[Hit], depth: int, text_field: str) -> bool:
    """Say whether `found` could have been made from `hits` (nearest first): the same candidates, scores and texts."""
    wanted = len(found.candidates) if found.cutoff is not None else depth
    now = {hit.id: hit for hit in hits[:wanted]}
    if now.keys() != set(found.candidates):
        return False
    return all(
        (hit := now.get(point_id)) is not None  # of an alias, rows may be another query's
        and abs(hit.score - score) <= SCORE_SLACK
        and str(hit.payload.get(text_field, "")) == content
        for point_id, score, content in zip(found.ids, found.scores.tolist(), found.contents, strict=True)
    )
