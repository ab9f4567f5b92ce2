"""Owns the harm: each fault of the plan, done to the running daemon. Each leaves a daemon that is to be well again."""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import zmq

from morgan.background.ipc import messages
from morgan.background.ipc.admittance import MIN_OPEN_FILES
from morgan.background.ipc.client import ORDERS_AT_ONCE, expect
from morgan.background.ipc.errors import ServiceUnavailable
from morgan.background.ipc.records import TaskStatus
from morgan.background.ipc.sockets import connect_dealer

from .audit import CALM_S
from .ledger import Ledger
from .means import Means
from .victim import LOOK_S, START_S, Victim, Wrong, gone

EARLY = 0.2  # share of the kills of the supervisor that come while it starts
HANG_S = 60.0  # a stopped worker is replaced after ten beats; this is for a machine under load
PAGE_BYTES = 4096  # of SQLite
FULL_S = 30.0  # in which a supervisor that cannot write must have ended
PING_S = 30.0  # a ping after the clock was set
FRAMES = 300  # of one fuzz
FLOODERS = 4
JUMPS_S = (2, 60, 3600, 86400, 400 * 86400)

FLOOD = """
import resource, socket, sys
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
wanted = 1500 if hard == resource.RLIM_INFINITY else min(hard, 1500)
resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
made = []
try:
    while True:
        made.append(socket.socket(socket.AF_UNIX))
        made[-1].connect(sys.argv[1])
except OSError as error:
    print(len(made), flush=True)
sys.stdin.read()
"""


