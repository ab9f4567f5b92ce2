"""Owns the errors about names that every vector store raises alike."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..ipc.checks import DISTANCES, MAX_VECTOR_SIZE
from ..ipc.errors import CollectionNotFound, InvalidArgument, VectorSizeMismatch
from ..ipc.records import CollectionInfo, Point, PointId
from .vectors import PAYLOAD_KINDS, Vectors


def not_found(name: str, existing: Iterable[str]) -> CollectionNotFound:
    known = ", ".join(sorted(existing)) or "none yet"
    return CollectionNotFound(f"no collection or alias {name!r}; there are: {known}")


def taken(name: str) -> InvalidArgument:
    return InvalidArgument(f"{name!r} exists already, as a collection or an alias")


def check_distance(distance: str) -> str:
    if distance not in DISTANCES:
        raise InvalidArgument(f"unknown distance {distance!r}: one of {', '.join(DISTANCES)}")
    return distance


def check_size(vector_size: int) -> int:
    if not 1 <= vector_size <= MAX_VECTOR_SIZE:
        raise InvalidArgument(f"a vector size is from 1 to {MAX_VECTOR_SIZE}, not {vector_size}")
    return vector_size


def floats_of(raw: bytes) -> Vectors:
    """Return bytes as float32. Raises InvalidArgument where they are none, or not finite: such a vector is near nothing."""
    if len(raw) % 4:
        raise InvalidArgument(f"a vector is little-endian float32, {len(raw)} bytes are not")
    vector = np.frombuffer(raw, dtype="<f4")
    if not np.isfinite(vector).all():
        raise InvalidArgument("a vector's numbers must be finite")
    return vector


def check_id(point_id: PointId) -> int | uuid.UUID:
    """Return an id as an engine takes it. Raises InvalidArgument for text that is no UUID and numbers out of range."""
    if isinstance(point_id, int):
        if not 0 <= point_id < 2**64:
            raise InvalidArgument(f"a point's number is from 0 to 2^64 - 1, not {point_id}")
        return point_id
    try:
        return uuid.UUID(point_id)
    except ValueError:
        raise InvalidArgument(f"a point's id is a whole number or a UUID, not {point_id!r}") from None


def check_filter(wanted: Mapping[str, Any]) -> None:
    """Raise InvalidArgument unless every value, or each of a list, is one the engines match: whole numbers are signed."""
    for key, value in wanted.items():
        values = value if isinstance(value, list | tuple) else [value]
        fits = [isinstance(one, str) or (isinstance(one, int) and -(2**63) <= one < 2**63) for one in values]
        if not key or not fits or not all(fits):
            raise InvalidArgument(f"a filter maps a field to a text, a whole number, true or false: {key!r}: {value!r}")


def check_vectors(info: CollectionInfo, vectors: Vectors) -> None:
    """Raise VectorSizeMismatch unless `vectors` has shape (n, the collection's size)."""
    if vectors.ndim != 2 or vectors.shape[1] != info.vector_size:
        raise VectorSizeMismatch(
            f"{info.name!r} has vectors of {info.vector_size} dimensions, these have shape {vectors.shape}"
        )


def row_of(vector: Vectors, info: CollectionInfo) -> list[float]:
    """Return one vector as the engines take it. Raises VectorSizeMismatch for another length."""
    check_vectors(info, vector[None, :])
    row: list[float] = vector.tolist()
    return row


def vector_of(point: Point, info: CollectionInfo) -> Vectors:
    """Return a point's vector. Raises InvalidArgument without one, VectorSizeMismatch for another length."""
    if point.vector is None:
        raise InvalidArgument(f"point {point.id!r} has no vector")
    vector = floats_of(point.vector)
    check_vectors(info, vector[None, :])
    return vector


def check_kinds(payload: Mapping[str, str]) -> None:
    """Raise InvalidArgument unless every field has a name, and a kind that the engines index."""
    for field, kind in payload.items():
        if not field or kind not in PAYLOAD_KINDS:
            raise InvalidArgument(
                f"an index of {field!r} cannot be of kind {kind!r}: one of {', '.join(PAYLOAD_KINDS)}"
            )
