"""Owns the daemon's loop: one wait, then collect, decide, commit, send.

         ┌──────────────── poll: client socket, worker socket, signal fd, pidfds, deadline ◀─┐
collect ─┤ signals, workers' events, deaths, clients' requests                               │
decide   └▶ core.on_event, requests.handle, core.tick ─▶ journal.commit ─▶ replies, commands ┘
"""

from __future__ import annotations

import logging
import signal
import socket as sockets_of_os
import time

import zmq

from ..ipc import wire
from ..ipc.board import Board
from ..ipc.commands import Configure, Drain, Event, Ready, Role
from ..ipc.errors import ProtocolError
from ..ipc.messages import Failure, Reply
from ..ipc.paths import RuntimePaths
from ..ipc.sockets import CLIENT_HIGH_WATER, HIGH_WATER, bind_router
from .core import Core
from .pool import Pool, Process
from .requests import Requests
from .state import Action, SendCommand, SendReply

log = logging.getLogger(__name__)

MAX_WORKER_BYTES = 64 * 1024 * 1024  # a step of precomputed results is the largest message
MAX_TURN = 64  # requests taken in one turn: workers' events are never more than this far behind
MAX_WAIT_S = 5.0


class WakeUp:
    """Turns signals into a readable descriptor; handlers do nothing."""

    def __init__(self) -> None:
        self.reader, self._writer = sockets_of_os.socketpair()
        self.reader.setblocking(False)
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, lambda *_: None)

    def taken(self) -> set[int]:
        """Return the signals that came since the last call."""
        try:
            return set(self.reader.recv(4096))
        except BlockingIOError:
            return set()


