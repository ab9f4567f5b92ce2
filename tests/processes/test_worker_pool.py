"""The worker pool in real processes: who dies, hangs or wears out is replaced, and the service goes on meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from morgan.background.ipc.board import MAGIC
from morgan.background.ipc.records import TaskStatus
from morgan.background.supervisor import procfs
from morgan.background.supervisor.restarts import INTENSITY
from tests.processes.daemons import NO_MODEL, TASK_S, Daemon

MakeDaemon = Callable[[Mapping[str, str]], Daemon]
Report = dict[str, Any]


@pytest.fixture(scope="module")
def pool() -> Iterator[Daemon]:
    """A daemon of this module's own: its processes are killed. Two task workers, no model."""
    one = Daemon({**NO_MODEL, "MORGAN_SERVICE_WORKERS": "2"})
    try:
        one.start()
        yield one
    finally:
        one.close()


def ready(report: Report, index: int, other_than: int = 0) -> int | None:
    """Return the pid of the worker in a place, once it is ready and not the one named."""
    pids = [w["pid"] for w in report["workers"] if w["index"] == index and w["state"] != "starting"]
    return next((int(pid) for pid in pids if pid != other_than), None)


def pids(daemon: Daemon) -> dict[int, int]:
    """Return the pid of each place, owner included, once all are taken."""

    def all_of(report: Report) -> dict[int, int] | None:
        found = {w["index"]: w["pid"] for w in report["workers"] if w["state"] != "starting"}
        return found if len(found) == int(daemon.env["MORGAN_SERVICE_WORKERS"]) + 1 else None

    return daemon.until(all_of)


def test_a_killed_worker_is_replaced_and_the_others_are_not(pool: Daemon) -> None:
    before = pids(pool)
    os.kill(before[2], signal.SIGKILL)
    fresh = pool.until(lambda report: ready(report, 2, other_than=before[2]))
    assert pids(pool) == before | {2: fresh}
    assert psutil.Process(fresh).ppid() == pool.pid  # not the fork server's: it can wait for it
    assert os.getsid(fresh) == fresh  # and so in an autogroup of its own


def test_a_killed_owner_is_replaced_and_has_the_vectors(pool: Daemon) -> None:
    pool.client.create_collection("kept", 4)
    owner = pids(pool)[0]
    os.kill(owner, signal.SIGKILL)
    pool.until(lambda report: ready(report, 0, other_than=owner))
    assert [one.name for one in pool.client.collections()] == ["kept"]


def test_a_killed_fork_server_is_replaced_and_workers_live_on(pool: Daemon) -> None:
    before, server = pids(pool), pool.client.status()["fork_server"]
    os.kill(server, signal.SIGKILL)
    fresh = pool.until(lambda report: report["fork_server"] if report["fork_server"] not in (server, None) else None)
    assert pids(pool) == before
    os.kill(before[1], signal.SIGKILL)
    pool.until(lambda report: ready(report, 1, other_than=before[1]))
    assert pool.client.status()["fork_server"] == fresh


def test_workers_that_lose_their_fork_server_at_their_start_are_there_once_each(pool: Daemon) -> None:
    """Both are killed together: whatever the fork server was about, each place has one process in the end."""
    for _ in range(3):
        before, server = pids(pool), pool.client.status()["fork_server"]
        os.kill(before[1], signal.SIGKILL)
        os.kill(before[2], signal.SIGKILL)
        os.kill(server, signal.SIGKILL)
        for index in (1, 2):
            pool.until(partial(ready, index=index, other_than=before[index]))
    pool.until(lambda report: report["fork_server"])
    left = {*pids(pool).values(), pool.client.status()["fork_server"]}
    assert {child.pid for child in pool.children()} == left


def test_a_stopped_worker_is_replaced_once_and_the_old_process_is_gone(make_daemon: MakeDaemon) -> None:
    pool = make_daemon(NO_MODEL).start()
    before = pids(pool)
    old = psutil.Process(before[1])
    logged = len(pool.log.read_text())
    old.suspend()
    fresh = pool.until(lambda report: ready(report, 1, other_than=old.pid))
    assert not old.is_running()
    # the new one beats: a row that still showed the old one's beat would have it killed, too
    pool.until(lambda report: [w for w in report["workers"] if w["index"] == 1 and 0 < (w["heartbeat_age_s"] or 0) < 5])
    assert pids(pool) == before | {1: fresh}
    log = pool.log.read_text()[logged:]
    assert log.count("is killed: it gave no sign of life for 1") == 1
    assert log.count("worker 1 (tasks) started") == 1


def test_the_status_shows_the_age_of_the_heartbeat_the_steps_and_the_memory_of_each_worker(pool: Daemon) -> None:
    rows = pool.until(
        lambda report: report["workers"] if all(w["heartbeat_age_s"] is not None for w in report["workers"]) else None,
    )
    assert [(w["steps"], w["heartbeat_age_s"] >= 0) for w in rows] == [(0, True)] * 3
    assert all(w["rss_mib"] > 1 for w in rows)


