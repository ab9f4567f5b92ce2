"""Owns HTTP on loopback, and what a fault does to a call. Who answers, an engine or a forwarder, is given to it.

    read the call ─▶ which fault? ─▶ (hold) ─▶ have it answered ─▶ (hold) ─▶ send, send half, or cut the connection

Calls below /faults are ours: POST adds faults, POST /faults/release lets held calls go on and returns when they are through,
GET tells the calls there were, DELETE forgets faults and calls.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from .faults import IS_DONE, Fault, Kind, fault_of, take

LONGEST_HOLD_S = 60.0  # of a call that nobody releases
RELEASED_S = 10.0  # that released calls may take


@dataclass(frozen=True, slots=True)
class Call:
    """`path` is decoded and without its query, `target` as it came; names of headers are in small letters."""

    method: str
    target: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    kind: str = "application/json"


class Desk:
    """The faults to come, the calls there were, and those that are held. One for all doors."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._faults: list[Fault] = []
        self._calls: list[dict[str, Any]] = []
        self._held = 0
        self._released = threading.Event()

    def struck(self, call: Call) -> Fault | None:
        """Take a call down, and return the fault that strikes it."""
        with self._lock:
            fault, self._faults = take(self._faults, call.method, call.path, call.body.decode(errors="replace"))
            told = {"method": call.method, "path": call.path, "fault": None if fault is None else fault.kind.value}
            self._calls.append(told)
            return fault

    def hold(self, fault: Fault) -> None:
        with self._lock:
            self._held += 1
            released = self._released
        released.wait(LONGEST_HOLD_S if fault.hold_s is None else fault.hold_s)

    def let_go(self) -> None:
        """Take down that a call that was held is through."""
        with self._lock:
            self._held -= 1
            self._lock.notify_all()

    def control(self, call: Call) -> Answer:
        match call.method, call.path:
            case "POST", "/faults":
                try:
                    fresh = [fault_of(one) for one in json.loads(call.body)]
                except (KeyError, TypeError, ValueError) as error:
                    return Answer(400, f"no faults: {error}".encode(), "text/plain")
                with self._lock:
                    self._faults += fresh
            case "POST", "/faults/release":
                if not self._release():
                    return Answer(500, b"held calls do not end", "text/plain")
            case "DELETE", "/faults":
                self._release()
                with self._lock:
                    self._faults, self._calls = [], []
            case "GET", "/faults":
                with self._lock:
                    told = {"calls": self._calls, "faults": [one.plain() for one in self._faults]}
                    return Answer(200, json.dumps(told).encode())
            case _:
                return Answer(404, b"no such call", "text/plain")
        return Answer(200, b"{}")

    def _release(self) -> bool:
        with self._lock:
            self._released.set()
            self._released = threading.Event()
            return self._lock.wait_for(lambda: not self._held, RELEASED_S)


class Front(ThreadingHTTPServer):
    """One door, on a port that the system chooses. `desk`: None where no fault is to strike here."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer: Callable[[Call], Answer], desk: Desk | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.desk = answer, desk
        self.port = int(self.server_address[1])
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing where a client has left."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Front

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        call = Call(self.command, self.path, unquote(urlsplit(self.path).path), headers, body)
        desk = self.server.desk
        if desk is None:
            self._send(self.server.answer(call))
        elif call.path.startswith("/faults"):
            self._send(desk.control(call))
        elif (fault := desk.struck(call)) is None:
            self._send(self.server.answer(call))
        else:
            self._harm(call, fault, desk)

    def _harm(self, call: Call, fault: Fault, desk: Desk) -> None:
        """Do to a call what the fault says."""
        answer = Answer(fault.status, json.dumps({"status": {"error": "a fault that was asked for"}}).encode())
        if fault.kind is Kind.LATE:
            desk.hold(fault)
        try:
            if fault.kind in IS_DONE:
                done = self.server.answer(call)
                answer = answer if fault.kind is Kind.FAILED else done
        finally:
            if fault.kind is Kind.LATE:
                desk.let_go()
        if fault.kind is Kind.SLOW:
            desk.hold(fault)
            desk.let_go()
        if fault.kind in (Kind.CUT, Kind.LOST):
            self.close_connection = True
        else:
            self._send(answer, is_torn=fault.kind is Kind.TORN)

    def _send(self, answer: Answer, *, is_torn: bool = False) -> None:
        lines = [
            f"HTTP/1.1 {answer.status} {self.responses.get(answer.status, ('', ''))[0]}",
            f"Content-Type: {answer.kind}",
            f"Content-Length: {len(answer.body)}",
        ]
        whole = "\r\n".join([*lines, "", ""]).encode() + answer.body  # in one piece: two wait for each other's receipt
        if is_torn:
            self.close_connection = True
            whole = whole[: len(whole) - (len(answer.body) + 1) // 2]
        self.wfile.write(whole)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _serve

    def log_message(self, format: str, *args: Any) -> None:
        pass
