"""Owns the checks of values that are of the right type and still cannot be used. All raise InvalidArgument."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .errors import InvalidArgument
from .records import ComputedResult

MAX_NAME = 255  # characters; Qdrant makes a folder of it
MAX_VECTOR_SIZE = 65_536  # as Qdrant
DISTANCES = ("cosine", "dot", "euclid", "manhattan")


def check_collection(name: str) -> str:
    """Return `name` if it can be a collection's or an alias's."""
    if not 1 <= len(name) <= MAX_NAME or "/" in name or not name.isprintable():
        raise InvalidArgument(
            f"{name!r} cannot be a collection's name: 1 to {MAX_NAME} printable characters without '/'"
        )
    return name


def check_number(what: str, value: float, least: float = 0.0) -> float:
    """Return `value` if it is finite and at least `least`."""
    if not math.isfinite(value) or value < least:
        raise InvalidArgument(f"{what} must be a number of at least {least:g}, not {value:g}")
    return value


def check_limit(value: int) -> int:
    """Return `value` if it can be a number of rows to return."""
    if value < 1:
        raise InvalidArgument(f"limit must be at least 1, not {value}")
    return value


def check_vector(raw: bytes) -> npt.NDArray[np.float32]:
    """Return `raw` as finite float32 of shape (D,)."""
    if not raw or len(raw) % 4 or len(raw) > 4 * MAX_VECTOR_SIZE:
        raise InvalidArgument(f"a vector is 1 to {MAX_VECTOR_SIZE} float32, {len(raw)} bytes are not")
    vector = np.frombuffer(raw, dtype="<f4")
    if not np.isfinite(vector).all():
        raise InvalidArgument("a vector must have finite numbers")
    return vector


def check_result(result: ComputedResult) -> None:
    """See that a result's parts are of one length: a reader takes them apart in the application's own process."""
    check_collection(result.collection)
    rows = len(result.ids)
    lengths = {
        "contents": len(result.contents),
        "sources": len(result.sources),
        "metadata": len(result.metadata),
        "scores (bytes / 4)": len(result.scores) / 4,
        "rerank_scores (bytes / 4, or none)": len(result.rerank_scores) / 4 or rows,
    }
    for part, length in lengths.items():
        if length != rows:
            raise InvalidArgument(f"a result with {rows} ids has {length:g} {part}: one a row is needed")
    if len(result.embedding) % 4:
        raise InvalidArgument(f"an embedding is float32, {len(result.embedding)} bytes are not")
    check_number("computed_at", result.computed_at)
    if result.quality is not None and not 0 <= result.quality <= 1:
        raise InvalidArgument(f"quality must be 0 to 1 or left out, not {result.quality:g}")