def test_workers_are_moved_when_the_usable_cpus_change(make_daemon: MakeDaemon) -> None:
    pool = make_daemon({**NO_MODEL, "MORGAN_SERVICE_WORKERS": "2"}).start()
    usable = os.sched_getaffinity(pool.pid)
    if len(usable) < 2:
        pytest.skip("needs two CPUs")
    workers = pids(pool)
    planned = {index: os.sched_getaffinity(pid) for index, pid in workers.items()}
    one = {max(usable)}

    def plan(_report: Report) -> dict[int, set[int]]:
        return {index: os.sched_getaffinity(pid) for index, pid in workers.items()}

    os.sched_setaffinity(pool.pid, one)
    try:
        pool.until(lambda report: plan(report) == dict.fromkeys(workers, one) or None)
        os.kill(workers[1], signal.SIGKILL)
        workers[1] = pool.until(lambda report: ready(report, 1, other_than=workers[1]))
        assert os.sched_getaffinity(workers[1]) == one
    finally:
        os.sched_setaffinity(pool.pid, usable)
    pool.until(lambda report: plan(report) == planned or None)


def test_two_workers_at_work_do_not_stay_on_one_cpu_while_another_has_none(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon({**NO_MODEL, "MORGAN_SERVICE_WORKERS": "3"}).start()
    usable = sorted(os.sched_getaffinity(daemon.pid))
    if len(usable) < 2:
        pytest.skip("needs two CPUs")
    workers = pids(daemon)
    os.sched_setaffinity(daemon.pid, usable[-2:])

    def at(*places: int) -> list[set[int]]:
        return [os.sched_getaffinity(thread) for index in places for thread in procfs.threads(workers[index])]

    alone, shared = {usable[-2]}, {usable[-1]}
    daemon.until(lambda _: (all(one == shared for one in at(1, 3)) and all(one == alone for one in at(2))) or None)
    tasks = [daemon.submit("ping", "none", hold_s=TASK_S) for _ in range(3)]
    places = daemon.until(
        lambda report: (
            found if len(found := {w["task_id"]: w["index"] for w in report["workers"] if w["task_id"]}) == 3 else None
        )
    )
    assert set(places) == set(tasks)
    daemon.cancel(next(task for task, index in places.items() if index == 2))
    daemon.until(lambda _: len({frozenset(one) for one in at(1, 3)}) == 2 or None)
    moved = [index for index in (1, 3) if all(one == alone for one in at(index))]
    assert len(moved) == 1
    (row,) = [w for w in daemon.client.status()["workers"] if w["index"] == moved[0]]
    assert f"on CPU {min(alone)}" in row["courtesy"]


def test_a_place_whose_workers_keep_dying_is_reported_and_the_service_goes_on(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon({**NO_MODEL, "MORGAN_SERVICE_WORKERS": "2"}).start()
    before = pids(daemon)
    # one that is ready has not attached to the board yet: it says so first
    daemon.until(lambda _: all("/board" in Path(f"/proc/{pid}/maps").read_text() for pid in before.values()) or None)
    with (daemon.runtime / "board").open("r+b") as board:
        board.write(bytes(8))  # no worker can attach to it any more: each dies at its start
        board.flush()
        os.kill(before[2], signal.SIGKILL)
        daemon.until(lambda report: report["problems"] or None)
        (problem,) = daemon.client.status()["problems"]
        assert problem == "workers: worker 2 keeps dying at start; see the service's log"
        assert daemon.log.read_text().count("worker 2 (tasks) started") == INTENSITY
        assert {index: pid for index, pid in before.items() if index != 2} == {
            w["index"]: w["pid"] for w in daemon.client.status()["workers"]
        }
        assert daemon.finished(daemon.submit("warm", "none")).error_code == "collection_not_found"
        board.seek(0)
        board.write(MAGIC.to_bytes(8, "little"))


def test_a_worker_is_replaced_after_its_tasks_and_no_task_is_harmed(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon({**NO_MODEL, "MORGAN_SERVICE_MAX_TASKS": "2"}).start()
    for _ in range(2):
        old = pids(daemon)[1]
        for _ in range(2):
            ended = daemon.finished(daemon.submit("warm", "none"))
            assert (ended.kills, ended.error_code) == (0, "collection_not_found")
        daemon.until(partial(ready, index=1, other_than=old))
    assert daemon.client.status()["problems"] == []


def test_a_step_that_makes_no_progress_is_stopped_then_killed_and_its_task_runs_again(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon({**NO_MODEL, "MORGAN_QUEUE_STEP_TIMEOUT_S": "1", "MORGAN_SERVICE_GRACE_S": "1"}).start()
    daemon.client.create_collection("stuck", 4)
    daemon.client.upsert("stuck", [{"id": 1, "vector": [1.0, 0.0, 0.0, 0.0], "payload": {"text": "a"}}])
    before = pids(daemon)
    owner = psutil.Process(before[0])
    owner.suspend()  # the worker waits for it, for half a minute
    try:
        task_id = daemon.submit("reindex", "stuck")
        daemon.until(lambda report: ready(report, 1, other_than=before[1]))
    finally:
        owner.resume()
    ended = daemon.finished(task_id)
    assert (ended.status, ended.error_code) == (TaskStatus.FAILED, "model")  # it came that far
    assert ended.kills >= 1
    log = daemon.log.read_text()
    told = log.index(f"worker 1 (pid {before[1]}): its step has made no progress for ")
    why = f"worker 1 (pid {before[1]}) is killed: its step made no progress for 1 s, and it did not leave in 1 s"
    assert told < log.index(why)
