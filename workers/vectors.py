"""Owns the one interface to a vector store.

Implementations: edge.py (embedded), qdrant.py (server or live client), remote.py (through the owner).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..ipc.records import CollectionInfo, Hit, IndexInfo, IndexSettings, Point, PointId
from .sparse import SparseEncoder, SparseRow

Vectors = npt.NDArray[np.float32]

STAMP_KEY = "_morgan"
"""The one payload key we reserve. Its value: {"fp": text fingerprint, "model": model name, "rev": model revision}.

With "chunking" where the setting of that name is not empty, and COPIED_KEY on what a re-index copied into a new version.
"""

MADE_BY_KEY = f"{STAMP_KEY}.rev"
"""What a point has of which a re-index knows: a point that is written anew has lost it."""

COPIED_KEY = "copied"
"""Of a stamp: the collection that a re-index copied the point into. A point that is written anew loses it."""

AS_KEY = "as"
"""Beside it, where writes may pass us by: what the point's payload was when it was copied (fingerprint.of_payload)."""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A new vector for an existing point: written only while the point's text still has `text_fingerprint`."""

    id: PointId
    vector: Vectors | None  # shape (D,); None: the one that it has is right, only the stamp is missing
    text_field: str
    text_fingerprint: str
    stamp: Mapping[str, str]


class VectorStore(Protocol):
    """A set of collections. Names may be aliases everywhere. Not thread-safe unless an implementation says so.

    Every method raises CollectionNotFound (naming those that exist) for an unknown name and StoreUnavailable where the
    store does not answer.
    """

    can_rename: bool
    """Whether a collection can be renamed: then one that is addressed by its own name can be swapped as well."""

    def collections(self) -> list[CollectionInfo]: ...

    def info(self, name: str) -> CollectionInfo: ...

    def create(
        self, name: str, vector_size: int, *, distance: str = "cosine", vector_name: str = "", like: str = ""
    ) -> CollectionInfo:
        """Create an empty collection. Raises InvalidArgument if the name is taken by a collection or an alias.

        `like`: a collection whose other settings it gets: payload indexes, graph, quantisation, further vectors.
        """
        ...

    def drop(self, name: str) -> None:
        """Delete the collection `name` and its aliases' entries. An alias is refused: InvalidArgument."""
        ...

    def set_alias(self, alias: str, name: str) -> None:
        """Point `alias` at the collection `name`, atomically also where it pointed elsewhere before."""
        ...

    def drop_alias(self, alias: str) -> None:
        """Forget `alias`, if there is one."""
        ...

    def swap(self, old: str, new: str, *, kept_as: str, rename_to: str) -> None:
        """Let every alias of the collection `old` that applications use mean `new`, and `kept_as` mean `old`. Atomic.

        Aliases of ours (versions.py) that meant `new` are forgotten. An `old` without an alias is renamed `rename_to`,
        and its name becomes the alias. Raises SwapImpossible where the store cannot rename, and CollectionNotFound.
        """
        ...

    def scroll(
        self,
        name: str,
        *,
        after: PointId | None = None,
        limit: int = 64,
        with_vectors: bool = False,
        only_unstamped: bool = False,
    ) -> tuple[list[Point], PointId | None]:
        """Return up to `limit` points in id order from `after` (inclusive), and where the next page starts or None.

        `only_unstamped`: those alone whose payload has no MADE_BY_KEY, which are found by an index of it where there is one.
        """
        ...

    def fetch(self, name: str, ids: Sequence[PointId], *, with_vectors: bool = False) -> list[Point]:
        """Return the points with these ids that exist, in no particular order."""
        ...

    def search(
        self,
        name: str,
        vectors: Vectors,
        *,
        limit: int = 10,
        query_filter: Mapping[str, Any] | None = None,
        exact: bool = False,
        ef: int = 0,
    ) -> list[list[Hit]]:
        """Return the nearest points of each row of `vectors`, shape (Q, D), best first.

        `query_filter` maps payload fields to the value each must have (a list: any of its values). `ef`: candidates
        that a search of the graph looks at; 0: as the collection is configured.
        Raises VectorSizeMismatch where D is not the collection's.
        """
        ...

    def upsert(self, name: str, points: Sequence[Point]) -> None:
        """Insert or replace points; durable on return. Raises VectorSizeMismatch, and InvalidArgument without a vector."""
        ...

    def delete(self, name: str, ids: Sequence[PointId]) -> None: ...

    def rewrite(self, name: str, rewrites: Sequence[Rewrite]) -> int:
        """Apply those rewrites whose text is unchanged, keep the rest as they are; return how many were applied."""
        ...

    def transfer(
        self,
        source: str,
        target: str,
        rewrites: Sequence[Rewrite],
        bare: Sequence[PointId] = (),
        *,
        keeps_vectors: bool = False,
    ) -> int:
        """Copy points of `source`, as they are now, into `target`, in place of those that it has; return how many.

        Of `rewrites` those whose text is unchanged, each with its new vector and stamp. `bare` ones, which have no text,
        with their vector if it `keeps_vectors`, else without one. What is not there any more is left out.
        """
        ...

    def close(self) -> None: ...


class Only(Enum):
    """Which of some points are copied."""

    NEW = "new"  # which the target lacks
    MARKED = "marked"  # which it has, unwritten since they were copied


@runtime_checkable
class Conditional(Protocol):
    """What a store needs, beside VectorStore, whose writers do not all pass through us: writes under a condition.

    `mark` is the COPIED_KEY of points that nobody has written since a re-index copied them.
    """

    def transfer_if(
        self,
        source: str,
        target: str,
        rewrites: Sequence[Rewrite],
        bare: Sequence[PointId],
        *,
        mark: str,
        only: Only | None = None,
        keeps_vectors: bool = False,
    ) -> int:
        """Copy points as `transfer` does, all of them marked; those that `target` has without the mark stay as they are."""
        ...

    def delete_if(self, name: str, ids: Sequence[PointId], *, mark: str) -> None:
        """Delete those of the points that have `mark`."""
        ...


@runtime_checkable
class Hybrid(Protocol):
    """A store whose collections may have sparse vectors beside the dense ones."""

    def sparse_encoder(self, name: str, text_field: str) -> tuple[SparseEncoder | None, str]:
        """Return what encodes queries as the collection's sparse vectors were, or None and why ("": it has none)."""
        ...

    def search_hybrid(
        self,
        name: str,
        vectors: Vectors,
        sparse: Sequence[SparseRow],
        *,
        using: str,
        fusion: str,
        limit: int = 10,
        query_filter: Mapping[str, Any] | None = None,
    ) -> list[list[Hit]]:
        """Return the `limit` best of each query by `fusion` of both searches, with their dense scores, best first."""
        ...


@runtime_checkable
class Versioned(Protocol):
    """A store on a server, which may be too old for the conditions of writes."""

    def demand_version(self) -> None:
        """Raise InvalidArgument where it is, and say which is needed."""
        ...


PAYLOAD_KINDS = ("keyword", "integer", "float", "bool")  # of a payload index


class Tunable(Protocol):
    """A store whose indexes can be looked at and configured: all of them, as far as their engine lets them."""

    def index_info(self, name: str) -> IndexInfo: ...

    def configure_index(self, name: str, settings: IndexSettings, payload: Mapping[str, str]) -> list[str]:
        """Change what `settings` names and index the fields of `payload`, field -> kind; return what came of each.

        Raises InvalidArgument for an unknown kind.
        """
        ...
