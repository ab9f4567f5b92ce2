"""Owns which implementation of VectorStore the settings ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from ..ipc.settings import StoreSettings
from .vectors import VectorStore


def open_store(settings: StoreSettings, owner_socket: str | None) -> VectorStore:
    """Return the configured server, the embedded store through its owner, or (no socket) the embedded store itself."""
    if not settings.is_embedded:
        from .qdrant_clients import connect

        return connect(settings)
    if owner_socket is not None:
        from .remote import RemoteStore

        return RemoteStore(Path(owner_socket), settings.timeout_s)
    from .edge import EdgeStore

    return EdgeStore(Path(settings.path))


def open_late(settings: StoreSettings) -> VectorStore:
    """Return the configured store for its owner; a server's client is made at the first call.

    qdrant-client takes a second of CPU and 60 MB to import, and nobody may ever ask. The embedded store is opened now:
    its lock is what makes this process the owner.
    """
    return open_store(settings, None) if settings.is_embedded else cast(VectorStore, _LateStore(settings))


class _LateStore:
    """Opens the store at the first call, and again after one that could not: what that raises goes to who called."""

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._store: VectorStore | None = None

    def __getattr__(self, name: str) -> Any:
        if self._store is None:
            self._store = open_store(self._settings, None)
        return getattr(self._store, name)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
