"""Owns the second look at candidates: a cross-encoder, late interaction over tokens, or a live object handed in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..ipc.errors import InvalidArgument, ModelUnavailable
from ..ipc.settings import ModelSettings, RerankSettings
from .batches import SubBatches
from .bm25 import bm25
from .fingerprint import fingerprint
from .models import quietly_load, torch_threads
from .task import Embedder, Floats, Reranker
from .vectors import Vectors

TOKEN_CACHE_BYTES = 256 * 1024 * 1024  # of float16 token vectors: about 1,500 documents of 250 tokens
CROSS_ENCODER_BATCH = 8


class CrossEncoderReranker:
    """A sentence-transformers CrossEncoder with one label, by folder or hub name."""

    def __init__(self, name: str, device: str = "cpu", threads: int = 1) -> None:
        self._name, self._device, self._threads = name, device, threads
        self.batches = SubBatches(CROSS_ENCODER_BATCH)

    @property
    def name(self) -> str:
        return self._name

    def load(self) -> None:
        """Load the weights now. Raises ModelUnavailable."""
        _ = self._model

    @cached_property
    def _model(self) -> Any:
        def load(target: str, is_folder: bool) -> Any:
            from sentence_transformers import CrossEncoder

            return CrossEncoder(target, device=self._device, local_files_only=is_folder)

        model = quietly_load(self._name, load)
        if model.num_labels != 1:
            raise ModelUnavailable(
                f"{self._name!r} gives {model.num_labels} scores a pair: a cross-encoder that reranks gives one"
            )
        return model

    def score(
        self, query: str, texts: Sequence[str], dense_scores: Floats, *, pace: Callable[[], None] | None = None
    ) -> Floats:
        model, scores = self._model, np.empty(len(texts), dtype=np.float32)
        for rows in self.batches.rows([len(text) for text in texts], is_paced=pace is not None):
            pairs = [(query, texts[row]) for row in rows]
            with torch_threads(self._threads):
                scores[rows] = model.predict(pairs, batch_size=len(rows), show_progress_bar=False)
            if pace is not None:
                pace()
        return scores


class LateInteractionReranker:
    """MaxSim over token vectors (Khattab and Zaharia 2020), fused with the dense and BM25 scores as z-scores.

    On SciFact nDCG@10 0.645 dense, 0.703 MaxSim alone, 0.714 fused. Token vectors of documents are kept for the next
    query that has them as candidates, in float16, up to TOKEN_CACHE_BYTES.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._tokens: OrderedDict[str, Any] = OrderedDict()
        self._bytes = 0

    @property
    def name(self) -> str:
        return f"late interaction ({self._embedder.name})"

    def score(
        self, query: str, texts: Sequence[str], dense_scores: Floats, *, pace: Callable[[], None] | None = None
    ) -> Floats:
        if not texts:
            return np.empty(0, dtype=np.float32)
        (query_tokens,) = self._embedder.token_vectors([query])
        similarity = max_sims(query_tokens, self._document_tokens(texts, pace))
        fused = (
            z_scores(similarity) + z_scores(np.asarray(dense_scores, dtype=np.float32)) + z_scores(bm25(query, texts))
        )
        return fused.astype(np.float32)

    def _document_tokens(self, texts: Sequence[str], pace: Callable[[], None] | None) -> list[Vectors]:
        keys = [fingerprint(text) for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._tokens}
        computed = self._embedder.token_vectors(list(missing.values()), pace=pace)
        fresh = {key: tokens.astype(np.float16) for key, tokens in zip(missing, computed, strict=True)}
        found = [(fresh[key] if key in fresh else self._tokens[key]).astype(np.float32) for key in keys]
        for key, tokens in fresh.items():
            self._tokens[key] = tokens
            self._bytes += tokens.nbytes
        for key in keys:
            self._tokens.move_to_end(key)
        while self._bytes > TOKEN_CACHE_BYTES:
            _, dropped = self._tokens.popitem(last=False)
            self._bytes -= dropped.nbytes
        return found


def max_sim(query_tokens: Vectors, document_tokens: Vectors) -> float:
    """Return the mean over query tokens of the best cosine among document tokens; 0 where either has none."""
    return float(max_sims(query_tokens, [document_tokens])[0])


