"""Owns how tests reach a Qdrant server, the fake one or the real one that QDRANT_URL names, and points for its tests."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

QDRANT_URL = os.environ.get("QDRANT_URL", "")
QDRANT_API_KEY = os.environ.get("QDRANT_API_KEY", "")

SIZE = 4  # of the vectors of `point`
MISSING = f"fake_test_{uuid.uuid4().hex[:12]}"  # a collection that is not there


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


def point(number: int, text: str, first: float = 1.0) -> models.PointStruct:
    return models.PointStruct(id=number, vector=[first, *[0.0] * (SIZE - 1)], payload={"text": text})


def held(qdrant: QdrantClient, name: str) -> dict[Any, tuple[str, float]]:
    """Return text and first number of the vector of each point."""
    records, _ = qdrant.scroll(name, limit=100, with_payload=True, with_vectors=True)
    return {one.id: ((one.payload or {})["text"], one.vector[0] if one.vector else 0.0) for one in records}  # type: ignore


def refused(call: Callable[[], Any]) -> int | None:
    """Return the status with which a call is refused; local mode has none."""
    with pytest.raises((UnexpectedResponse, ValueError, KeyError)) as caught:
        call()
    return getattr(caught.value, "status_code", None)
