"""What warm and rerank tasks are given, and when a collection is warmed next. A real core, journal and store, no workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from morgan.background.cli import render
from morgan.background.ipc.commands import Configure, Finished, Ready, Role, Run
from morgan.background.ipc.paths import RuntimePaths
from morgan.background.ipc.query import query_hash
from morgan.background.ipc.records import (
    ComputedResult,
    DecisionRow,
    ScheduleRecord,
    Spread,
    TaskFrequency,
    TaskRecord,
    TaskType,
)
from morgan.background.ipc.settings import WorkerSettings
from morgan.background.supervisor import cadence, status
from morgan.background.supervisor.assemble import core_settings, make_core
from morgan.background.supervisor.config import load
from morgan.background.supervisor.core import Core
from morgan.background.supervisor.journal import Journal
from morgan.background.supervisor.monitor import KernelCpus
from morgan.background.supervisor.state import SendCommand

CONFIG = load(env={"HOME": "/nonexistent"})
CONFIGURE = Configure(
    settings=WorkerSettings(), board_path="", owner_socket="", results_path="", board_row=0, allowed_uids=()
)
DOCS, MEMORIES = CONFIG.schedule.collections[:2]
HOUR_S = 3600.0


@pytest.fixture
def core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Core]:
    """One whose machine nobody else uses."""
    monkeypatch.setattr(KernelCpus, "busy", lambda _, usable, elapsed_s: 0.0)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(percent=30.0))
    monkeypatch.setattr(psutil, "sensors_battery", lambda: None)
    runtime = RuntimePaths(tmp_path / "run")
    runtime.readers.mkdir(parents=True)
    made = make_core(CONFIG, core_settings(CONFIG), runtime, Journal(None), own_pids=list)
    for index, role in ((0, Role.TASKS), (1, Role.OWNER)):
        made.worker_joined(index, role, 1, CONFIGURE)
        made.on_event(index, Ready(role=role, index=index, pid=1), time.time())
    made.workers[1].is_started = True
    yield made
    made.keeper.store.close()


def ask(core: Core, collection: str, times: dict[str, int], cost_s: dict[str, float] | None = None) -> None:
    now = time.time()
    for text, count in times.items():
        core.popularity.add(text, collection, "", count, now - 600)
        core.popularity.note_cost(query_hash(text, collection), (cost_s or {}).get(text, 1.0))


def can_spare(core: Core, cpu_s: float) -> None:
    """As if the governor had left so many CPU seconds of the last hour."""
    zero, now = Spread(mean=0.0, peak=0.0), time.time()
    budget = Spread(mean=cpu_s / HOUR_S / core.budget.readings.cpus, peak=1.0)
    row = DecisionRow(
        started_at=now - HOUR_S,
        seconds=1e6,  # so that what is really decided meanwhile counts for nothing
        is_admitting=True,
        reason="said by the test",
        is_change=False,
        changes=0,
        admitted=1.0,
        budget=budget,
        limit=zero,
        own=zero,
        others=zero,
        memory=zero,
        query_rate=zero,
    )
    core.journal.add_decisions([row])
    core._spare_at = 0.0


def run(core: Core, now: float, collection: str = DOCS, **fields: Any) -> Run:
    """Make a task as a schedule does and have it handed out: before all others, once the worker has ended what it has."""
    wanted = {"task_type": TaskType.WARM, "params": {}, "schedule_id": "of the test"} | fields
    record, _ = core.queue.submit(collection=collection, now=now, salt=core.salt(), priority=10, **wanted)
    return handed_out(core, now, lambda one: one.task_id == record.task_id)


def handed_out(core: Core, now: float, is_wanted: Callable[[Run], bool]) -> Run:
    """End one task after the other until the wanted one is handed out; return that."""
    core._next_check_at = now + 1e6
    for _ in range(100):
        worker = core.workers[0]
        if worker.task_id is not None:
            core.on_event(0, Finished(task_id=worker.task_id, attempt=worker.attempt, result={}, cpu_s=0.0), now)
        for action in core.turn(now):
            if isinstance(action, SendCommand) and isinstance(action.command, Run) and is_wanted(action.command):
                return action.command
    raise AssertionError(f"the task was not handed out: {core.queue.open()}")


def finish(core: Core, command: Run, now: float, cpu_s: float = 0.0, computed: bool = True) -> None:
    """As a worker does that computed every query."""
    for job in command.queries if computed else ():
        core.publish([result(job.text, command.collection)], now, is_asked_for=False)
    core.on_event(0, Finished(task_id=command.task_id, attempt=command.attempt, result={}, cpu_s=cpu_s), now)


def result(text: str, collection: str, cost_s: float = 1.0) -> ComputedResult:
    return ComputedResult(
        query_text=text,
        collection=collection,
        ids=(1,),
        scores=np.array([1.0], "<f4").tobytes(),
        rerank_scores=np.array([1.0], "<f4").tobytes(),
        contents=("",),
        sources=("",),
        metadata=({},),
        computed_at=time.time(),
        cost_s=cost_s,
        candidates=(1,),
        embedding=np.array([1.0], "<f4").tobytes(),
    )


def texts(command: Run) -> list[str]:
    return [job.text for job in command.queries]


def warming_of(core: Core, collection: str, now: float) -> dict[str, Any]:
    (found,) = [one for one in status.warming(core, now)["collections"] if one["collection_name"] == collection]
    return found


def scheduled(core: Core, collection: str) -> ScheduleRecord:
    return core.schedules[f"warm_{collection}_default"]


def test_a_task_that_gets_nothing_although_results_are_lacking_is_told_why(core: Core) -> None:
    can_spare(core, 0.001)
    now = time.time()
    assert run(core, now).why_none == ""  # nothing is asked, so nothing is lacking
    ask(core, DOCS, {"one": 50, "two": 40}, {"one": 30.0, "two": 30.0})
    given = run(core, now)
    assert texts(given) == []
    assert given.why_none.startswith("2 popular queries lack a result, and 0.0 CPU seconds are left"), given.why_none


def test_where_there_is_little_to_spend_hits_per_cpu_second_go_first(core: Core) -> None:
    ask(core, DOCS, {"dear": 60, "cheap": 50, "cheaper": 40}, {"dear": 100.0, "cheap": 1.0, "cheaper": 0.1})
    can_spare(core, 50.0)
    assert texts(run(core, time.time())) == ["cheaper", "cheap"]


def test_a_forced_task_and_one_that_names_its_queries_get_what_they_ask_for(core: Core) -> None:
    ask(core, DOCS, {"dear": 60, "cheap": 50}, {"dear": 100.0, "cheap": 1.0})
    can_spare(core, 1.5)
    now = time.time()
    assert texts(run(core, now, is_forced=True)) == ["dear", "cheap"]
    assert texts(run(core, now, params={"queries": ["dear", "other"]})) == ["dear", "other"]
    assert texts(run(core, now)) == ["cheap"]


def test_max_queries_is_the_bound_and_with_nothing_left_nothing_is_planned(core: Core) -> None:
    ask(core, DOCS, {f"q{i}": 10 + i for i in range(9)})
    now = time.time()
    for task_type in (TaskType.WARM, TaskType.RERANK):
        assert len(texts(run(core, now, task_type=task_type, params={"max_queries": 4}))) == 4
    can_spare(core, 0.0)
    assert texts(run(core, now)) == []


def test_a_task_that_somebody_handed_in_gets_all_its_queries_in_the_planned_order(core: Core) -> None:
    ask(core, DOCS, {"asked more": 60, "asked less": 20})
    can_spare(core, 0.0)
    now = time.time()
    assert texts(run(core, now, schedule_id=None)) == ["asked more", "asked less"]
    assert texts(run(core, now)) == []


def test_what_a_task_used_is_taken_off_the_hour_of_all(core: Core) -> None:
    ask(core, DOCS, {f"q{i}": 10 + 2 * i for i in range(9)})
    ask(core, MEMORIES, {f"q{i}": 11 + 2 * i for i in range(9)})
    can_spare(core, 9.5)
    now = time.time()
    first = run(core, now, MEMORIES)
    assert 0 < len(texts(first)) < 9  # the others' queries are worth as much, and share what there is
    assert status.warming(core, now)["used_cpu_s"] == pytest.approx(len(texts(first)))
    finish(core, first, now, cpu_s=7.0)
    assert status.warming(core, now)["used_cpu_s"] == pytest.approx(7.0)
    assert len(texts(run(core, now))) <= 2
    assert status.warming(core, now + HOUR_S + 1)["used_cpu_s"] <= 2.5


def test_a_planned_warm_task_weighs_every_query_a_forced_one_and_a_rerank_take_the_popular_ones(core: Core) -> None:
    ask(core, DOCS, {"popular": 50, "asked once": 1})
    now = time.time()
    assert texts(run(core, now)) == ["popular", "asked once"]
    assert texts(run(core, now, is_forced=True)) == ["popular"]
    assert texts(run(core, now, task_type=TaskType.RERANK)) == ["popular"]


def test_what_holds_is_left_alone_by_a_warm_task_and_computed_again_by_a_rerank_task(core: Core) -> None:
    ask(core, DOCS, {"held": 50, "lacking": 40})
    now = time.time()
    core.publish([result("held", DOCS)], now, is_asked_for=True)
    assert texts(run(core, now)) == ["lacking"]
    assert texts(run(core, now, params={"force_refresh": True})) == ["held", "lacking"]
    assert texts(run(core, now, task_type=TaskType.RERANK)) == ["held", "lacking"]


def test_stale_results_are_computed_again_as_far_as_there_is_something_to_spend(core: Core) -> None:
    now = time.time()
    ask(core, DOCS, {"asked": 50})
    for text in ("asked", "once", "twice"):
        core.publish([result(text, DOCS)], now, is_asked_for=True)
    core.keeper.make_all_stale(DOCS, now)
    assert set(texts(run(core, now))) == {"asked", "once", "twice"}
    can_spare(core, 2.5)
    assert texts(run(core, now))[0] == "asked"
    core._spare_at = 0.0
    assert len(texts(run(core, now))) == 2


def test_the_cost_of_a_query_is_remembered_when_its_result_is_gone(core: Core) -> None:
    ask(core, DOCS, {"q": 5})
    core.publish([result("q", DOCS, cost_s=7.0)], time.time(), is_asked_for=True)
    core.keeper.invalidate(DOCS, None)
    (asked,) = core.popularity.asked(time.time(), 1, DOCS, 9)
    assert asked.cost_s == 7.0
    record = core.popularity.get(asked.key, time.time())
    assert record is not None
    assert record.cost_s == 7.0


def runs_of_default_schedule(core: Core, collection: str, asks: dict[str, int], runs: int) -> None:
    """Have the default schedule of a collection's warming fire so often, everything being flushed before each run."""
    for _ in range(runs):
        now = scheduled(core, collection).next_run_at
        for text, count in asks.items():
            core.popularity.add(text, collection, "", count, now)
        core.keeper.invalidate(collection, None)
        command = handed_out(core, now, lambda one: (one.task_type, one.collection) == (TaskType.WARM, collection))
        finish(core, command, now)


