"""A daemon in a real control group of its own: its task workers are put into one below, the status says so, and it goes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.processes.daemons import NO_MODEL, Daemon

CPU_TREE = Path("/sys/fs/cgroup/cpu")
WORDS = "cgroup morgan-workers: cpu.shares 2"

# Read by every Python that starts with this folder on its path: the daemon, before it is one.
SITE = """
import os, pathlib
pathlib.Path(os.environ["TEST_GROUP"], "cgroup.procs").write_text(str(os.getpid()))
"""


@pytest.fixture
def real_group() -> Iterator[Path]:
    """A group of this test's own in the v1 tree; it is set up before a daemon is, and removed after it."""
    if not os.access(CPU_TREE, os.W_OK) or not (CPU_TREE / "cpu.shares").exists():
        pytest.skip("no v1 tree of control groups that may be written")
    folder = CPU_TREE / f"morgan-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    folder.rmdir()


@pytest.fixture
def grouped(real_group: Path, make_daemon: Callable[[Mapping[str, str]], Daemon], tmp_path: Path) -> Daemon:
    (tmp_path / "sitecustomize.py").write_text(SITE)
    return make_daemon(
        {**NO_MODEL, "PYTHONPATH": str(tmp_path), "TEST_GROUP": str(real_group), "MORGAN_SERVICE_WORKERS": "2"}
    )


def whole(report: dict[str, Any]) -> list[dict[str, Any]] | None:
    return report["workers"] if len(report["workers"]) == 3 else None


def pids(group: Path) -> set[int]:
    return {int(pid) for pid in (group / "cgroup.procs").read_text().split()}


def test_task_workers_and_nobody_else_are_in_the_group_and_it_ends_with_the_daemon(
    grouped: Daemon, real_group: Path
) -> None:
    workers = grouped.start().until(whole)
    tasks = {worker["pid"] for worker in workers if worker["role"] == "tasks"}
    assert pids(real_group / "morgan-workers") == tasks
    assert {grouped.pid, *(worker["pid"] for worker in workers if worker["role"] == "owner")} <= pids(real_group)
    assert {worker["role"]: WORDS in worker["courtesy"] for worker in workers} == {"owner": False, "tasks": True}
    grouped.stop()
    assert not (real_group / "morgan-workers").exists()


def test_a_daemon_that_is_told_to_makes_no_group(grouped: Daemon, real_group: Path) -> None:
    workers = grouped.start({"MORGAN_SERVICE_CGROUPS": "false"}).until(whole)
    assert not (real_group / "morgan-workers").exists()
    assert all("nice 19" in worker["courtesy"] for worker in workers if worker["role"] == "tasks")
    assert not any(words.startswith("cgroup") for worker in workers for words in worker["courtesy"])
