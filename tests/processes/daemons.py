"""Owns a real daemon for the tests: its folders, its process, its log, and how it is waited for. Asserts how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import psutil
import zmq

from morgan.background.ipc import calls, messages
from morgan.background.ipc.client import Client, expect
from morgan.background.ipc.errors import ServiceUnavailable
from morgan.background.ipc.records import TaskRecord, TaskStatus

START_S = 120.0  # the supervisor answers in a second and the owner in ten; this is for a machine under load
TASK_S = 240.0  # a forced task whose worker, of class SCHED_IDLE, first loads the model on a machine under load

NO_MODEL = {"MORGAN_MODEL_NAME": "/no/such/model"}
"""Environment of a daemon that loads no model: its owner serves vectors in a second, what has to embed fails."""

# Whole machine and whole memory: what others use is still taken off, so tests force their tasks all the same.
ALL_OF_THE_MACHINE = {
    "MORGAN_LIMITS_ACTIVE_HOURS_CPU_LIMIT": "1.0",
    "MORGAN_LIMITS_QUIET_HOURS_CPU_LIMIT": "1.0",
    "MORGAN_LIMITS_MEMORY_LIMIT": "1.0",
}


T = TypeVar("T")
Context = zmq.Context[zmq.Socket[bytes]]


class Daemon:
    """`morgan-background serve` in a process and folders of its own. `env` overrides its environment at each start."""

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        shm = Path("/dev/shm")
        # a Unix socket's path holds 107 bytes: pytest's own folders may be longer
        self.root = Path(tempfile.mkdtemp(prefix="mb-", dir=shm if os.access(shm, os.W_OK) else None))
        self.state, self.runtime, self.log = self.root / "state", self.root / "run", self.root / "log"
        (self.root / "config.toml").touch()
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("MORGAN_")}
        self.env |= {
            "MORGAN_CONFIG": str(self.root / "config.toml"),  # else one of this machine could be read
            "MORGAN_STATE_DIR": str(self.state),
            "MORGAN_RUNTIME_DIR": str(self.runtime),
            "MORGAN_SERVICE_WORKERS": "1",
            "MORGAN_SERVICE_TIMEZONE": "UTC",
            "MORGAN_SCHEDULE_AUTO": "false",
            "MORGAN_MODEL_LOADER": "reference",  # else each one makes a graph of its model first
            **ALL_OF_THE_MACHINE,
            **(env or {}),
        }
        self.client = Client(runtime_dir=self.runtime, state_dir=self.state, timeout_s=30.0, call_timeout_s=TASK_S)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self, env: Mapping[str, str] | None = None) -> Daemon:
        """Start it and wait until the supervisor and the store owner answer."""
        self.env |= env or {}
        with self.log.open("ab") as log:
            self.process = process = subprocess.Popen(
                [sys.executable, "-m", "morgan.background", "serve"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env,
            )
        deadline_at = time.monotonic() + START_S
        while not self.client.is_running():
            with suppress(subprocess.TimeoutExpired):
                code, self.process = process.wait(0.02), None
                raise AssertionError(f"the daemon ended with {code}:\n{self.log.read_text()}")
            assert time.monotonic() < deadline_at, f"the daemon does not answer:\n{self.log.read_text()}"
        try:
            # the socket connects by itself once the owner is there
            self.client.call(calls.Collections(), timeout_s=START_S)
        except ServiceUnavailable as error:
            raise AssertionError(f"the store owner does not answer:\n{self.log.read_text()}") from error
        return self

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def stop(self) -> None:
        """Send SIGTERM. The daemon leaves with code 0, after its children, and takes its sockets with it."""
        process, self.process = self.process, None
        if process is None:
            return
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(60) == 0
        finally:
            process.kill()  # does nothing to one that has ended
            process.wait()
            left = [child for child in children if child.is_running()]
            for child in left:
                child.kill()
        assert left == []
        assert list(self.runtime.glob("*.sock")) == []

    def close(self) -> None:
        try:
            self.stop()
        finally:
            self.client.close()
            shutil.rmtree(self.root)

    def is_served(self) -> bool:
        """Say whether the process that was started is the one that answers."""
        try:
            return expect(messages.Welcome, self.client.request(messages.Hello())).pid == self.pid
        except ServiceUnavailable:
            return False

    def until(self, found: Callable[[dict[str, Any]], T | None]) -> T:
        """Ask for the status until `found` finds something in it; fail when the daemon ends, or after TASK_S."""
        assert self.process is not None
        deadline_at = time.monotonic() + TASK_S
        while (one := found(report := self.client.status())) is None:
            assert time.monotonic() < deadline_at, report
            with suppress(subprocess.TimeoutExpired):
                raise AssertionError(f"the daemon ended with {self.process.wait(0.02)}:\n{self.log.read_text()}")
        return one

    # --- what tests ask of it -----------------------------------------------------------------------------------------

    def submit(self, task_type: str, collection: str, *, is_forced: bool = True, **params: Any) -> str:
        """Hand in a task that runs however busy this machine is; return its id."""
        asked = messages.Submit(task_type=task_type, collection=collection, params=params, is_forced=is_forced)
        return expect(messages.Submitted, self.client.request(asked)).task_id

    def task(self, task_id: str) -> TaskRecord:
        return expect(messages.TaskReply, self.client.request(messages.GetTask(task_id=task_id))).task

    def history(self, task_id: str) -> list[TaskRecord]:
        """Follow a task by long polls; return its states as they were seen, the final one last."""
        seen = [self.task(task_id)]
        deadline_at = time.monotonic() + TASK_S
        while not seen[-1].status.is_final:
            left_s = deadline_at - time.monotonic()
            assert left_s > 0, f"{task_id} has not ended: {seen[-1]}"
            ask = messages.GetTask(task_id=task_id, seen=seen[-1].version, wait_s=min(left_s, 20.0))
            record = expect(messages.TaskReply, self.client.request(ask, 30.0)).task
            if record.version > seen[-1].version:  # else the wait is over and nothing has changed
                seen.append(record)
        return seen

    def finished(self, task_id: str) -> TaskRecord:
        return self.history(task_id)[-1]

    def run(self, task_type: str, collection: str, **params: Any) -> dict[str, Any]:
        """Run a task to its completion; return its result."""
        ended = self.finished(self.submit(task_type, collection, **params))
        assert ended.status is TaskStatus.COMPLETED, ended.error_message
        assert ended.result is not None
        return ended.result

    def cancel(self, task_id: str) -> int:
        return expect(messages.Done, self.client.request(messages.CancelTask(task_id=task_id))).count

    def points(self, collection: str) -> dict[Any, tuple[dict[str, Any], bytes | None]]:
        """Return the first 256 points of a collection as they are stored: payload and vector by id."""
        page = expect(calls.Page, self.client.call(calls.Scroll(collection=collection, limit=256, with_vectors=True)))
        return {point.id: (point.payload, point.vector) for point in page.points}

    def elsewhere(self, script: str, *arguments: str) -> Any:
        """Run Python in another process, with this daemon's folders in its environment; return the JSON it prints."""
        command = [sys.executable, "-c", script, *arguments]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def cli(self, *arguments: str, code: int = 0, stdin: str = "") -> str:
        """Run the command line against this daemon; return what it prints. `code` is the exit code it must have."""
        command = [sys.executable, "-m", "morgan.background", *arguments]
        done = subprocess.run(
            command, env=self.env, input=stdin, capture_output=True, text=True, timeout=TASK_S, check=False
        )
        assert done.returncode == code, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout if code == 0 else done.stdout + done.stderr


def received(socket: zmq.Socket[bytes]) -> dict[str, Any]:
    """Return the map of the next message on a DEALER."""
    assert socket.poll(30_000), "no reply"
    (reply,) = socket.recv_multipart()
    decoded: dict[str, Any] = msgspec.msgpack.decode(reply)
    return decoded
