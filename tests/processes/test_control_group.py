"""A daemon in a real control group of its own: its task workers are put into one below, the status says so, and it goes."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bench.chaos.victim import STANDIN
from morgan.background.ipc.records import TaskStatus
from tests.processes.conftest import some_documents
from tests.processes.daemons import NO_MODEL, Daemon

MakeDaemon = Callable[[Mapping[str, str]], Daemon]
QUOTA_CPUS, PERIOD_US = 0.2, 100_000
ORPHANS_S = 30.0  # far more than the kernel needs, for a machine under load

# Read by every Python that starts with this folder on its path: the daemon, before it is one.
SITE = """
import os, pathlib
pathlib.Path(os.environ["TEST_GROUP"], "cgroup.procs").write_text(str(os.getpid()))
"""


@pytest.fixture
def make_grouped(real_group: Path, make_daemon: MakeDaemon, tmp_path: Path) -> MakeDaemon:
    (tmp_path / "sitecustomize.py").write_text(SITE)

    def make(variables: Mapping[str, str]) -> Daemon:
        path = os.pathsep.join([str(tmp_path), variables.get("PYTHONPATH", "")])
        return make_daemon({**variables, "PYTHONPATH": path, "TEST_GROUP": str(real_group)})

    return make


@pytest.fixture
def grouped(make_grouped: MakeDaemon) -> Daemon:
    return make_grouped({**NO_MODEL, "MORGAN_SERVICE_WORKERS": "2"})


def whole(report: dict[str, Any]) -> list[dict[str, Any]] | None:
    workers: list[dict[str, Any]] = report["workers"]
    return workers if len(workers) == 3 and all(worker["state"] == "ready" for worker in workers) else None


def task_pids(workers: list[dict[str, Any]]) -> set[int]:
    return {worker["pid"] for worker in workers if worker["role"] == "tasks"}


def words_of(group: Path) -> str:
    return f"cgroup {group.name}: {'cpu.idle 1' if (group / 'cpu.idle').exists() else 'cpu.shares 2'}"


def pids(group: Path) -> set[int]:
    return {int(pid) for pid in (group / "cgroup.procs").read_text().split()}


def test_task_workers_and_nobody_else_are_in_the_group_and_it_ends_with_the_daemon(
    grouped: Daemon, real_group: Path
) -> None:
    workers = grouped.start().until(whole)
    group = real_group / "morgan-workers"
    assert pids(group) == task_pids(workers)
    assert {grouped.pid, *(worker["pid"] for worker in workers if worker["role"] == "owner")} <= pids(real_group)
    words = words_of(group)
    assert {worker["role"]: words in worker["courtesy"] for worker in workers} == {"owner": False, "tasks": True}
    grouped.stop()
    assert not group.exists()


def test_the_successor_of_a_killed_worker_is_in_the_group(grouped: Daemon, real_group: Path) -> None:
    killed = min(task_pids(grouped.start().until(whole)))
    os.kill(killed, signal.SIGKILL)

    def without_it(report: dict[str, Any]) -> list[dict[str, Any]] | None:
        workers = whole(report)
        return workers if workers and killed not in task_pids(workers) else None

    workers = grouped.until(without_it)
    assert pids(real_group / "morgan-workers") == task_pids(workers)


def test_a_killed_supervisor_leaves_a_group_that_the_next_one_uses(grouped: Daemon, real_group: Path) -> None:
    pidfds = [os.pidfd_open(pid) for pid in task_pids(grouped.start().until(whole))]
    assert grouped.process is not None
    grouped.process.kill()
    grouped.process.wait()
    for pidfd in pidfds:
        assert select.select([pidfd], [], [], ORPHANS_S)[0], "a worker is left"
        os.close(pidfd)
    workers = grouped.start().until(whole)
    assert pids(real_group / "morgan-workers") == task_pids(workers)


def test_under_a_quota_of_a_fifth_of_a_cpu_a_task_is_admitted_and_gets_done(
    make_grouped: MakeDaemon, real_group: Path
) -> None:
    (real_group / "cpu.cfs_quota_us").write_text(str(round(QUOTA_CPUS * PERIOD_US)))
    daemon = make_grouped({"PYTHONPATH": str(STANDIN), "MORGAN_MODEL_NAME": "stand-in"}).start()
    assert daemon.client.status()["resources"]["cpus"] == QUOTA_CPUS
    daemon.client.create_collection("docs")
    daemon.client.upsert("docs", some_documents())
    ended = daemon.finished(daemon.submit("reindex", "docs", is_forced=False))
    assert ended.status is TaskStatus.COMPLETED, ended.error_message
    assert "nr_throttled 0" not in (real_group / "cpu.stat").read_text().splitlines()


def test_a_daemon_that_is_told_to_makes_no_group(grouped: Daemon, real_group: Path) -> None:
    workers = grouped.start({"MORGAN_SERVICE_CGROUPS": "false"}).until(whole)
    assert not (real_group / "morgan-workers").exists()
    assert all("nice 19" in worker["courtesy"] for worker in workers if worker["role"] == "tasks")
    assert not any(words.startswith("cgroup") for worker in workers for words in worker["courtesy"])
