"""The order of tasks and their retries. Why one waits: test_waiting.py. Any order of events: test_queue_histories.py."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morgan.background.ipc.records import TaskProgress, TaskRecord, TaskStatus, TaskType
from morgan.background.supervisor.queue import DEADLINE, Queue, QueuePolicy
from morgan.background.supervisor.ready import SPARE

POLICY = QueuePolicy(max_attempts=3, max_kills=2, backoff_base_s=2.0, backoff_cap_s=60.0)


def queue_with(**changes: Any) -> tuple[Queue, TaskRecord]:
    queue = Queue(POLICY)
    record, _ = queue.submit(TaskType.WARM, "docs", {}, now=0.0, salt=1, **changes)
    return queue, queue.lease(record.task_id, 0, 0.0)


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


def test_a_ping_runs_without_budget_or_store_and_beside_others_of_its_collection() -> None:
    queue, _ = queue_with()
    for salt in (2, 3):
        queue.submit(TaskType.PING, "docs", {"token": str(salt)}, now=1.0, salt=salt)
    waiting, _ = queue.submit(TaskType.WARM, "code", {}, now=0.5, salt=4)
    for _ in range(2):
        ready = queue.next_ready(2.0, is_admitting=False, is_store_ready=False)
        assert ready is not None
        assert ready.task_type is TaskType.PING
        queue.lease(ready.task_id, 1, 2.0)
    assert queue.next_ready(2.0, is_admitting=False, is_store_ready=False) is None
    assert queue.next_ready(2.0, is_admitting=True) == waiting
    assert len(queue.running("docs")) == 3


def test_a_task_that_has_not_ended_by_its_deadline_is_given_up_with_what_kept_it() -> None:
    queue = Queue(POLICY)
    task, _ = queue.submit(TaskType.WARM, "docs", {}, now=0.0, salt=1, deadline_s=10.0)
    leased = queue.lease(task.task_id, 0, 1.0)
    queue.fail(task.task_id, leased.attempt, "store_unavailable", "no answer", True, 2.0, 0.0)
    assert queue.next_deadline(2.0) == 4.0
    assert queue.expire(9.9) == []
    (ended,) = queue.expire(10.0)
    assert (ended.status, ended.error_code) == (TaskStatus.FAILED, DEADLINE)
    assert ended.error_message == "it had not ended 10 s after it was accepted; before: no answer"


def test_no_attempt_is_waited_for_that_would_begin_after_the_deadline() -> None:
    queue, task = queue_with(deadline_s=1.0)
    ended = queue.fail(task.task_id, task.attempt, "error", "it broke", True, 0.5, 0.0)
    assert ended is not None
    assert (ended.status, ended.error_code, ended.failures) == (TaskStatus.FAILED, DEADLINE, 1)
    assert "it broke" in (ended.error_message or "")


@pytest.mark.parametrize("how", ["stops", "fails", "dies", "completes"])
def test_a_running_task_past_its_deadline_ends_as_soon_as_its_worker_leaves_it(how: str) -> None:
    queue, task = queue_with(deadline_s=10.0)
    (marked,) = queue.expire(10.0)
    assert (marked.status, marked.error_code) == (TaskStatus.RUNNING, DEADLINE)
    assert queue.expire(11.0) == []  # its worker is told once
    match how:
        case "stops":
            ended = queue.stopped(task.task_id, 1, False, 11.0)
        case "fails":
            ended = queue.fail(task.task_id, 1, "error", "it broke", True, 11.0, 0.0)
        case "dies":
            (ended,) = queue.worker_died(0, 11.0)
        case _:
            ended = queue.complete(task.task_id, 1, {"success": True}, 11.0)
    assert ended is not None
    done = (TaskStatus.COMPLETED, None) if how == "completes" else (TaskStatus.FAILED, DEADLINE)
    assert (ended.status, ended.error_code) == done


def test_two_equal_tasks_have_the_later_deadline_and_a_requeued_one_has_none() -> None:
    queue = Queue(POLICY)
    first, _ = queue.submit(TaskType.WARM, "docs", {}, now=0.0, salt=1, deadline_s=5.0)
    raised, is_new = queue.submit(TaskType.WARM, "docs", {}, now=1.0, salt=2, deadline_s=9.0)
    assert (raised.task_id, is_new, raised.deadline_at) == (first.task_id, False, 10.0)
    assert queue.expire(5.0) == []
    (ended,) = queue.expire(10.0)
    back = queue.requeue(ended, 20.0)
    assert back is not None
    assert (back.status, back.deadline_at) == (TaskStatus.PENDING, None)
    assert queue.expire(99.0) == []
    endless, _ = queue.submit(TaskType.WARM, "docs", {}, now=99.0, salt=3, deadline_s=1.0)
    assert (endless.task_id, endless.deadline_at) == (first.task_id, None)


def test_a_death_counts_against_the_begun_task_alone() -> None:
    queue = Queue(POLICY)
    ids = [queue.submit(TaskType.PING, "docs", {"token": n}, now=0.0, salt=n)[0].task_id for n in range(3)]
    for task_id in ids:
        queue.lease(task_id, 7, 0.0)
    back = {task.task_id: task.kills for task in queue.worker_died(7, 1.0, begun=ids[0])}
    assert back == {ids[0]: 1, ids[1]: 0, ids[2]: 0}


def test_what_is_submitted_and_taken_back_again_and_again_takes_no_memory() -> None:
    queue = Queue(POLICY)
    keeper, _ = queue.submit(TaskType.WARM, "docs", {}, now=0.0, salt=0)
    queue.pause("docs")
    for salt in range(1, 5000):
        task, _ = queue.submit(TaskType.RERANK, "docs", {"max_queries": salt}, now=float(salt), salt=salt)
        assert queue.cancel(task.task_id, 9e9) is not None
        queue.submit(TaskType.WARM, "docs", {}, now=0.0, salt=salt, priority=salt)
        queue.resume("docs")
        queue.pause("docs")
    ready = queue._open._ready
    held = [*ready._lanes.values(), *ready._heads.values(), queue._open._back_offs, queue._open.deadlines]
    assert sum(len(one) for one in held) < 10 * SPARE
    queue.resume("docs")
    assert queue.next_ready(9e9, is_admitting=True) == queue.get(keeper.task_id)