class Supervisor:
    """Joins core, pool and sockets. `run` returns when a signal or a Shutdown request has been obeyed."""

    def __init__(
        self,
        core: Core,
        requests: Requests,
        runtime: RuntimePaths,
        pool: Pool,
        poller: zmq.Poller,
        grace_s: float,
    ) -> None:
        self._core, self._requests, self._runtime, self._grace_s = core, requests, runtime, grace_s
        self._pool, self._poller = pool, poller
        self._wake_up = WakeUp()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._clients = bind_router(
            self._context, runtime.clients, max_bytes=wire.MAX_CLIENT_BYTES, high_water=CLIENT_HIGH_WATER
        )
        self._workers = bind_router(self._context, runtime.workers, max_bytes=MAX_WORKER_BYTES, high_water=HIGH_WATER)
        for readable in (self._clients, self._workers, self._wake_up.reader):
            self._poller.register(readable, zmq.POLLIN)
        self._board = Board.create(runtime.board, self._pool.rows)
        self._drain_until: float | None = None

    def run(self) -> None:
        """Serve until told to stop. Journal and result store are left consistent whatever ends it."""
        try:
            while not self._is_done(time.time()):
                ready = dict(self._poller.poll(self._timeout_ms(time.time())))
                now = time.time()
                replies = self._collect(ready, now)
                actions = self._core.tick(now)
                self._pool_turn(now)
                self._core.journal.commit()
                self._send(replies, actions)
        finally:
            self._close()

    # --- collect ------------------------------------------------------------------------------------------------------

    def _timeout_ms(self, now: float) -> int:
        deadlines = [self._core.next_deadline(now), now + MAX_WAIT_S]
        if (start_at := self._pool.next_start()) is not None and self._drain_until is None:
            deadlines.append(start_at)
        if self._drain_until is not None:
            deadlines.append(self._drain_until)
        # rounded up: a wait that ends 0.4 ms early would spin through turns with nothing to do
        return max(int((min(deadlines) - now) * 1000) + 1, 0)

    def _collect(self, ready: dict[object, int], now: float) -> list[SendReply]:
        if self._wake_up.reader.fileno() in ready or self._wake_up.reader in ready:
            taken = self._wake_up.taken()
            if taken & {signal.SIGTERM, signal.SIGINT}:
                self._start_drain(now)
            if signal.SIGHUP in taken:
                log.info("SIGHUP: the configuration is read at start only; restart to apply a change")
        while (frames := _receive(self._workers)) is not None:
            self._on_worker(frames, now)
        for pidfd in self._pool.pidfds() & ready.keys():
            if (process := self._pool.reap(pidfd, now)) is not None:
                self._core.worker_left(process.index, now)
        replies: list[SendReply] = []
        for _ in range(MAX_TURN):
            frames = _receive(self._clients)
            if frames is None:
                break
            if (reply := self._on_client(frames, now)) is not None:
                replies.append(SendReply(frames[0], reply))
        return replies

    def _on_client(self, frames: list[bytes], now: float) -> Reply | None:
        if len(frames) != 2:
            message = f"a request is one frame, not {len(frames) - 1}; docs/protocol.md"
            return Failure(rid=wire.rid_of(frames[-1]), code=ProtocolError.code, message=message)
        try:
            request = wire.requests.decode(frames[1])
        except ProtocolError as error:
            return Failure(rid=wire.rid_of(frames[1]), code=error.code, message=str(error))
        reply = self._requests.handle(request, frames[0], now)
        if self._requests.is_shutdown_asked:
            self._start_drain(now)
        return reply

    def _on_worker(self, frames: list[bytes], now: float) -> None:
        process = self._pool.by_identity(frames[0])
        if process is None:
            return  # its process ended: whatever it reports is of a lease that was taken back
        event: Event = wire.events.decode(frames[-1])
        if isinstance(event, Ready):
            self._configure(process)
        self._core.on_event(process.index, event, now)

    def _configure(self, process: Process) -> None:
        self._board.clear(process.index)
        self._core.worker_joined(
            process.index,
            process.role,
            process.popen.pid,
            Configure(
                settings=self._core.settings.worker,
                board_path=str(self._runtime.board),
                owner_socket=str(self._runtime.owner),
                results_path=str(self._runtime.results),
                board_row=process.index,
            ),
        )

    # --- act ----------------------------------------------------------------------------------------------------------

    def _pool_turn(self, now: float) -> None:
        if self._drain_until is None:
            self._pool.start_due(now)
        for index in self._core.workers:
            self._board.set_duty(index, self._core.duty_permille(index))
        degraded = self._pool.degraded()
        if degraded:
            names = ", ".join(map(str, degraded))
            self._core.problems["workers"] = f"worker {names} keeps dying at start; see the service's log"
        else:
            self._core.problems.pop("workers", None)

    def _send(self, replies: list[SendReply], actions: list[Action]) -> None:
        for action in [*replies, *actions]:
            match action:
                case SendReply():
                    frames = [action.reply_to, wire.encode(action.reply)]
                    _send_if_there(self._clients, frames)
                case SendCommand():
                    # a command for a worker that just died is dropped: its death requeues the task
                    if (process := self._pool.processes.get(action.worker)) is not None:
                        _send_if_there(self._workers, [process.identity, wire.encode(action.command)])

    def _start_drain(self, now: float) -> None:
        if self._drain_until is not None:
            return
        log.info("draining: running tasks leave at their next step, within %.0f s", self._grace_s)
        self._drain_until = now + self._grace_s
        self._core.is_draining = True
        for process in self._pool.processes.values():
            if process.role is Role.TASKS:
                _send_if_there(self._workers, [process.identity, wire.encode(Drain())])

    def _is_done(self, now: float) -> bool:
        if self._drain_until is None:
            return False
        tasks_left = any(process.role is Role.TASKS for process in self._pool.processes.values())
        return not tasks_left or now >= self._drain_until

    def _close(self) -> None:
        now = time.time()
        self._pool.signal_all(signal.SIGTERM)
        for pidfd in sorted(self._pool.pidfds()):
            waiting = zmq.Poller()
            waiting.register(pidfd, zmq.POLLIN)
            if not waiting.poll(2000):  # the owner closes its store on SIGTERM; its log survives a SIGKILL as well
                self._pool.signal_all(signal.SIGKILL)
            if (process := self._pool.reap(pidfd, now)) is not None:
                self._core.worker_left(process.index, now)
        self._core.save(now, is_last=True)
        self._core.journal.commit()
        self._send([], self._core.tick(now))
        self._context.destroy(linger=500)
        self._board.close()
        for path in (self._runtime.clients, self._runtime.workers, self._runtime.owner, self._runtime.board):
            path.unlink(missing_ok=True)


def _receive(socket: zmq.Socket[bytes]) -> list[bytes] | None:
    try:
        return socket.recv_multipart(zmq.NOBLOCK)
    except zmq.Again:
        return None


def _send_if_there(socket: zmq.Socket[bytes], frames: list[object]) -> None:
    """Send, or drop the message where its receiver has left or has stopped reading."""
    try:
        socket.send_multipart(frames, zmq.NOBLOCK)  # type: ignore[arg-type]
    except (zmq.Again, zmq.ZMQError) as error:
        if isinstance(error, zmq.Again) or error.errno == zmq.EHOSTUNREACH:
            log.info("a message was dropped: its receiver left or does not read")
        else:
            raise
