"""What can be done to tasks that wait, through the real daemon: dedup, cancel, pause, list, refuse for want of budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import msgspec
import pytest

from morgan.background.ipc import messages, wire
from morgan.background.ipc.client import expect
from morgan.background.ipc.errors import InvalidArgument, TaskNotFound
from morgan.background.ipc.records import TaskRecord, TaskStatus
from morgan.background.ipc.sockets import connect_dealer
from tests.processes.daemons import NO_MODEL, Context, Daemon, received

EVERYTHING = "everything is paused: `morgan-background tasks resume`"


@pytest.fixture
def paused(bare: Daemon) -> Iterator[Daemon]:
    """The bare daemon, paused as a whole; what is left waiting is cancelled at the end."""
    bare.client.request(messages.Pause())
    yield bare
    for task in listed(bare, status="pending"):
        bare.cancel(task.task_id)
    bare.client.request(messages.Resume())


def listed(daemon: Daemon, limit: int = 50, status: str | None = None) -> tuple[TaskRecord, ...]:
    return expect(messages.TaskList, daemon.client.request(messages.ListTasks(limit=limit, status=status))).tasks


def submitted(daemon: Daemon, **fields: object) -> messages.Submitted:
    asked = messages.Submit(**({"task_type": "warm", "collection": "c"} | fields))  # type: ignore[arg-type]
    return expect(messages.Submitted, daemon.client.request(asked))


def test_an_equal_pending_task_is_taken_for_the_second_and_raised(paused: Daemon) -> None:
    first = submitted(paused, params={"max_queries": 3})
    again = submitted(paused, params={"max_queries": 3}, priority=5, is_forced=True)
    assert (first.is_new, again.is_new) == (True, False)
    assert first.task_id == again.task_id
    held = paused.task(first.task_id)
    assert (held.priority, held.is_forced) == (5, True)
    others: list[dict[str, object]] = [{"collection": "d"}, {"params": {"max_queries": 4}}, {"task_type": "rerank"}]
    assert all(submitted(paused, **{"params": {"max_queries": 3}, **other}).is_new for other in others)


def test_a_paused_task_waits_and_says_why_and_runs_when_it_may(bare: Daemon) -> None:
    client = bare.client
    client.request(messages.Pause(collection="one"))
    waiting, running = bare.submit("warm", "one"), bare.submit("warm", "two")
    assert bare.finished(running).attempt == 1  # a worker had it; there is no such collection
    assert bare.task(waiting).waits_for == "one is paused: `morgan-background tasks resume one`"
    report = expect(messages.Report, client.request(messages.Status())).report
    assert report["paused"] == ["one"]
    assert bare.task(waiting).waits_for in [one["why"] for one in report["waiting"] if one["task_id"] == waiting]
    client.request(messages.Resume(collection="one"))
    ended = bare.finished(waiting)
    assert (ended.attempt, ended.waits_for) == (1, "")


def test_a_pending_task_that_is_cancelled_never_runs_and_wakes_who_waits_for_it(
    paused: Daemon, context: Context
) -> None:
    task_id = paused.submit("warm", "c")
    held = paused.task(task_id)
    assert (held.status, held.waits_for) == (TaskStatus.PENDING, EVERYTHING)
    with connect_dealer(context, paused.runtime / "clients.sock") as waiting:
        waiting.send(wire.encode(messages.GetTask(rid=1, task_id=task_id, seen=held.version, wait_s=60.0)))
        waiting.send(wire.encode(messages.Hello(rid=2)))
        assert received(waiting)["rid"] == 2  # the first waits
        assert paused.cancel(task_id) == 1
        assert received(waiting)["task"]["status"] == "cancelled"
    ended = paused.task(task_id)
    assert (ended.status, ended.attempt, ended.error_code) == (TaskStatus.CANCELLED, 0, "cancelled")
    assert paused.cancel(task_id) == 0
    (ran, *_) = expect(messages.ExecutionList, paused.client.request(messages.ListExecutions())).executions
    assert (ran.task_id, ran.status) == (task_id, TaskStatus.CANCELLED)


def test_a_long_poll_ends_at_its_deadline_with_the_task_unchanged(paused: Daemon, context: Context) -> None:
    task_id = paused.submit("warm", "c")
    held = paused.task(task_id)
    with connect_dealer(context, paused.runtime / "clients.sock") as waiting:
        waiting.send(wire.encode(messages.GetTask(rid=1, task_id=task_id, seen=held.version, wait_s=1.0)))
        waiting.send(wire.encode(messages.Hello(rid=2)))
        assert [received(waiting)["rid"], (late := received(waiting))["rid"]] == [2, 1]
    assert late["task"] == msgspec.to_builtins(held)


def test_tasks_are_listed_newest_first_and_by_state(paused: Daemon) -> None:
    ids = [paused.submit("warm", name) for name in ("x", "y", "z")]
    assert [task.task_id for task in listed(paused, limit=3)] == ids[::-1]
    paused.cancel(ids[1])
    assert ids[1] not in [task.task_id for task in listed(paused, status="pending")]
    assert listed(paused, limit=1, status="cancelled")[0].task_id == ids[1]
    assert all(task.task_id.startswith("warm_") for task in listed(paused, limit=3))
    assert listed(paused, limit=0) == ()
    with pytest.raises(InvalidArgument, match="pending, running, completed"):
        listed(paused, status="odd")


def test_a_task_that_ended_can_be_put_back(bare: Daemon) -> None:
    failed = bare.finished(bare.submit("reindex", "nowhere"))
    assert (failed.status, failed.error_code, failed.attempt) == (TaskStatus.FAILED, "collection_not_found", 1)
    bare.client.request(messages.Requeue(task_id=failed.task_id))
    again = bare.finished(failed.task_id)
    assert (again.status, again.attempt) == (TaskStatus.FAILED, 2)


@pytest.mark.parametrize(
    "request_of",
    [
        lambda name: messages.GetTask(task_id=name),
        lambda name: messages.CancelTask(task_id=name),
        lambda name: messages.Requeue(task_id=name),
        lambda name: messages.RemoveSchedule(task_id=name),
        lambda name: messages.MarkScheduleCompleted(task_id=name),
    ],
    ids=["get", "cancel", "requeue", "remove a schedule", "mark a schedule"],
)
def test_an_unknown_id_is_refused_by_name(request_of: Callable[[str], messages.Request], bare: Daemon) -> None:
    with pytest.raises(TaskNotFound, match=r"'warm_c_never'.*list"):
        bare.client.request(request_of("warm_c_never"))


def test_without_budget_a_task_waits_or_is_skipped_as_it_was_asked_and_a_forced_one_runs(
    make_daemon: Callable[[Mapping[str, str]], Daemon],
) -> None:
    nothing = {"MORGAN_LIMITS_ACTIVE_HOURS_CPU_LIMIT": "0", "MORGAN_LIMITS_QUIET_HOURS_CPU_LIMIT": "0"}
    daemon = make_daemon(NO_MODEL | nothing).start()
    skipped = daemon.task(submitted(daemon, run_or_skip=True).task_id)
    assert (skipped.status, skipped.attempt) == (TaskStatus.SKIPPED, 0)
    assert "0 % of the machine" in (skipped.error_message or "")
    waiting = daemon.task(submitted(daemon).task_id)
    assert waiting.status is TaskStatus.PENDING
    assert waiting.waits_for.startswith("no CPU budget: ")
    ran = daemon.finished(submitted(daemon, collection="d", is_forced=True, run_or_skip=True).task_id)
    assert (ran.attempt, ran.error_code) == (1, "collection_not_found")  # its worker looked
    assert daemon.task(waiting.task_id).status is TaskStatus.PENDING
    report = expect(messages.Report, daemon.client.request(messages.Resources())).report
    assert (report["can_run_task"], report["budget"]) == (False, 0.0)
    totals = expect(messages.Report, daemon.client.request(messages.ExecutionStats())).report
    assert (totals["total_executions"], totals["skipped"], totals["failed"]) == (2, 1, 1)
