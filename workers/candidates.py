"""Owns how the candidates for a rerank are found: by dense vectors, or by dense and sparse ones fused.

        dense, `limit` ──┐
                         ├─ fused, the best `limit` ─▶ in the dense vectors' order, with their similarity
    sparse (BM25), `limit` ──┘

The similarity, and not the fusion's score, is what a result keeps and what a reranker adds to its own: it says the same
whatever else was found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..ipc.records import Hit
from ..ipc.settings import WorkerSettings
from .vectors import Hybrid, Vectors, VectorStore

DENSE = "dense vectors"


class Candidates(NamedTuple):
    """The hits of each query, best first by the dense vectors. `is_hybrid`: some may have been found by their words."""

    hits: list[list[Hit]]
    is_hybrid: bool


def find(
    store: VectorStore,
    collection: str,
    vectors: Vectors,
    texts: Sequence[str],
    settings: WorkerSettings,
    *,
    limit: int,
    query_filter: Mapping[str, Any] | None = None,
) -> Candidates:
    """Return `limit` candidates of each query, given by its vector and its text. Raises as VectorStore.search does."""
    if settings.rerank.fusion != "none" and isinstance(store, Hybrid):
        encoder, _ = store.sparse_encoder(collection, settings.model.text_field)
        if encoder is not None:
            rows = [encoder.encode(text) for text in texts]
            fusion = settings.rerank.fusion
            hits = store.search_hybrid(
                *(collection, vectors, rows), using=encoder.using, fusion=fusion, limit=limit, query_filter=query_filter
            )
            return Candidates(hits, is_hybrid=True)
    return Candidates(store.search(collection, vectors, limit=limit, query_filter=query_filter), is_hybrid=False)


def how(store: VectorStore, collection: str, settings: WorkerSettings) -> str:
    """Say in words how candidates are found, and why not by sparse vectors where there are some."""
    if settings.rerank.fusion == "none" or not isinstance(store, Hybrid):
        return DENSE
    encoder, why = store.sparse_encoder(collection, settings.model.text_field)
    if encoder is not None:
        return f"{DENSE} and {encoder.words}, fused by {settings.rerank.fusion.upper()}"
    return f"{DENSE} alone: {why}" if why else DENSE
