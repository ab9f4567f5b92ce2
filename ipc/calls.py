"""Owns the calls to the store owner: what applications and workers may ask of the vector store, and its answers.

Same envelope as messages.py. Vectors travel as little-endian float32. Bounded by MAX_CALL_BYTES instead of the
supervisor's smaller limit, since a batch of points is larger than any question about a task.
"""

from __future__ import annotations

from typing import Any

from .messages import Failure, Message
from .records import CollectionInfo, ComputedResult, Hit, IndexInfo, IndexSettings, Point, PointId, Record

MAX_CALL_BYTES = 32 * 1024 * 1024


class Collections(Message, tag="collections", frozen=True):
    """Ask for all collections: CollectionList."""


class Info(Message, tag="info", frozen=True):
    """Ask for one collection: CollectionList of one."""

    collection: str


class Create(Message, tag="create", frozen=True):
    """Create a collection; vector_size 0 means the embedding model's. Answer: CollectionList of one.

    `like`: a collection whose other settings (indexes, quantisation, further vectors) it is to have.
    """

    collection: str
    vector_size: int = 0
    distance: str = "cosine"
    vector_name: str = ""
    like: str = ""


class Drop(Message, tag="drop", frozen=True):
    collection: str


class SetAlias(Message, tag="set_alias", frozen=True):
    alias: str
    collection: str


class DropAlias(Message, tag="drop_alias", frozen=True):
    """Forget an alias, if there is one. Answer: Changed."""

    alias: str


class Scroll(Message, tag="scroll", frozen=True):
    """Ask for a page of points in id order: Page. `only_unstamped`: those that no re-index has seen as they are."""

    collection: str
    after: PointId | None = None
    limit: int = 64
    with_vectors: bool = False
    only_unstamped: bool = False


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
    ef: int = 0


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
    """`vector` is empty where only the stamp is to be written."""

    id: PointId
    vector: bytes
    text_field: str
    text_fingerprint: str
    stamp: dict[str, str]


class RewriteMany(Message, tag="rewrite", frozen=True):
    """Apply the rewrites whose text is unchanged (workers/vectors.py). Answer: Changed."""

    collection: str
    rewrites: tuple[RewriteItem, ...]


class Transfer(Message, tag="transfer", frozen=True):
    """Copy points of one collection, as they are now, into another (workers/vectors.py). Answer: Changed."""

    source: str
    target: str
    rewrites: tuple[RewriteItem, ...] = ()
    bare: tuple[PointId, ...] = ()
    keeps_vectors: bool = False


class Watch(Message, tag="watch", frozen=True):
    """Have the owner remember which points of a collection are written or deleted from now on: Watched.

    A later watch of the same collection ends this one.
    """

    collection: str


class TouchedSince(Message, tag="touched_since", frozen=True):
    """Ask for the points touched after change `seq`, all of which up to `seq` are forgotten now: TouchedIds."""

    token: int
    seq: int
    limit: int = 1000


class Hold(Message, tag="hold", frozen=True):
    """Let writes of the watched collection wait for up to `for_s` seconds; 0 lets them go on. Answer: Changed."""

    token: int
    for_s: float


class Slow(Message, tag="slow", frozen=True):
    """Let writes of the watched collection take turns, so many points a second, for up to `for_s` seconds; 0 points: no
    limit. One write waits 50 ms at most. Answer: Changed."""

    token: int
    for_s: float
    points_per_s: float


class Swap(Message, tag="swap", frozen=True):
    """Serve `new` under the names of `old`, atomically. Answer: Changed; its count is 0 where nothing was done.

    `token`: only if no point of `old` was touched after change `seq`; writes that were held go on in any case.
    `kept_as`: an alias for `old` from then on. `rename_to`: the name of `old`, where it was addressed by its own.
    """

    old: str
    new: str
    kept_as: str
    rename_to: str
    token: int = 0
    seq: int = 0


class MakeAlias(Message, tag="make_alias", frozen=True):
    """Rename a collection of the embedded store, and let its name be an alias of it. Answer: CollectionList of one."""

    collection: str
    rename_to: str


class RollBack(Message, tag="roll_back", frozen=True):
    """Serve the version that was kept at the last swap; the one served now is kept. Answer: RolledBack.

    Refused where documents differ since the swap, unless `is_forced`: those written since are in the newer version alone.
    """

    collection: str
    is_forced: bool = False


class Lend(Message, tag="lend", frozen=True):
    """Close a collection of the embedded store that nobody uses yet, for the asker to open its folder: Lent."""

    collection: str


class DescribeIndex(Message, tag="describe_index", frozen=True):
    """Ask how a collection is indexed, and which fields its searches filter by: IndexDescription."""

    collection: str


class ConfigureIndex(Message, tag="configure_index", frozen=True):
    """Change what `settings` names (0: leave it), and index payload fields, field -> kind. Answer: IndexDescription."""

    collection: str
    settings: IndexSettings = IndexSettings()
    payload: dict[str, str] = {}


Call = (
    Collections
    | Info
    | Create
    | Drop
    | SetAlias
    | DropAlias
    | Scroll
    | Fetch
    | SearchVectors
    | SearchText
    | Embed
    | Upsert
    | Delete
    | ReportChange
    | RewriteMany
    | Transfer
    | Watch
    | TouchedSince
    | Hold
    | Slow
    | Swap
    | MakeAlias
    | RollBack
    | Lend
    | DescribeIndex
    | ConfigureIndex
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


class Watched(Message, tag="watched", frozen=True):
    """`seq`: of the last change before the watch."""

    token: int
    seq: int


class TouchedIds(Message, tag="touched_ids", frozen=True):
    """`seq`: every change up to this one is among them. `is_known` False: the owner was started anew since the watch.

    `is_whole`: any point may have been touched. `left`: how many more there are, after `seq`.
    """

    ids: tuple[PointId, ...] = ()
    seq: int = 0
    is_known: bool = True
    is_whole: bool = False
    left: int = 0


class RolledBack(Message, tag="rolled_back", frozen=True):
    """`served` is the collection that answers now, `kept` the one that did; `kept_as` its alias."""

    served: str
    kept: str
    kept_as: str


class Lent(Message, tag="lent", frozen=True):
    """The folder of a shard: whoever opens it closes it again; the owner opens it when it is asked for next."""

    folder: str


class IndexDescription(Message, tag="index_description", frozen=True):
    """`done`: what came of a change, in words."""

    index: IndexInfo
    done: tuple[str, ...] = ()


Answer = (
    CollectionList
    | Page
    | HitLists
    | Computed
    | Embedded
    | Changed
    | Watched
    | TouchedIds
    | RolledBack
    | Lent
    | IndexDescription
    | Failure
)
