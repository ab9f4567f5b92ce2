"""Owns the clients of Qdrant servers: made of settings, and made again in another process."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..ipc.errors import StoreUnavailable
from ..ipc.settings import Secret, StoreSettings
from .qdrant import QdrantStore


def load_client() -> None:
    """Import qdrant-client if it is installed: a second of CPU and 60 MB, for all who are forked from here."""
    with suppress(ImportError):
        import qdrant_client  # noqa: F401


def connect(settings: StoreSettings) -> QdrantStore:
    """Return a store over a new client of the configured server. Connects at the first call."""
    try:
        from qdrant_client import QdrantClient
    except ImportError as error:
        raise StoreUnavailable(
            f"a Qdrant server needs qdrant-client ({error}): pip install 'morgan-background[qdrant]'"
        ) from error
    options: dict[str, Any] = {
        "url": settings.url,
        "timeout": max(int(settings.timeout_s), 1),
        "check_compatibility": False,
    }
    if settings.api_key:
        options["api_key"] = settings.api_key.reveal()
    return QdrantStore(QdrantClient(**options | settings.client_options), where=settings.url, is_own=True)


def is_rebuildable(client: Any) -> bool:
    """Say whether a client can be made again in another process: it names a server, not a folder or its own memory."""
    options = getattr(client, "init_options", None)
    return isinstance(options, Mapping) and bool(options.get("url") or options.get("host"))


def settings_of(client: Any) -> StoreSettings:
    """Return what is needed to make a rebuildable client again. Its API key is kept as a Secret."""
    options = dict(client.init_options)
    url = options.pop("url", None)
    if not url:
        scheme = "https" if options.get("https") else "http"
        url = f"{scheme}://{options['host']}:{options.get('port') or 6333}"
        options.pop("port", None)
    return StoreSettings(
        url=str(url),
        api_key=Secret(options.get("api_key") or ""),
        timeout_s=float(options.get("timeout") or 30.0),
        # both say where the server is, beside the url
        client_options={key: options[key] for key in ("port", "prefix") if options.get(key) is not None},
    )
