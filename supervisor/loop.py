"""Owns the daemon's loop: one wait, then collect, decide, commit, send.

         ┌──────────────── poll: client socket, worker socket, signal fd, pidfds, deadline ◀─┐
collect ─┤ signals, workers' events, deaths, clients' requests                               │
decide   └▶ core.on_event, requests.handle, core.tick ─▶ journal.commit ─▶ replies, commands ┘
"""

from __future__ import annotations

import logging
import math
import signal
import socket as sockets_of_os
import time
from contextlib import suppress

import zmq

from ..ipc import wire
from ..ipc.admittance import MIN_OPEN_FILES, Admittance, raise_file_limit, shut_at
from ..ipc.board import Board
from ..ipc.commands import Command, Configure, Drain, Failed, Finished, Progress, Ready, Role, Started, Stopped
from ..ipc.errors import ConfigError, ProtocolError
from ..ipc.messages import Failure, Reply
from ..ipc.paths import RuntimePaths
from ..ipc.sockets import CLIENT_HIGH_WATER, CLIENT_UNREAD, HIGH_WATER, bind_router, receive, send
from .clock import ClockWatch, WallTimer
from .core import Core
from .governor import Memory
from .lookout import Lookout
from .notify import Notifier
from .pool import Pool, Process
from .reload import Reloader
from .requests import Requests
from .state import Action, SendCommand, SendReply
from .status import in_a_line

log = logging.getLogger(__name__)

