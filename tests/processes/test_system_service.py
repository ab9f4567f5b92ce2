"""The service as systemd runs it: the unit's own command, what it is told and when, a reload and a set clock."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from morgan.background.ipc import messages
from morgan.background.ipc.client import expect
from morgan.background.ipc.errors import ConfigError
from tests.processes.daemons import ALL_OF_THE_MACHINE, NO_MODEL, Daemon

MakeDaemon = Callable[[Mapping[str, str]], Daemon]

WAIT_S = 60.0  # for one word of the daemon, on a machine under load
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


class Systemd:
    """A fake of systemd: it binds the socket, sets the variables and reads what comes. It starts nothing."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder / "notify")
        self.inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.inbox.bind(self.name)
        self.inbox.settimeout(WAIT_S)

    def heard(self) -> dict[str, str]:
        """Return the next datagram."""
        return dict(line.split("=", 1) for line in self.inbox.recv(4096).decode().splitlines())

    def forget(self) -> None:
        self.inbox.setblocking(False)
        with suppress(BlockingIOError):
            while self.inbox.recv(4096):
                pass
        self.inbox.settimeout(WAIT_S)

    def until(self, name: str) -> dict[str, str]:
        """Return the next datagram that has `name`."""
        while name not in (found := self.heard()):
            pass
        return found


@pytest.fixture
def watched(make_daemon: MakeDaemon) -> Iterator[tuple[Daemon, Systemd]]:
    """A daemon that is not started, with a systemd that watches it and a configuration file of its own."""
    daemon = make_daemon(NO_MODEL)
    systemd = Systemd(daemon.root)
    daemon.env |= {"NOTIFY_SOCKET": systemd.name, "WATCHDOG_USEC": "500000"}
    for name in (*ALL_OF_THE_MACHINE, "MORGAN_SCHEDULE_AUTO", "MORGAN_SERVICE_TIMEZONE"):
        del daemon.env[name]  # the file is to decide
    configure(daemon, quiet_hours_cpu_limit=1.0, active_hours_cpu_limit=1.0)
    yield daemon, systemd
    systemd.inbox.close()


def configure(daemon: Daemon, more: str = "", **limits: float) -> None:
    lines = [f"{name} = {value}" for name, value in (limits | {"memory_limit": 1.0}).items()]
    text = "\n".join(["[limits]", *lines, "[service]", "timezone = 'UTC'", "[schedule]", "auto = false", more])
    (daemon.root / "config.toml").write_text(text)


def hang_up(daemon: Daemon, systemd: Systemd) -> dict[str, str]:
    """Have the daemon reload by SIGHUP; return what it says when it is done."""
    systemd.forget()  # what it said of reloads that were asked for otherwise
    os.kill(daemon.pid, signal.SIGHUP)
    assert int(systemd.until("RELOADING")["MONOTONIC_USEC"]) > 0
    return systemd.until("READY")


def report(daemon: Daemon) -> dict[str, Any]:
    return daemon.client.status()


def test_the_units_command_serves_and_systemd_hears_of_every_state(watched: tuple[Daemon, Systemd]) -> None:
    daemon, systemd = watched
    printed = daemon.cli("install-service", "--user", "--dry-run", "--json")
    (command,) = [line for line in json.loads(printed)["unit"].splitlines() if line.startswith("ExecStart=")]
    # as systemd starts it: no shell, no variables of this process, in "/"
    env = {name: daemon.env[name] for name in daemon.env if name.startswith("MORGAN_")}
    env |= {
        "HOME": str(daemon.root),
        "STATE_DIRECTORY": env.pop("MORGAN_STATE_DIR"),
        "RUNTIME_DIRECTORY": env.pop("MORGAN_RUNTIME_DIR"),
        "NOTIFY_SOCKET": systemd.name,
        "WATCHDOG_USEC": "500000",
    }
    with daemon.log.open("ab") as log:
        words = shlex.split(command.partition("=")[2])
        daemon.process = process = subprocess.Popen(words, cwd="/", env=env, stdout=log, stderr=log)
    ready = systemd.heard()
    assert ready["READY"] == "1"
    assert daemon.client.is_running()  # its socket is bound by then
    assert (daemon.state / "journal.sqlite3").exists()
    for _ in range(3):
        assert "0 running, 0 waiting" in systemd.until("WATCHDOG")["STATUS"]
    for child in daemon.children():
        with suppress(psutil.NoSuchProcess):
            assert "NOTIFY_SOCKET" not in child.environ()
    process.send_signal(signal.SIGTERM)
    assert "draining" in systemd.until("STOPPING")["STATUS"]
    assert process.wait(WAIT_S) == 0
    daemon.process = None


