"""Owns the errors about names that every vector store raises alike."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..ipc.errors import CollectionNotFound, InvalidArgument, VectorSizeMismatch
from ..ipc.records import CollectionInfo, Point
from .vectors import Vectors

DISTANCES = ("cosine", "dot", "euclid", "manhattan")


def not_found(name: str, existing: Iterable[str]) -> CollectionNotFound:
    known = ", ".join(sorted(existing)) or "none yet"
    return CollectionNotFound(f"no collection or alias {name!r}; there are: {known}")


def taken(name: str) -> InvalidArgument:
    return InvalidArgument(f"{name!r} exists already, as a collection or an alias")


def check_distance(distance: str) -> str:
    if distance not in DISTANCES:
        raise InvalidArgument(f"unknown distance {distance!r}: one of {', '.join(DISTANCES)}")
    return distance


def check_vectors(info: CollectionInfo, vectors: Vectors) -> None:
    """Raise VectorSizeMismatch unless `vectors` has shape (n, the collection's size)."""
    if vectors.ndim != 2 or vectors.shape[1] != info.vector_size:
        raise VectorSizeMismatch(
            f"{info.name!r} has vectors of {info.vector_size} dimensions, these have shape {vectors.shape}"
        )


def vector_of(point: Point, info: CollectionInfo) -> Vectors:
    """Return a point's vector. Raises InvalidArgument without one, VectorSizeMismatch for another length."""
    if point.vector is None:
        raise InvalidArgument(f"point {point.id!r} has no vector")
    vector = np.frombuffer(point.vector, dtype="<f4")
    check_vectors(info, vector[None, :])
    return vector
