"""Owns the one interface to a vector store.

Implementations: edge.py (embedded), qdrant.py (server or live client), remote.py (through the owner).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..ipc.records import CollectionInfo, Hit, Point, PointId

Vectors = npt.NDArray[np.float32]

STAMP_KEY = "_morgan"
"""The one payload key we reserve. Its value: {"fp": text fingerprint, "model": model name, "rev": model revision}."""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A new vector for an existing point: written only while the point's text still has `text_fingerprint`."""

    id: PointId
    vector: Vectors  # shape (D,)
    text_field: str
    text_fingerprint: str
    stamp: Mapping[str, str]


class VectorStore(Protocol):
    """A set of collections. Names may be aliases everywhere. Not thread-safe unless an implementation says so.

    Every method raises CollectionNotFound (naming those that exist) for an unknown name and StoreUnavailable where the
    store does not answer.
    """

    def collections(self) -> list[CollectionInfo]: ...

    def info(self, name: str) -> CollectionInfo: ...

    def create(self, name: str, vector_size: int, *, distance: str = "cosine", vector_name: str = "") -> CollectionInfo:
        """Create an empty collection. Raises InvalidArgument if the name is taken by a collection or an alias."""
        ...

    def drop(self, name: str) -> None:
        """Delete the collection `name` and its aliases' entries. An alias is refused: InvalidArgument."""
        ...

    def set_alias(self, alias: str, name: str) -> None:
        """Point `alias` at the collection `name`, atomically also where it pointed elsewhere before."""
        ...

    def scroll(
        self, name: str, *, after: PointId | None = None, limit: int = 64, with_vectors: bool = False
    ) -> tuple[list[Point], PointId | None]:
        """Return up to `limit` points in id order from `after` (inclusive), and where the next page starts or None."""
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
    ) -> list[list[Hit]]:
        """Return the nearest points of each row of `vectors`, shape (Q, D), best first.

        `query_filter` maps payload fields to the value each must have (a list: any of its values).
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

    def close(self) -> None: ...
