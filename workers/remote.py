"""Owns the vector store as a task worker sees it: calls to the store owner over its socket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..ipc import calls, wire
from ..ipc.exchange import Exchange
from ..ipc.messages import Message
from ..ipc.records import CollectionInfo, Hit, IndexInfo, IndexSettings, Point, PointId
from .vectors import Rewrite, Vectors
from .write_gate import ask

R = TypeVar("R", bound=Message)


class RemoteStore:
    """A VectorStore in the owner's process. Raises StoreUnavailable where the owner does not answer in time."""

    can_rename = True
    takes_threads = True  # see ipc/exchange.py

    def __init__(self, socket: Path, timeout_s: float) -> None:
        self._exchange = Exchange(socket, wire.answers, timeout_s)
        self.as_of = 0  # the number of the last change of documents before the last search

    def _ask(self, kind: type[R], call: Message) -> R:
        return ask(self._exchange.ask, kind, call)

    def collections(self) -> list[CollectionInfo]:
        return list(self._ask(calls.CollectionList, calls.Collections()).collections)

    def info(self, name: str) -> CollectionInfo:
        return self._ask(calls.CollectionList, calls.Info(collection=name)).collections[0]

    def create(
        self, name: str, vector_size: int, *, distance: str = "cosine", vector_name: str = "", like: str = ""
    ) -> CollectionInfo:
        call = calls.Create(
            collection=name, vector_size=vector_size, distance=distance, vector_name=vector_name, like=like
        )
        return self._ask(calls.CollectionList, call).collections[0]

    def drop(self, name: str) -> None:
        self._ask(calls.Changed, calls.Drop(collection=name))

    def set_alias(self, alias: str, name: str) -> None:
        self._ask(calls.Changed, calls.SetAlias(alias=alias, collection=name))

    def drop_alias(self, alias: str) -> None:
        self._ask(calls.Changed, calls.DropAlias(alias=alias))

    def swap(self, old: str, new: str, *, kept_as: str, rename_to: str) -> None:
        self._ask(calls.Changed, calls.Swap(old=old, new=new, kept_as=kept_as, rename_to=rename_to))

    def lend(self, name: str) -> Path:
        """Have the owner close a collection; return its folder, to be opened by this process and closed again."""
        return Path(self._ask(calls.Lent, calls.Lend(collection=name)).folder)

    def scroll(
        self,
        name: str,
        *,
        after: PointId | None = None,
        limit: int = 64,
        with_vectors: bool = False,
        only_unstamped: bool = False,
    ) -> tuple[list[Point], PointId | None]:
        call = calls.Scroll(
            collection=name, after=after, limit=limit, with_vectors=with_vectors, only_unstamped=only_unstamped
        )
        page = self._ask(calls.Page, call)
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
        ef: int = 0,
    ) -> list[list[Hit]]:
        call = calls.SearchVectors(
            collection=name,
            vectors=vectors.astype("<f4").tobytes(),
            count=len(vectors),
            limit=limit,
            query_filter=dict(query_filter) if query_filter else None,
            exact=exact,
            ef=ef,
        )
        answer = self._ask(calls.HitLists, call)
        self.as_of = answer.as_of
        return [list(hits) for hits in answer.hits]

    def upsert(self, name: str, points: Sequence[Point]) -> None:
        self._ask(calls.Changed, calls.Upsert(collection=name, points=tuple(points)))

    def delete(self, name: str, ids: Sequence[PointId]) -> None:
        self._ask(calls.Changed, calls.Delete(collection=name, ids=tuple(ids)))

    def rewrite(self, name: str, rewrites: Sequence[Rewrite]) -> int:
        return self._ask(calls.Changed, calls.RewriteMany(collection=name, rewrites=_items(rewrites))).count

    def transfer(
        self,
        source: str,
        target: str,
        rewrites: Sequence[Rewrite],
        bare: Sequence[PointId] = (),
        *,
        keeps_vectors: bool = False,
    ) -> int:
        call = calls.Transfer(
            source=source,
            target=target,
            rewrites=_items(rewrites),
            bare=tuple(bare),
            keeps_vectors=keeps_vectors,
        )
        return self._ask(calls.Changed, call).count

    def close(self) -> None:
        self._exchange.close()

    def index_info(self, name: str) -> IndexInfo:
        return self._ask(calls.IndexDescription, calls.DescribeIndex(collection=name)).index

    def configure_index(self, name: str, settings: IndexSettings, payload: Mapping[str, str]) -> list[str]:
        call = calls.ConfigureIndex(collection=name, settings=settings, payload=dict(payload))
        return list(self._ask(calls.IndexDescription, call).done)


def _items(rewrites: Sequence[Rewrite]) -> tuple[calls.RewriteItem, ...]:
    return tuple(
        calls.RewriteItem(
            id=one.id,
            vector=b"" if one.vector is None else one.vector.astype("<f4").tobytes(),
            text_field=one.text_field,
            text_fingerprint=one.text_fingerprint,
            stamp=dict(one.stamp),
        )
        for one in rewrites
    )
