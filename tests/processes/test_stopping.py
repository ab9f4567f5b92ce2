"""A worker that does not pace itself, in a real service: it is stopped and goes on, and a killed supervisor leaves none."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from morgan.background.supervisor import procfs
from tests.processes.daemons import NO_MODEL, TASK_S, Daemon

MakeDaemon = Callable[[Mapping[str, str]], Daemon]
Report = dict[str, Any]

ORPHANS_S = 30.0  # far more than the kernel needs, for a machine under load

# In the place of workers/ping.py: one step that computes all the while and never comes to where it would pace itself.
BURNING_PING = """
import time
from morgan.background.workers.task import Outcome

def ping(job):
    end_at = time.monotonic() + float(job.params.get("hold_s", 0.0))
    while time.monotonic() < end_at:
        pass
    return Outcome(result={"success": True})
    yield
"""
# Read by every Python that starts with this folder on its path.
SITE = """
import importlib.util, pathlib, sys

class BurningPing:
    def find_spec(self, name, path=None, target=None):
        if name == "morgan.background.workers.ping":
            return importlib.util.spec_from_file_location(name, pathlib.Path(__file__).with_name("burning_ping.py"))

sys.meta_path.insert(0, BurningPing())
"""


@pytest.fixture
def burning(make_daemon: MakeDaemon, tmp_path: Path) -> Daemon:
    """A daemon with one task worker that burns its CPU, under a budget of a fifth of one, and stops within a second."""
    (tmp_path / "burning_ping.py").write_text(BURNING_PING)
    (tmp_path / "sitecustomize.py").write_text(SITE)
    limit = str(0.2 / (os.cpu_count() or 1))
    daemon = make_daemon(
        {
            **NO_MODEL,
            "PYTHONPATH": str(tmp_path),
            "MORGAN_SERVICE_GRACE_S": "1",
            "MORGAN_LIMITS_ACTIVE_HOURS_CPU_LIMIT": limit,
            "MORGAN_LIMITS_QUIET_HOURS_CPU_LIMIT": limit,
        }
    ).start()
    daemon.submit("ping", "none", is_forced=False, hold_s=TASK_S)
    return daemon


def stopped(report: Report) -> int | None:
    return next((w["pid"] for w in report["workers"] if w["index"] == 1 and "stopped" in w["courtesy"]), None)


def going_on(report: Report) -> int | None:
    return next((w["pid"] for w in report["workers"] if w["index"] == 1 and "stopped" not in w["courtesy"]), None)


def test_a_worker_that_does_not_pace_itself_is_stopped_and_goes_on_and_is_not_taken_for_hung(burning: Daemon) -> None:
    pids = [burning.until(look) for look in (stopped, going_on, stopped, going_on, stopped)]
    assert len(set(pids)) == 1
    log = burning.log.read_text()
    assert log.count(f"worker 1 (pid {pids[0]}) used ") >= 3
    assert "is killed" not in log
    burning.stop()  # asserts that it ends well, with none left


def test_a_supervisor_that_is_killed_while_a_worker_is_stopped_leaves_no_process(burning: Daemon) -> None:
    process = burning.process
    assert process is not None
    while True:
        pid = burning.until(stopped)
        process.send_signal(signal.SIGSTOP)  # so that it lets the worker go on no more
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        if procfs.is_stopped(pid):
            break
        process.send_signal(signal.SIGCONT)
    children = burning.children()
    assert pid in {child.pid for child in children}
    ends = [os.pidfd_open(child.pid) for child in children]
    process.kill()
    process.wait()
    for fd in ends:
        assert select.select([fd], [], [], ORPHANS_S)[0], "a process is left"
        os.close(fd)
    burning.start()  # close asserts how it ends
