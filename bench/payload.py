"""Owns the records of the store benchmark: real text, 10 results of about 5.9 KB, and the forms other stores keep it in."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from morgan.background.data import documents
from morgan.background.ipc.records import ComputedResult

ENTRIES = 1000
ROWS = 10
CONTENT_CHARS = 540  # ten of them with sources and metadata make 5.9 KB
COLLECTION = "scifact"

Floats = npt.NDArray[np.float32]


def query_text(number: int, titles: list[str]) -> str:
    return f"{titles[number % len(titles)]} ({number})"


def results() -> list[ComputedResult]:
    """Return the entries. Scores fall from 0.9: what they are changes no timing."""
    corpus = documents()
    titles = [document["title"] for document in corpus]
    scores = np.linspace(0.9, 0.4, ROWS, dtype="<f4")
    found = []
    for number in range(ENTRIES):
        rows = [corpus[(number * 7 + row) % len(corpus)] for row in range(ROWS)]
        found.append(
            ComputedResult(
                query_text=query_text(number, titles),
                collection=COLLECTION,
                ids=tuple(row["id"] for row in rows),
                scores=scores.tobytes(),
                rerank_scores=scores.tobytes(),
                contents=tuple(row["text"][:CONTENT_CHARS] for row in rows),
                sources=tuple(row["source"] for row in rows),
                metadata=tuple({"page": row} for row in range(ROWS)),
                computed_at=float(number),
            )
        )
    return found


@dataclass(slots=True)
class Ready:
    """A decoded result: what an in-process dict holds, and what pickles."""

    ids: tuple[int | str, ...]
    scores: Floats
    rerank_scores: Floats
    contents: tuple[str, ...]
    sources: tuple[str, ...]
    metadata: tuple[dict[str, Any], ...]


def ready(result: ComputedResult) -> Ready:
    return Ready(
        result.ids,
        np.frombuffer(result.scores, dtype="<f4"),
        np.frombuffer(result.rerank_scores, dtype="<f4"),
        result.contents,
        result.sources,
        result.metadata,
    )


class _Texts(msgspec.Struct, array_like=True):
    contents: tuple[str, ...]
    sources: tuple[str, ...]
    metadata: tuple[dict[str, Any], ...]


_texts = msgspec.msgpack.Decoder(_Texts)
_HEAD = struct.Struct("<II")


def pack(result: ComputedResult) -> bytes:
    """Return the record for byte stores: the columns of ours without its checksum, key, expiry and generation."""
    k = len(result.ids)
    texts = msgspec.msgpack.encode(_Texts(result.contents, result.sources, result.metadata))
    ids = struct.pack(f"<{k}Q", *result.ids)
    return _HEAD.pack(k, len(result.rerank_scores) // 4) + ids + result.scores + result.rerank_scores + texts


class Columns:
    """A packed record, decoded as far as it is touched: byte stores get the lazy decoding of ours."""

    __slots__ = ("_k", "_raw", "_reranked", "_texts")

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._k, self._reranked = _HEAD.unpack_from(raw)
        self._texts: _Texts | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        return struct.unpack_from(f"<{self._k}Q", self._raw, _HEAD.size)

    @property
    def scores(self) -> Floats:
        return np.frombuffer(self._raw, dtype="<f4", count=self._k, offset=_HEAD.size + 8 * self._k)

    @property
    def rerank_scores(self) -> Floats:
        return np.frombuffer(self._raw, dtype="<f4", count=self._reranked, offset=_HEAD.size + 12 * self._k)

    def _decoded(self) -> _Texts:
        if self._texts is None:
            start = _HEAD.size + 12 * self._k + 4 * self._reranked
            self._texts = _texts.decode(memoryview(self._raw)[start:])
        return self._texts

    @property
    def contents(self) -> tuple[str, ...]:
        return self._decoded().contents

    @property
    def sources(self) -> tuple[str, ...]:
        return self._decoded().sources

    @property
    def metadata(self) -> tuple[dict[str, Any], ...]:
        return self._decoded().metadata
