"""Owns an embedding model that is none: a fixed random vector for each word, summed. For what needs a second model, or a
million embeddings: the machine has one real model, at 25 texts a second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import xxhash

from morgan.background.workers.vectors import Vectors


@lru_cache(maxsize=100_000)
def _word(word: str, model: str, size: int) -> Vectors:
    seed = xxhash.xxh3_64_intdigest(f"{model} {word}".encode())
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


class FakeEmbedder:
    """An Embedder of vectors of `size`. Texts that share words are near; two models' vectors have nothing in common."""

    revision = "fake"

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size
        self.texts = 0  # embedded so far
        self.is_blind = False  # sees whether a text's length is even, and nothing else

    def embed(self, texts: Sequence[str], *, pace: Callable[[], None] | None = None) -> Vectors:
        """Return float32 of shape (len(texts), size), L2-normalised."""
        self.texts += len(texts)
        if pace is not None:
            pace()
        seen = [str(len(text) % 2) if self.is_blind else text for text in texts]
        if not seen:
            return np.empty((0, self.size), dtype=np.float32)
        rows = np.stack([self._row(text) for text in seen])
        found: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return found

    def _row(self, text: str) -> Vectors:
        words = [_word(word, self.name, self.size) for word in text.lower().split()] or [
            _word("", self.name, self.size)
        ]
        found: Vectors = np.sum(words, axis=0)
        return found

    def token_vectors(self, texts: Sequence[str], *, pace: Callable[[], None] | None = None) -> list[Vectors]:
        return [self.embed(text.split(), pace=pace) for text in texts]


class FakeReranker:
    """A Reranker that leaves the vector search's order."""

    name = "fake"

    def score(
        self, query: str, texts: Sequence[str], dense_scores: Vectors, *, pace: Callable[[], None] | None = None
    ) -> Vectors:
        return dense_scores
