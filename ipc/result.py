"""Owns a result read from shared memory: a private copy of a record, decoded as far as it is touched."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from itertools import repeat
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from numpy import frombuffer

from .errors import ResultStoreError
from .layout import ID_BYTES, IDS_MIXED, IDS_U64, U64S, Fields, about_decoder, head_of, rows_decoder, unpack_ids
from .records import Hit, PointId

Floats = npt.NDArray[np.float32]

_FLOAT32 = np.dtype("<f4")
_EMPTY: Floats = np.empty(0, dtype=np.float32)
_EMPTY.flags.writeable = False


class CachedResult:
    """A query's precomputed results, best first. Arrays are read-only float32 of shape (k,) unless said otherwise.

    A part is decoded when it is first touched, and kept. Touching one raises ResultStoreError where the record was
    forged: a checksum tells damage alone.
    """

    expires_at: float
    computed_at: float
    soft_at: float  # Unix time from which the result is served and refreshed
    ids: tuple[PointId, ...]
    scores: Floats
    rerank_scores: Floats  # empty where nothing was reranked
    embedding: Floats  # the query's vector, shape (D,); empty where it was not kept
    candidates: tuple[PointId, ...]  # every document the result was chosen from; empty where unknown
    cutoff: float | None  # similarity a new document must reach to change the result; None: any may
    contents: tuple[str, ...]
    sources: tuple[str, ...]
    metadata: tuple[dict[str, object], ...]
    query_text: str
    collection: str
    scope: str
    quality: float | None  # 0..1, of what `quality_basis` says; None where unknown
    quality_basis: str
    language: str
    cost_s: float  # CPU seconds it took to compute

    __slots__ = ("_body", "_fields")

    def __init__(self, body: bytes, fields: Fields) -> None:
        self._body, self._fields = body, fields

    def __len__(self) -> int:
        return self._fields[6]

    def fresh_metadata(self) -> tuple[dict[str, object], ...]:
        """Return the rows' metadata decoded anew: the caller may change it."""
        try:
            return rows_decoder.decode(memoryview(self._body)[self._fields[9] : self._fields[10]]).metadata
        except _FORGERIES as error:
            raise _forged(error) from error

    def hits(self) -> tuple[Hit, ...]:
        """Return the rows as hits, best first; a payload has content, source and metadata."""
        reranked = self.rerank_scores.tolist() or repeat(None, len(self))  # no list: a forged length may be of any size
        rows = zip(self.ids, self.scores.tolist(), self.contents, self.sources, self.metadata, reranked, strict=True)
        try:
            return tuple(
                Hit(
                    id=point_id,
                    score=score,
                    payload={"content": content, "source": source, "metadata": metadata},
                    rerank_score=rerank_score,
                )
                for point_id, score, content, source, metadata, rerank_score in rows
            )
        except ValueError as error:  # columns of different lengths
            raise _forged(error) from error


class _Part:
    """An attribute that is decoded at its first touch. Not a data descriptor: from then on the instance's own is found.

    `__getattr__` would do the same for 0.6 us more, since an AttributeError is made first (Python 3.11).
    """

    __slots__ = ("_decode", "_name")

    def __init__(self, name: str, decode: Callable[[LazyResult], None]) -> None:
        self._name, self._decode = name, decode

    def __get__(self, result: LazyResult, kind: type[LazyResult]) -> Any:
        try:
            self._decode(result)
        except _FORGERIES as error:
            raise _forged(error) from error
        return getattr(result, self._name)


_FORGERIES = (struct.error, ValueError, KeyError, RecursionError, msgspec.MsgspecError)


def _forged(error: Exception) -> ResultStoreError:
    return ResultStoreError(f"a record is forged ({error}): remove the result store's file")


# --- the parts: each sets its attributes ------------------------------------------------------------------------------


def _floats(raw: bytes, start: int, count: int) -> Floats:
    return frombuffer(raw, _FLOAT32, count, start) if count else _EMPTY  # of bytes, so read-only by itself


