"""Owns the way to a real server: hands each call on as it is, the API key included, and its answer back."""

from __future__ import annotations

import http.client
from urllib.parse import urlsplit

from .front import Answer, Call

TIMEOUT_S = 60.0
KEPT = ("api-key", "authorization", "content-type")  # headers that are handed on


class Forwarder:
    """What answers calls from the server at `url`. A connection for each call: a fault must not spoil the next one."""

    def __init__(self, url: str) -> None:
        split = urlsplit(url)
        if split.scheme not in ("http", "https") or not split.hostname:
            raise ValueError(f"the url of a Qdrant server is http://HOST:PORT or https://..., not {url!r}")
        self._is_https, self._host = split.scheme == "https", split.hostname
        self._port = split.port or 6333  # as qdrant-client does
        self._prefix = split.path.rstrip("/")

    def answer(self, call: Call) -> Answer:
        kind = http.client.HTTPSConnection if self._is_https else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=TIMEOUT_S)
        try:
            headers = {name: value for name, value in call.headers.items() if name in KEPT}
            connection.request(call.method, self._prefix + call.target, call.body or None, headers)
            answer = connection.getresponse()
            return Answer(answer.status, answer.read(), answer.headers.get("Content-Type", "application/json"))
        except (OSError, http.client.HTTPException) as error:
            return Answer(502, f"the server does not answer: {error}".encode(), "text/plain")
        finally:
            connection.close()