class Faults:
    """`counts` is what was done; `gone_s` how long the processes of each killed supervisor lived on."""

    def __init__(self, victim: Victim, ledger: Ledger, means: Means) -> None:
        self._victim, self._ledger, self._means = victim, ledger, means
        self.counts: Counter[str] = Counter()
        self.gone_s: list[float] = []
        self._hung: tuple[int, int] | None = None  # pid and pidfd of a worker that was stopped for good

    def named(self) -> dict[str, Callable[[random.Random], None]]:
        return {
            "worker": self.worker,
            "zygote": self.zygote,
            "supervisor": self.supervisor,
            "stop_worker": self.stop_worker,
            "hang_worker": self.hang_worker,
            "stop_supervisor": self.stop_supervisor,
            "journal_full": self.journal_full,
            "journal_io": self.journal_io,
            "clock": self.clock,
            "fuzz": self.fuzz,
            "flood": self.flood,
        }

    def settle(self) -> None:
        """See that a worker that was stopped for good is gone."""
        if self._hung is not None:
            (pid, pidfd), self._hung = self._hung, None
            was_replaced = gone(pidfd, HANG_S)
            os.close(pidfd)
            if not was_replaced:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                raise Wrong(f"worker (pid {pid}) is still there {HANG_S:g} s after it was stopped")

    # --- signals ------------------------------------------------------------------------------------------------------

    def _worker(self, rng: random.Random) -> int:
        """Return the pid of a worker, of the owner in one of seven cases."""

        def one() -> int | None:
            found = self._victim.workers()
            tasks = [pid for index, pid in sorted(found.items()) if index]
            if 0 in found and (rng.random() < 1 / 7 or not tasks):
                return found[0]
            return rng.choice(tasks) if tasks else None

        return self._victim.until(one, "a worker is there", CALM_S)

    def worker(self, rng: random.Random) -> None:
        while True:
            pid = self._worker(rng)
            time.sleep(rng.uniform(0.0, 0.15))
            with suppress(ProcessLookupError):  # it died of the fault before: another one is to be killed
                os.kill(pid, signal.SIGKILL)
                break
        self.counts["workers killed"] += 1
        if rng.random() < 0.5:  # else the next fault comes while it is replaced
            self._victim.until(lambda: pid not in self._victim.workers().values() or None, "it is replaced", CALM_S)

    def zygote(self, rng: random.Random) -> None:
        server = self._victim.until(lambda: self._victim.status()["fork_server"], "a fork server is there", CALM_S)
        time.sleep(rng.uniform(0.0, 0.1))
        with suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)
            self.counts["fork servers killed"] += 1
        if rng.random() < 0.5:  # and a worker with it, so that one has to be forked
            self.worker(rng)

    def supervisor(self, rng: random.Random, *, is_early: bool = False) -> None:
        """`is_early`: a moment after its start, whatever it is doing by then."""
        time.sleep(rng.uniform(0.0, 0.8 if is_early else 0.2))
        if (process := self._victim.process) is not None and process.poll() is not None:
            raise Wrong(f"the daemon ended by itself with {process.poll()}:\n{self._victim.log_tail()}")
        self.gone_s.append(self._victim.kill())
        self.counts["supervisors killed"] += 1
        self.counts["of these while they started"] += is_early
        self._victim.start()

    def stop_worker(self, rng: random.Random) -> None:
        pid = self._worker(rng)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            self.counts["workers stopped and continued"] += 1
        time.sleep(rng.uniform(0.05, 1.5))
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def hang_worker(self, rng: random.Random) -> None:
        self.settle()
        pid = self._worker(rng)
        try:
            self._hung = pid, os.pidfd_open(pid)
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            return
        self.counts["workers stopped for good"] += 1

    def stop_supervisor(self, rng: random.Random) -> None:
        pid = self._victim.pid
        os.kill(pid, signal.SIGSTOP)
        time.sleep(rng.uniform(0.1, 2.0))
        os.kill(pid, signal.SIGCONT)
        self.counts["supervisors stopped and continued"] += 1

    # --- the journal --------------------------------------------------------------------------------------------------

    def journal_full(self, rng: random.Random) -> None:
        """No room for the journal: the supervisor must end, and say so; with room again it goes on."""
        victim = self._victim
        self._restart()
        victim.await_ready()
        time.sleep(rng.uniform(0.0, 0.3))
        ballast = victim.state / "ballast"
        if self._means.has_own_disk:
            _fill(ballast)
        else:
            # not even a second page: the log has its blocks already, and they are written over
            resource.prlimit(victim.pid, resource.RLIMIT_FSIZE, (PAGE_BYTES, resource.RLIM_INFINITY))
        try:
            self._ends("a full disk", is_full=True)
            if self._means.has_own_disk and rng.random() < 0.5:
                victim.start()
                self._ends("a disk that is full from the start", is_full=True)
        finally:
            ballast.unlink(missing_ok=True)
        self.counts["disks filled"] += 1
        victim.start()

    def journal_io(self, rng: random.Random) -> None:
        """EIO at the journal's next write or sync: the same."""
        victim = self._victim
        triggers = {name: victim.root / name.lower() for name in ("CHAOS_EIO_WRITE", "CHAOS_EIO_SYNC")}
        self._restart({"LD_PRELOAD": str(self._means.shim), **{name: str(path) for name, path in triggers.items()}})
        victim.await_ready()
        time.sleep(rng.uniform(0.0, 0.3))
        name, path = rng.choice(sorted(triggers.items()))
        path.touch()
        try:
            self._ends(f"an I/O error ({name.rpartition('_')[2].lower()})")
        finally:
            path.unlink()
        self.counts["I/O errors"] += 1
        victim.start()

    def _restart(self, env: dict[str, str] | None = None) -> None:
        self._victim.stop()
        self._victim.start(env)

    def _ends(self, why: str, *, is_full: bool = False) -> None:
        """See it end by itself. `is_full`: it may go on for what its journal's log has in reserve, so that is used up."""
        end_at, code = time.monotonic() + FULL_S, None
        while code is None and time.monotonic() < end_at:
            if is_full:
                tokens = (f"{why} {number} {time.monotonic()}" for number in range(ORDERS_AT_ONCE))
                orders = [{"task_type": "ping", "collection": "full", "params": {"token": token}} for token in tokens]
                with suppress(ServiceUnavailable):
                    self._victim.client.submit_many(orders)
            code = self._victim.ended(LOOK_S if is_full else FULL_S)
        if code is None:
            raise Wrong(f"the supervisor still runs {FULL_S:g} s after {why}")
        if code <= 0:
            raise Wrong(f"the supervisor ended with {code} after {why}:\n{self._victim.log_tail()}")

    # --- the clock ----------------------------------------------------------------------------------------------------

    def clock(self, rng: random.Random) -> None:
        """Set the wall clock of the daemon and its workers, and back: tasks run and deadlines hold all the while."""
        victim = self._victim
        offset = victim.root / "offset"
        offset.write_text("+0\n")
        self._restart(
            {
                "LD_PRELOAD": str(self._means.faketime),
                "FAKETIME_TIMESTAMP_FILE": str(offset),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        )
        victim.await_ready()
        self._ledger.may_forget()
        for jump_s in (rng.choice(JUMPS_S) * rng.choice((1, -1)), rng.choice(JUMPS_S) * rng.choice((1, -1)), 0):
            _replace(offset, f"{jump_s:+d}\n")
            asked = messages.Submit(
                task_type="ping", collection="clock", deadline_s=600.0, is_forced=True, wait_s=PING_S
            )
            try:
                record = expect(messages.TaskReply, victim.client.request(asked, PING_S + 5.0)).task
            except ServiceUnavailable as error:
                raise Wrong(f"no answer after the clock was set to {jump_s:+d} s: {error}") from error
            if record.status is not TaskStatus.COMPLETED:
                raise Wrong(f"after the clock was set to {jump_s:+d} s a ping was not done: {record}")
            victim.status()
            self.counts["clocks set"] += 1
        self._restart()
        self._ledger.may_forget()

    # --- the sockets --------------------------------------------------------------------------------------------------

    def fuzz(self, rng: random.Random) -> None:
        """Send what no client of ours would; the same processes must answer afterwards."""
        victim = self._victim
        before = victim.pid
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        sockets = {name: victim.runtime / f"{name}.sock" for name in ("clients", "owner", "workers")}
        try:
            for name, path in sockets.items():
                for _ in range(3):
                    with connect_dealer(context, path, identity=_identity(rng) if name == "workers" else b"") as one:
                        one.setsockopt(zmq.LINGER, 0)
                        for _ in range(FRAMES // 9):
                            with suppress(zmq.Again):
                                one.send_multipart(_frames(rng, name), zmq.NOBLOCK)
                        one.poll(200)
                # what is no ZeroMQ; it closes the connection on us
                with suppress(OSError), socket.socket(socket.AF_UNIX) as raw:
                    raw.settimeout(1.0)
                    raw.connect(str(path))
                    raw.sendall(rng.randbytes(rng.randrange(1, 4096)))
                    raw.recv(1)
        finally:
            context.destroy(linger=0)
        self.counts["fuzzed"] += 1
        welcome = expect(messages.Welcome, victim.client.request(messages.Hello()))
        if welcome.pid != before or victim.process is None or victim.process.poll() is not None:
            raise Wrong(f"fuzz ended the supervisor:\n{victim.log_tail()}")
        listed = victim.client.request(messages.ListSchedules())
        for schedule in expect(messages.ScheduleList, listed).schedules:
            victim.client.request(messages.RemoveSchedule(task_id=schedule.task_id))

    def flood(self, rng: random.Random) -> None:
        """Thousands of connections against a limit of MIN_OPEN_FILES: who is connected is served, the rest later."""
        victim = self._victim
        resource.prlimit(victim.pid, resource.RLIMIT_NOFILE, (MIN_OPEN_FILES, MIN_OPEN_FILES))
        victim.client.request(messages.Hello())  # its connection stands before the door is shut
        command = [sys.executable, "-c", FLOOD, str(victim.runtime / "clients.sock")]
        flood = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(FLOODERS)
        ]
        try:
            for one in flood:
                assert one.stdout is not None
                one.stdout.readline()
            victim.status()
        finally:
            for one in flood:
                one.communicate("")
        self.counts["floods"] += 1

        def is_let_in() -> bool | None:
            with suppress(ServiceUnavailable), victim.new_client(1.0) as newcomer:
                return expect(messages.Welcome, newcomer.request(messages.Hello())).pid == victim.pid or None
            return None

        victim.until(is_let_in, "a newcomer is served after a flood", START_S)


def _fill(path: Path) -> None:
    """Take all the room of its file system."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    deadline_at = time.monotonic() + 1.0
    while os.statvfs(path).f_bavail and time.monotonic() < deadline_at:
        time.sleep(LOOK_S)


def _replace(path: Path, text: str) -> None:
    """Write a file that a reader sees whole, before or after."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.rename(path)


# Honest messages to begin with; none that stops or drops anything.
SEEDS = {
    "clients": (
        {"type": "hello"},
        {"type": "status"},
        {"type": "submit", "task_type": "warm", "collection": "fuzz", "params": {"max_queries": 3}, "wait_s": 0.1},
        {"type": "submit", "task_type": "ping", "collection": "fuzz", "params": {"hold_s": 0.01}, "priority": -5},
        {"type": "get_task", "task_id": "x", "wait_s": 0.5, "seen": 3},
        {"type": "list_tasks", "limit": 5, "status": "pending"},
        {"type": "cancel_task", "task_id": "ping_fuzz_1"},
        {"type": "add_schedule", "task_type": "warm", "collection": "fuzz", "frequency": "daily", "metadata": {"a": 1}},
        {"type": "track", "query": "q", "collection": "fuzz", "response_s": 0.1},
        {"type": "feedback", "query": "q", "collection": "fuzz", "document_id": "1", "relevance": 1.0},
        {"type": "invalidate", "collection": "fuzz", "pattern": "q"},
        {"type": "next_events", "epoch": 1, "after": 2, "wait_s": 0.2},
        {"type": "list_executions", "limit": 3, "task_type": "reindex"},
    ),
    "owner": (
        {"type": "collections"},
        {"type": "info", "collection": "fuzz"},
        {"type": "upsert", "collection": "fuzz", "points": [{"id": 1, "payload": {"text": "a"}, "vector": bytes(128)}]},
        {"type": "scroll", "collection": "fuzz", "limit": 3},
        {"type": "search_vectors", "collection": "fuzz", "vectors": bytes(128), "count": 1},
        {"type": "search", "collection": "fuzz", "text": "q"},
    ),
    "workers": ({"type": "ready"}, {"type": "finished", "task_id": "x", "attempt": 1, "result": {}, "cpu_s": 0.1}),
}


def _frames(rng: random.Random, name: str) -> list[bytes]:
    """Return a message for the socket `name`: noise, a damaged honest one, an honest one, or too many frames."""
    kind = rng.random()
    if kind < 0.2:
        return [rng.randbytes(rng.randrange(0, 2000))]
    frame = bytearray(msgspec.msgpack.encode(rng.choice(SEEDS[name]) | {"v": 1, "rid": rng.randrange(2**16)}))
    if kind < 0.7:
        for _ in range(rng.randrange(1, 6)):
            frame[rng.randrange(len(frame))] = rng.randrange(256)
    elif kind < 0.85:
        del frame[rng.randrange(len(frame)) :]
    elif kind < 0.9:
        return [bytes(frame)] * rng.randrange(2, 20)
    return [bytes(frame)]


def _identity(rng: random.Random) -> bytes:
    """Return a name that no worker of the daemon has, though some look like one."""
    return rng.choice(
        (b"1.1", b"0.99999999", b"1.0", b"7.12", b"1.", b".5", b"1.99999999999999999999", rng.randbytes(5))
    )
