"""Who is told of a task, when and with what: waiters for a change, gatherings for the end of all."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from morgan.background.ipc.messages import TaskList, TaskReply
from morgan.background.ipc.records import TaskRecord, TaskStatus, TaskType
from morgan.background.supervisor.polls import Polls
from morgan.background.supervisor.state import Gathering, SendReply, Waiter


def task(name: str, version: int = 0, status: TaskStatus = TaskStatus.PENDING) -> TaskRecord:
    return TaskRecord(task_id=name, task_type=TaskType.WARM, collection="c", version=version, status=status)


def ended(name: str) -> TaskRecord:
    return task(name, 9, TaskStatus.COMPLETED)


def gathering(*names: str, rid: int = 1, deadline_at: float = 100.0) -> Gathering:
    return Gathering("client", rid, names, deadline_at, set(names), {})


def told(replies: Any) -> list[tuple[int, list[str]]]:
    """Return rid and the states that were told."""
    found = []
    for reply in replies:
        assert isinstance(reply, SendReply)
        match reply.reply:
            case TaskList():
                found.append((reply.reply.rid, [f"{one.task_id} {one.status.value}" for one in reply.reply.tasks]))
            case TaskReply():
                found.append((reply.reply.rid, [f"{reply.reply.task.task_id} {reply.reply.task.status.value}"]))
    return found


def test_a_gathering_is_told_once_when_the_last_task_has_ended_and_in_the_order_asked_for() -> None:
    polls = Polls()
    polls.add(gathering("b", "a", "b"))  # two equal orders are one task
    assert told(polls.changed(task("a", 1, TaskStatus.RUNNING))) == []
    assert told(polls.changed(ended("a"))) == []
    assert told(polls.changed(ended("b"))) == [(1, ["b completed", "a completed", "b completed"])]
    assert told(polls.changed(ended("a"))) == []
    assert told(polls.expired(1e9, {}.get)) == []


def test_two_gatherings_and_a_waiter_of_one_task_are_all_told() -> None:
    polls = Polls()
    polls.add(gathering("a", rid=1))
    polls.add(gathering("a", "b", rid=2))
    polls.add(Waiter("client", 3, "a", 0, 100.0))
    polls.add(Waiter("client", 4, "a", 0, 100.0, until_ended=True))
    assert told(polls.changed(task("a", 1))) == [(3, ["a pending"])]
    assert told(polls.changed(ended("a"))) == [(1, ["a completed"]), (4, ["a completed"])]
    assert told(polls.changed(ended("b"))) == [(2, ["a completed", "b completed"])]


def test_a_change_that_was_seen_is_not_told() -> None:
    polls = Polls()
    polls.add(Waiter("client", 1, "a", 5, 100.0))
    assert told(polls.changed(task("a", 5))) == []
    assert told(polls.changed(task("a", 6))) == [(1, ["a pending"])]


def test_when_its_wait_is_over_each_is_told_what_there_is_and_nothing_after() -> None:
    polls = Polls()
    assert polls.next_deadline == math.inf
    polls.add(gathering("a", "gone", "b", rid=1, deadline_at=50.0))
    polls.add(Waiter("client", 2, "b", 0, 60.0))
    polls.add(Waiter("client", 3, "gone", 0, 50.0))
    assert polls.next_deadline == 50.0
    polls.changed(ended("a"))
    known = {"b": task("b")}
    assert told(polls.expired(49.0, known.get)) == []
    assert told(polls.expired(50.0, known.get)) == [(1, ["a completed", "b pending"])]
    assert polls.next_deadline == 60.0
    assert told(polls.changed(msgspec.structs.replace(ended("b")))) == [(2, ["b completed"])]
    assert told(polls.expired(60.0, known.get)) == []
    assert polls.next_deadline == math.inf


def test_a_wait_is_as_long_as_it_was_when_the_clock_is_set() -> None:
    polls = Polls()
    polls.add(gathering("a", "b", deadline_at=50.0))
    polls.add(Waiter("client", 2, "a", 0, 60.0))
    polls.time_moved(-30.0)
    assert polls.next_deadline == 20.0
    assert told(polls.expired(20.0, {"a": task("a"), "b": task("b")}.get)) == [(1, ["a pending", "b pending"])]
    assert polls.next_deadline == 30.0