def max_sims(query_tokens: Vectors, documents: Sequence[Vectors]) -> Floats:
    """Return `max_sim` of each document, shape (len(documents),).

    One matrix product for all: in fifty small ones BLAS's threads wait for each other every time, which on a machine
    whose CPUs were taken came to 790 ms a query instead of 16.
    """
    scores = np.zeros(len(documents), dtype=np.float32)
    rows = [row for row, tokens in enumerate(documents) if len(tokens)]
    if rows and len(query_tokens):
        starts = np.cumsum([0, *(len(documents[row]) for row in rows[:-1])])
        similarity = query_tokens @ np.concatenate([documents[row] for row in rows]).T
        scores[rows] = np.maximum.reduceat(similarity, starts, axis=1).mean(axis=0)
    return scores


def z_scores(values: Floats) -> Floats:
    """Return (values - mean) / standard deviation; zeroes where all are equal."""
    deviation = float(values.std())
    return (values - values.mean()) / deviation if deviation > 1e-9 else np.zeros_like(values)


class LiveReranker:
    """A reranking object of the application's, called by what it offers: rerank, rank or predict."""

    def __init__(self, service: Any) -> None:
        self._service = service
        self._method = next((m for m in ("rerank", "rank", "predict") if callable(getattr(service, m, None))), None)
        if self._method is None:
            raise InvalidArgument(
                f"{type(service).__name__} has none of rerank(query, documents), rank(query, documents),"
                " predict(pairs): a reranking service needs one of them"
            )

    @property
    def name(self) -> str:
        return str(getattr(self._service, "name", type(self._service).__name__))

    def score(
        self, query: str, texts: Sequence[str], dense_scores: Floats, *, pace: Callable[[], None] | None = None
    ) -> Floats:
        if self._method == "predict":
            answer = self._service.predict([(query, text) for text in texts])
        else:
            answer = getattr(self._service, str(self._method))(query, list(texts))
        if pace is not None:
            pace()
        return scores_of(answer, len(texts))


def scores_of(answer: Any, count: int) -> Floats:
    """Return `count` scores from what a reranking object answered.

    Understood: a score for each document in order; (index, score) pairs; mappings with index (or corpus_id) and score
    (or relevance_score); objects with such attributes; any of them as `results`; arrays and tensors. Documents left out
    score below all others. Raises InvalidArgument for anything else.
    """
    answer = answer.get("results", answer) if isinstance(answer, Mapping) else getattr(answer, "results", answer)
    if isinstance(answer, str) or not isinstance(answer, Iterable):
        raise InvalidArgument(
            f"the reranking service answered with {repr(answer)[:80]}: return a score for each document"
        )
    rows = answer.tolist() if hasattr(answer, "tolist") else list(answer)
    if len(rows) == count and all(isinstance(row, int | float | np.number) for row in rows):
        return np.asarray(rows, dtype=np.float32)
    scores = np.full(count, np.nan, dtype=np.float32)
    for row in rows:
        index, score = _index_and_score(row)
        if not 0 <= index < count:
            raise InvalidArgument(f"the reranking service named document {index} of {count}")
        scores[index] = score
    if np.isnan(scores).all() and count:
        raise InvalidArgument("the reranking service scored no document")
    floor = np.nanmin(scores) - 1 if count else 0.0
    return np.where(np.isnan(scores), floor, scores).astype(np.float32)


def _index_and_score(row: Any) -> tuple[int, float]:
    if isinstance(row, tuple | list):
        match row:
            case [int() | np.integer() as index, int() | float() | np.number() as score]:
                return int(index), float(score)
        raise InvalidArgument(f"the reranking service answered with {row!r}: a pair is (index of a document, score)")

    def field(*names: str) -> Any:
        for name in names:
            value = row.get(name) if isinstance(row, Mapping) else getattr(row, name, None)
            if value is not None:
                return value
        raise InvalidArgument(f"the reranking service answered with {row!r}: no {' or '.join(names)} in it")

    return int(field("index", "corpus_id")), float(field("score", "relevance_score"))


def as_reranker(service: Any) -> Reranker:
    """Return a Reranker over whatever the application handed in. Raises InvalidArgument if it offers no known method."""
    if callable(getattr(service, "score", None)) and isinstance(getattr(service, "name", None), str):
        reranker: Reranker = service
        return reranker
    return LiveReranker(service)


def make_reranker(settings: RerankSettings, embedder: Embedder) -> Reranker:
    """Return the configured cross-encoder, on the embedder's device, or late interaction over the embedder's tokens."""
    if settings.cross_encoder and isinstance(model := getattr(embedder, "settings", None), ModelSettings):
        return CrossEncoderReranker(settings.cross_encoder, model.device, model.threads)
    if settings.cross_encoder:
        return CrossEncoderReranker(settings.cross_encoder)
    return LateInteractionReranker(embedder)
