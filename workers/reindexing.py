"""Owns the re-index: embed the points whose text, model or revision is not what their stamp says. In place, resumable.

page of points ─▶ stale ones ─▶ embed ─▶ rewrite those whose text is still the same ─▶ checkpoint ─▶ next page
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from ..ipc.commands import PointsChanged
from ..ipc.errors import TextFieldNotFound, VectorSizeMismatch
from ..ipc.records import CollectionInfo, Point, PointId, QueryJob, TaskProgress
from .changes import written
from .fingerprint import fingerprint, is_stale, stamp
from .quality import is_judged, ndcg
from .task import Job, Outcome, Step, Steps, Tools
from .vectors import Rewrite

K = 10
QUERIES_AT_ONCE = 32


class Checkpoint(msgspec.Struct):
    """Where a re-index stands: the next page's first id, and what was counted before it."""

    made_for: str = ""  # collection, model and revision: under another the pages before `after` are not done
    judged_for: str = ""  # which queries and judgments `before` is of: on others it compares nothing
    after: PointId | None = None
    is_through: bool = False  # there is no next page: what is left is to measure
    seen: int = 0
    embedded: int = 0
    unchanged: int = 0
    without_text: int = 0
    changed_meanwhile: int = 0
    before: float | None = None  # mean nDCG@10 before the first write
    elapsed_s: float = 0.0


def reindex(job: Job, tools: Tools) -> Steps:
    """Re-index `job.collection`. Params: force_rebuild embeds every point that has a text.

    Points without the text field are counted and left as they are. A first run stamps every point: an unstamped vector
    may come from any model. Raises VectorSizeMismatch, and TextFieldNotFound where no point has the field.
    """
    store, model = tools.store, tools.settings.model
    info = store.info(job.collection)
    if info.points == 0:
        return Outcome(result=_result(job, Checkpoint(), tools, None) | {"reason": "empty"}, is_skipped=True)
    check_size(info, tools)
    judged = [query for query in job.queries if is_judged(query.judgments)]
    made_for, judged_for = f"{info.name} {tools.embedder.name} {tools.embedder.revision}", _name_of(judged)
    at = msgspec.convert(job.checkpoint or {}, Checkpoint)
    if at.made_for != made_for:
        at = Checkpoint(made_for=made_for, judged_for=judged_for)
    began_at, elapsed_before_s, seen_before = tools.clock(), at.elapsed_s, at.seen
    if judged and at.seen == 0:
        yield Step(TaskProgress(done=at.seen, total=info.points, note="measuring the index as it is"))
        at.before = _mean_ndcg(judged, job.collection, tools)
        yield Step(TaskProgress(done=at.seen, total=info.points, note="measured"), msgspec.to_builtins(at))
    embedding_since = tools.clock()  # the measurement says nothing of how long the rest takes
    is_rebuild = bool(job.params.get("force_rebuild"))
    fields: dict[str, int] = {}
    while not at.is_through:
        tools.pace()
        changed: tuple[PointsChanged, ...] = ()
        points, at_next = store.scroll(job.collection, after=at.after, limit=tools.settings.scroll_size)
        texts = {point.id: text for point in points if (text := text_of(point, model.text_field)) is not None}
        at.without_text += len(points) - len(texts)
        _note_fields(fields, points)
        wanted = {i: stamp(fingerprint(t), tools.embedder.name, tools.embedder.revision) for i, t in texts.items()}
        stale = [p for p in points if p.id in texts and (is_rebuild or is_stale(p.payload, wanted[p.id]))]
        if stale:
            vectors = tools.embedder.embed([texts[point.id] for point in stale], pace=tools.pace)
            rewrites = [
                Rewrite(point.id, vector, model.text_field, wanted[point.id]["fp"], wanted[point.id])
                for point, vector in zip(stale, vectors, strict=True)
            ]
            applied = store.rewrite(job.collection, rewrites)
            rewritten = [Point(id=point.id, vector=v.tobytes()) for point, v in zip(stale, vectors, strict=True)]
            changed = (written(info, rewritten, is_soft=True),)
            at.embedded += applied
            at.changed_meanwhile += len(rewrites) - applied
        at.unchanged += len(texts) - len(stale)
        at.seen += len(points)
        now = tools.clock()
        at.after, at.is_through, at.elapsed_s = at_next, at_next is None, elapsed_before_s + now - began_at
        yield Step(
            TaskProgress(
                done=at.seen,
                total=max(info.points, at.seen),
                note="embedding what changed",
                eta_s=eta_s(now - embedding_since, at.seen - seen_before, info.points - at.seen),
            ),
            msgspec.to_builtins(at),
            changes=changed,
        )
    if at.seen and at.without_text == at.seen:
        raise TextFieldNotFound(
            f"no point of {job.collection!r} has the text field {model.text_field!r}"
            + (f"; the longest text is in {max(fields, key=lambda f: fields[f])!r}" if fields else "")
            + ": set [model] text_field"
        )
    after = None
    if at.before is not None and at.judged_for == judged_for:
        after = _mean_ndcg(judged, job.collection, tools) if at.embedded else at.before
    else:
        at.before = None  # judgments came or went since the first write
    at.elapsed_s = elapsed_before_s + tools.clock() - began_at
    return Outcome(
        result=_result(job, at, tools, after),
        metric=None if after is None else f"nDCG@{K}",
        before_score=at.before,
        after_score=after,
    )


