"""Owns the calls to the store owner: what applications and workers may ask of the vector store, and its answers.

Same envelope as messages.py. Vectors travel as little-endian float32. Bounded by MAX_CALL_BYTES instead of the
supervisor's smaller limit, since a batch of points is larger than any question about a task.
"""

from __future__ import annotations

from typing import Any

from .messages import Failure, Message
from .records import CollectionInfo, ComputedResult, Hit, Point, PointId, Record

MAX_CALL_BYTES = 32 * 1024 * 1024


class Collections(Message, tag="collections", frozen=True):
    """Ask for all collections: CollectionList."""


class Info(Message, tag="info", frozen=True):
    """Ask for one collection: CollectionList of one."""

    collection: str


class Create(Message, tag="create", frozen=True):
    """Create a collection; vector_size 0 means the embedding model's. Answer: CollectionList of one."""

    collection: str
    vector_size: int = 0
    distance: str = "cosine"
    vector_name: str = ""


class Drop(Message, tag="drop", frozen=True):
    collection: str


class SetAlias(Message, tag="set_alias", frozen=True):
    alias: str
    collection: str


class Scroll(Message, tag="scroll", frozen=True):
    """Ask for a page of points in id order: Page."""

    collection: str
    after: PointId | None = None
    limit: int = 64
    with_vectors: bool = False


class Fetch(Message, tag="fetch", frozen=True):
    """Ask for points by id: Page."""

    collection: str
    ids: tuple[PointId, ...]
    with_vectors: bool = False


class SearchVectors(Message, tag="search_vectors", frozen=True):
    """Ask for the nearest points of `count` query vectors, float32 of shape (count, D): HitLists."""

    collection: str
    vectors: bytes
    count: int
    limit: int = 10
    query_filter: dict[str, Any] | None = None
    exact: bool = False


class SearchText(Message, tag="search_text", frozen=True):
    """Embed `text`, search, rerank if asked; the result is also published to the result store. Answer: Computed."""

    collection: str
    text: str
    limit: int = 10
    query_filter: dict[str, Any] | None = None
    tenant: str = ""
    is_reranked: bool = False


class Embed(Message, tag="embed", frozen=True):
    """Ask for the vectors of texts: Embedded."""

    texts: tuple[str, ...]


class Upsert(Message, tag="upsert", frozen=True):
    """Insert or replace points; those without a vector are embedded from their text field first. Answer: Changed."""

    collection: str
    points: tuple[Point, ...]


class Delete(Message, tag="delete", frozen=True):
    collection: str
    ids: tuple[PointId, ...]


class ReportChange(Message, tag="report_change", frozen=True):
    """Say that the application wrote or deleted points by itself; results they can alter are dropped. Answer: Changed.

    The points are looked up: those that are there were written, the others deleted. No ids: any may have changed.
    """

    collection: str
    ids: tuple[PointId, ...] = ()


class RewriteItem(Record, frozen=True):
    id: PointId
    vector: bytes
    text_field: str
    text_fingerprint: str
    stamp: dict[str, str]


class RewriteMany(Message, tag="rewrite", frozen=True):
    """Apply the rewrites whose text is unchanged (workers/vectors.py). Answer: Changed."""

    collection: str
    rewrites: tuple[RewriteItem, ...]


Call = (
    Collections
    | Info
    | Create
    | Drop
    | SetAlias
    | Scroll
    | Fetch
    | SearchVectors
    | SearchText
    | Embed
    | Upsert
    | Delete
    | ReportChange
    | RewriteMany
)


class CollectionList(Message, tag="collection_list", frozen=True):
    collections: tuple[CollectionInfo, ...]


class Page(Message, tag="page", frozen=True):
    points: tuple[Point, ...]
    next_after: PointId | None = None


class HitLists(Message, tag="hit_lists", frozen=True):
    """One list a query vector, best first. `as_of`: the number of the last change before (commands.PointsChanged)."""

    hits: tuple[tuple[Hit, ...], ...]
    as_of: int = 0


class Computed(Message, tag="computed", frozen=True):
    """`result` is None where the search found nothing."""

    result: ComputedResult | None


class Embedded(Message, tag="embedded", frozen=True):
    """float32 of shape (count, size)."""

    vectors: bytes
    count: int
    size: int


class Changed(Message, tag="changed", frozen=True):
    count: int


Answer = CollectionList | Page | HitLists | Computed | Embedded | Changed | Failure
