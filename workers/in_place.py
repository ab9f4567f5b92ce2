"""Owns the re-index in place: embed the points whose text, model or revision is not what their stamp says. Resumable.

page of points ─▶ stale ones ─▶ embed ─▶ rewrite those whose text is still the same ─▶ checkpoint ─▶ next page

Reading and writing overlap with embedding: see pipeline.py.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

import msgspec
import numpy as np

from ..ipc.commands import PointsChanged
from ..ipc.errors import TextFieldNotFound
from ..ipc.records import CollectionInfo, Point, PointId, QueryJob, TaskProgress
from .changes import written
from .fingerprint import fingerprint, is_stamped
from .pipeline import Piece, piece_size, pieces, takes_threads
from .quality import is_judged, ndcg
from .task import Job, Outcome, Step, Steps, Tools
from .texts import Maker, Page, note_fields, sort
from .vectors import Rewrite

K = 10
QUERIES_AT_ONCE = 32


class InPlace(msgspec.Struct, tag="in_place", tag_field="kind"):
    """Where it stands: the next page's first id, and what was counted before it."""

    made_for: str = ""  # collection, model and revision: under another the pages before `after` are not done
    judged_for: str = ""  # which queries and judgments `before` is of: on others it compares nothing
    is_adopting: bool = False
    is_rebuild: bool = False
    is_new_only: bool = False  # of the points, those alone that no re-index has seen
    after: PointId | None = None
    is_through: bool = False  # there is no next page: what is left is to measure
    seen: int = 0
    embedded: int = 0
    adopted: int = 0
    unchanged: int = 0
    without_text: int = 0
    changed_meanwhile: int = 0
    before: float | None = None  # mean nDCG@10 before the first write
    elapsed_s: float = 0.0


def refresh(job: Job, tools: Tools, info: CollectionInfo, maker: Maker, at: InPlace) -> Steps:
    """Bring every point's vector up to its text. Points without text are counted and left as they are.

    Raises TextFieldNotFound where no point has the field.
    """
    model = tools.settings.model
    judged = [query for query in job.queries if is_judged(query.judgments) and not at.is_new_only]
    judged_for = _name_of(judged)
    began_at, elapsed_before_s, seen_before = tools.clock(), at.elapsed_s, at.seen
    if judged and at.seen == 0:
        yield Step(TaskProgress(done=at.seen, total=info.points, note="measuring the index as it is"))
        at.before, at.judged_for = _mean_ndcg(judged, job.collection, tools), judged_for
        yield Step(TaskProgress(done=at.seen, total=info.points, note="measured"), msgspec.to_builtins(at))
    embedding_since = tools.clock()  # the measurement says nothing of how long the rest takes
    fields: dict[str, int] = {}
    with closing(_through(job, tools, maker, at)) as through:
        while not at.is_through:
            piece = next(through)
            made, adopted, applied = piece.done
            changed: tuple[PointsChanged, ...] = ()
            note_fields(fields, piece.points)
            at.without_text += len(made.page.bare)
            at.unchanged += len(made.page.texts) - len(made.page.stale)
            at.adopted += adopted
            at.embedded += applied
            at.changed_meanwhile += len(made.embedded) - applied
            if made.embedded:
                vectors = [(one.id, one.vector) for one in made.embedded if one.vector is not None]
                changed = (written(info, [Point(id=i, vector=v.tobytes()) for i, v in vectors], is_soft=True),)
            at.seen += len(piece.points)
            now = tools.clock()
            at.after, at.is_through, at.elapsed_s = piece.after, piece.after is None, elapsed_before_s + now - began_at
            yield Step(
                TaskProgress(
                    done=at.seen,
                    total=at.seen if at.is_new_only else max(info.points, at.seen),
                    note="embedding new points" if at.is_new_only else "embedding what changed",
                    eta_s=None
                    if at.is_new_only
                    else eta_s(now - embedding_since, at.seen - seen_before, info.points - at.seen),
                ),
                msgspec.to_builtins(at),
                changes=changed,
            )
    if at.seen and at.without_text == at.seen and not at.is_new_only:
        raise TextFieldNotFound(no_text(job.collection, model.text_field, fields))
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
        is_skipped=at.is_new_only and not at.embedded,
    )


@dataclass(frozen=True, slots=True)
class _Made:
    """A piece that is ready to be written."""

    page: Page
    adopted: list[Rewrite]  # of which the stamp alone is missing
    embedded: list[Rewrite]


