"""Owns which implementation of VectorStore the settings ask for."""

from __future__ import annotations

from pathlib import Path

from ..ipc.settings import StoreSettings
from .vectors import VectorStore


def open_store(settings: StoreSettings, owner_socket: str | None) -> VectorStore:
    """Return the configured server, the embedded store through its owner, or (no socket) the embedded store itself."""
    if not settings.is_embedded:
        from .qdrant import connect

        return connect(settings)
    if owner_socket is not None:
        from .remote import RemoteStore

        return RemoteStore(Path(owner_socket), settings.timeout_s)
    from .edge import EdgeStore

    return EdgeStore(Path(settings.path))
