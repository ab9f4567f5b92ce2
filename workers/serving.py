"""Owns which model a collection is searched with: the one that made its vectors, which its stamps name.

While a new model's version of a collection is being built, the one that is served is still the old model's: a query has to
be embedded by that one. A collection without stamps is taken for the configured model's.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

from ..ipc.errors import ModelUnavailable
from .fingerprint import maker_of
from .task import Embedder
from .vectors import VectorStore

log = logging.getLogger(__name__)

SAMPLE = 16  # points whose stamps are looked at
KNOWN_S = 30.0  # for so long a collection's model is not looked up again, where no swap said that it changed


class Serving:
    """`configured` embeds what is written; `load` returns the embedder of another model by its name."""

    def __init__(
        self,
        store: VectorStore,
        configured: Embedder,
        load: Callable[[str], Embedder],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._configured, self._load, self._clock = store, configured, load, clock
        self._known: dict[str, tuple[float, str | None]] = {}
        self._loaded: dict[str, Embedder | None] = {}

    def of(self, collection: str) -> Embedder:
        """Return the embedder for queries of a collection. Raises CollectionNotFound, and StoreUnavailable."""
        now = self._clock()
        looked_at, name = self._known.get(collection, (-KNOWN_S, None))
        if now - looked_at >= KNOWN_S:
            points, _ = self._store.scroll(collection, limit=SAMPLE)
            names = Counter(model for point in points if (model := maker_of(point.payload)[0]))
            name = names.most_common(1)[0][0] if names else None
            self._known[collection] = now, name
        if name is None or name == self._configured.name:
            return self._configured
        return self.by_name(name) or self._configured

    def by_name(self, name: str) -> Embedder | None:
        """Return the embedder of a model; None where it cannot be loaded (any more)."""
        if name == self._configured.name:
            return self._configured
        if name not in self._loaded:
            try:
                embedder = self._load(name)
                log.info("model %s loaded, %d dimensions: a collection's vectors are its", name, embedder.size)
                self._loaded[name] = embedder
            except ModelUnavailable as error:
                log.warning("a collection's vectors are of another model, and %s", error)
                self._loaded[name] = None
        return self._loaded[name]

    def forget(self) -> None:
        """Look every collection's model up again: one was swapped."""
        self._known.clear()
