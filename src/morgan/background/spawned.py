"""Owns a supervisor that one application starts for itself, and ends with it."""

from __future__ import annotations

import contextlib
import copy
import os
import subprocess
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .ipc import launch, messages
from .ipc.client import Client, expect
from .ipc.errors import MorganError, ServiceUnavailable
from .ipc.reader import ResultReader
from .ipc.settings import StoreSettings
from .lane import DaemonLane
from .supervisor.config import Config, as_environment

START_S = 30.0  # the supervisor answers in well under a second; this is for a machine under load
KEPT_ROWS = 100  # of each list of recent activity, for who asks after a stop
KEY_VARIABLE = "MORGAN_SPAWNED_STORE_API_KEY"


class SpawnedLane(DaemonLane):
    """Starts a supervisor at the first request, unless one serves the state directory already.

    It ends with `stop` or `close`, and at the latest when the application's interpreter does. Its log goes to
    `service.log` in the state directory. To ask how it is after a `stop` starts none: the answer is as of the stop.
    """

    def __init__(
        self,
        config: Config,
        *,
        store: StoreSettings | None = None,
        check_interval_s: float | None = None,
        is_auto_scheduling: bool | None = None,
    ) -> None:
        super().__init__(Client(runtime_dir=config.runtime_dir(), state_dir=config.state_dir()))
        self._config = config
        self._environment = self._overrides(config, store, check_interval_s, is_auto_scheduling)
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] = lambda: None
        self._is_ready = False
        self._kept: dict[type[messages.Request], dict[str, Any]] = {}  # what it last said of itself, once it is stopped

    @staticmethod
    def _overrides(
        config: Config, store: StoreSettings | None, check_interval_s: float | None, is_auto_scheduling: bool | None
    ) -> dict[str, str]:
        found = as_environment(config) | {
            "MORGAN_STATE_DIR": str(config.state_dir()),
            "MORGAN_RUNTIME_DIR": str(config.runtime_dir()),
        }
        if config.source is not None:
            found["MORGAN_CONFIG"] = str(config.source)
        if check_interval_s is not None:
            found["MORGAN_SERVICE_CHECK_INTERVAL_S"] = str(check_interval_s)
        if is_auto_scheduling is not None:
            found["MORGAN_SCHEDULE_AUTO"] = str(is_auto_scheduling).lower()
        if store is not None:
            found["MORGAN_STORE_URL"] = store.url
            if store.api_key:  # a process's environment is readable by its own user alone
                found |= {"MORGAN_STORE_API_KEY_ENV": KEY_VARIABLE, KEY_VARIABLE: store.api_key.reveal()}
        return found

    def request(self, message: messages.Request, timeout_s: float | None = None) -> messages.Reply:
        if (kept := self._kept_of(message)) is not None and not self._client.is_running():
            return messages.Report(report=kept)
        self._ensure()
        return super().request(message, timeout_s)

    @property
    def reader(self) -> ResultReader:
        self._ensure()
        return super().reader

    def start(self) -> None:
        self._ensure()

    def _ensure(self) -> None:
        if self._is_ready:
            return
        if not self._client.is_running():
            self._spawn()
        self._is_ready, self._kept = True, {}

    def _spawn(self) -> None:
        state_dir = Path(self._config.state_dir())
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        log_path = state_dir / "service.log"
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                launch.command("", "serve"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=launch.environment(self._environment),
                start_new_session=True,  # Ctrl-C in the application's terminal is the application's to handle
            )
        # in a session of its own it would outlive an application that forgets to stop it
        self._end = weakref.finalize(self, _end, self._process, os.getpid(), self._config.service.grace_s + 10)
        deadline_at = time.monotonic() + START_S
        while not self._client.is_running():
            if self._process.poll() is not None or time.monotonic() > deadline_at:
                self.stop()
                raise ServiceUnavailable(f"the service did not start: see {log_path}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.02)

    def stop(self) -> None:
        """End the supervisor this lane started: it drains and leaves. One that was there before stays."""
        if self._is_ready:
            self._keep()
        self._process, self._is_ready = None, False
        self._end()

    def _keep(self) -> None:
        """Remember what the supervisor says of itself now. Of one that does not answer nothing is known."""
        with contextlib.suppress(MorganError):
            asked = (messages.Status(), messages.Activity(limit=KEPT_ROWS))
            status, activity = (expect(messages.Report, super(SpawnedLane, self).request(one)).report for one in asked)
            gone = {"service_running": False, "running": [], "workers": [], "fork_server": None}
            self._kept = {messages.Status: status | gone, messages.Activity: activity}

    def _kept_of(self, message: messages.Request) -> dict[str, Any] | None:
        """Return the answer that was remembered, the caller's own; None where there is none."""
        if (kept := self._kept.get(type(message))) is None:
            return None
        if isinstance(message, messages.Activity):
            return {
                name: copy.deepcopy(held[: message.limit] if isinstance(held, list) else held)
                for name, held in kept.items()
            }
        return copy.deepcopy(kept)

    def close(self) -> None:
        self.stop()
        super().close()


def _end(process: subprocess.Popen[bytes], parent_pid: int, grace_s: float) -> None:
    if os.getpid() != parent_pid:
        return  # a forked child of the application ends: the supervisor is its parent's
    process.terminate()  # SIGTERM drains
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
