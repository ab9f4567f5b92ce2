"""Owns the daemon that is harmed: its folders, its start and end, and which processes are its."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from morgan.background.ipc import calls, messages
from morgan.background.ipc.client import Client
from morgan.background.ipc.errors import MorganError, ServiceUnavailable

STANDIN = Path(__file__).parent / "standin"
MARK = "CHAOS_VICTIM"  # in the environment of every process of the daemon, and of no other
START_S = 60.0  # half a second on an idle machine
LOOK_S = 0.01
ORPHANS_S = 1.0  # what is promised of the processes of a killed supervisor
STATUS_S = 5.0  # what a client gives the supervisor to answer
STOP_S = 30.0
TASK_WORKERS = 2
LOG_TAIL = 3000  # characters
DYING_S = 30.0  # for one that is ending to get the CPU to do so
_SIGKILL, _PF_EXITING = 1 << 8, 0x4
OUTLIVES = {"lock", "results", "results.lock", "readers"}  # what is in the runtime folder while no daemon runs

SETTINGS = {
    "MORGAN_SERVICE_WORKERS": str(TASK_WORKERS),
    "MORGAN_SERVICE_TIMEZONE": "UTC",
    "MORGAN_SERVICE_GRACE_S": "2",
    "MORGAN_SCHEDULE_AUTO": "false",
    "MORGAN_MODEL_NAME": "stand-in",
    "MORGAN_MODEL_LOADER": "reference",  # what stands in for torch makes no graph
    "MORGAN_LIMITS_ACTIVE_HOURS_CPU_LIMIT": "1.0",
    "MORGAN_LIMITS_QUIET_HOURS_CPU_LIMIT": "1.0",
    "MORGAN_LIMITS_MEMORY_LIMIT": "1.0",
    # what a fault does to a task must not use up its attempts: it is to be done in the end
    "MORGAN_QUEUE_MAX_ATTEMPTS": "1000",
    "MORGAN_QUEUE_MAX_KILLS": "1000",
    "MORGAN_QUEUE_BACKOFF_BASE_S": "0.05",
    "MORGAN_QUEUE_BACKOFF_CAP_S": "1",
    "MORGAN_STORE_TIMEOUT_S": "2",
}

T = TypeVar("T")


class Wrong(Exception):
    """The service broke a promise: the message says which. `orphans`: processes that outlived their supervisor."""

    def __init__(self, message: str, orphans: int = 0) -> None:
        super().__init__(message)
        self.orphans = orphans


class Victim:
    """One daemon in `root`. `state` is where its journal lies: a file system of its own where that can be had."""

    def __init__(self, root: Path, env: Mapping[str, str] | None = None) -> None:
        self.root, self.state, self.runtime, self.log = root, root / "state", root / "run", root / "log"
        for folder in (self.state, self.root / "vectors"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (root / "config.toml").touch()
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("MORGAN_")} | SETTINGS
        self.env |= {
            "MORGAN_CONFIG": str(root / "config.toml"),
            "MORGAN_STATE_DIR": str(self.state),
            "MORGAN_RUNTIME_DIR": str(self.runtime),
            "MORGAN_STORE_PATH": str(root / "vectors"),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(STANDIN), os.environ.get("PYTHONPATH", "")))),
            "CHAOS_EMBEDDED": str(root / "embedded"),
            "CHAOS_EMBED_S": "0.003",
            MARK: str(root),
            **(env or {}),
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        self.starts = 0
        self.client = self.new_client(STATUS_S)
        self.dying: dict[int, str] = {}  # processes that were ending, and had not, ORPHANS_S after their supervisor
        self.status_s: list[float] = []  # how long each status took

    def new_client(self, timeout_s: float) -> Client:
        return Client(self.runtime, self.state, timeout_s=timeout_s, call_timeout_s=timeout_s)

    @property
    def pid(self) -> int:
        if self.process is None:
            raise Wrong("the supervisor is not there")
        return self.process.pid

    # --- start and end ------------------------------------------------------------------------------------------------

    def start(self, env: Mapping[str, str] | None = None) -> None:
        """Start it and return at once."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "morgan.background", "serve"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self.env, **(env or {})},
                start_new_session=True,
            )
        self.started_at = time.monotonic()
        self.starts += 1

    def await_ready(self) -> None:
        """Return when the supervisor and the store owner answer. Raises Wrong if they do not."""

        def answers() -> bool:
            if self.process is None or (code := self.process.poll()) is not None:
                raise Wrong(f"the daemon ended by itself with {code}:\n{self.log_tail()}")
            try:
                self.client.request(messages.Hello(), 1.0)
                self.client.call(calls.Collections(), 2.0)
            except ServiceUnavailable:
                return False
            return True

        self.until(lambda: answers() or None, "supervisor and owner answer", START_S)

    def kill(self) -> float:
        """SIGKILL the supervisor; return the seconds until the last of its processes was gone.

        Raises Wrong where one is left after ORPHANS_S, and kills that.
        """
        process = self.process
        if process is None:
            raise Wrong("the supervisor is not there")
        process.kill()
        killed_at = time.monotonic()
        process.wait()
        self.process = None
        return self.see_none_left(killed_at)

    def see_none_left(self, since: float) -> float:
        """Return the seconds from `since` until no process is left. Raises Wrong where one is after ORPHANS_S.

        One whose end the kernel has ordered runs no instruction of its own any more. On a busy machine it may wait for
        the CPU to leave with, being of class SCHED_IDLE: such a one is counted in `dying`, and is waited for.
        """
        while left := self.processes():
            passed_s = time.monotonic() - since
            if passed_s > ORPHANS_S:
                told = {pid: _how(pid) for pid in left}
                if passed_s > DYING_S or not all(is_dying(pid) for pid in left):
                    for pid in left:
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                    raise Wrong(f"left {passed_s:.2f} s after the supervisor: {told}", len(left))
                self.dying |= {pid: f"{passed_s:.2f} s: {told[pid]}" for pid in left}
            time.sleep(LOOK_S)
        return time.monotonic() - since

    def stop(self) -> None:
        """SIGTERM. Raises Wrong unless it leaves with code 0, with its processes, and takes its sockets along."""
        process = self.process
        if process is None:
            return
        process.terminate()
        try:
            code = process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            raise Wrong(f"not gone {STOP_S:g} s after SIGTERM:\n{self.log_tail()}") from None
        self.process = None
        if code:
            raise Wrong(f"left with {code} after SIGTERM:\n{self.log_tail()}")
        self.see_none_left(time.monotonic())
        if left := {path.name for path in self.runtime.iterdir()} - OUTLIVES:
            raise Wrong(f"left in the runtime folder: {', '.join(left)}")

    def ended(self, within_s: float) -> int | None:
        """Return how the supervisor ended by itself, None if it did not; its processes must be gone then as well."""
        process = self.process
        if process is None:
            raise Wrong("the supervisor is not there")
        try:
            code = process.wait(within_s)
        except subprocess.TimeoutExpired:
            return None
        self.process = None
        self.see_none_left(time.monotonic())
        return code

    def close(self) -> None:
        """End whatever is left of it, and remove its folders."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.client.close()
        shutil.rmtree(self.root, ignore_errors=True)

    # --- what it is made of -------------------------------------------------------------------------------------------

    def processes(self) -> dict[int, str]:
        """Return pid -> name of every living process of the daemon, whoever its parent is by now."""
        mark, found = f"{MARK}={self.root}\0".encode(), {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with suppress(OSError):  # it has ended
                    if mark in Path(f"/proc/{entry}/environ").read_bytes():
                        stat = Path(f"/proc/{entry}/stat").read_text()
                        if stat.rpartition(")")[2].split()[0] != "Z":
                            found[int(entry)] = stat.partition("(")[2].rpartition(")")[0]
        return found

    def status(self) -> dict[str, Any]:
        """Ask for the status, and take down how long it took. Raises Wrong if that is longer than STATUS_S."""
        began = time.monotonic()
        try:
            report = self.client.status()
        except ServiceUnavailable as error:
            raise Wrong(f"no status within {STATUS_S:g} s:\n{self.log_tail()}") from error
        self.status_s.append(time.monotonic() - began)
        return report

    def until(self, found: Callable[[], T | None], what: str, within_s: float) -> T:
        """Look again and again until `found` finds something. Raises Wrong with `what` after `within_s` seconds."""
        deadline_at = time.monotonic() + within_s
        while (one := found()) is None:
            if time.monotonic() > deadline_at:
                raise Wrong(f"not within {within_s:g} s: {what}\n{self.log_tail()}")
            time.sleep(LOOK_S)
        return one

    def workers(self) -> dict[int, int]:
        """Return index -> pid of the workers that have joined."""
        return {int(one["index"]): int(one["pid"]) for one in self.status()["workers"] if one["state"] != "starting"}

    def log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-LOG_TAIL:] if self.log.exists() else ""


def gone(pidfd: int, within_s: float) -> bool:
    """Say whether the process behind `pidfd` ends within so many seconds."""
    return bool(select.select([pidfd], [], [], within_s)[0])


def open_fds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def rss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def is_dying(pid: int) -> bool:
    """Say whether the kernel has ordered a process to end: SIGKILL is pending, or it is gone already."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(("SigPnd:", "ShdPnd:")) and int(line.split()[1], 16) & _SIGKILL:
                return True
        flags = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[6])
        return bool(flags & _PF_EXITING)
    return True