def _through(job: Job, tools: Tools, maker: Maker, at: InPlace) -> Generator[Piece[tuple[_Made, int, int]], None, None]:
    """Yield each piece from where it stands, once it is written, with how many points were adopted and rewritten."""
    store, size = tools.store, piece_size(tools.store, tools.settings.scroll_size)

    def read(after: PointId | None) -> tuple[list[Point], PointId | None]:
        return store.scroll(job.collection, after=after, limit=size, only_unstamped=at.is_new_only)

    def make(points: Sequence[Point]) -> _Made:
        tools.pace()
        return _made(points, tools, maker, at)

    def write(made: _Made) -> tuple[_Made, int, int]:
        adopted = store.rewrite(job.collection, made.adopted) if made.adopted else 0
        return made, adopted, store.rewrite(job.collection, made.embedded) if made.embedded else 0

    return pieces(read, make, write, at.after, is_overlapping=takes_threads(store))


def _made(points: Sequence[Point], tools: Tools, maker: Maker, at: InPlace) -> _Made:
    """Embed what is stale of `points`."""
    page = sort(points, tools.settings.model.text_field, maker, is_rebuild=at.is_rebuild)
    stale = to_embed(page.stale, is_adopting=at.is_adopting)
    embedded = {point.id for point in stale}
    adopted = [_rewrite(one, page.texts, None, tools, maker) for one in page.stale if one.id not in embedded]
    rewrites: list[Rewrite] = []
    if stale:
        vectors = tools.embedder.embed([page.texts[point.id] for point in stale], pace=tools.pace)
        rewrites = [_rewrite(one, page.texts, v, tools, maker) for one, v in zip(stale, vectors, strict=True)]
    return _Made(page, adopted, rewrites)


def to_embed(stale: Sequence[Point], *, is_adopting: bool) -> list[Point]:
    """Return those of the stale points that are embedded: where vectors are adopted, not those without a stamp."""
    return [point for point in stale if not is_adopting or is_stamped(point.payload)]


def no_text(collection: str, field: str, longest: dict[str, int]) -> str:
    """Return the message for a collection without the text field; `longest`: the sum of each text field's lengths."""
    return (
        f"no point of {collection!r} has the text field {field!r}"
        + (f"; the longest text is in {max(longest, key=lambda f: longest[f])!r}" if longest else "")
        + ": set [model] text_field, or text_field of [collections.NAME]"
    )


def eta_s(elapsed_s: float, done: int, left: int) -> float | None:
    """Return the seconds until `left` more are done at the rate of this attempt; None where nothing is known yet."""
    return elapsed_s / done * max(left, 0) if done > 0 else None


def _rewrite(point: Point, texts: dict[PointId, str], vector: np.ndarray | None, tools: Tools, maker: Maker) -> Rewrite:
    mark = maker.stamp(texts[point.id])
    return Rewrite(point.id, vector, tools.settings.model.text_field, mark["fp"], mark)


def _name_of(judged: Sequence[QueryJob]) -> str:
    """Return a name of these queries and their judgments."""
    return fingerprint(repr(sorted((query.text, sorted(query.judgments.items())) for query in judged)))


def _mean_ndcg(judged: Sequence[QueryJob], collection: str, tools: Tools) -> float:
    """Return the mean nDCG@10 of exact search over judged queries: of the vectors, not of the index over them."""
    scores: list[float] = []
    for start in range(0, len(judged), QUERIES_AT_ONCE):
        some = judged[start : start + QUERIES_AT_ONCE]
        vectors = tools.embedder.embed([query.text for query in some], pace=tools.pace)
        lists = tools.store.search(collection, vectors, limit=K, exact=True)
        scores += [ndcg([hit.id for hit in hits], q.judgments, K) for q, hits in zip(some, lists, strict=True)]
    return float(np.mean(scores))


def _result(job: Job, at: InPlace, tools: Tools, after: float | None) -> dict[str, object]:
    return {
        "success": True,
        "collection_name": job.collection,
        "how": "new_points" if at.is_new_only else "in_place",
        "documents_processed": at.seen,
        "documents_embedded": at.embedded,
        "documents_adopted": at.adopted,
        "documents_unchanged": at.unchanged,
        "documents_without_text": at.without_text,
        "documents_changed_meanwhile": at.changed_meanwhile,
        **({"reason": "no new points"} if at.is_new_only and not at.embedded else {}),
        "processing_time_seconds": at.elapsed_s,
        "model": tools.settings.model.name,
        "quality_metric": None if after is None else f"nDCG@{K}",
        "quality_before": at.before,
        "quality_after": after,
        "quality_improvement": None if after is None or at.before is None else after - at.before,
        "error_message": None,
    }
