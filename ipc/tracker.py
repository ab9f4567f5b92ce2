"""Owns the reports of searches from an application: fire and forget, bounded, dropped and counted rather than waited for."""

from __future__ import annotations

import os
from pathlib import Path

import zmq

from . import wire
from .messages import Track
from .sockets import connect_dealer

MAX_UNSENT = 1000  # reports held while no supervisor reads; about 200 KB


class Tracker:
    """One a process; a forked child opens its own socket. `dropped` counts reports that had no room."""

    def __init__(self, socket: Path) -> None:
        self._path, self.dropped = socket, 0
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._pid = 0

    def track(self, query: str, collection: str, response_s: float, scope: str = "") -> None:
        """Report one search. Never blocks and never raises for want of a supervisor."""
        if self._pid != os.getpid():
            self._open()
        try:
            message = Track(query=query, collection=collection, response_s=response_s, scope=scope)
            self._socket.send(wire.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            self.dropped += 1

    def _open(self) -> None:
        self._context = zmq.Context()  # a parent's context must not be used in a child: libzmq's threads are not there
        self._socket = connect_dealer(self._context, self._path)
        self._socket.setsockopt(zmq.SNDHWM, MAX_UNSENT)
        self._pid = os.getpid()

    def close(self) -> None:
        if self._context is not None and self._pid == os.getpid():
            self._context.destroy(linger=200)
        self._context, self._pid = None, 0
