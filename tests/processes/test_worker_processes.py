"""What the processes of the daemon are to the machine: who is pinned, who is niced, who holds the heavy libraries."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import psutil

from tests.processes.daemons import Daemon

HEAVY = re.compile(r"torch|sentence_transformers|qdrant|tokenizers|safetensors|sklearn")


def workers(daemon: Daemon, role: str) -> list[dict[str, Any]]:
    return [worker for worker in whole(daemon)["workers"] if worker["role"] == role]


def whole(daemon: Daemon) -> dict[str, Any]:
    """Return the status, once every worker has its place."""
    places = int(daemon.env["MORGAN_SERVICE_WORKERS"]) + 1
    return daemon.until(lambda report: report if len(report["workers"]) == places else None)


def test_task_workers_are_pinned_each_to_its_own_cpu_and_give_way_to_everything(bare: Daemon) -> None:
    said = workers(bare, "tasks")
    found = [psutil.Process(worker["pid"]) for worker in said]
    usable = os.sched_getaffinity(0)
    assert len(found) == 2
    pinned = [process.cpu_affinity() for process in found]
    assert [len(cpus) for cpus in pinned] == [1, 1]
    assert len({cpu for cpus in pinned for cpu in cpus}) == min(2, len(usable))
    for worker, process in zip(said, found, strict=True):
        assert {"nice 19", "idle I/O", "SCHED_IDLE"} <= set(worker["courtesy"])
        assert process.nice() == 19
        assert process.ionice().ioclass == psutil.IOPRIO_CLASS_IDLE
        assert os.sched_getscheduler(process.pid) == os.SCHED_IDLE
        # every thread: what is set after a thread exists does not reach it
        tasks = [int(path.name) for path in Path(f"/proc/{process.pid}/task").iterdir()]
        assert {os.sched_getaffinity(tid) <= usable and len(os.sched_getaffinity(tid)) for tid in tasks} == {1}


def test_the_owner_answers_applications_and_is_neither_pinned_nor_niced(bare: Daemon) -> None:
    (owner,) = workers(bare, "owner")
    process, supervisor = psutil.Process(owner["pid"]), psutil.Process(bare.pid)
    assert process.cpu_affinity() == supervisor.cpu_affinity()
    assert process.nice() == supervisor.nice()
    assert owner["state"] == "ready"
    assert owner["courtesy"] == []


def test_the_status_names_every_process_and_the_daemon_is_their_parent(bare: Daemon) -> None:
    report = whole(bare)
    assert report["pid"] == bare.pid
    named = {worker["pid"] for worker in report["workers"]} | {report["fork_server"]}
    assert named == {child.pid for child in bare.children()}
    assert (report["lane"], report["service_running"], report["problems"]) == ("daemon", True, [])


def test_forked_processes_show_what_they_are_and_not_the_command_line_of_the_daemon(bare: Daemon) -> None:
    whole(bare)
    assert "serve" in psutil.Process(bare.pid).cmdline()
    for child in bare.children():
        assert " ".join(child.cmdline()) == "morgan-background (forked)"
        assert child.environ()["MORGAN_STATE_DIR"] == bare.env["MORGAN_STATE_DIR"]  # its own, not one of them garbled
    assert {child.name() for child in bare.children()} == {
        *("morgan-zygote", "morgan-owner-0", "morgan-tasks-1", "morgan-tasks-2")
    }


def test_forked_processes_hold_none_of_the_daemons_files_but_where_they_log_to(bare: Daemon) -> None:
    whole(bare)
    locks = {str(bare.state / "lock"), str(bare.runtime / "lock")}
    assert locks <= {file.path for file in psutil.Process(bare.pid).open_files()}
    for child in bare.children():  # a lock that is held by one of them would outlive the daemon
        held = {file.path for file in child.open_files()}
        assert held & (locks | {str(path) for path in bare.state.glob("journal*")}) == set()


def test_the_supervisor_never_loads_a_model_or_an_engine(daemon: Daemon, docs: str) -> None:
    daemon.run("rerank", docs, queries=["zinc"])
    supervisor = maps_of(daemon.pid)
    assert HEAVY.findall(supervisor) == []
    (worker,), (owner,) = workers(daemon, "tasks"), workers(daemon, "owner")
    # the same look finds them where they are: a test of the test
    assert "libtorch" in maps_of(worker["pid"])
    assert "qdrant" in maps_of(owner["pid"])


def maps_of(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()
