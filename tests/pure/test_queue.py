"""The order of tasks, their retries, and the words for why one waits. Any order of events: test_queue_histories.py."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morgan.background.ipc.records import TaskProgress, TaskRecord, TaskStatus, TaskType
from morgan.background.supervisor.queue import Queue, QueuePolicy

POLICY = QueuePolicy(max_attempts=3, max_kills=2, backoff_base_s=2.0, backoff_cap_s=60.0)


def queue_with(**changes: Any) -> tuple[Queue, TaskRecord]:
    queue = Queue(POLICY)
    record, _ = queue.submit(TaskType.WARM, "docs", {}, now=0.0, salt=1, **changes)
    return queue, queue.lease(record.task_id, 0, 0.0)


def why(queue: Queue, task_id: str, now: float, *, is_admitting: bool = True, idle_workers: int = 1) -> str:
    return queue.waits_for(
        task_id, now, is_admitting=is_admitting, admission_reason="others need it", idle_workers=idle_workers
    )


def test_the_highest_priority_runs_first_and_the_oldest_among_equals() -> None:
    queue = Queue(POLICY)
    for salt, (name, priority) in enumerate([("a", 0), ("b", 1), ("c", 1)]):
        queue.submit(TaskType.WARM, name, {}, now=float(salt), salt=salt, priority=priority)
    order = []
    while (task := queue.next_ready(9.0, is_admitting=True)) is not None:
        order.append(queue.lease(task.task_id, len(order), 9.0).collection)
    assert order == ["b", "c", "a"]


@given(jitter=st.floats(0, 1))
def test_back_off_doubles_up_to_its_cap_and_then_the_task_is_given_up(jitter: float) -> None:
    policy = QueuePolicy(max_attempts=8, backoff_base_s=2.0, backoff_cap_s=20.0)
    queue, now, waits = Queue(policy), 0.0, []
    task, _ = queue.submit(TaskType.WARM, "docs", {}, now=now, salt=1)
    while not task.status.is_final:
        leased = queue.lease(task.task_id, 0, now)
        failed = queue.fail(task.task_id, leased.attempt, "error", "it broke", True, now, jitter)
        assert failed is not None
        task = failed
        if not task.status.is_final:
            assert queue.next_ready(task.not_before_at - 0.01, is_admitting=True) is None
            assert queue.next_deadline(now) == task.not_before_at
            waits.append((task.not_before_at - now) / (1 + jitter / 2))
            now = task.not_before_at
    assert waits == pytest.approx([2, 4, 8, 16, 20, 20, 20])
    assert (task.status, task.error_code, task.failures) == (TaskStatus.FAILED, "error", 8)


def test_an_unreachable_store_uses_up_no_attempts() -> None:
    queue, task = queue_with()
    for _ in range(50):
        waiting = queue.fail(task.task_id, task.attempt, "store_unavailable", "no answer", True, 0.0, 0.0)
        assert waiting is not None
        assert (waiting.status, waiting.failures) == (TaskStatus.PENDING, 0)
        assert waiting.not_before_at <= POLICY.backoff_cap_s
        task = queue.lease(task.task_id, 0, 0.0)


@pytest.mark.parametrize("how", ["its worker died", "it failed", "it was paused", "the service restarted"])
def test_a_cancelled_task_never_runs_again_however_its_worker_left_it(how: str) -> None:
    queue, task = queue_with()
    marked = queue.cancel(task.task_id, 1.0)
    assert marked is not None
    assert marked.status is TaskStatus.RUNNING
    if how == "its worker died":
        (ended,) = queue.worker_died(0, 2.0)
    elif how == "the service restarted":
        queue = Queue(POLICY)
        (ended,) = queue.restore([marked])
    elif how == "it failed":
        ended = queue.fail(task.task_id, 1, "error", "it broke", True, 2.0, 0.0)
    else:
        ended = queue.stopped(task.task_id, 1, False, 2.0)
    assert ended is not None
    assert ended.status is TaskStatus.CANCELLED
    assert queue.next_ready(1e9, is_admitting=True) is None


def test_a_task_that_kills_its_workers_is_given_up_with_the_reason() -> None:
    queue, task = queue_with()
    (again,) = queue.worker_died(0, 1.0)
    assert again.status is TaskStatus.PENDING
    queue.lease(task.task_id, 1, 2.0)
    (ended,) = queue.worker_died(1, 3.0)
    assert (ended.status, ended.error_code, ended.kills) == (TaskStatus.FAILED, "killed", 2)
    assert "died 2 times" in (ended.error_message or "")


def test_time_left_follows_the_pace_of_this_attempt_alone() -> None:
    queue, task = queue_with()
    reports = [(100.0, 50), (110.0, 60)]  # resumed at 50 of 100 after a long wait: 10 items took 10 s
    for now, done in reports:
        shown = queue.progress(task.task_id, 1, TaskProgress(done=done, total=100), now)
    assert shown is not None
    assert shown.progress.eta_s == pytest.approx(40.0)


def test_every_reason_to_wait_is_said_in_words() -> None:
    queue, task = queue_with()
    other, _ = queue.submit(TaskType.REINDEX, "docs", {}, now=1.0, salt=2)
    assert task.task_id in why(queue, other.task_id, 1.0)
    queue.fail(task.task_id, 1, "error", "it broke", True, 1.0, 0.0)
    assert "it broke" in why(queue, task.task_id, 1.0)
    assert "attempt 1 of 3" in why(queue, task.task_id, 1.0)
    assert "others need it" in why(queue, other.task_id, 1.0, is_admitting=False)
    assert "workers are busy" in why(queue, other.task_id, 1.0, idle_workers=0)
    queue.pause("docs")
    assert "docs is paused" in why(queue, other.task_id, 1.0)
    queue.pause(None)
    assert "everything is paused" in why(queue, other.task_id, 1.0)