def _rows(result: LazyResult) -> None:
    fields = result._fields
    rows = rows_decoder.decode(memoryview(result._body)[fields[9] : fields[10]])
    result.contents, result.sources, result.metadata = rows.contents, rows.sources, rows.metadata


def _about(result: LazyResult) -> None:
    _, _, _, _, length, _, _, id_kind, _, _, start = result._fields
    about = about_decoder.decode(memoryview(result._body)[start:length])
    result.query_text, result.collection, result.scope = about.query_text, about.collection, about.scope
    result.quality_basis, result.language = about.quality_basis, about.language
    if id_kind == IDS_MIXED:
        result.ids = about.mixed_ids
    if head_of(result._body).candidate_kind == IDS_MIXED:
        result.candidates = about.mixed_candidates


def _head(result: LazyResult) -> None:
    head = head_of(result._body)
    result.computed_at, result.soft_at, result.cost_s = head.computed_at, head.soft_at, head.cost_s
    result.quality = None if math.isnan(head.quality) else head.quality
    result.cutoff = None if math.isinf(head.cutoff) else head.cutoff


def _numbers(result: LazyResult) -> None:
    raw, head = result._body, head_of(result._body)
    _, _, _, _, _, _, rows, kind, start, _, _ = result._fields
    start += (ID_BYTES[kind] + 4) * rows
    result.rerank_scores = _floats(raw, start, head.reranked)
    start += 4 * head.reranked
    result.embedding = _floats(raw, start, head.embedding_size)
    if head.candidate_kind == IDS_MIXED:
        _about(result)
    else:
        start += 4 * head.embedding_size
        result.candidates = unpack_ids(head.candidate_kind, raw, start, head.candidates)


def _expiry(result: LazyResult) -> None:
    result.expires_at = result._fields[1]


_PARTS = {
    _rows: ("contents", "sources", "metadata"),
    _about: ("query_text", "collection", "scope", "quality_basis", "language"),
    _numbers: ("rerank_scores", "embedding", "candidates"),
    _head: ("computed_at", "soft_at", "cost_s", "quality", "cutoff"),
    _expiry: ("expires_at",),
}
_NAMES = ("ids", "scores", *(name for names in _PARTS.values() for name in names))


class _Ids:
    """The part touched the most: the scores are decoded with it, and no further function is called for whole numbers."""

    def __get__(self, result: LazyResult, kind: type[LazyResult]) -> Any:
        _decode_ids(result)
        return result.ids


class _Scores:
    def __get__(self, result: LazyResult, kind: type[LazyResult]) -> Any:
        _decode_ids(result)
        return result.scores


def _decode_ids(result: LazyResult) -> None:
    body = result._body
    _, _, _, _, _, _, rows, kind, start, _, _ = result._fields
    try:
        if kind == IDS_U64 and rows < len(U64S):
            result.ids = U64S[rows].unpack_from(body, start)
            start += 8 * rows
        elif kind == IDS_MIXED:
            _about(result)
        else:
            result.ids = unpack_ids(kind, body, start, rows)
            start += ID_BYTES[kind] * rows
        result.scores = frombuffer(body, _FLOAT32, rows, start) if rows else _EMPTY
    except _FORGERIES as error:
        raise _forged(error) from error


class LazyResult(CachedResult):
    """A result of which nothing is decoded yet."""

    __slots__ = ("__dict__",)


class ReadyResult(CachedResult):
    """A result with every part decoded: slots, 3x as fast as a lazy one's attributes. Immutable by agreement."""

    __slots__ = _NAMES

    def __init__(self, lazy: CachedResult) -> None:
        super().__init__(lazy._body, lazy._fields)
        for name in _NAMES:
            setattr(self, name, getattr(lazy, name))


setattr(LazyResult, "ids", _Ids())  # noqa: B010 - the class declares it as what it gives
setattr(LazyResult, "scores", _Scores())  # noqa: B010
for _decode, _names in _PARTS.items():
    for _name in _names:
        setattr(LazyResult, _name, _Part(_name, _decode))