def _how(pid: int) -> str:
    """Return what a process is doing: name, state, signals that are pending."""
    wanted = ("Name:", "State:", "Threads:", "SigPnd:", "ShdPnd:")
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        words = [" ".join(line.split()) for line in lines if line.startswith(wanted)]
        where = Path(f"/proc/{pid}/wchan").read_text()
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return f"{', '.join(words)}, waits in {where}, flags {int(stat[6]):x}, {stat[11]}+{stat[12]} ticks of CPU"
    return "gone"


class Pause:
    """Two sides of a rest: whoever works looks at `is_wanted` and says so when it rests."""

    def __init__(self) -> None:
        self._wanted, self._resting = threading.Event(), threading.Event()
        self.is_over = False

    def rest_if_wanted(self) -> None:
        while self._wanted.is_set() and not self.is_over:
            self._resting.set()
            time.sleep(LOOK_S)
        self._resting.clear()

    def ask(self) -> None:
        """Return when the other side rests."""
        self._resting.clear()
        self._wanted.set()
        if not self._resting.wait(60.0):
            raise RuntimeError("the load does not come to rest")

    def go_on(self) -> None:
        self._wanted.clear()


__all__ = ["MorganError", "Pause", "Victim", "Wrong", "gone", "open_fds", "rss_kib"]
