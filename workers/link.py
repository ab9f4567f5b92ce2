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
from ..ipc.commands import Command, Drain, Event, Finished, Ready, Role
from ..ipc.sockets import connect_dealer

BEAT_S = 1.0  # a hang is judged in tens of seconds; a beat costs some 50 us of CPU

REPORTS = 64  # ends of tiny tasks in one message: about half a millisecond of them

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
        self._outbox: list[Event] = []
        self.send(Ready(role=role, index=index, pid=os.getpid()))

    @property
    def context(self) -> zmq.Context[zmq.Socket[bytes]]:
        return self._context

    def send(self, event: Event) -> None:
        """Report. The end of a task is sent together with the next where that one is here already: at most 16."""
        self._outbox.append(event)
        if not self._inbox or not isinstance(event, Finished) or len(self._outbox) >= REPORTS:
            self._socket.send(wire.encode_all(self._outbox))
            self._outbox.clear()

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
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._inbox.extend(wire.commands.decode_all(frame))

    def close(self) -> None:
        self._context.destroy(linger=1000)
        self._wake.close()
        self._writer.close()


def watch_over(supervisor_fd: int, board: Board, row: int) -> None:
    """Beat on `board` and end this process at once when the process behind `supervisor_fd` ends.

    A thread blocked on the pidfd, besides PDEATHSIG (process.py): that one fires for a stopped process too, but is
    cleared by setuid and needs the supervisor to be the parent. Killing a worker at any instant is safe, so nothing is
    tidied up.
    """

    def watch() -> None:
        waiting = select.poll()
        waiting.register(supervisor_fd, select.POLLIN)
        board.beat(row, time.monotonic_ns(), time.process_time_ns())
        while not waiting.poll(BEAT_S * 1000):
            board.beat(row, time.monotonic_ns(), time.process_time_ns())
        os._exit(ORPHANED)

    threading.Thread(target=watch, name="watch-over", daemon=True).start()
