"""Owns how tests reach a Qdrant server: the fake one, and the real one that QDRANT_URL names."""

from __future__ import annotations

import os
import warnings
from typing import Any

import httpx
from qdrant_client import QdrantClient

QDRANT_URL = os.environ.get("QDRANT_URL", "")
QDRANT_API_KEY = os.environ.get("QDRANT_API_KEY", "")


def client_at(url: str, *, timeout_s: float = 30.0, api_key: str = "") -> QdrantClient:
    """Return a client of the server at `url`. Connections are kept, as to a server on another machine."""
    options: dict[str, Any] = {"url": url, "check_compatibility": False, "limits": httpx.Limits()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Api key is used with an insecure connection")
        client = QdrantClient(**options, api_key=api_key or None)
    hurry(client, timeout_s)
    return client


def hurry(client: QdrantClient, timeout_s: float) -> None:
    """Give each call so long: what qdrant-client is told it rounds up to whole seconds."""
    remote: Any = client._client
    remote.openapi_client.client._client.timeout = httpx.Timeout(timeout_s)


def client_of_server(*, timeout_s: float = 30.0) -> QdrantClient:
    """Return a client of the server that QDRANT_URL names."""
    return client_at(QDRANT_URL, timeout_s=timeout_s, api_key=QDRANT_API_KEY)
