"""Owns the vectors of the queries that were embedded last: the same text is asked of several collections.

An application searches all its collections with one question, and what is warmed of it in one collection is warmed in the
next a moment later. Kept by the process that embeds, not handed on by the supervisor: only here is it certain that a
vector is of the model that a collection is searched with.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from .vectors import Vectors

KEPT_BYTES = 1024 * 1024  # 682 vectors of 384: the default tasks of a dozen collections


class Embeds(Protocol):
    """As much of an Embedder as is needed here."""

    @property
    def name(self) -> str: ...

    def embed(self, texts: Sequence[str], *, pace: Callable[[], None] | None = None) -> Vectors: ...


class QueryVectors:
    """Embeds queries, each once for a model while its vector is kept. Safe to use from several threads."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_bytes, self._bytes = kept_bytes, 0
        self._kept: OrderedDict[tuple[str, str], Vectors] = OrderedDict()  # (model, text), last used last
        self._lock = threading.Lock()

    def embed(self, embedder: Embeds, texts: Sequence[str], *, pace: Callable[[], None] | None = None) -> Vectors:
        """Return float32 of shape (len(texts), D), as `embedder.embed` does. There is at least one text."""
        model = embedder.name
        with self._lock:
            known = {text: vector for text in texts if (vector := self._kept.get((model, text))) is not None}
            for text in known:
                self._kept.move_to_end((model, text))
        if new := [text for text in dict.fromkeys(texts) if text not in known]:
            # copies: a row of a batch would keep the whole of it
            fresh = {text: row.copy() for text, row in zip(new, embedder.embed(new, pace=pace), strict=True)}
            known |= fresh
            with self._lock:
                for text, vector in fresh.items():
                    self._keep((model, text), vector)
        return np.stack([known[text] for text in texts])

    def _keep(self, key: tuple[str, str], vector: Vectors) -> None:
        if key not in self._kept:
            self._kept[key] = vector
            self._bytes += vector.nbytes
        while self._bytes > self._kept_bytes:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
