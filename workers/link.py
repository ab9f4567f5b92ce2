"""Owns a worker's line to the supervisor: commands in, events out, SIGTERM as a command, and the supervisor's death."""

from __future__ import annotations

import os
import select
import signal
import socket as sockets_of_os
import threading
import time
from collections import deque
from pathlib import Path

import zmq

from ..ipc import wire
from ..ipc.board import Board
from ..ipc.commands import Command, Drain, Event, Ready, Role
from ..ipc.sockets import connect_dealer

BEAT_S = 0.5  # a hang is judged in seconds; two beats a second cost nothing

ORPHANED = 3  # exit status of a worker whose supervisor died


class Link:
    """Use from the main thread. `poller` may be given further sockets to wait for."""

    def __init__(self, socket: Path, role: Role, index: int) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.identity = f"{index}.{os.getpid()}".encode()
        self._socket = connect_dealer(self._context, socket, identity=self.identity)
        self._wake, writer = sockets_of_os.socketpair()
        self._wake.setblocking(False)
        writer.setblocking(False)
        self._writer = writer
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor drains us
        self.poller = zmq.Poller()
        self.poller.register(self._socket, zmq.POLLIN)
        self.poller.register(self._wake, zmq.POLLIN)
        self._inbox: deque[Command] = deque()
        self.send(Ready(role=role, index=index, pid=os.getpid()))

    @property
    def context(self) -> zmq.Context[zmq.Socket[bytes]]:
        return self._context

    def send(self, event: Event) -> None:
        self._socket.send(wire.encode(event))

    def wait(self, timeout_s: float | None) -> Command | None:
        """Return the next command, None after `timeout_s` or when another registered socket is readable."""
        if not self._inbox:
            self.poller.poll(None if timeout_s is None else int(timeout_s * 1000) + 1)
            self._take()
        return self._inbox.popleft() if self._inbox else None

    def peek(self) -> Command | None:
        """Return the next command that is there already, and leave it there."""
        self._take()
        return self._inbox[0] if self._inbox else None

    def nap(self, timeout_s: float) -> None:
        """Wait, at most until a command arrives."""
        if not self._inbox:
            self.poller.poll(int(timeout_s * 1000) + 1)

    def _take(self) -> None:
        try:
            self._wake.recv(4096)
            self._inbox.append(Drain())  # SIGTERM says the same
        except BlockingIOError:
            pass  # no signal came: the usual case
        while True:
            try:
                self._inbox.append(wire.commands.decode(self._socket.recv(zmq.NOBLOCK)))
            except zmq.Again:
                return

    def close(self) -> None:
        self._context.destroy(linger=1000)
        self._wake.close()
        self._writer.close()


def watch_over(parent: int, board: Board, row: int) -> None:
    """Beat on `board` and end this process at once when the process `parent` ends.

    A thread blocked on the parent's pidfd: PDEATHSIG fires when the spawning thread ends and is cleared by setuid.
    Killing a worker at any instant is safe, so nothing is tidied up.
    """
    pidfd = os.pidfd_open(parent)
    if os.getppid() != parent:  # it died before the pidfd was open
        os._exit(ORPHANED)

    def watch() -> None:
        waiting = select.poll()
        waiting.register(pidfd, select.POLLIN)
        while not waiting.poll(BEAT_S * 1000):
            board.beat(row, time.monotonic_ns(), time.process_time_ns())
        os._exit(ORPHANED)

    threading.Thread(target=watch, name="watch-over", daemon=True).start()
