"""Owns how a collection of a Qdrant server becomes an alias: what a swap needs, and the server cannot do in one request."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from ..ipc.errors import CollectionNotFound, InvalidArgument
from ..ipc.records import CollectionInfo
from .retries import until_answered
from .rollback import differing
from .vectors import VectorStore
from .versions import adopting_alias, serving_aliases

PAGE = 256  # points copied at once
PASSES = 5  # comparisons until nothing differs; then it is being written too fast for this


def adopt_alias(store: VectorStore, name: str, copied: Callable[[int, int], None]) -> CollectionInfo:
    """Copy the collection `name` to `name__v1`, delete it, and let its name be an alias of the copy.

    Between the last two requests searches fail, for some milliseconds; what is written then is lost, so have the
    application pause its writes. `copied` is told how many points of how many are copied. Cut off before the deletion,
    nothing has changed but that a copy is there, which a further call replaces; after it, a further call goes on.
    """
    target = f"{name}__v1"
    known = {one.name: one for one in store.collections()}
    if name not in known and target in known and adopting_alias(name) in known[target].aliases:
        return _served(store, name, target)
    info = store.info(name)
    if serving_aliases(info) or info.name != name:
        raise InvalidArgument(f"{name!r} is an alias already: of {info.name!r}")
    if target in known:
        if set(known[target].aliases) - {adopting_alias(name)}:
            raise InvalidArgument(f"{target!r} is in use: rename it")
        store.drop(target)
    store.create(target, info.vector_size, distance=info.distance, vector_name=info.vector_name, like=name)
    seen, after = 0, None
    while True:
        points, after = store.scroll(name, after=after, limit=PAGE)
        store.transfer(name, target, [], [point.id for point in points], keeps_vectors=True)
        seen += len(points)
        copied(seen, max(info.points, seen))
        if after is None:
            break
    for _ in range(PASSES):
        ids = differing(store, name, target)
        if not ids:
            store.set_alias(adopting_alias(name), target)
            until_answered(lambda: _gone(store, name))
            return _served(store, name, target)
        there = {point.id for point in store.fetch(name, ids)}
        store.transfer(name, target, [], sorted(there, key=str), keeps_vectors=True)
        if gone := [one for one in ids if one not in there]:
            store.delete(target, gone)
    store.drop(target)
    raise InvalidArgument(f"{name!r} is being written: pause the application's writes, then try again")


def _gone(store: VectorStore, name: str) -> None:
    with suppress(CollectionNotFound):  # it was deleted, and the answer was lost
        store.drop(name)


def _served(store: VectorStore, name: str, target: str) -> CollectionInfo:
    until_answered(lambda: store.set_alias(name, target))
    until_answered(lambda: store.drop_alias(adopting_alias(name)))
    return until_answered(lambda: store.info(name))
