"""Killed workers and a killed supervisor: no task is lost, no effect is there twice, and no process is left behind."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from morgan.background.data import documents
from morgan.background.ipc import messages
from morgan.background.ipc.client import expect
from morgan.background.ipc.records import TaskRecord, TaskStatus
from tests.processes.daemons import TASK_S, Daemon

PAGE = 64  # points of a step of a re-index
POINTS = 160  # two whole steps and some more
ORPHANS_S = 1.0  # what is promised of them; the kernel needs a millisecond


@pytest.fixture(scope="module")
def served() -> Iterator[Daemon]:
    """A daemon with the model and two task workers, which all tests here kill in turn."""
    one = Daemon({"MORGAN_SERVICE_WORKERS": "2"})
    try:
        yield one.start()
    finally:
        one.close()


def fill(daemon: Daemon, collection: str) -> None:
    """Make a collection whose vectors are of no text: a re-index has to embed all of it."""
    daemon.client.create_collection(collection, 384)
    flat = [1.0] + [0.0] * 383
    points = [{"id": d["id"], "vector": flat, "payload": {"text": d["text"][:200]}} for d in documents()[:POINTS]]
    assert daemon.client.upsert(collection, points) == POINTS


def seen(daemon: Daemon, task_id: str, is_it: Callable[[TaskRecord], bool]) -> TaskRecord:
    """Follow a task by long polls until `is_it`; fail where it ends before."""
    record, deadline_at = daemon.task(task_id), time.monotonic() + TASK_S
    while not is_it(record):
        assert not record.status.is_final, record
        assert time.monotonic() < deadline_at, record
        ask = messages.GetTask(task_id=task_id, seen=record.version, wait_s=20.0)
        record = expect(messages.TaskReply, daemon.client.request(ask, 30.0)).task
    return record


def worker_of(daemon: Daemon, task_id: str) -> int:
    """Return the pid of the worker that runs a task."""
    (pid,) = [w["pid"] for w in daemon.client.status()["workers"] if w["task_id"] == task_id]
    return int(pid)


def embedded_once(daemon: Daemon, collection: str, result: dict[str, Any] | None) -> None:
    """Assert that every point was embedded, and that a second run finds nothing left to do."""
    assert result is not None
    assert result["documents_processed"] == POINTS
    # a step that was killed between its write and its checkpoint is seen again, and is found to be done
    assert result["documents_embedded"] + result["documents_unchanged"] == POINTS
    again = daemon.run("reindex", collection)
    assert (again["documents_embedded"], again["documents_unchanged"]) == (0, POINTS)
    assert len(daemon.client.collections()) == len({one.name for one in daemon.client.collections()})


def test_the_task_of_a_killed_worker_completes_on_a_later_attempt_and_its_effect_is_there_once(served: Daemon) -> None:
    fill(served, "killed")
    task_id = served.submit("reindex", "killed")
    seen(served, task_id, lambda record: record.progress.done >= PAGE)
    os.kill(worker_of(served, task_id), signal.SIGKILL)
    ended = served.finished(task_id)
    assert (ended.status, ended.attempt, ended.kills) == (TaskStatus.COMPLETED, 2, 1), ended.error_message
    assert (ended.result or {})["documents_unchanged"] < PAGE  # it went on behind the first step
    embedded_once(served, "killed", ended.result)
    executions = expect(messages.ExecutionList, served.client.request(messages.ListExecutions(limit=100))).executions
    assert [one.status for one in executions if one.task_id == task_id] == [TaskStatus.COMPLETED]


def test_a_task_that_kills_its_worker_three_times_is_given_up_with_the_reason_and_the_next_one_runs(
    served: Daemon,
) -> None:
    fill(served, "poison")
    task_id = served.submit("reindex", "poison")
    for attempt in (1, 2, 3):
        seen(served, task_id, lambda record, n=attempt: record.attempt == n)  # type: ignore[misc]
        os.kill(worker_of(served, task_id), signal.SIGKILL)
    ended = served.finished(task_id)
    assert (ended.status, ended.error_code, ended.kills) == (TaskStatus.FAILED, "killed", 3)
    assert ended.error_message == "its worker died 3 times while it ran (signal 9): it is taken for the cause"
    served.run("reindex", "poison")  # another task: the pool is whole


def test_a_killed_supervisor_leaves_no_process_and_the_next_one_resumes_the_task_at_its_checkpoint(
    served: Daemon,
) -> None:
    fill(served, "resumed")
    task_id = served.submit("reindex", "resumed")
    seen(served, task_id, lambda record: record.progress.done >= PAGE)
    busy = worker_of(served, task_id)
    children, process = served.children(), served.process
    assert process is not None
    assert len(children) == 4  # two task workers, the owner, the fork server
    idle = next(w["pid"] for w in served.client.status()["workers"] if w["role"] == "tasks" and w["pid"] != busy)
    psutil.Process(idle).suspend()  # no thread of it can see to its end
    ends = [os.pidfd_open(child.pid) for child in children]
    process.kill()
    process.wait()
    deadline_at = time.monotonic() + ORPHANS_S
    for fd in ends:
        assert select.select([fd], [], [], max(deadline_at - time.monotonic(), 0.0))[0], "a process is left"
        os.close(fd)

    served.start({"MORGAN_SERVICE_MAX_RSS_MIB": "64"})
    ended = served.finished(task_id)
    assert (ended.status, ended.attempt) == (TaskStatus.COMPLETED, 2), ended.error_message
    assert (ended.result or {})["documents_unchanged"] < PAGE
    embedded_once(served, "resumed", ended.result)


def test_a_worker_that_has_grown_too_large_is_replaced_after_its_task(served: Daemon) -> None:
    """The daemon has a limit by now that every worker with the model is above."""

    def of_tasks(report: dict[str, Any]) -> set[int]:
        return {w["pid"] for w in report["workers"] if w["role"] == "tasks" and w["state"] != "starting"}

    before = served.until(lambda report: of_tasks(report) if len(of_tasks(report)) == 2 else None)
    assert served.run("reindex", "resumed")["documents_embedded"] == 0
    served.until(lambda report: len(of_tasks(report) - before) > 0 or None)
    assert "has grown or served its time, and is replaced" in served.log.read_text()
    assert served.client.status()["problems"] == []
