"""Owns which cached results a change of documents can alter. Pure.

A result was chosen from candidates: the nearest documents to its query, down to a cut-off similarity. A document that is
written matters only if its vector reaches the cut-off, or if it is a candidate already; one that is deleted only if it
is a candidate. With exact search this is exact; an approximate index may have missed a candidate, and then so may this.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import xxhash

from ..ipc.commands import PointsChanged
from ..ipc.records import ComputedResult, PointId

Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint64]

T = TypeVar("T", bound=np.generic)

SLACK = 1e-5
"""Added to a similarity before it is compared: the engine and numpy sum 384 products in different orders (float32)."""


def id_words(ids: Iterable[PointId]) -> Words:
    """Return a 64-bit word for each id, never 0. Two ids of one word invalidate too much, never too little."""
    return np.array([_word(one) for one in ids], dtype=np.uint64)


def _word(point_id: PointId) -> int:
    raw = point_id.to_bytes(8, "little") if isinstance(point_id, int) else point_id.encode()
    return xxhash.xxh3_64_intdigest(raw) or 1


def similarities(queries: Floats, documents: Floats, distance: str) -> Floats:
    """Return shape (Q, N), higher is nearer, on the scale of the engine's scores (distances negated)."""
    match distance:
        case "cosine":
            return _unit(queries) @ _unit(documents).T
        case "dot":
            return queries @ documents.T
        case "manhattan":
            apart: Floats = np.abs(queries[:, None, :] - documents[None, :, :]).sum(axis=2)
            return -apart
        case _:  # euclid
            squares = (queries**2).sum(axis=1)[:, None] + (documents**2).sum(axis=1)[None, :]
            found: Floats = -np.sqrt(np.maximum(squares - 2 * queries @ documents.T, 0.0))
            return found


def _unit(rows: Floats) -> Floats:
    found: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return found


@dataclass(frozen=True, slots=True)
class Change:
    """Documents of one collection that were written (with their vectors) or deleted (without). None: any document."""

    seq: int
    names: frozenset[str]  # of the collection: its own and its aliases
    words: Words | None
    vectors: Floats | None  # shape (N, D)
    distance: str
    is_soft: bool  # what it alters is still worth serving until it is computed again

    @classmethod
    def of(cls, event: PointsChanged) -> Change:
        vectors = None
        if event.vectors:
            vectors = np.frombuffer(event.vectors, dtype="<f4").reshape(event.vector_count, -1)
        words = None if event.is_whole else id_words(event.ids)
        return cls(event.seq, frozenset(event.names), words, vectors, event.distance, event.is_soft)

    @property
    def points(self) -> int:
        return 0 if self.words is None else len(self.words)