def test_a_reload_takes_effect_at_once_and_loses_neither_work_nor_workers(watched: tuple[Daemon, Systemd]) -> None:
    daemon, systemd = watched
    client = daemon.start().client
    client.request(messages.Pause(collection="kept"))
    task_id = daemon.submit("warm", "kept")
    workers = {child.pid for child in daemon.children()}
    assert report(daemon)["resources"]["can_run_task"] or report(daemon)["resources"]["others_cpu"] > 0.9
    configure(daemon, quiet_hours_cpu_limit=0.0, active_hours_cpu_limit=0.0)
    assert "reloaded" in hang_up(daemon, systemd)["STATUS"]
    resources = report(daemon)["resources"]
    assert ": 0 % of the machine" in resources["reason"]
    assert not resources["can_run_task"]
    waiting = report(daemon)["waiting"]
    assert [(one["task_id"], one["cause"]) for one in waiting] == [(task_id, "paused")]
    assert {child.pid for child in daemon.children()} == workers
    assert report(daemon)["problems"] == []

    configure(daemon, "collections = ['listed']\n", quiet_hours_cpu_limit=0.0, active_hours_cpu_limit=0.0)
    text = (daemon.root / "config.toml").read_text().replace("auto = false", "auto = true")
    (daemon.root / "config.toml").write_text(text)
    shown = json.loads(daemon.cli("reload", "--json"))
    assert shown == {"applied": ["schedule.auto", "schedule.collections"], "needs_restart": []}
    schedules = expect(messages.ScheduleList, client.request(messages.ListSchedules())).schedules
    assert {one.collection for one in schedules} == {"listed"}
    (daemon.root / "config.toml").write_text(text.replace("listed", "other"))
    assert "in force now: schedule.collections" in daemon.cli("reload")
    schedules = expect(messages.ScheduleList, client.request(messages.ListSchedules())).schedules
    assert {one.collection for one in schedules} == {"other"}
    client.request(messages.Resume(collection="kept"))
    assert daemon.finished(task_id).error_code == "collection_not_found"  # it was kept, and has run


def test_what_cannot_change_is_a_problem_until_it_is_as_it_was_or_the_service_is_restarted(
    watched: tuple[Daemon, Systemd],
) -> None:
    daemon, systemd = watched
    daemon.start()
    configure(daemon, "[store]\nurl = 'http://127.0.0.1:1'\n[cache]\nttl_hours = 5\n")
    hang_up(daemon, systemd)
    assert report(daemon)["problems"] == ["configuration: needs a restart: store.url"]
    assert "needs a restart: store.url" in daemon.log.read_text()
    assert "needs a restart: store.url" in daemon.cli("reload")
    assert report(daemon)["store"]["kind"] == "embedded"
    configure(daemon)
    hang_up(daemon, systemd)
    assert report(daemon)["problems"] == []


def test_a_broken_file_leaves_the_old_configuration_in_force(watched: tuple[Daemon, Systemd]) -> None:
    daemon, systemd = watched
    daemon.start()
    configure(daemon, quiet_hours_cpu_limit=0.0, active_hours_cpu_limit=0.0)
    hang_up(daemon, systemd)
    config = daemon.root / "config.toml"
    good = config.read_text()
    config.write_text("[limits]\nmemory_limit = 'much'\n")
    assert "old one stays" in hang_up(daemon, systemd)["STATUS"]
    (problem,) = report(daemon)["problems"]
    assert "not reloaded, the old one stays in force" in problem
    assert "limits.memory_limit: 'much' must be a number from 0 to 1" in problem
    assert problem.partition("force: ")[2] in daemon.log.read_text()
    with pytest.raises(ConfigError, match=r"limits\.memory_limit"):
        daemon.client.request(messages.Reload())
    assert "limits.memory_limit" in daemon.cli("reload", code=2)
    assert ": 0 % of the machine" in report(daemon)["resources"]["reason"]
    config.write_text(good)
    hang_up(daemon, systemd)
    assert report(daemon)["problems"] == []


def test_why_says_of_each_task_and_schedule_what_it_waits_for(bare: Daemon) -> None:
    bare.client.request(messages.Pause(collection="why"))
    task_id = bare.submit("warm", "why", is_forced=False)
    (added,) = json.loads(bare.cli("schedule", "add", "warm", "why", "daily", "--json"))
    shown = bare.cli("why")
    assert f"{task_id}: why is paused: `morgan-background tasks resume why`" in shown
    assert "expected: when it is resumed" in shown
    assert f"{added['task_id']} (daily): next run " in shown
    (one,) = json.loads(bare.cli("why", task_id, "--json"))["waiting"]
    assert (one["cause"], one["expected_at"]) == ("paused", None)
    assert json.loads(bare.cli("why", added["task_id"], "--json"))["waiting"] == []
    bare.cancel(task_id)
    assert f"{task_id} does not wait: it is cancelled" in bare.cli("why", task_id)
    assert "no task 'nothing'" in bare.cli("why", "nothing", code=1)
    bare.cli("schedule", "remove", added["task_id"])
    bare.client.request(messages.Resume(collection="why"))


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not here: Debian's package libfaketime has it")
def test_a_clock_that_is_set_is_noticed_by_the_running_service(watched: tuple[Daemon, Systemd]) -> None:
    """The daemon's wall clock alone is set: what a set clock does to the timer is shown in tests/components."""
    daemon, systemd = watched
    offset = daemon.root / "offset"
    offset.write_text("+0\n")
    daemon.env |= {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    daemon.start()
    (added,) = json.loads(daemon.cli("schedule", "add", "warm", "docs", "hourly", "--json"))
    offset.write_text("+1100d\n")
    task_id = ""
    while not task_id:  # each word of the daemon is a turn of its loop
        systemd.until("WATCHDOG")
        tasks = expect(messages.TaskList, daemon.client.request(messages.ListTasks())).tasks
        task_id = next((one.task_id for one in tasks if one.schedule_id == added["task_id"]), "")
    daemon.cancel(task_id)
    offset.write_text("+0\n")
    next_run_at = 0.0
    while not 0 <= next_run_at - added["next_run_at"] <= 7200:  # the test may run over a full hour
        systemd.until("WATCHDOG")
        schedules = expect(messages.ScheduleList, daemon.client.request(messages.ListSchedules())).schedules
        next_run_at = schedules[0].next_run_at
    tasks = expect(messages.TaskList, daemon.client.request(messages.ListTasks())).tasks
    assert [one.task_id for one in tasks if one.created_at > added["next_run_at"] + 7200] == [task_id]  # one for all
    assert daemon.log.read_text().count("the clock was set by") == 2
