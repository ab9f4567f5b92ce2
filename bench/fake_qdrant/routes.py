"""Owns which call of Qdrant's REST API is which method of the engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from .engine import Engine
from .front import Answer, Call
from .refusal import Refusal, not_found, unknown

VERSION = "1.19.0"  # of the server that it does as


class Routes:
    """What answers calls from an engine. `api_key`: what calls must bring along; "": nothing. `version`: what it says it is."""

    def __init__(self, engine: Engine, api_key: str = "", version: str = VERSION) -> None:
        self._api_key, self._version = api_key, version
        self._whole: Mapping[tuple[str, str], Callable[[Any], Any]] = {
            ("GET", "/collections"): lambda _: engine.collections(),
            ("GET", "/aliases"): lambda _: engine.aliases(),
            ("POST", "/collections/aliases"): engine.change_aliases,
        }
        self._of_one: Mapping[tuple[str, str], Callable[[str, Any], Any]] = {
            ("GET", ""): lambda name, _: engine.info(name),
            ("PUT", ""): engine.create,
            ("PATCH", ""): engine.change,
            ("DELETE", ""): lambda name, _: engine.drop(name),
            ("GET", "/exists"): lambda name, _: engine.exists(name),
            ("PUT", "/index"): engine.create_index,
            ("PUT", "/points"): engine.upsert,
            ("POST", "/points"): engine.retrieve,
            ("POST", "/points/delete"): engine.delete,
            ("POST", "/points/scroll"): engine.scroll,
            ("POST", "/points/count"): engine.count,
            ("POST", "/points/payload"): engine.set_payload,
            ("PUT", "/points/vectors"): engine.update_vectors,
            ("POST", "/points/batch"): engine.batch,
            ("POST", "/points/query"): engine.query,
            ("POST", "/points/query/batch"): engine.query_batch,
        }

    def answer(self, call: Call) -> Answer:
        """Do what is asked for."""
        if self._api_key and self._api_key not in (call.headers.get("api-key"), _bearer(call.headers)):
            words = "Invalid API key or JWT" if "api-key" in call.headers else "Must provide an API key"
            return Answer(401, words.encode(), "text/plain")
        if call.path == "/":
            return Answer(200, json.dumps({"title": "fake qdrant", "version": self._version}).encode())
        try:
            body = json.loads(call.body) if call.body else {}
            result = self._result(call, body)
        except Refusal as refused:
            return _said(refused.status, {"error": str(refused)}, None)
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # a body that is not as it should be
            return _said(400, {"error": f"Format error in JSON body: {type(error).__name__}: {error}"}, None)
        return _said(200, "ok", result)

    def _result(self, call: Call, body: Any) -> Any:
        if (whole := self._whole.get((call.method, call.path))) is not None:
            return whole(body)
        name, slash, below = call.path.removeprefix("/collections/").partition("/")
        if not call.path.startswith("/collections/") or not name:
            raise not_found(call.path)
        found = self._of_one.get((call.method, slash + below))
        if found is None:
            raise unknown(f"the call {call.method} {call.path}")
        return found(unquote(name), body)


def _said(status: int, words: Any, result: Any) -> Answer:
    return Answer(status, json.dumps({"result": result, "status": words, "time": 0.0}).encode())


def _bearer(headers: Mapping[str, str]) -> str:
    return headers.get("authorization", "").removeprefix("Bearer ")