def test_what_is_asked_and_flushed_is_warmed_more_often_what_nobody_asks_seldom_and_status_says_why(core: Core) -> None:
    now = time.time()
    assert warming_of(core, DOCS, now)["every_s"] == HOUR_S
    assert warming_of(core, DOCS, now)["why"] == "hourly until more is known"
    runs_of_default_schedule(core, DOCS, {f"q{i}": 9 for i in range(30)}, runs=5)
    often = warming_of(core, DOCS, now)
    runs_of_default_schedule(core, MEMORIES, {}, runs=5)
    seldom = warming_of(core, MEMORIES, now)
    assert often["every_s"] == cadence.SHORTEST_S
    assert seldom["every_s"] == cadence.LONGEST_S
    assert "went missing" in often["why"]
    assert "results worth 0 hits an hour" in seldom["why"]
    shown = render.status({"warming": status.warming(core, now)})
    assert f"{MEMORIES} at {render.clock(seldom['next_run'])}, every 4 h 00 min: {seldom['why']}" in shown
    last = scheduled(core, MEMORIES)
    assert last.last_run_at is not None
    assert cadence.LONGEST_S - HOUR_S < last.next_run_at - last.last_run_at <= cadence.LONGEST_S
    assert last.frequency is TaskFrequency.HOURLY


