"""Owns how a change of documents is told to the supervisor, which drops the results that it can alter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..ipc.commands import PointsChanged
from ..ipc.records import CollectionInfo, Point, PointId
from .vectors import VectorStore

UNNUMBERED = 0  # `seq` of a change that nothing else is held against


def names_of(info: CollectionInfo) -> tuple[str, ...]:
    """Return every name of a collection: results are kept under the one that the application used."""
    return (info.name, *info.aliases)


def written(info: CollectionInfo, points: Sequence[Point], *, is_soft: bool = False) -> PointsChanged:
    size = 4 * info.vector_size
    # a vector of another size was refused: it has altered nothing, and the supervisor makes a matrix of the rest
    vectors = [point.vector for point in points if point.vector is not None and len(point.vector) == size]
    return PointsChanged(
        seq=UNNUMBERED,
        names=names_of(info),
        ids=tuple(point.id for point in points),
        vectors=b"".join(vectors),
        vector_count=len(vectors),
        distance=info.distance,
        is_soft=is_soft,
    )


def deleted(info: CollectionInfo, ids: Iterable[PointId]) -> PointsChanged:
    return PointsChanged(seq=UNNUMBERED, names=names_of(info), ids=tuple(ids), distance=info.distance)


def anything(names: tuple[str, ...], *, is_soft: bool = False) -> PointsChanged:
    """Return the change in which any document may be another. `is_soft`: the texts are the same, their vectors are not."""
    return PointsChanged(seq=UNNUMBERED, names=names, is_whole=True, is_soft=is_soft)


def looked_up(store: VectorStore, collection: str, ids: Sequence[PointId]) -> list[PointsChanged]:
    """Return what happened to points that an application wrote or deleted: those that are there were written."""
    info = store.info(collection)
    if not ids:
        return [anything(names_of(info))]
    found = store.fetch(collection, ids, with_vectors=True)
    there = {point.id for point in found}
    gone = [one for one in ids if one not in there]
    return ([written(info, found)] if found else []) + ([deleted(info, gone)] if gone else [])
