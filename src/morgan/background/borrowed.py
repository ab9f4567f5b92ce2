"""Owns an embedded store that is open only while it is used, so that several components of a process can take turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .workers.vectors import VectorStore


class Borrowed:
    """Has every method of the VectorStore that `open_store` returns; opens it at the first call after `give_back`.

    Raises StoreLocked where another process, or a component that is at work, has it open.
    """

    def __init__(self, open_store: Callable[[], VectorStore]) -> None:
        self._open_store = open_store
        self._store: VectorStore | None = None

    def __getattr__(self, name: str) -> Any:
        if self._store is None:
            self._store = self._open_store()
        return getattr(self._store, name)

    def give_back(self) -> None:
        """Close the store if it is open."""
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def close(self) -> None:
        self.give_back()
