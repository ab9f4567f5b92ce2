"""Why a task is not running and when it will: one test a cause, the order of causes, and what the hour's ramp answers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morgan.background.ipc.records import TaskProgress, TaskRecord, TaskStatus, TaskType
from morgan.background.supervisor.governor import (
    ADMIT_PERMILLE,
    LOOK_AHEAD_STEP_S,
    Limits,
    Readings,
    admits_from,
    cpu_limit_permille,
)
from morgan.background.supervisor.waiting import Cause, Conditions, Wait, wait_of

NOW = datetime(2026, 6, 10, 14, 0, tzinfo=UTC).timestamp()
BERLIN = ZoneInfo("Europe/Berlin")  # 16:00 there


def task(**fields: Any) -> TaskRecord:
    fixed: dict[str, Any] = {"task_id": "warm_docs_1", "task_type": TaskType.WARM, "collection": "docs"}
    return TaskRecord(**(fixed | fields))


def running(task_id: str, collection: str, eta_s: float | None = None) -> TaskRecord:
    progress = TaskProgress(eta_s=eta_s)
    return task(task_id=task_id, collection=collection, status=TaskStatus.RUNNING, progress=progress)


def conditions(**fields: Any) -> Conditions:
    fixed: dict[str, Any] = {"now": NOW, "zone": BERLIN, "max_attempts": 5, "idle_workers": 1, "started_workers": 2}
    return Conditions(**(fixed | fields))


def wait(record: TaskRecord, **fields: Any) -> Wait:
    found = wait_of(record, conditions(**fields))
    assert found is not None
    return found


def test_a_task_that_nothing_keeps_is_next_in_turn() -> None:
    assert wait(task()) == Wait(Cause.NEXT, "next in turn", NOW, "now")


@pytest.mark.parametrize("status", [one for one in TaskStatus if one is not TaskStatus.PENDING])
def test_a_task_that_is_not_pending_does_not_wait(status: TaskStatus) -> None:
    assert wait_of(task(status=status), conditions()) is None


def test_one_of_a_draining_service_waits_for_the_next_start() -> None:
    found = wait(task(), is_draining=True)
    assert (found.cause, found.why, found.expected_at) == (Cause.DRAINING, "the service is draining", None)
    assert found.expected == "after its next start"


@pytest.mark.parametrize(
    ("paused", "why"),
    [
        (("docs",), "docs is paused: `morgan-background tasks resume docs`"),
        ((None,), "everything is paused: `morgan-background tasks resume`"),
        ((None, "docs"), "everything is paused: `morgan-background tasks resume`"),
    ],
)
def test_a_paused_one_says_by_what_command_it_goes_on(paused: tuple[str | None, ...], why: str) -> None:
    found = wait(task(), paused=paused)
    assert (found.cause, found.why, found.expected) == (Cause.PAUSED, why, "when it is resumed")
    assert wait(task(), paused=("other",)).cause is Cause.NEXT


def test_one_that_failed_says_when_it_is_tried_again_in_the_configured_zone() -> None:
    failed = task(not_before_at=NOW + 90, failures=2, error_code="error", error_message="it broke")
    found = wait(failed)
    assert (found.cause, found.expected_at, found.expected) == (Cause.BACK_OFF, NOW + 90, "at 16:01:30")
    assert found.why == "tried again at 16:01:30 after: it broke (attempt 2 of 5)"
    assert wait(task(not_before_at=NOW)).cause is Cause.NEXT


def test_an_unreachable_store_is_said_to_be_what_a_task_waits_for() -> None:
    failed = task(not_before_at=NOW + 90, outages=2, error_code="store_unavailable", error_message="no answer")
    found = wait(failed)
    assert (found.cause, found.expected_at) == (Cause.STORE, NOW + 90)
    assert found.why == "the vector store cannot be reached, tried again at 16:01:30: no answer"
    assert found.expected == "at 16:01:30, if the store answers then"
    untried = wait(task(), store_problem="no answer")  # it is tried: the store may be back
    assert (untried.cause, untried.expected_at) == (Cause.NEXT, NOW)
    assert "the vector store did not answer lately: no answer" in untried.why


def test_one_waits_for_the_owner_of_the_store_to_start() -> None:
    found = wait(task(), is_owner_ready=False)
    assert (found.cause, found.expected_at) == (Cause.OWNER, None)
    assert found.why == "the store owner is starting: it loads the embedding model"
    assert "worker 0 keeps dying" in wait(task(), is_owner_ready=False, workers_problem="worker 0 keeps dying").why


@pytest.mark.parametrize(
    ("eta_s", "at", "expected"),
    [
        (90.0, NOW + 90, "about 16:01:30, when a ends"),
        (None, None, "when that ends; it has not reported how long it takes"),
    ],
)
def test_one_waits_for_another_on_its_collection(eta_s: float | None, at: float | None, expected: str) -> None:
    found = wait(task(), running=(running("b", "other", 1.0), running("a", "docs", eta_s)))
    assert (found.cause, found.why) == (Cause.COLLECTION, "a runs on the same collection")
    assert (found.expected_at, found.expected) == (at, expected)


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (NOW + 4 * 3600, "from 20:00:00 on the limit allows it, if others need no more than now"),
        (NOW + 10 * 3600, "from 2026-06-11 02:00:00 on the limit allows it, if others need no more than now"),
        (NOW, "within seconds, if others need no more than now"),
        (None, "when others need less, whatever the hour"),
    ],
)
def test_one_without_budget_says_when_the_hour_gives_it_some(at: float | None, expected: str) -> None:
    found = wait(task(), is_admitting=False, reason="others use 40 %", admits_from=lambda: at)
    assert (found.cause, found.why) == (Cause.BUDGET, "no CPU budget: others use 40 %")
    assert (found.expected_at, found.expected) == (at, expected)
    assert wait(task(is_forced=True), is_admitting=False).cause is Cause.NEXT


def test_one_waits_for_the_tasks_that_have_the_whole_budget() -> None:
    held: dict[str, Any] = {"is_budget_taken": True, "reason": "others use 10 %", "running": (running("a", "x", 60.0),)}
    found = wait(task(), **held)
    assert (found.cause, found.why) == (Cause.BUDGET, "the CPU budget is taken by the tasks that run: others use 10 %")
    assert (found.expected_at, found.expected) == (NOW + 60, "about 16:01:00, when a ends")
    assert wait(task(is_forced=True), **held).cause is Cause.NEXT
    assert wait(task(), **held, idle_workers=0).cause is Cause.WORKERS


def test_one_waits_for_a_worker_to_start_and_for_one_that_keeps_dying() -> None:
    starting = wait(task(), idle_workers=0, started_workers=0)
    assert (starting.cause, starting.why, starting.expected_at) == (Cause.NO_WORKER, "the workers are starting", None)
    degraded = wait(task(), idle_workers=0, started_workers=0, workers_problem="worker 1 keeps dying")
    assert (degraded.cause, degraded.why) == (Cause.NO_WORKER, "no worker: worker 1 keeps dying")


def test_one_waits_for_the_first_worker_to_be_free() -> None:
    others = (running("a", "x", 600.0), running("b", "y", 60.0), running("c", "z"))
    found = wait(task(), idle_workers=0, running=others)
    assert (found.cause, found.why) == (Cause.WORKERS, "all workers are busy")
    assert (found.expected_at, found.expected) == (NOW + 60, "about 16:01:00, when b ends")
    fewer = wait(task(), idle_workers=0, running=others, workers_problem="worker 2 keeps dying")
    assert fewer.why == "all workers are busy; worker 2 keeps dying"


EVERY_CAUSE: list[tuple[Cause, dict[str, Any]]] = [
    (Cause.DRAINING, {"is_draining": True}),
    (Cause.PAUSED, {"paused": ("docs",)}),
    (Cause.OWNER, {"is_owner_ready": False}),
    (Cause.COLLECTION, {"running": (running("a", "docs"),)}),
    (Cause.BUDGET, {"is_admitting": False}),
    (Cause.WORKERS, {"idle_workers": 0}),
    (Cause.NEXT, {}),
]


@pytest.mark.parametrize("first", range(len(EVERY_CAUSE)))
def test_of_several_causes_the_one_that_has_to_end_first_is_said(first: int) -> None:
    together: dict[str, Any] = {}
    for _, fields in EVERY_CAUSE[first:]:
        together |= fields
    assert wait(task(), **together).cause is EVERY_CAUSE[first][0]


def test_a_ping_waits_for_nothing_but_a_worker() -> None:
    ping = task(task_type=TaskType.PING)
    held: dict[str, Any] = {"is_owner_ready": False, "is_admitting": False, "running": (running("a", "docs"),)}
    assert wait(ping, **held).cause is Cause.NEXT
    assert wait(ping, **held, idle_workers=0).cause is Cause.WORKERS
    other_ping = task(task_id="p", task_type=TaskType.PING, status=TaskStatus.RUNNING)
    assert wait(task(), running=(other_ping,)).cause is Cause.NEXT


# --- the ramp ---------------------------------------------------------------------------------------------------------


def readings(others: int, **fields: Any) -> Readings:
    return Readings(0.0, 0, others, 100, 2, **fields)


def hour_at(at: float) -> float:
    return at / 3600 % 24


@given(others=st.integers(0, 1000), minute=st.integers(0, 1439), limits=st.sampled_from([Limits(), Limits(700, 300)]))
def test_the_said_time_is_the_first_of_the_day_at_which_the_limit_admits_a_task(
    others: int, minute: int, limits: Limits
) -> None:
    now = minute * 60.0
    found = admits_from(readings(others), limits, now, hour_at)

    def admits(at: float) -> bool:
        return cpu_limit_permille(limits, hour_at(at)) - others >= ADMIT_PERMILLE

    day = [now + step_s for step_s in range(0, 86400, 60)]
    if found is None:
        assert not any(map(admits, day[::5]))
        return
    assert admits(found)
    assert not any(admits(at) for at in day if at <= found - LOOK_AHEAD_STEP_S)


def test_by_default_somebody_who_uses_40_percent_is_waited_for_until_the_limit_is_45() -> None:
    at = admits_from(readings(400), Limits(), 15 * 3600.0, hour_at)
    assert at is not None
    assert hour_at(at) == pytest.approx(19.5, abs=0.1)  # 30 % at 18:00, 70 % at 22:00


def test_no_hour_makes_up_for_a_failed_reading_or_for_memory() -> None:
    assert admits_from(readings(0, is_plausible=False), Limits(), 0.0, hour_at) is None
    assert admits_from(Readings(0.0, 0, 0, 900, 2), Limits(), 0.0, hour_at) is None