MAX_WORKER_BYTES = 64 * 1024 * 1024  # a step of precomputed results is the largest message
MAX_TURN = 256  # requests taken in one turn: workers' events are never more than this far behind
MAX_WAIT_S = 5.0
PROOFS = Started, Progress, Finished, Failed, Stopped  # a worker that reports one of these has started well
ZONE_PERIOD_S = 60.0  # between looks at the machine's time zone, which tells nobody when it changes
RELIEF_PERIOD_S = 30.0  # between workers that are replaced because memory is short: what one gave back must show first
TELL_PERIOD_S = 10.0  # between words for systemd, or half of its WatchdogSec where that is less


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
        reloader: Reloader,
        notifier: Notifier,
    ) -> None:
        self._reloader, self._notifier = reloader, notifier
        self._timer, self._watch = WallTimer(), ClockWatch()
        self._tell_at = 0.0  # monotonic
        self._look_at_zone_at = self._upkeep_at = 0.0
        self._core, self._requests, self._runtime, self._grace_s = core, requests, runtime, grace_s
        self._pool, self._poller = pool, poller
        self._wake_up = WakeUp()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._admittance = Admittance(self._context, reloader.running.allowed_uids())
        self._clients = bind_router(
            self._context,
            runtime.clients,
            max_bytes=wire.MAX_CLIENT_BYTES,
            high_water=CLIENT_HIGH_WATER,
            unread=CLIENT_UNREAD,
            domain="clients",
        )
        self._workers = bind_router(
            self._context, runtime.workers, max_bytes=MAX_WORKER_BYTES, high_water=HIGH_WATER, domain="workers"
        )
        self._sockets = frozenset((self._clients, self._workers))
        self._watch_connections()
        for readable in (self._clients, self._workers, self._wake_up.reader, self._timer.fd, self._admittance.wake_fd):
            self._poller.register(readable, zmq.POLLIN)
        self._board = Board.create(runtime.board, self._pool.rows)
        self._lookout = Lookout(pool, self._board, lambda: (reloader.running.hang_limits(), reloader.running.wear()))
        self._drain_until: float | None = None
        self._relieved_at = -math.inf  # monotonic

    def _watch_connections(self) -> None:
        limit = raise_file_limit()
        if limit < MIN_OPEN_FILES:
            self._core.problems["open files"] = (
                f"the limit is {limit}: a flood of connections may end the service; raise it to {MIN_OPEN_FILES} or more"
                " (LimitNOFILE= of the unit, or ulimit -n)"
            )
        admittance, runtime = self._admittance, self._runtime
        admittance.guard("clients' socket", self._clients, runtime.clients, shut_at(limit))
        admittance.guard("workers' socket", self._workers, runtime.workers, shut_at(limit, is_for_workers=True))
        admittance.start()

    def run(self) -> None:
        """Serve until told to stop. Journal and result store are left consistent whatever ends it."""
        try:
            self._notifier.ready(in_a_line(self._core))
            now = time.time()
            while not self._is_done(now):
                ready = dict(self._poller.poll(self._timeout_ms(time.time())))
                now = time.time()
                self._look_at_clock(ready, now)
                if not self._sockets.issuperset(ready):
                    self._core.is_stirred = True
                    self._collect(ready, now)
                replies = self._receive(ready, now)
                actions = self._core.turn(now)
                if self._core.is_stirred or now >= self._upkeep_at:
                    actions += self._upkeep(now)
                self._core.journal.commit()
                self._send(replies, actions)
                self._core.journal.tidy()
                self._tell()
        finally:
            self._close()

    # --- collect ------------------------------------------------------------------------------------------------------

    def _timeout_ms(self, now: float) -> int:
        until_s = min(self._upkeep_at, self._core.next_turn(now)) - now
        # Rounded up: a wait that ends 0.4 ms early would spin through turns with nothing to do. Bounded: the clock may
        # have been set back, by years, since the deadlines were found.
        return max(int(min(until_s, MAX_WAIT_S) * 1000) + 1, 0)

    def _look_at_clock(self, ready: dict[object, int], now: float) -> None:
        """Notice a clock that was set, a suspend, another zone. Back-offs and deadlines go by the time that passed."""
        if self._timer.fd in ready:
            self._timer.was_set()  # how far is the watch's to say; an expired timer only had to wake the loop
        moved = self._watch.moved()
        if moved is not None:
            log.warning("the clock was set by %+.0f s, suspended for %.0f s", moved.set_s, moved.suspended_s)
            self._core.time_moved(moved, now)
            self._pool.clock_set(moved.set_s)
            self._upkeep_at = now  # every deadline is another now
            if self._drain_until is not None:
                self._drain_until += moved.set_s + moved.suspended_s
        if moved is not None or now >= self._look_at_zone_at:
            self._look_at_zone_at = now + ZONE_PERIOD_S
            self._reloader.look_at_zone(now)

    def _collect(self, ready: dict[object, int], now: float) -> None:
        """Take what is no message: signals, the fork server's reports, deaths."""
        if self._wake_up.reader.fileno() in ready or self._wake_up.reader in ready:
            taken = self._wake_up.taken()
            if taken & {signal.SIGTERM, signal.SIGINT}:
                self._start_drain(now)
            if signal.SIGHUP in taken:
                with suppress(ConfigError):  # logged, and a problem in the status
                    self._reloader.reload(now)
        self._pool.hear(ready.keys(), now)
        self._hear_workers(ready, now)  # what one has said before it died counts
        for pidfd in self._pool.pidfds() & ready.keys():
            if (process := self._pool.reap(pidfd, now)) is not None:
                self._core.worker_left(process.index, now, process.ended, has_left=process.has_left)

    def _hear_workers(self, ready: dict[object, int], now: float) -> None:
        # only what is readable: to find nothing is an exception of pyzmq, which costs as much as some messages
        if ready.pop(self._workers, None) is not None:
            while (frames := receive(self._workers)) is not None:
                self._on_worker(frames, now)

    def _receive(self, ready: dict[object, int], now: float) -> list[SendReply]:
        """Take the messages that are there: all of the workers', a bounded number of the clients'."""
        self._hear_workers(ready, now)
        replies: list[SendReply] = []
        for _ in range(MAX_TURN if self._clients in ready else 0):
            frames = receive(self._clients)
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
        process = self._pool.by_identity(frames[0], now)
        if process is None:
            return  # its process ended: whatever it reports is of a lease that was taken back
        events = wire.events.decode_all(frames[1])
        process.is_proven = process.is_proven or any(isinstance(event, PROOFS) for event in events)
        for event in events:
            if isinstance(event, Ready):
                self._configure(process)
            self._core.on_event(process.index, event, now)

    def _configure(self, process: Process) -> None:
        self._board.clear(process.index)
        self._core.worker_joined(
            process.index,
            process.role,
            process.pid,
            Configure(
                settings=self._core.settings.worker,
                board_path=str(self._runtime.board),
                owner_socket=str(self._runtime.owner),
                results_path=str(self._runtime.results),
                board_row=process.index,
                allowed_uids=tuple(sorted(self._reloader.running.allowed_uids())),
            ),
        )

    # --- act ----------------------------------------------------------------------------------------------------------

    def _upkeep(self, now: float) -> list[Action]:
        """Do what a turn with nothing but pings can do without; find when it is next due at the latest."""
        self._pool_turn(now)
        self._doors_turn()
        actions = self._core.upkeep(now)
        self._timer.arm(self._core.next_schedule())
        deadlines = [self._core.next_upkeep(now), now + MAX_WAIT_S]
        if (start_at := self._pool.next_start()) is not None and self._drain_until is None:
            deadlines.append(start_at)
        if self._drain_until is not None:
            deadlines.append(self._drain_until)
        deadlines.append(now + max(self._lookout.next_look(self._core.workers) - time.monotonic(), 0.0))
        if self._notifier.watchdog_s is not None:
            deadlines.append(now + max(self._tell_at - time.monotonic(), 0.0))
        if (look_at := self._admittance.next_deadline()) is not None:
            deadlines.append(now + max(look_at - time.monotonic(), 0.0))
        self._upkeep_at = min(deadlines)
        return actions

    def _pool_turn(self, now: float) -> None:
        if self._drain_until is None:
            self._pool.start_due(now)
        memory = self._core.budget.decision.memory
        for index in self._core.workers:
            self._board.set_duty(index, self._core.budget.duty_permille(index))
            self._board.set_small(index, memory >= Memory.SHORT)
        self._lookout.spread(self._core.workers, self._core.budget.threads)
        for index in self._lookout.look(self._core.workers, now, time.monotonic()):
            self._replace(self._pool.processes[index])
        if memory is Memory.CRITICAL:
            self._relieve(time.monotonic())
        self._core.fork_server = self._pool.server_pid
        if problem := self._pool.problem():
            self._core.problems["workers"] = problem
        else:
            self._core.problems.pop("workers", None)

    def _doors_turn(self) -> None:
        for about, what in self._admittance.turn(time.monotonic()).items():
            if what:
                self._core.problems[about] = what
            else:
                self._core.problems.pop(about, None)
        self._core.refused_connections = self._admittance.refused.count

    def _relieve(self, monotonic: float) -> None:
        """Have the largest worker give its memory back; one that works stops at its next step first."""
        if monotonic - self._relieved_at < RELIEF_PERIOD_S:
            return
        index = self._core.budget.to_relieve()
        if index is None:
            return
        if (record := self._core.budget.task_of(index)) is not None:
            self._core.stop_running(record, is_cancelled=False)
            return  # it is idle in a moment, and still the largest
        self._relieved_at = monotonic
        self._replace(self._pool.processes[index])

    def _replace(self, process: Process) -> None:
        """Have an idle worker leave, and a new one take its place."""
        log.info("worker %d (pid %d) has grown or served its time, and is replaced", process.index, process.pid)
        process.is_leaving = self._core.workers[process.index].is_leaving = True
        _send_if_there(self._workers, [process.identity, wire.encode_all([Drain()])])

    def _send(self, replies: list[SendReply], actions: list[Action]) -> None:
        commands: dict[int, list[Command]] = {}  # by worker: what one gets in a turn is one message
        for action in [*replies, *actions]:
            match action:
                case SendReply():
                    assert isinstance(action.reply_to, bytes)
                    _send_if_there(self._clients, [action.reply_to, wire.encode(action.reply)])
                case SendCommand():
                    commands.setdefault(action.worker, []).append(action.command)
        for worker, batch in commands.items():
            # a command for a worker that just died is dropped: its death requeues the task
            if (process := self._pool.processes.get(worker)) is not None:
                _send_if_there(self._workers, [process.identity, wire.encode_all(batch)])

    def _tell(self) -> None:
        """Tell systemd that a turn was finished; never from anywhere else, so that a loop that hangs is noticed."""
        if not self._notifier.is_heard or time.monotonic() < self._tell_at:
            return
        self._tell_at = time.monotonic() + min(self._notifier.watchdog_s or TELL_PERIOD_S, TELL_PERIOD_S)
        self._notifier.alive(in_a_line(self._core))

    def _start_drain(self, now: float) -> None:
        if self._drain_until is not None:
            return
        log.info("draining: running tasks leave at their next step, within %.0f s", self._grace_s)
        self._drain_until = now + self._grace_s
        self._core.is_draining = True
        self._notifier.stopping("draining: running tasks leave at their next step")
        self._pool.close_server(now)
        for process in self._pool.processes.values():
            process.is_leaving = True
            process.go_on()
            if process.role is Role.TASKS and process.index in self._core.workers:
                _send_if_there(self._workers, [process.identity, wire.encode_all([Drain()])])
            elif process.role is Role.TASKS:
                process.signal(signal.SIGTERM)  # it has not connected yet

    def _is_done(self, now: float) -> bool:
        if self._drain_until is None:
            return False
        tasks_left = any(process.role is Role.TASKS for process in self._pool.processes.values())
        return not tasks_left or now >= self._drain_until

    def _close(self) -> None:
        now = time.time()
        self._pool.close_server(now)
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
        self._admittance.close()
        self._context.destroy(linger=500)
        self._timer.close()
        self._board.close()
        for path in (self._runtime.clients, self._runtime.workers, self._runtime.owner, self._runtime.board):
            path.unlink(missing_ok=True)


def _send_if_there(socket: zmq.Socket[bytes], frames: list[bytes]) -> None:
    """Send, or drop the message where its receiver has left or has stopped reading."""
    try:
        send(socket, frames)
    except (zmq.Again, zmq.ZMQError) as error:
        if isinstance(error, zmq.Again) or error.errno == zmq.EHOSTUNREACH:
            log.info("a message was dropped: its receiver left or does not read")
        else:
            raise
