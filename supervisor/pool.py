"""Owns the worker processes: start, watch by pidfd, stop. What they work on is the core's."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import zmq

from ..ipc import launch
from ..ipc.commands import Role
from .restarts import Slot, after_death

log = logging.getLogger(__name__)

OWNER_INDEX = 0  # the store owner's place; task workers follow


@dataclass(slots=True)
class Process:
    index: int
    role: Role
    popen: subprocess.Popen[bytes]
    pidfd: int
    started_at: float

    @property
    def identity(self) -> bytes:
        """The name it speaks under: of this process alone, so that a successor is never taken for it."""
        return f"{self.index}.{self.popen.pid}".encode()


class Pool:
    """One owner and `tasks` task workers. Their pidfds are registered with `poller`, the loop's one wait."""

    def __init__(
        self,
        tasks: int,
        socket: Path,
        poller: zmq.Poller,
        *,
        threads: int,
        log_level: str,
        jitter: Callable[[], float],
    ) -> None:
        self._socket, self._poller, self._jitter = socket, poller, jitter
        self._environment = launch.environment(
            {
                "MORGAN_SERVICE_LOG_LEVEL": log_level,
                # BLAS and OpenMP read their thread count once, at import
                "OMP_NUM_THREADS": str(threads),
                "MKL_NUM_THREADS": str(threads),
            }
        )
        self._roles = {OWNER_INDEX: Role.OWNER} | dict.fromkeys(range(1, tasks + 1), Role.TASKS)
        self._slots = {index: Slot() for index in self._roles}
        self.processes: dict[int, Process] = {}
        self._cpus = sorted(os.sched_getaffinity(0))

    @property
    def rows(self) -> int:
        return len(self._roles)

    def pids(self, role: Role) -> list[int]:
        return [process.popen.pid for process in self.processes.values() if process.role is role]

    def pidfds(self) -> set[int]:
        return {process.pidfd for process in self.processes.values()}

    def degraded(self) -> list[int]:
        return [index for index, slot in self._slots.items() if slot.is_degraded]

    def start_due(self, now: float) -> None:
        """Start every process whose place is empty and whose time has come."""
        for index, role in self._roles.items():
            if index not in self.processes and self._slots[index].start_at <= now:
                self._start(index, role, now)

    def next_start(self) -> float | None:
        """Return when an empty place is due, None if all are taken."""
        return min((self._slots[i].start_at for i in self._roles if i not in self.processes), default=None)

    def _start(self, index: int, role: Role, now: float) -> None:
        # Task workers take the CPUs from the last one down: the first is where interrupts and most daemons are.
        cpu = self._cpus[-1 - (index - 1) % len(self._cpus)]
        arguments = [
            *("--role", role.value, "--index", str(index)),
            *("--socket", str(self._socket), "--parent", str(os.getpid())),
            *(("--cpu", str(cpu)) if role is Role.TASKS else ()),
        ]
        popen = subprocess.Popen(
            launch.command("workers", *arguments), stdin=subprocess.DEVNULL, env=self._environment, process_group=0
        )
        pidfd = os.pidfd_open(popen.pid)
        self._poller.register(pidfd, zmq.POLLIN)
        self.processes[index] = Process(index, role, popen, pidfd, now)
        log.info("worker %d (%s) started as pid %d", index, role.value, popen.pid)

    def by_identity(self, identity: bytes) -> Process | None:
        return next((p for p in self.processes.values() if p.identity == identity), None)

    def reap(self, pidfd: int, now: float) -> Process | None:
        """Collect the process behind a readable `pidfd` and free its place. None if it is not one of ours."""
        process = next((p for p in self.processes.values() if p.pidfd == pidfd), None)
        if process is None:
            return None
        status = process.popen.wait()
        self._poller.unregister(pidfd)
        os.close(pidfd)
        del self.processes[process.index]
        self._slots[process.index] = slot = after_death(
            self._slots[process.index], now, now - process.started_at, self._jitter()
        )
        log.warning(
            "worker %d (pid %d) ended with status %d; %s",
            *(process.index, process.popen.pid, status),
            "it keeps dying and is tried once a minute" if slot.is_degraded else "it is started again",
        )
        return process

    def signal_all(self, signum: signal.Signals) -> None:
        for process in self.processes.values():
            process.popen.send_signal(signum)
