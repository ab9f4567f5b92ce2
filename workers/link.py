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

BEAT_S = 1.0  # a hang is judged in tens of seconds; a beat costs some 80 us of CPU
IDLE_BEAT_S = 5.0  # of a worker that waits for a command: twice within what counts as silence

REPORTS = 64  # ends of tiny tasks in one message: about half a millisecond of them

ORPHANED = 3  # exit status of a worker whose supervisor died


class Link:
    """Use from the main thread. `poller` may be given further sockets to wait for."""

    def __init__(self, socket: Path, role: Role, index: int) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.identity = f"{index}.{os.getpid()}".encode()
        # the first workers are there before the supervisor has bound its socket, some milliseconds
        self._socket = connect_dealer(self._context, socket, identity=self.identity, retry_ms=(2, 2))
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
        self.pulse = Pulse()
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
            self.pulse.rest()
            self.poller.poll(None if timeout_s is None else int(timeout_s * 1000) + 1)
            self.pulse.rouse()
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


class Pulse:
    """How often a worker beats: seldom once it has waited for a command all through a beat, else every BEAT_S."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # readable: beat now
        self._is_waiting = self._is_slow = False
        self._waits = self._seen = 0

    def rest(self) -> None:
        """The main thread is about to wait."""
        self._is_waiting = True

    def rouse(self) -> None:
        """It has something to do. That costs a system call after a long wait alone."""
        self._is_waiting = False
        self._waits += 1
        if self._is_slow:
            self._is_slow = False
            os.eventfd_write(self.fd, 1)

    def next_s(self) -> float:
        """Return for how long the watch thread may sleep now."""
        is_idle = self._is_waiting and self._waits == self._seen
        self._seen, self._is_slow = self._waits, is_idle
        return IDLE_BEAT_S if is_idle else BEAT_S


def watch_over(supervisor_fd: int, board: Board, row: int, pulse: Pulse) -> None:
    """Beat on `board` and end this process at once when the process behind `supervisor_fd` ends.

    A thread blocked on the pidfd, besides PDEATHSIG (process.py): that one fires for a stopped process too, but is
    cleared by setuid and needs the supervisor to be the parent. Killing a worker at any instant is safe, so nothing is
    tidied up.
    """

    def watch() -> None:
        waiting = select.poll()
        waiting.register(supervisor_fd, select.POLLIN)
        waiting.register(pulse.fd, select.POLLIN)
        ready: list[tuple[int, int]] = []
        while all(fd == pulse.fd for fd, _ in ready):
            if ready:
                os.eventfd_read(pulse.fd)
            board.beat(row, time.monotonic_ns(), time.process_time_ns())
            ready = waiting.poll(pulse.next_s() * 1000)
        os._exit(ORPHANED)

    threading.Thread(target=watch, name="watch-over", daemon=True).start()
