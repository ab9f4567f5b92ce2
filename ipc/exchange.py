"""Owns one request and its reply over a DEALER: one deadline, and a late reply is never taken for another's."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
import zmq

from . import wire
from .errors import ServiceUnavailable, from_wire
from .messages import Failure, Message
from .sockets import connect_dealer

R = TypeVar("R", bound=Message)


class Exchange(Generic[R]):
    """Asks the ROUTER at `path`. Threads take turns; a forked child opens a socket of its own."""

    def __init__(self, path: Path, codec: wire.Codec[R], timeout_s: float) -> None:
        self._path, self._codec, self._timeout_s = path, codec, timeout_s
        self._lock = threading.Lock()
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._pid = 0
        self._rid = 0

    def ask(self, message: Message, timeout_s: float | None = None) -> R:
        """Return the reply to `message`. Raises ServiceUnavailable after the deadline, and what a Failure stands for."""
        with self._lock:
            reply = self._ask(message, self._timeout_s if timeout_s is None else timeout_s)
        if isinstance(reply, Failure):
            raise from_wire(reply.code, reply.message)
        return reply

    def _ask(self, message: Message, timeout_s: float) -> R:
        if self._context is None or self._pid != os.getpid():
            self._open()
        self._rid += 1
        deadline_at = time.monotonic() + timeout_s
        try:
            self._socket.send(wire.encode(msgspec.structs.replace(message, rid=self._rid)), zmq.NOBLOCK)
            while (left_s := deadline_at - time.monotonic()) > 0:
                if self._socket.poll(int(left_s * 1000) + 1):
                    reply = self._codec.decode(self._socket.recv())
                    if reply.rid == self._rid:
                        return reply
        except zmq.Again:
            pass  # nobody took the last thousand requests: nobody is there
        raise ServiceUnavailable(
            f"no service answered on {self._path} within {timeout_s:.0f} s: `morgan-background serve` starts one,"
            " `morgan-background doctor` says what is wrong"
        )

    def _open(self) -> None:
        if self._context is None or self._pid != os.getpid():
            self._context = zmq.Context()  # a parent's context must not be used in a forked child
        self._pid = os.getpid()
        self._socket = connect_dealer(self._context, self._path)

    def close(self) -> None:
        with self._lock:
            if self._context is not None and self._pid == os.getpid():
                self._context.destroy(linger=0)
            self._context = None