def check_size(info: CollectionInfo, tools: Tools) -> None:
    """Raise VectorSizeMismatch unless the collection's vectors have the model's length."""
    if info.vector_size != tools.embedder.size:
        raise VectorSizeMismatch(
            f"{info.name!r} has vectors of {info.vector_size} dimensions, the model {tools.embedder.name!r} makes"
            f" {tools.embedder.size}: set [model] name to the model that made them"
        )


def eta_s(elapsed_s: float, done: int, left: int) -> float | None:
    """Return the seconds until `left` more are done at the rate of this attempt; None where nothing is known yet."""
    return elapsed_s / done * max(left, 0) if done > 0 else None


def _name_of(judged: Sequence[QueryJob]) -> str:
    """Return a name of these queries and their judgments."""
    return fingerprint(repr(sorted((query.text, sorted(query.judgments.items())) for query in judged)))


def text_of(point: Point, field: str) -> str | None:
    """Return the text a point is embedded from; None where it has none."""
    text = point.payload.get(field)
    return text if isinstance(text, str) and text.strip() else None


def _note_fields(longest: dict[str, int], points: Sequence[Point]) -> None:
    """Add up the lengths of the text fields seen, for the suggestion in an error."""
    for point in points:
        for name, value in point.payload.items():
            if isinstance(value, str):
                longest[name] = longest.get(name, 0) + len(value)


def _mean_ndcg(judged: Sequence[QueryJob], collection: str, tools: Tools) -> float:
    """Return the mean nDCG@10 of exact search over judged queries: of the vectors, not of the index over them."""
    scores: list[float] = []
    for start in range(0, len(judged), QUERIES_AT_ONCE):
        some = judged[start : start + QUERIES_AT_ONCE]
        vectors = tools.embedder.embed([query.text for query in some], pace=tools.pace)
        lists = tools.store.search(collection, vectors, limit=K, exact=True)
        scores += [ndcg([hit.id for hit in hits], q.judgments, K) for q, hits in zip(some, lists, strict=True)]
    return float(np.mean(scores))


def _result(job: Job, at: Checkpoint, tools: Tools, after: float | None) -> dict[str, object]:
    return {
        "success": True,
        "collection_name": job.collection,
        "documents_processed": at.seen,
        "documents_embedded": at.embedded,
        "documents_unchanged": at.unchanged,
        "documents_without_text": at.without_text,
        "documents_changed_meanwhile": at.changed_meanwhile,
        "processing_time_seconds": at.elapsed_s,
        "model": tools.settings.model.name,
        "quality_metric": None if after is None else f"nDCG@{K}",
        "quality_before": at.before,
        "quality_after": after,
        "quality_improvement": None if after is None or at.before is None else after - at.before,
        "error_message": None,
    }
