"""Owns the worker processes: have them forked, watch them by pidfd, stop them. What they work on is the core's.

place empty and due ─▶ order to the fork server ─▶ Forked(pid) or the worker's own Ready ─▶ a process, and its pidfd
      ▲                                                                                            │
      └───────────────── back-off (restarts.py) ◀─ reap: pidfd readable, exit status ◀─────────────┘
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import zmq

from ..ipc import prctl
from ..ipc.commands import Role
from ..ipc.launch import Fork, Forked, NotForked, Preload
from ..ipc.settings import WorkerSettings
from . import procfs
from .cgroup import WorkerGroup
from .forkserver import ForkMain, ForkServer, Report
from .restarts import Slot, after_death

log = logging.getLogger(__name__)

OWNER_INDEX = 0  # the store owner's place; task workers follow
STAND_ASIDE_S = 0.005  # after a death: its task is handed to another worker first, which a fork would keep from a CPU
HEAVY = 2  # fork servers in a row that died while they loaded models before one is started that loads none


@dataclass(slots=True)
class Process:
    index: int
    role: Role
    pid: int
    pidfd: int
    started_at: float
    is_proven: bool = False  # it has got something done
    is_leaving: bool = False  # it was asked to: its end is no death
    killed_for: str = ""  # why we killed it
    ended: str = ""  # how it ended, in words, once it is reaped
    has_left: bool = False  # it ended as one that was told to leave does, with everything reported
    is_stopped: bool = False  # by us, as the last resort: see stopping.py

    @property
    def identity(self) -> bytes:
        """The name it speaks under: of this process alone, so that a successor is never taken for it."""
        return f"{self.index}.{self.pid}".encode()

    def signal(self, signum: signal.Signals) -> None:
        """Send a signal; a stopped process goes on, for it to be heard."""
        with suppress(ProcessLookupError):  # it has ended and waits to be reaped
            signal.pidfd_send_signal(self.pidfd, signum)
        self.go_on()

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGSTOP)
        self.is_stopped = True

    def go_on(self) -> None:
        if self.is_stopped:
            self.is_stopped = False
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGCONT)


class Pool:
    """One owner and `tasks` task workers. What it has to wait for is registered with `poller`, the loop's one wait.

    This process becomes a subreaper: workers are its children, though the fork server has made them.
    """

    def __init__(
        self,
        tasks: int,
        socket: Path,
        poller: zmq.Poller,
        *,
        settings: WorkerSettings,
        log_level: str,
        jitter: Callable[[], float],
        fork_main: ForkMain | None = None,
        group: WorkerGroup | None = None,
    ) -> None:
        """Task workers are put into `group`. With `fork_main` the first fork server is forked from here: see ForkServer."""
        prctl.become_subreaper()
        self._fork_main, self._group = fork_main, group or WorkerGroup()
        self._socket, self._poller, self._jitter = socket, poller, jitter
        self._preload = Preload(
            model=settings.model, rerank=settings.rerank, with_client=not settings.store.is_embedded
        )
        self._environment = {"MORGAN_SERVICE_LOG_LEVEL": log_level}
        self._roles = {OWNER_INDEX: Role.OWNER} | dict.fromkeys(range(1, tasks + 1), Role.TASKS)
        self._slots = {index: Slot() for index in self._roles}
        self._ordered: set[int] = set()  # places whose worker is being forked
        self.processes: dict[int, Process] = {}
        self.cpus = sorted(os.sched_getaffinity(0))
        self._places: dict[int, int] = {}  # of task workers that were moved
        self._beside: dict[int, tuple[int, ...]] = {}  # CPUs of task workers that compute in several threads
        self.server: ForkServer | None = None
        self._server_slot, self._server_started_at, self._died_loading = Slot(), 0.0, 0
        self._last_server = 0  # its pid
        self._next_order_at = 0.0

    @property
    def rows(self) -> int:
        return len(self._roles)

    def pids(self, role: Role) -> list[int]:
        return [process.pid for process in self.processes.values() if process.role is role]

    def pidfds(self) -> set[int]:
        return {process.pidfd for process in self.processes.values()}

    def problem(self) -> str:
        """Say what is wrong with the pool now, "" if nothing is."""
        degraded = [i for i, slot in self._slots.items() if slot.is_degraded and i not in self.processes]
        if self._server_slot.is_degraded and self.server is None:
            return "the fork server keeps dying, no worker can be started; see the service's log"
        names = ", ".join(map(str, degraded))
        return f"worker {names} keeps dying at start; see the service's log" if degraded else ""

    @property
    def server_pid(self) -> int | None:
        return None if self.server is None else self.server.pid

    def clock_set(self, by_s: float) -> None:
        """Follow a clock that was set: what was to start in a second still starts in one."""
        for process in self.processes.values():
            process.started_at += by_s
        self._server_started_at += by_s
        self._next_order_at += by_s
        self._server_slot = replace(self._server_slot, start_at=self._server_slot.start_at + by_s)
        self._slots = {i: replace(slot, start_at=slot.start_at + by_s) for i, slot in self._slots.items()}

    # --- start --------------------------------------------------------------------------------------------------------

    def start_server(self, now: float) -> None:
        """Start the fork server, unless it runs or its time has not come."""
        if self.server is None and self._server_slot.start_at <= now:
            self._bury_go_betweens()
            preload = self._preload if self._died_loading < HEAVY else None
            # a later one is a program of its own: by then this process has threads, a journal and sockets
            main, self._fork_main = self._fork_main, None
            self.server = ForkServer(self._socket, self._poller, self._environment, preload, main)
            self._server_started_at, self._last_server = now, self.server.pid

    def start_due(self, now: float) -> None:
        """Order every worker whose place is empty and whose time has come."""
        self.start_server(now)
        if now < self._next_order_at <= now + STAND_ASIDE_S:  # farther: the clock was set back
            return
        for index, role in reversed(self._roles.items()):  # the owner last: it needs the least time to be ready
            if self._is_empty(index) and self._slots[index].start_at <= now and self.server is not None:
                order = Fork(index=index, role=role, cpus=self._cpus_of(index, role))
                if self.server.order(order):
                    self._ordered.add(index)

    def _is_empty(self, index: int) -> bool:
        return index not in self.processes and index not in self._ordered

    def next_start(self) -> float | None:
        """Return when an empty place, or the fork server's, is due; None if all are taken."""
        if self.server is None:
            return self._server_slot.start_at
        start_at = min((self._slots[i].start_at for i in self._roles if self._is_empty(i)), default=None)
        return None if start_at is None else max(start_at, self._next_order_at)

    def _cpus_of(self, index: int, role: Role) -> tuple[int, ...]:
        """Return where a worker belongs: all CPUs for the owner, one for each thread of a task worker, its home first.

        They take the CPUs from the last one down: the first is where interrupts and most daemons are. Then they are
        moved away from what others use the most.
        """
        if role is Role.OWNER:
            return tuple(self.cpus)
        home = self._places.get(index, self.cpus[-1 - (index - 1) % len(self.cpus)])
        return (home, *(cpu for cpu in self._beside.get(index, ()) if cpu != home))

    def places(self) -> dict[int, int]:
        """Return which CPU is each task worker's home."""
        return {index: cpus[0] for index, cpus in self.spreads().items()}

    def spreads(self) -> dict[int, tuple[int, ...]]:
        """Return which CPUs each task worker may use, its home first."""
        return {i: self._cpus_of(i, role) for i, role in self._roles.items() if role is Role.TASKS}

    def spread(self, index: int, cpus: Sequence[int]) -> None:
        """Have a task worker run on these CPUs, its home first."""
        self._beside[index] = tuple(cpus[1:])
        if (process := self.processes.get(index)) is not None:
            procfs.set_cpus(process.pid, tuple(cpus))

    def move(self, index: int, cpu: int) -> None:
        """Have a task worker, and those that follow it in its place, run on another CPU."""
        self._places[index] = cpu
        if (process := self.processes.get(index)) is not None:
            procfs.set_cpus(process.pid, self._cpus_of(index, Role.TASKS))

    def replan(self) -> bool:
        """Move the workers if the CPUs that this process may use have changed; say whether they have."""
        cpus = sorted(os.sched_getaffinity(0))
        if cpus == self.cpus:
            return False
        log.info("the usable CPUs are now %s, no longer %s: workers are moved", cpus, self.cpus)
        self.cpus = cpus
        self._places.clear()
        self._beside.clear()
        for process in self.processes.values():
            procfs.set_cpus(process.pid, self._cpus_of(process.index, process.role))
        if self.server is not None:
            procfs.set_cpus(self.server.pid, tuple(cpus))
        return True

    # --- what the fork server and the workers tell --------------------------------------------------------------------

    def hear(self, ready: Collection[object], now: float) -> None:
        """Take the fork server's reports, and its death."""
        server = self.server
        if server is None:
            return
        if server.pidfd in ready:
            self.server = None
            is_loading = server.is_loading
            self._take(server.close(), now)
            self._ordered.clear()  # one that was forked unreported says Ready all the same: by_identity
            self._died_loading += is_loading
            self._server_slot = after_death(
                self._server_slot, now, 0.0 if is_loading else now - self._server_started_at, self._jitter()
            )
            log.warning("the fork server (pid %d) died; workers live on, and it is started again", server.pid)
        elif server.fileno in ready:
            self._take(server.reports(), now)

    def _take(self, reports: Iterable[Report], now: float) -> None:
        for report in reports:
            match report:
                case Forked():
                    self._adopt(report.index, report.pid, now)
                case NotForked():
                    self._ordered.discard(report.index)
                    self._slots[report.index] = after_death(self._slots[report.index], now, 0.0, self._jitter())
                    log.warning("worker %d could not be forked: %s", report.index, report.message)

    def _adopt(self, index: int, pid: int, now: float) -> Process | None:
        """Take a forked process into its place. One that finds it taken, after a fork server's death, is killed."""
        held = self.processes.get(index)
        if held is not None and held.pid == pid:
            return held
        if procfs.parent(pid) != os.getpid():
            return None
        if held is not None:
            log.warning("a second worker %d (pid %d) is killed", index, pid)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        self._ordered.discard(index)
        pidfd = os.pidfd_open(pid)  # its pid cannot be another's: only this process can reap it
        self._poller.register(pidfd, zmq.POLLIN)
        self.processes[index] = process = Process(index, self._roles[index], pid, pidfd, now)
        if process.role is Role.TASKS:
            self._group.join(pid)
        log.info("worker %d (%s) started as pid %d", index, process.role.value, pid)
        return process

    def by_identity(self, identity: bytes, now: float) -> Process | None:
        """Return the process that speaks under `identity`; one that is heard before the fork server is, too."""
        held = next((p for p in self.processes.values() if p.identity == identity), None)
        if held is not None:
            return held
        index, _, pid = identity.partition(b".")
        if not (index.isdigit() and pid.isdigit() and int(index) in self._roles):
            return None
        return self._adopt(int(index), int(pid), now)

    def _bury_go_betweens(self) -> None:
        """Collect what a killed fork server left between two forks: it has that one's process group, workers their own."""
        with suppress(ChildProcessError):
            while self._last_server and os.waitpid(-self._last_server, os.WNOHANG) != (0, 0):
                pass

    # --- end ----------------------------------------------------------------------------------------------------------

    def reap(self, pidfd: int, now: float) -> Process | None:
        """Collect the process behind a readable `pidfd` and free its place. None if it is not one of ours."""
        process = next((p for p in self.processes.values() if p.pidfd == pidfd), None)
        if process is None:
            return None
        try:
            code = os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1])
        except ChildProcessError:  # collected with its fork server's go-betweens: it died before it had its own group
            code = -signal.SIGKILL
        self._poller.unregister(pidfd)
        os.close(pidfd)
        del self.processes[process.index]
        process.ended = process.killed_for or (f"signal {-code}" if code < 0 else f"exit status {code}")
        process.has_left = code == 0 and not process.killed_for
        if process.is_leaving and code == 0:
            log.info("worker %d (pid %d) left", process.index, process.pid)
            return process
        slot = after_death(
            self._slots[process.index],
            now,
            now - process.started_at,
            self._jitter(),
            is_proven=process.is_proven,
        )
        self._slots[process.index] = slot
        if self.processes:
            self._next_order_at = now + STAND_ASIDE_S
        log.warning(
            "worker %d (pid %d) ended: %s; %s",
            *(process.index, process.pid, process.ended),
            "it keeps dying and is tried once a minute" if slot.is_degraded else "it is started again",
        )
        return process

    def signal_all(self, signum: signal.Signals) -> None:
        for process in self.processes.values():
            process.signal(signum)

    def close_server(self, now: float) -> None:
        """End the fork server; no worker is started from now on."""
        if self.server is not None:
            server, self.server = self.server, None
            self._take(server.close(), now)
            self._ordered.clear()

    def close(self, now: float) -> None:
        """End the fork server and kill whatever worker is left. After a start that failed; else none is."""
        self.close_server(now)
        self.signal_all(signal.SIGKILL)
        for pidfd in self.pidfds():
            self.reap(pidfd, now)
