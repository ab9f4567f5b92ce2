"""What the core makes of its budget: how many tasks run at once, and whose memory is taken back. A real core, no workers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from morgan.background.ipc.commands import Configure, Ready, Role, Run
from morgan.background.ipc.paths import RuntimePaths
from morgan.background.ipc.records import TaskStatus, TaskType
from morgan.background.ipc.settings import WorkerSettings
from morgan.background.supervisor import governor
from morgan.background.supervisor.assemble import core_settings, make_core
from morgan.background.supervisor.config import load
from morgan.background.supervisor.core import Core
from morgan.background.supervisor.journal import Journal
from morgan.background.supervisor.monitor import KernelCpus
from morgan.background.supervisor.state import Health, SendCommand

CONFIG = load(env={"HOME": "/nonexistent"})
CONFIGURE = Configure(
    settings=WorkerSettings(), board_path="", owner_socket="", results_path="", board_row=0, allowed_uids=()
)
WORKERS = 4


class Machine:
    """What is said of it: nobody else uses its CPUs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.memory_percent = 30.0
        monkeypatch.setattr(KernelCpus, "busy", lambda _, usable, elapsed_s: 0.0)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(percent=self.memory_percent))
        monkeypatch.setattr(psutil, "sensors_battery", lambda: None)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def core(tmp_path: Path, machine: Machine) -> Iterator[Core]:
    runtime = RuntimePaths(tmp_path / "run")
    runtime.readers.mkdir(parents=True)
    made = make_core(CONFIG, core_settings(CONFIG, is_auto_scheduling=False), runtime, Journal(None), own_pids=list)
    for index in range(WORKERS + 1):
        role = Role.OWNER if index == WORKERS else Role.TASKS
        made.worker_joined(index, role, 1, CONFIGURE)
        made.on_event(index, Ready(role=role, index=index, pid=1), time.time())
    made.workers[WORKERS].is_started = True
    yield made
    made.keeper.store.close()


def submit(core: Core, collection: str, *, is_forced: bool = False, task_type: TaskType = TaskType.WARM) -> str:
    record, _ = core.queue.submit(
        task_type, collection, {}, priority=0, is_forced=is_forced, now=time.time(), salt=core.salt()
    )
    return record.task_id


def started(core: Core) -> set[str]:
    """Have one turn; return the collections whose tasks were handed out in it."""
    actions = core.tick(time.time())
    runs = [one.command for one in actions if isinstance(one, SendCommand) and isinstance(one.command, Run)]
    return {run.collection for run in runs}


def decide(core: Core, cpus: float, permille: int) -> None:
    """As if the last sample had said so; the next one is far."""
    core.budget.readings = governor.Readings(time.monotonic(), 0, 0, 300, cpus)
    core.budget.decision = governor.Decision(permille, True, governor.Memory.EASY, "said by the test")
    core._next_sample_at = time.time() + 3600


@pytest.mark.parametrize(("cpus", "permille", "count"), [(2.0, 300, 1), (2.0, 700, 2), (8.0, 300, 3), (0.5, 300, 1)])
def test_as_many_tasks_run_as_the_budget_keeps_busy_and_forced_ones_beside_them(
    core: Core, cpus: float, permille: int, count: int
) -> None:
    for number in range(4):
        submit(core, f"c{number}")
    decide(core, cpus, permille)
    assert len(started(core)) == count
    decide(core, cpus, permille)
    assert started(core) == set()
    waiting = [task for task in core.queue.open() if task.status is TaskStatus.PENDING]
    assert all(
        "the CPU budget is taken by the tasks that run" in core.why_waiting(task, time.time()) for task in waiting
    )
    if count < WORKERS:
        submit(core, "forced", is_forced=True)
        assert started(core) == {"forced"}


