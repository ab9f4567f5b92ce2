"""Owns the vector store as a task worker sees it: calls to the store owner over its socket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..ipc import calls, wire
from ..ipc.errors import ProtocolError, ServiceUnavailable, StoreUnavailable
from ..ipc.exchange import Exchange
from ..ipc.messages import Message
from ..ipc.records import CollectionInfo, Hit, Point, PointId
from .vectors import Rewrite, Vectors

R = TypeVar("R", bound=Message)


class RemoteStore:
    """A VectorStore in the owner's process. Raises StoreUnavailable where the owner does not answer in time."""

    def __init__(self, socket: Path, timeout_s: float) -> None:
        self._exchange = Exchange(socket, wire.answers, timeout_s)
        self.as_of = 0  # the number of the last change of documents before the last search

    def _ask(self, kind: type[R], call: Message) -> R:
        try:
            answer = self._exchange.ask(call)
        except ServiceUnavailable as error:
            raise StoreUnavailable(
                "the store owner does not answer: it is starting or busy; tasks wait for it"
            ) from error
        if not isinstance(answer, kind):
            raise ProtocolError(f"the store owner answered {type(call).__name__} with {type(answer).__name__}")
        return answer

    def collections(self) -> list[CollectionInfo]:
        return list(self._ask(calls.CollectionList, calls.Collections()).collections)

    def info(self, name: str) -> CollectionInfo:
        return self._ask(calls.CollectionList, calls.Info(collection=name)).collections[0]

    def create(self, name: str, vector_size: int, *, distance: str = "cosine", vector_name: str = "") -> CollectionInfo:
        call = calls.Create(collection=name, vector_size=vector_size, distance=distance, vector_name=vector_name)
        return self._ask(calls.CollectionList, call).collections[0]

    def drop(self, name: str) -> None:
        self._ask(calls.Changed, calls.Drop(collection=name))

    def set_alias(self, alias: str, name: str) -> None:
        self._ask(calls.Changed, calls.SetAlias(alias=alias, collection=name))

    def scroll(
        self, name: str, *, after: PointId | None = None, limit: int = 64, with_vectors: bool = False
    ) -> tuple[list[Point], PointId | None]:
        page = self._ask(calls.Page, calls.Scroll(collection=name, after=after, limit=limit, with_vectors=with_vectors))
        return list(page.points), page.next_after

    def fetch(self, name: str, ids: Sequence[PointId], *, with_vectors: bool = False) -> list[Point]:
        call = calls.Fetch(collection=name, ids=tuple(ids), with_vectors=with_vectors)
        return list(self._ask(calls.Page, call).points)

    def search(
        self,
        name: str,
        vectors: Vectors,
        *,
        limit: int = 10,
        query_filter: Mapping[str, Any] | None = None,
        exact: bool = False,
    ) -> list[list[Hit]]:
        call = calls.SearchVectors(
            collection=name,
            vectors=vectors.astype("<f4").tobytes(),
            count=len(vectors),
            limit=limit,
            query_filter=dict(query_filter) if query_filter else None,
            exact=exact,
        )
        answer = self._ask(calls.HitLists, call)
        self.as_of = answer.as_of
        return [list(hits) for hits in answer.hits]

    def upsert(self, name: str, points: Sequence[Point]) -> None:
        self._ask(calls.Changed, calls.Upsert(collection=name, points=tuple(points)))

    def delete(self, name: str, ids: Sequence[PointId]) -> None:
        self._ask(calls.Changed, calls.Delete(collection=name, ids=tuple(ids)))

    def rewrite(self, name: str, rewrites: Sequence[Rewrite]) -> int:
        items = tuple(
            calls.RewriteItem(
                id=one.id,
                vector=one.vector.astype("<f4").tobytes(),
                text_field=one.text_field,
                text_fingerprint=one.text_fingerprint,
                stamp=dict(one.stamp),
            )
            for one in rewrites
        )
        return self._ask(calls.Changed, calls.RewriteMany(collection=name, rewrites=items)).count

    def close(self) -> None:
        self._exchange.close()
