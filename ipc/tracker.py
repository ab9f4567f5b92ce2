"""Owns what an application tells without waiting: searches and results. Bounded; dropped and counted rather than waited for."""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path

import zmq

from . import wire
from .messages import Publish, Track
from .sockets import connect_dealer

MAX_UNSENT = 1000  # reports held while no supervisor reads; about 200 KB of searches


class Tracker:
    """One a process, for all its threads; a forked child opens its own socket.

    `dropped` counts the reports that had no room, or were larger than a request may be.
    """

    def __init__(self, socket: Path) -> None:
        self._path, self.dropped = socket, 0
        self._lock = threading.Lock()  # a ZeroMQ socket is not for two threads at once
        _trackers.add(self)
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._pid = 0

    def post(self, message: Track | Publish) -> None:
        """Send a message that wants no reply. Never blocks and never raises for want of a supervisor."""
        frame = wire.encode(message)
        with self._lock:
            if self._pid != os.getpid():
                self._open()
            try:
                if len(frame) > wire.MAX_CLIENT_BYTES:
                    raise zmq.Again
                self._socket.send(frame, zmq.NOBLOCK)
            except zmq.Again:
                self.dropped += 1

    def _open(self) -> None:
        self._context = zmq.Context()  # a parent's context must not be used in a child: libzmq's threads are not there
        self._socket = connect_dealer(self._context, self._path, high_water=MAX_UNSENT)
        self._pid = os.getpid()
        # of one that nobody closes; not at exit, when other threads may still be reporting
        self._end = weakref.finalize(self, _let_go, self._context, self._pid)
        self._end.atexit = False

    def close(self) -> None:
        with self._lock:
            if self._context is not None:
                self._end()
            self._context, self._pid = None, 0


def _let_go(context: zmq.Context[zmq.Socket[bytes]], pid: int) -> None:
    if pid == os.getpid():
        context.destroy(linger=200)  # ms: the last reports


_trackers: weakref.WeakSet[Tracker] = weakref.WeakSet()


def _in_child() -> None:
    for tracker in list(_trackers):
        tracker._lock = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_in_child)
