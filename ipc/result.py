"""Owns a result read from shared memory: a private copy of a record, decoded as far as it is touched."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .layout import IDS_MIXED, RECORD, Head, Texts, texts_decoder, unpack_ids
from .records import Hit, PointId

Floats = npt.NDArray[np.float32]

_READ_ONLY_EMPTY: Floats = np.empty(0, dtype=np.float32)
_READ_ONLY_EMPTY.flags.writeable = False


class CachedResult:
    """A query's precomputed results, best first. Arrays are read-only float32 of shape (k,) unless said otherwise."""

    def __init__(self, raw: bytes, head: Head) -> None:
        self._raw, self._head = raw, head
        self.computed_at, self.expires_at = head.computed_at, head.expires_at

    def __len__(self) -> int:
        return self._head.k

    @cached_property
    def _texts(self) -> Texts:
        return texts_decoder.decode(memoryview(self._raw)[self._head.key_end : self._head.length])

    @cached_property
    def ids(self) -> tuple[PointId, ...]:
        head = self._head
        if head.id_kind == IDS_MIXED:
            return self._texts.mixed_ids
        return unpack_ids(head.id_kind, self._raw[RECORD.size : head.ids_end])

    def _floats(self, start: int, count: int) -> Floats:
        if count == 0:
            return _READ_ONLY_EMPTY
        return np.frombuffer(self._raw, dtype="<f4", count=count, offset=start)  # of bytes: read-only by itself

    @cached_property
    def scores(self) -> Floats:
        return self._floats(self._head.ids_end, self._head.k)

    @cached_property
    def rerank_scores(self) -> Floats:
        """Empty where nothing was reranked."""
        return self._floats(self._head.scores_end, self._head.reranked)

    @cached_property
    def embedding(self) -> Floats:
        """The query's vector, shape (D,); empty where it was not kept."""
        return self._floats(self._head.rerank_end, self._head.embedding_size)

    @property
    def quality(self) -> float | None:
        """0..1, of what `quality_basis` says; None where unknown."""
        return None if math.isnan(self._head.quality) else self._head.quality

    @property
    def query_text(self) -> str:
        return self._texts.query_text

    @property
    def collection(self) -> str:
        return self._texts.collection

    @property
    def scope(self) -> str:
        return self._texts.scope

    @property
    def contents(self) -> tuple[str, ...]:
        return self._texts.contents

    @property
    def sources(self) -> tuple[str, ...]:
        return self._texts.sources

    @property
    def metadata(self) -> tuple[dict[str, object], ...]:
        return self._texts.metadata

    @property
    def quality_basis(self) -> str:
        return self._texts.quality_basis

    @property
    def language(self) -> str:
        return self._texts.language

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
