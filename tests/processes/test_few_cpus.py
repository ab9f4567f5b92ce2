"""A service on one CPU, with more workers than that: all of it works, and no worker is placed where it may not run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping

import pytest

from morgan.background.data import documents
from morgan.background.ipc.records import TaskStatus
from tests.processes.daemons import NO_MODEL, Daemon

WORKERS = 3


@pytest.fixture
def one_cpu() -> Iterator[int]:
    """Have this process, and those that it starts, run on one CPU."""
    before = os.sched_getaffinity(0)
    cpu = max(before)
    os.sched_setaffinity(0, {cpu})
    yield cpu
    os.sched_setaffinity(0, before)


def test_more_workers_than_cpus_end_their_tasks(
    make_daemon: Callable[[Mapping[str, str]], Daemon], one_cpu: int
) -> None:
    daemon = make_daemon({**NO_MODEL, "MORGAN_SERVICE_WORKERS": str(WORKERS)}).start()

    def joined(status: dict[str, object]) -> list[dict[str, object]] | None:
        workers = status["workers"]
        assert isinstance(workers, list)
        tasks = [one for one in workers if one["role"] == "tasks"]
        return tasks if len(tasks) == WORKERS else None

    workers = daemon.until(joined)
    for worker in workers:
        pid = worker["pid"]
        assert isinstance(pid, int)
        assert os.sched_getaffinity(pid) == {one_cpu}
    asked = [daemon.submit("ping", "any", token=str(number)) for number in range(2 * WORKERS)]
    assert {daemon.finished(task_id).status for task_id in asked} == {TaskStatus.COMPLETED}
    resources = daemon.client.status()["resources"]
    assert (resources["cpus"], resources["own_cpu"] <= 1.0) == (1.0, True)


@pytest.mark.timeout(400)
def test_four_workers_on_one_cpu_embed_with_the_real_model(
    make_daemon: Callable[[Mapping[str, str]], Daemon], one_cpu: int
) -> None:
    daemon = make_daemon({"MORGAN_SERVICE_WORKERS": "4"}).start()
    daemon.client.create_collection("few", 384)
    wrong = [0.0] * 383 + [1.0]  # of no model: each vector must be made anew
    some = documents()[:10]
    daemon.client.upsert("few", [{"id": one["id"], "vector": wrong, "payload": dict(one)} for one in some])
    assert daemon.run("reindex", "few")["documents_embedded"] == 10
    ran_on = [os.sched_getaffinity(child.pid) for child in daemon.children()]
    assert ran_on == [{one_cpu}] * len(ran_on)
