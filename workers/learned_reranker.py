"""Owns how a learned reranker scores: z-scores of four views of a candidate, weighted; and which one a collection has.

vector search, late interaction, BM25, and a cross-encoder's reading of an excerpt ─▶ z-scores ─▶ weighted sum
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ..ipc.errors import ModelUnavailable
from ..ipc.settings import WorkerSettings
from .bm25 import bm25
from .excerpts import excerpts
from .fusion import Matrix, fused
from .reranker import CrossEncoderReranker, LateInteractionReranker
from .shelf import Learned, Shelf
from .task import Embedder, Floats, Reranker

log = logging.getLogger(__name__)

LOADED = 4  # learned rerankers in a process
READ = 20  # candidates that a cross-encoder reads
VIEWS = ("dense", "late interaction", "BM25", "cross-encoder")
DEFAULT_WEIGHTS = (0.7, 0.7, 0.7, 0.0)
"""Where a fit begins: equal ones, as LateInteractionReranker has them. 0.7: what their z-scores have to be multiplied by
for the softmax over candidates to be as sharp as judgments say; the order does not depend on it."""
CROSS_WEIGHTS = (0.7, 0.7, 0.7, 2.1)
"""The same where a cross-encoder was trained: it counts as much as the other three, none of which saw a judgment."""


class Similar(Protocol):
    """See LateInteractionReranker."""

    def similarity(self, query: str, texts: Sequence[str], pace: Callable[[], None] | None = None) -> Floats: ...


class Views:
    """Computes the views of a query's candidates. `cross` is None where there is no cross-encoder: its row is zeroes.

    The cross-encoder reads the READ candidates that the other views like best; the others get the least of its scores.
    """

    def __init__(self, late: Similar, cross: Reranker | None, max_words: int) -> None:
        self._late, self._cross, self._max_words = late, cross, max_words

    def columns(
        self, query: str, texts: Sequence[str], dense_scores: Floats, pace: Callable[[], None] | None = None
    ) -> Matrix:
        """Return the views, shape (len(VIEWS), len(texts))."""
        rows = [
            np.asarray(dense_scores, dtype=np.float64),
            self._late.similarity(query, texts, pace),
            bm25(query, texts),
        ]
        others = np.array(rows, dtype=np.float64).reshape(len(rows), len(texts))
        scores = np.zeros(len(texts))
        if self._cross is not None and len(texts):
            best = np.argsort(-fused(others, (1.0, 1.0, 1.0)), kind="stable")[:READ]
            shown = excerpts(query, texts, self._max_words)
            found = self._cross.score(query, [shown[row] for row in best], dense_scores[best], pace=pace)
            scores[:] = found.min()
            scores[best] = found
        return np.vstack([others, scores])


class LearnedReranker:
    """A Reranker that was learned for one collection."""

    def __init__(self, name: str, weights: Sequence[float], views: Views) -> None:
        """`weights` are of VIEWS."""
        self._name, self._weights, self._views = name, tuple(weights), views

    @property
    def name(self) -> str:
        return self._name

    def score(
        self, query: str, texts: Sequence[str], dense_scores: Floats, *, pace: Callable[[], None] | None = None
    ) -> Floats:
        if not texts:
            return np.empty(0, dtype=np.float32)
        columns = self._views.columns(query, texts, dense_scores, pace)
        return fused(columns, self._weights).astype(np.float32)


class Rerankers:
    """Which reranker a collection has: the one that was learned for it, else the configured one.

    A learned one is used only in the place of what it was found to be better than: where the embedding model or the
    configured reranker is another by now, it is not. Which is in use is looked up at each call: one small file.
    """

    def __init__(
        self,
        root: Path | None,
        configured: Reranker,
        embedder_of: Callable[[str], Embedder],
        *,
        device: str = "cpu",
        is_small: Callable[[], bool] = lambda: False,
    ) -> None:
        """`embedder_of` returns what embeds queries of a collection; `is_small` says whether memory is short."""
        self._root, self._configured, self._embedder_of = root, configured, embedder_of
        self._device, self._is_small = device, is_small
        self._read: dict[str, tuple[str, Learned | None]] = {}
        self._loaded: dict[str, tuple[str, LearnedReranker | None]] = {}
        self._late: LateInteractionReranker | None = None  # the last one's: it keeps token vectors

    @classmethod
    def of_settings(
        cls,
        settings: WorkerSettings,
        configured: Reranker,
        embedder_of: Callable[[str], Embedder],
        *,
        is_small: Callable[[], bool] = lambda: False,
    ) -> Rerankers:
        root = Path(settings.learning.folder) if settings.learning.folder else None
        return cls(root, configured, embedder_of, device=settings.model.device, is_small=is_small)

    def of(self, collection: str) -> Reranker:
        """Return the reranker of a collection, by the name that it is searched by. A new one is loaded: seconds."""
        if self._root is None:
            return self._configured
        shelf = Shelf(self._root, collection)
        version = shelf.in_use().now
        if self._read.get(collection, ("", None))[0] != version:
            self._read[collection] = version, shelf.read(version) if version else None
        learned = self._read.get(collection, ("", None))[1]
        if learned is None or not self._stands_in(learned, collection):
            return self._configured
        held, reranker = self._loaded.pop(collection, ("", None))
        if held != version:
            reranker = self._load(shelf, learned)
        self._loaded[collection] = version, reranker  # the last one that was asked for is the last of the dict
        if len(self._loaded) > LOADED:
            del self._loaded[next(iter(self._loaded))]
        return reranker or self._configured

    def _stands_in(self, learned: Learned, collection: str) -> bool:
        is_same = learned.embedder == self._embedder_of(collection).name
        return is_same and learned.instead_of == self._configured.name

    def _load(self, shelf: Shelf, learned: Learned) -> LearnedReranker | None:
        cross = None
        if learned.has_model:
            cross = CrossEncoderReranker(str(shelf.model_folder(learned.version)), self._device)
            cross.batches.watch(self._is_small)
            try:
                cross.load()
            except ModelUnavailable as error:
                log.warning("the learned reranker of %s is not used: %s", shelf.collection, error)
                return None
        log.info("the learned reranker %s of %s is used", learned.version, shelf.collection)
        if self._late is None or self._late.embedder is not self._embedder_of(shelf.collection):
            self._late = late_of(self._configured, self._embedder_of(shelf.collection))
        views = Views(self._late, cross, learned.max_words)
        return LearnedReranker(f"learned {learned.version}", learned.weights, views)


def late_of(configured: Reranker, embedder: Embedder) -> LateInteractionReranker:
    """Return late interaction over the embedder's tokens: the configured one where it is that, for its token vectors."""
    if isinstance(configured, LateInteractionReranker) and configured.embedder is embedder:
        return configured
    return LateInteractionReranker(embedder)
