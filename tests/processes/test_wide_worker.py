"""A real worker with the machine to itself: it re-indexes on every CPU, gives way with each of its threads, and goes back to one.

That nobody else uses a CPU is said to the supervisor, since it is not so where tests run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from morgan.background.ipc import messages
from morgan.background.ipc.client import expect
from morgan.background.ipc.records import TaskStatus
from morgan.background.supervisor import procfs
from tests.processes.daemons import Daemon

# Read by every Python that starts with this folder on its path; the fork server is forked from the supervisor.
SITE = """
import importlib.abc, importlib.machinery, sys

class Alone(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "morgan.background.supervisor.monitor":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            module.KernelCpus.busy = lambda *_: 0.0
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Alone())
"""


@pytest.mark.timeout(400)
def test_a_re_index_alone_has_a_thread_for_each_cpu_and_each_of_them_gives_way(
    make_daemon: Callable[[Mapping[str, str]], Daemon], tmp_path: Path
) -> None:
    cpus = os.sched_getaffinity(0)
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    (tmp_path / "sitecustomize.py").write_text(SITE)
    daemon = make_daemon({"PYTHONPATH": str(tmp_path)}).start()
    daemon.client.create_collection("wide", 384)
    wrong = [0.0] * 383 + [1.0]
    some = [f"document {number} on the absorption of zinc" for number in range(400)]
    daemon.client.upsert("wide", [{"id": n, "vector": wrong, "payload": {"text": text}} for n, text in enumerate(some)])
    daemon.until(lambda report: report["resources"]["budget"] == 1.0 or None)
    pid = daemon.until(lambda report: next((w["pid"] for w in report["workers"] if w["role"] == "tasks"), None))
    assert len(os.sched_getaffinity(pid)) == 1
    task_id = daemon.submit("reindex", "wide", is_forced=False)
    helpers = {f"compute-{number}" for number in range(1, len(cpus))}
    while not helpers <= {
        (procfs.read_text(f"/proc/{pid}/task/{one}/comm") or "").strip() for one in procfs.threads(pid)
    }:
        assert not daemon.task(task_id).status.is_final
    assert os.sched_getaffinity(pid) == cpus
    assert {"nice 19", "SCHED_IDLE", "idle I/O"} <= set(procfs.courtesy(pid))  # what holds for each thread
    daemon.cancel(task_id)
    assert daemon.finished(task_id).status is TaskStatus.CANCELLED
    daemon.until(lambda _: len(os.sched_getaffinity(pid)) == 1 or None)
    asked = daemon.client.request(messages.ListExecutions(limit=1))
    (execution,) = expect(messages.ExecutionList, asked).executions
    assert execution.budget is not None
    assert execution.budget > 1.0
