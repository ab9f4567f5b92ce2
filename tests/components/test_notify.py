"""What systemd is told, read from a real datagram socket in its place."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from morgan.background.supervisor.notify import Notifier


@pytest.fixture(params=["a path", "an abstract name"])
def heard(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket as systemd binds it, and the name it gives to the service."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        inbox.settimeout(10)
        if request.param == "a path":
            name = os.path.relpath(tmp_path / "n")  # short: such a path holds 107 bytes
            inbox.bind(name)
        else:
            name = f"@morgan-test-{os.getpid()}-{id(inbox)}"
            inbox.bind("\0" + name[1:])
        yield inbox, name


def test_each_state_is_one_datagram_of_lines(heard: tuple[socket.socket, str]) -> None:
    inbox, name = heard
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())})
    assert notifier.watchdog_s == 15.0
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.ready("idle,\n0 wait")
    notifier.alive("1 runs")
    notifier.reloading()
    notifier.stopping("draining")
    lines = [inbox.recv(4096).decode().splitlines() for _ in range(4)]
    assert lines[0] == ["READY=1", "STATUS=idle, 0 wait"]  # a line break would begin another variable
    assert lines[1] == ["WATCHDOG=1", "STATUS=1 runs"]
    assert lines[2][0] == "RELOADING=1"
    at_us = int(lines[2][1].removeprefix("MONOTONIC_USEC="))
    assert before <= at_us <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert lines[3] == ["STOPPING=1", "STATUS=draining"]


def test_without_a_watchdog_only_the_words_are_sent(heard: tuple[socket.socket, str]) -> None:
    inbox, name = heard
    Notifier({"NOTIFY_SOCKET": name}).alive("idle")
    assert inbox.recv(4096) == b"STATUS=idle"


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WATCHDOG_USEC": "1000000"},  # nobody to tell
        {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},  # meant for another process
        {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "soon"},
    ],
)
def test_a_watchdog_that_is_not_ours_is_not_fed(variables: dict[str, str]) -> None:
    assert Notifier(dict(variables)).watchdog_s is None


def test_the_variables_are_taken_so_that_no_worker_speaks_for_the_service() -> None:
    env = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "HOME": "/"}
    Notifier(env)
    assert env == {"HOME": "/"}


def test_nobody_who_listens_is_no_error(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    Notifier({}).ready("idle")
    assert caplog.text == ""
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "none")}).ready("idle")
    assert "systemd was not told READY=1" in caplog.text
