"""A fake front for the chaos soak: as much of Qdrant's REST protocol as we use, in front of qdrant-client's own engine.

Run as a process; prints its port and serves until its stdin is closed. No Qdrant server: its engine is local mode's.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydantic import TypeAdapter
from qdrant_client import QdrantClient, models

engine = QdrantClient(":memory:")
one_at_a_time = threading.Lock()
Answer = Callable[[str, Any], Any]


def _create(name: str, body: Any) -> Any:
    made = models.CreateCollection.model_validate(body)
    return engine.create_collection(name, vectors_config=made.vectors)


def _upsert(name: str, body: Any) -> Any:
    return engine.upsert(name, points=models.PointsList.model_validate(body).points)


def _scroll(name: str, body: Any) -> Any:
    asked = models.ScrollRequest.model_validate(body)
    points, following = engine.scroll(
        name,
        limit=asked.limit or 10,
        offset=asked.offset,
        with_payload=asked.with_payload or False,
        with_vectors=asked.with_vector or False,
    )
    return {"points": points, "next_page_offset": following}


def _retrieve(name: str, body: Any) -> Any:
    asked = models.PointRequest.model_validate(body)
    return engine.retrieve(
        name, asked.ids, with_payload=asked.with_payload or False, with_vectors=asked.with_vector or False
    )


def _update_vectors(name: str, body: Any) -> Any:
    return engine.update_vectors(name, models.UpdateVectors.model_validate(body).points)


def _batch(name: str, body: Any) -> Any:
    operations = TypeAdapter(list[models.UpdateOperation]).validate_python(body["operations"])
    return engine.batch_update_points(name, operations)


ROUTES: dict[tuple[str, str], Answer] = {
    ("GET", ""): lambda name, _: engine.get_collection(name),
    ("PUT", ""): _create,
    ("GET", "/exists"): lambda name, _: {"exists": engine.collection_exists(name)},
    ("PUT", "/points"): _upsert,
    ("POST", "/points"): _retrieve,
    ("POST", "/points/scroll"): _scroll,
    ("PUT", "/points/vectors"): _update_vectors,
    ("POST", "/points/batch"): _batch,
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        with one_at_a_time:
            status, result = self._result(path, body)
        text = json.dumps({"result": result, "status": "ok", "time": 0.0}, default=_plain).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _result(self, path: str, body: Any) -> tuple[int, Any]:
        if path == "/collections":
            return 200, engine.get_collections()
        if path == "/aliases":
            return 200, engine.get_aliases()
        _, _, rest = path.partition("/collections/")
        name, slash, below = rest.partition("/")
        found = ROUTES.get((self.command, slash + below))
        if found is None:
            return 404, None
        try:
            return 200, found(name, body)
        except ValueError:
            return 404, None

    do_GET = do_PUT = do_POST = _answer

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing where a client has left: the proxy resets connections."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json", exclude_none=True) if hasattr(value, "model_dump") else str(value)


def main() -> None:
    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