class Dependencies:
    """What each cached result of a collection depends on: its query's vector, cut-off and candidates, a row each."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}  # key -> row
        self._keys: list[str | None] = []  # row -> key; None is a free row
        self._free: list[int] = []
        self._embeddings: Floats = np.zeros((0, 0), dtype=np.float32)
        self._cutoffs: Floats = np.zeros(0, dtype=np.float32)
        self._candidates: Words = np.zeros((0, 0), dtype=np.uint64)
        self._is_open = np.zeros(
            0, dtype=bool
        )  # depends on any document: it has no candidates, no cut-off or no vector
        self._groups: Words = np.zeros(0, dtype=np.uint64)  # of those that `nearest` may find; 0: not this one
        self._norms: Floats = np.zeros(0, dtype=np.float32)

    def __len__(self) -> int:
        return len(self._rows)

    def put(
        self,
        key: str,
        embedding: Floats,
        cutoff: float | None,
        candidates: Sequence[PointId],
        group: str | None = None,
    ) -> None:
        """Take in a result. `nearest` finds it for those of its `group`; None: it is not found."""
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = self._free.pop() if self._free else self._grown()
            self._keys[row] = key
        # of another size is of another model than the rest: nothing it can be compared with
        has_vector = bool(len(embedding)) and self._embeddings.shape[1] in (0, len(embedding))
        self._is_open[row] = cutoff is None or not len(candidates) or not has_vector
        self._cutoffs[row] = 0.0 if cutoff is None else cutoff
        self._norms[row] = np.linalg.norm(embedding)
        has_direction = has_vector and 0 < self._norms[row] < np.inf
        self._groups[row] = _word(group) if group is not None and has_direction else 0
        if has_vector:
            if self._embeddings.shape[1] == 0:
                self._embeddings = np.zeros((len(self._keys), len(embedding)), dtype=np.float32)
            self._embeddings[row] = embedding
        words = id_words(candidates)
        if len(words) > self._candidates.shape[1]:
            wider = np.zeros((len(self._keys), len(words)), dtype=np.uint64)
            wider[:, : self._candidates.shape[1]] = self._candidates
            self._candidates = wider
        self._candidates[row] = 0
        self._candidates[row, : len(words)] = words

    def _grown(self) -> int:
        """Return a fresh row; the arrays double, so that a row costs the same however many there are."""
        row = len(self._keys)
        size = max(2 * row, 16)
        self._free = list(range(size - 1, row, -1))
        self._keys += [None] * (size - row)
        self._embeddings = _taller(self._embeddings, size)
        self._cutoffs = _taller(self._cutoffs, size)
        self._candidates = _taller(self._candidates, size)
        self._is_open = _taller(self._is_open, size)
        self._groups = _taller(self._groups, size)
        self._norms = _taller(self._norms, size)
        return row

    def remove(self, key: str) -> None:
        row = self._rows.pop(key, None)
        if row is not None:
            self._keys[row] = None
            self._is_open[row] = False
            self._groups[row] = 0
            self._candidates[row] = 0
            self._free.append(row)

    def nearest(self, embedding: Floats, group: str, *, other_than: str) -> tuple[str, float] | None:
        """Return the key of a group, `other_than` one, whose query is nearest, and their cosine; None where there is none.

        1,000 entries and as many aliases of 384 floats: 0.2 ms. Two groups of one 64-bit word are taken for one: who
        asks compares the names.
        """
        norm = float(np.linalg.norm(embedding))
        if self._embeddings.shape[1] != len(embedding) or not 0 < norm < np.inf:
            return None
        is_in = self._groups == _word(group)
        if (own := self._rows.get(other_than)) is not None:
            is_in[own] = False
        if not is_in.any():
            return None
        cosines = np.full(len(is_in), -np.inf, dtype=np.float32)
        np.divide(self._embeddings @ embedding, self._norms * norm, out=cosines, where=is_in)
        row = int(np.argmax(cosines))
        key = self._keys[row]
        return None if key is None else (key, float(cosines[row]))

    def affected(self, change: Change) -> list[str]:
        """Return the keys of the results that `change` can alter."""
        if change.words is None:
            return list(self._rows)
        if not len(change.words):
            return []
        hit = self._is_open | np.isin(self._candidates, change.words).any(axis=1)
        if change.vectors is not None and len(change.vectors):
            if change.vectors.shape[1] == self._embeddings.shape[1]:
                nearest = similarities(self._embeddings, change.vectors, change.distance).max(axis=1)
                hit |= nearest + SLACK >= self._cutoffs
            else:
                hit[:] = True  # vectors of another size: another model's, nothing can be said
        return [key for row in np.flatnonzero(hit).tolist() if (key := self._keys[row]) is not None]


def _taller(array: npt.NDArray[T], rows: int) -> npt.NDArray[T]:
    """Return `array` with zeroes below, `rows` in all."""
    found: npt.NDArray[T] = np.zeros((rows, *array.shape[1:]), dtype=array.dtype)
    found[: len(array)] = array
    return found


def can_alter(change: Change, result: ComputedResult) -> bool:
    """Say whether `change` can alter `result`: of one that is not in the cache yet."""
    if result.collection not in change.names:
        return False
    one = Dependencies()
    one.put("", np.frombuffer(result.embedding, dtype="<f4"), result.cutoff, result.candidates)
    return bool(one.affected(change))
