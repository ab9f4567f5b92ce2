"""Owns one request and its reply over a DEALER: one deadline, and a late reply is never taken for another's.

Threads do not wait for one another: each request in flight has a connection of its own, which is kept for the next.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import zmq

from . import wire
from .errors import ServiceUnavailable, from_wire
from .messages import Failure, Message
from .sockets import connect_dealer

R = TypeVar("R", bound=Message)

REFUSED_PERIOD_MS = 200  # between looks whether the service refused us: libzmq tells nobody who waits for a reply

Context = zmq.Context[zmq.Socket[bytes]]


@dataclass(slots=True)
class _Connections:
    """What one process has open, until it is closed."""

    context: Context
    idle: list[zmq.Socket[bytes]] = field(default_factory=list)
    in_use: int = 0


class Exchange(Generic[R]):
    """Asks the ROUTER at `path`. Use from any thread; a forked child opens connections of its own.

    A request that got no answer is not sent again, and not delivered later where it was not delivered yet: its
    connection is closed. Whether it was obeyed is not known then.
    """

    def __init__(self, path: Path, codec: wire.Codec[R], timeout_s: float) -> None:
        self._path, self._codec, self._timeout_s = path, codec, timeout_s
        self._rids = itertools.count(1)
        self._reset()
        _exchanges.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._connections: _Connections | None = None

    def ask(self, message: Message, timeout_s: float | None = None) -> R:
        """Return the reply to `message`. Raises ServiceUnavailable after the deadline, and what a Failure stands for."""
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        deadline_at = time.monotonic() + timeout_s
        rid = next(self._rids)
        frame = wire.encode(msgspec.structs.replace(message, rid=rid))
        connections, socket = self._take()
        reply = None
        try:
            reply = self._reply(socket, frame, rid, deadline_at)
        finally:
            # also when interrupted: what was asked on this connection is of no use to the next request
            self._give_back(connections, socket, is_clean=reply is not None)
        if reply is None:
            raise ServiceUnavailable(
                f"no service answered on {self._path} within {timeout_s:g} s: `morgan-background serve` starts one,"
                " `morgan-background doctor` says what is wrong"
            )
        found = self._codec.decode(reply)
        if isinstance(found, Failure):
            raise from_wire(found.code, found.message)
        return found

    def _reply(self, socket: zmq.Socket[bytes], frame: bytes, rid: int, deadline_at: float) -> bytes | None:
        """Return the frame of the reply to `rid`, None after the deadline. Raises ServiceUnavailable where refused."""
        self._demand_let_in(socket)
        socket.send(frame, zmq.NOBLOCK)  # into the connection's own memory: it never has to wait
        while (left_s := deadline_at - time.monotonic()) > 0:
            if not socket.poll(min(int(left_s * 1000) + 1, REFUSED_PERIOD_MS)):
                self._demand_let_in(socket)
            else:
                reply = socket.recv()
                if wire.rid_of(reply) in (rid, 0):  # 0: the other side could not read whose request it was
                    return reply
        return None

    def _demand_let_in(self, socket: zmq.Socket[bytes]) -> None:
        # There is room for one request at any time, also while no service is there; a refusal alone takes it away.
        if not socket.poll(0, zmq.POLLOUT):
            raise ServiceUnavailable(
                f"the service on {self._path} refused user {os.getuid()}: its administrator lets you in with"
                " `allowed_users` under [service]"
            )

    def _take(self) -> tuple[_Connections, zmq.Socket[bytes]]:
        with self._lock:
            if self._connections is None:
                self._connections = _Connections(zmq.Context())
                # of one that nobody closes; not at exit, when other threads may still be in a request
                self._end = weakref.finalize(self, _let_go, self._connections, os.getpid())
                self._end.atexit = False
            held = self._connections
            held.in_use += 1
            return held, held.idle.pop() if held.idle else connect_dealer(held.context, self._path)

    def _give_back(self, held: _Connections, socket: zmq.Socket[bytes], *, is_clean: bool) -> None:
        with self._lock:
            held.in_use -= 1
            is_over = held is not self._connections
            if is_clean and not is_over:
                held.idle.append(socket)
                return
            is_last = is_over and not held.in_use
        socket.close(linger=0)
        if is_last:
            held.context.term()

    def close(self) -> None:
        """Close the connections; those of requests in flight are closed when they end. May be used again afterwards."""
        with self._lock:
            held, self._connections = self._connections, None
            is_last = held is not None and not held.in_use
        if held is None:
            return
        self._end.detach()
        for socket in held.idle:
            socket.close(linger=0)
        if is_last:
            held.context.term()


def _let_go(held: _Connections, pid: int) -> None:
    if pid == os.getpid():
        held.context.destroy(linger=0)


_exchanges: weakref.WeakSet[Exchange[Any]] = weakref.WeakSet()


def _in_child() -> None:
    for exchange in list(_exchanges):
        exchange._reset()  # a parent's context must not be used in a child: libzmq's threads are not there


os.register_at_fork(after_in_child=_in_child)
