"""Owns how a query's sparse vector is made as the application made its documents'. Nobody says how: it is found out.

BM25 is known: Qdrant's own, which is fastembed's `Qdrant/bm25` as well, names a word by the hash of its stem. So some documents
are encoded anew in each language, and the one whose words are all in the stored vectors is it. Any other encoder (SPLADE
and the like) is not found, and the collection is searched by its dense vectors alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SAMPLE = 16  # documents that are encoded anew
SAME = 0.9  # of a document's words that must be in its stored vector, in the mean
LANGUAGES = (
    *("english", "german", "french", "spanish", "italian", "portuguese", "dutch", "danish", "norwegian", "swedish"),
    *("finnish", "russian", "turkish", "arabic", "greek", "hungarian", "romanian", "catalan", "basque", "slovene"),
    *("indonesian", "azerbaijani", "kazakh", "tajik", "nepali", "bengali", "hebrew", "hinglish", "chinese", "japanese"),
)


@dataclass(frozen=True, slots=True)
class SparseRow:
    """A sparse vector: values of shape (words,) at indices of the same length."""

    indices: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SparseEncoder:
    """What makes the query vectors for the sparse vectors `using` of a collection."""

    using: str
    language: str
    model: Any  # qdrant_edge.Bm25

    @property
    def words(self) -> str:
        return f"{self.using!r} by BM25 ({self.language})"

    def encode(self, text: str) -> SparseRow:
        found = self.model.embed_query(text)
        return SparseRow(tuple(found.indices), tuple(float(value) for value in found.values))


def encoder_of(using: str, documents: Sequence[tuple[str, Collection[int]]]) -> SparseEncoder | None:
    """Return the encoder that made the vectors of these (text, stored indices); None where it is none that we know.

    A stored vector may be of more than the text, such as its title: only what the text has must be in it.
    """
    try:
        from qdrant_edge import Bm25, Bm25Config
    except ImportError:
        return None
    best, most = None, SAME
    for language in LANGUAGES:
        model = Bm25(Bm25Config(language=language))
        shares = [
            len(words.intersection(stored)) / len(words)
            for text, stored in documents
            if (words := set(model.embed_document(text).indices))
        ]
        if shares and (share := float(np.mean(shares))) > most:
            best, most = SparseEncoder(using, language, model), share
    return best