def test_a_re_index_alone_may_use_the_cpus_of_the_budget_and_shares_them_with_what_else_runs(core: Core) -> None:
    def index_of(task_id: str) -> int:
        return next(worker.index for worker in core.workers.values() if worker.task_id == task_id)

    def duties(*task_ids: str) -> list[tuple[int, int]]:
        return [(core.budget.duty_permille(index), core.budget.threads(index)) for index in map(index_of, task_ids)]

    first = submit(core, "c0", task_type=TaskType.REINDEX)
    decide(core, 4.0, 700)
    started(core)
    assert duties(first) == [(2800, 3)]
    second = submit(core, "c1", task_type=TaskType.REINDEX)
    started(core)
    assert duties(first, second) == [(1400, 2), (1400, 2)]
    third = submit(core, "c2")  # of one thread
    started(core)
    assert duties(first, second, third) == [(933, 1), (933, 1), (933, 1)]
    decide(core, 8.0, 700)
    assert duties(first, second, third) == [(2300, 3), (2300, 3), (1000, 1)]
    core.budget.decision = governor.Decision(700, True, governor.Memory.SHORT, "said by the test")
    assert [threads for _, threads in duties(first, second, third)] == [1, 1, 1]
    decide(core, 8.0, 0)
    assert duties(first, second, third) == [(0, 1)] * 3
    forced = submit(core, "c3", task_type=TaskType.REINDEX, is_forced=True)
    started(core)
    assert duties(forced) == [(1000, 1)]
    decide(core, 8.0, 700)
    assert duties(forced)[0] == duties(first)[0] == (1533, 2)
    core.budget._threads = 1  # as configured
    assert duties(first, forced) == [(1000, 1), (1000, 1)]


def test_a_budget_that_grows_lets_the_next_task_in(core: Core) -> None:
    for number in range(3):
        submit(core, f"c{number}")
    decide(core, 4.0, 200)
    assert len(started(core)) == 1
    decide(core, 4.0, 700)
    assert len(started(core)) == 2


def test_the_largest_worker_that_has_run_something_gives_its_memory_back_but_not_a_forced_task(core: Core) -> None:
    assert core.budget.to_relieve() is None
    for index, kib in enumerate([300, 500, 400, 900]):
        core.workers[index].health = Health(heartbeat_age_s=0.0, steps=0, rss_kib=kib)
    assert core.budget.to_relieve() is None  # none has run anything: a new one would be as large
    core.workers[0].tasks = core.workers[2].tasks = 1
    core.workers[WORKERS].tasks = 5  # the owner stays
    assert core.budget.to_relieve() == 2
    submit(core, "a", is_forced=True)
    decide(core, 2.0, 700)
    assert started(core) == {"a"}
    (busy,) = [worker.index for worker in core.workers.values() if worker.task_id is not None]
    core.workers[busy].health = Health(heartbeat_age_s=0.0, steps=0, rss_kib=1000)
    assert core.budget.to_relieve() == (2 if busy != 2 else 0)


def test_memory_that_runs_short_is_seen_by_the_next_sample_after_a_second(core: Core, machine: Machine) -> None:
    machine.memory_percent = 91.0
    core.budget._monitor._slow_at = 0.0  # a second has passed
    core.budget._monitor._last = None
    core.sample(time.time())
    assert core.budget.decision.memory is governor.Memory.CRITICAL
    assert not core.budget.decision.is_admitting


def test_a_sample_asks_for_upkeep_where_shares_of_workers_follow_from_it_and_not_elsewhere(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_stirred_by(
        permille: int, *, is_admitting: bool = True, memory: governor.Memory = governor.Memory.EASY
    ) -> bool:
        """Have a sample end in this decision, then the upkeep that it asks for."""
        decision = governor.Decision(permille, is_admitting, memory, "said by the test")
        monkeypatch.setattr(governor, "step", lambda *_: (governor.GovernorState(), decision))
        core.is_stirred = False
        core.sample(time.time())
        if is_stirred := core.is_stirred:
            core.upkeep(time.time())
        return is_stirred

    assert is_stirred_by(300)
    assert not is_stirred_by(300)
    assert not is_stirred_by(297)
    assert is_stirred_by(295)  # from what was told last, however small its steps were
    assert is_stirred_by(2)
    assert is_stirred_by(0)
    assert is_stirred_by(0, is_admitting=False)
    assert is_stirred_by(0, is_admitting=False, memory=governor.Memory.TIGHT)
    assert not is_stirred_by(0, is_admitting=False, memory=governor.Memory.TIGHT)
    assert is_stirred_by(0, is_admitting=False, memory=governor.Memory.CRITICAL)
    assert is_stirred_by(0, is_admitting=False, memory=governor.Memory.CRITICAL)  # worker after worker is relieved
    assert is_stirred_by(300)
    core.workers[0].task_id = "ping_1"  # a ping does not stir, and takes a share
    assert is_stirred_by(300)
    assert not is_stirred_by(300)