def test_a_schedule_that_somebody_made_runs_as_he_said(core: Core) -> None:
    now = time.time()
    own = ScheduleRecord(
        task_id="warm_mine",
        task_type=TaskType.WARM,
        collection="mine",
        frequency=TaskFrequency.DAILY,
        next_run_at=now + 5,
        metadata={"every_s": 1, "max_queries": 3},
    )
    core.save_schedule(own)
    for at in (now, now + 1):
        finish(core, run(core, at, "mine", schedule_id="warm_mine"), at)
    assert core.schedules["warm_mine"] == own
    assert warming_of(core, "mine", now) == {
        "collection_name": "mine",
        "next_run": now + 5,
        "every_s": 86400.0,
        "why": "its own schedule is daily",
    }
    core.timetable.has_run(own, now)
    assert core.schedules["warm_mine"].next_run_at > now + 5


def test_a_dry_run_spends_nothing_and_paces_nothing(core: Core) -> None:
    ask(core, DOCS, {"q": 50})
    now = time.time()
    assert texts(run(core, now, params={"dry_run": True})) == ["q"]
    assert status.warming(core, now)["used_cpu_s"] == 0.0


def test_the_share_of_misses_that_refill_the_store_is_measured(core: Core) -> None:
    core.keeper._lookups = 1000  # of before a restart
    assert core.warming.refill() == 1.0
    core.keeper._lookups += 99
    assert core.warming.refill() == pytest.approx(0.01)
    core.publish_of_application(result("q", DOCS), time.time(), None)
    assert core.warming.refill() == pytest.approx(0.02)


def test_only_tasks_that_compute_popular_queries_are_planned(core: Core) -> None:
    def record(task_type: TaskType, **fields: Any) -> TaskRecord:
        return TaskRecord(task_id="t", task_type=task_type, collection=DOCS, **fields)

    assert core.warming.plans(record(TaskType.WARM))
    assert not core.warming.plans(record(TaskType.REINDEX))
    assert not core.warming.plans(record(TaskType.RERANK, is_forced=True))
    assert not core.warming.plans(record(TaskType.WARM, params={"queries": ["a"]}))
