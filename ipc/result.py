"""Owns a result read from shared memory: a private copy of a record, decoded as far as it is touched."""

from __future__ import annotations

import math
import struct
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from numpy import frombuffer

from .errors import ResultStoreError
from .layout import ID_BYTES, IDS_MIXED, Fields, about_decoder, head_of, rows_decoder, unpack_ids
from .records import Hit, PointId

Floats = npt.NDArray[np.float32]

_FLOAT32 = np.dtype("<f4")
_EMPTY: Floats = np.empty(0, dtype=np.float32)
_EMPTY.flags.writeable = False


class CachedResult:
    """A query's precomputed results, best first. Arrays are read-only float32 of shape (k,) unless said otherwise.

    A part is decoded when it is first touched and a plain attribute from then on: `__getattr__` is asked only for what
    is not there yet. Touching one raises ResultStoreError where the record was forged: a checksum tells damage alone.
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

    def __init__(self, raw: bytes, fields: Fields) -> None:
        self._raw, self._fields = raw, fields
        self.expires_at = fields[2]

    def __len__(self) -> int:
        return self._fields[7]

    def __getattr__(self, name: str) -> Any:
        decode = _PARTS.get(name)
        if decode is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        try:
            decode(self)
        except (struct.error, ValueError, KeyError, msgspec.MsgspecError) as error:
            raise ResultStoreError(f"a record is forged ({error}): remove the result store's file") from error
        return self.__dict__[name]

    def fresh_metadata(self) -> tuple[dict[str, object], ...]:
        """Return the rows' metadata decoded anew: the caller may change it."""
        return rows_decoder.decode(memoryview(self._raw)[self._fields[10] : self._fields[11]]).metadata

    def hits(self) -> tuple[Hit, ...]:
        """Return the rows as hits, best first; a payload has content, source and metadata."""
        reranked = self.rerank_scores.tolist() or [None] * len(self)
        rows = zip(self.ids, self.scores.tolist(), self.contents, self.sources, self.metadata, reranked, strict=True)
        return tuple(
            Hit(
                id=point_id,
                score=score,
                payload={"content": content, "source": source, "metadata": metadata},
                rerank_score=rerank_score,
            )
            for point_id, score, content, source, metadata, rerank_score in rows
        )


# --- the parts: each sets its attributes ------------------------------------------------------------------------------


def _ids_and_scores(result: CachedResult) -> None:
    raw = result._raw
    _, _, _, _, _, _, _, rows, kind, start, _, _ = result._fields
    if kind == IDS_MIXED:
        _about(result)
    else:
        result.ids = unpack_ids(kind, raw, start, rows)
    result.scores = frombuffer(raw, _FLOAT32, rows, start + ID_BYTES[kind] * rows) if rows else _EMPTY


def _floats(raw: bytes, start: int, count: int) -> Floats:
    return frombuffer(raw, _FLOAT32, count, start) if count else _EMPTY  # of bytes, so read-only by itself


def _rows(result: CachedResult) -> None:
    fields = result._fields
    rows = rows_decoder.decode(memoryview(result._raw)[fields[10] : fields[11]])
    result.contents, result.sources, result.metadata = rows.contents, rows.sources, rows.metadata


def _about(result: CachedResult) -> None:
    _, _, _, _, _, length, _, _, id_kind, _, _, start = result._fields
    about = about_decoder.decode(memoryview(result._raw)[start:length])
    result.query_text, result.collection, result.scope = about.query_text, about.collection, about.scope
    result.quality_basis, result.language = about.quality_basis, about.language
    if id_kind == IDS_MIXED:
        result.ids = about.mixed_ids
    if head_of(result._raw).candidate_kind == IDS_MIXED:
        result.candidates = about.mixed_candidates


def _head(result: CachedResult) -> None:
    head = head_of(result._raw)
    result.computed_at, result.soft_at, result.cost_s = head.computed_at, head.soft_at, head.cost_s
    result.quality = None if math.isnan(head.quality) else head.quality
    result.cutoff = None if math.isinf(head.cutoff) else head.cutoff


def _numbers(result: CachedResult) -> None:
    raw, head = result._raw, head_of(result._raw)
    _, _, _, _, _, _, _, rows, kind, start, _, _ = result._fields
    start += (ID_BYTES[kind] + 4) * rows
    result.rerank_scores = _floats(raw, start, head.reranked)
    start += 4 * head.reranked
    result.embedding = _floats(raw, start, head.embedding_size)
    if head.candidate_kind == IDS_MIXED:
        _about(result)
    else:
        start += 4 * head.embedding_size
        result.candidates = unpack_ids(head.candidate_kind, raw, start, head.candidates)


_PARTS = {
    "computed_at": _head,
    "soft_at": _head,
    "quality": _head,
    "cutoff": _head,
    "cost_s": _head,
    "ids": _ids_and_scores,
    "scores": _ids_and_scores,
    "rerank_scores": _numbers,
    "embedding": _numbers,
    "candidates": _numbers,
    "contents": _rows,
    "sources": _rows,
    "metadata": _rows,
    "query_text": _about,
    "collection": _about,
    "scope": _about,
    "quality_basis": _about,
    "language": _about,
}
