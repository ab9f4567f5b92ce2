"""Tasks on their way to workers and back, through the real daemon: many at once, workers that die or leave, deadlines."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import pytest

from morgan.background.ipc import messages, wire
from morgan.background.ipc.client import expect
from morgan.background.ipc.errors import InvalidArgument
from morgan.background.ipc.records import ExecutionRecord, Order, TaskRecord, TaskStatus, TaskType
from morgan.background.ipc.sockets import connect_dealer
from tests.processes.daemons import NO_MODEL, TASK_S, Context, Daemon

COUNT = 600  # more than two workers hold at once


class Line:
    """One client that asks without waiting for the answers."""

    def __init__(self, daemon: Daemon, context: Context) -> None:
        self.socket = connect_dealer(context, daemon.runtime / "clients.sock")

    def ping(self, rid: int, **params: object) -> None:
        ask = messages.Submit(rid=rid, task_type="ping", collection="none", params=params, wait_s=60.0)
        self.socket.send(wire.encode(ask))

    def answer(self) -> TaskRecord:
        assert self.socket.poll(int(TASK_S * 1000)), "no answer"
        return expect(messages.TaskReply, wire.replies.decode(self.socket.recv())).task


@pytest.fixture
def line(bare: Daemon, context: Context) -> Line:
    return Line(bare, context)


def ping(daemon: Daemon, **fields: object) -> str:
    ask = messages.Submit(**({"task_type": "ping", "collection": "none"} | fields))  # type: ignore[arg-type]
    return expect(messages.Submitted, daemon.client.request(ask)).task_id


def ended(daemon: Daemon, task_id: str) -> TaskRecord:
    ask = messages.GetTask(task_id=task_id, wait_s=60.0, until_ended=True)
    return expect(messages.TaskReply, daemon.client.request(ask, TASK_S)).task


def held(daemon: Daemon, task_id: str) -> int:
    """Wait until a worker holds a task and has reported its first step; return its pid."""
    seen = daemon.task(task_id)
    end_at = time.monotonic() + TASK_S
    while not seen.progress.note:
        assert time.monotonic() < end_at, seen
        ask = messages.GetTask(task_id=task_id, seen=seen.version, wait_s=10.0)
        seen = expect(messages.TaskReply, daemon.client.request(ask, TASK_S)).task
    pids = {worker["index"]: worker["pid"] for worker in daemon.client.status()["workers"]}
    return int(pids[seen.worker])


def executions(daemon: Daemon, **wanted: object) -> tuple[ExecutionRecord, ...]:
    ask = messages.ListExecutions(limit=100, **wanted)  # type: ignore[arg-type]
    return expect(messages.ExecutionList, daemon.client.request(ask)).executions


def test_a_ping_is_answered_by_a_worker_without_model_or_collection(line: Line, bare: Daemon) -> None:
    line.ping(1, token="here")
    task = line.answer()
    assert (task.status, task.result) == (TaskStatus.COMPLETED, {"success": True, "token": "here"})
    assert bare.task(task.task_id) == task  # what was answered is what is kept
    assert task.task_id not in {one.task_id for one in executions(bare)}


def test_a_ping_is_answered_although_there_is_no_budget_and_no_store_yet(
    make_daemon: Callable[[Mapping[str, str]], Daemon],
) -> None:
    nothing = {"MORGAN_LIMITS_ACTIVE_HOURS_CPU_LIMIT": "0", "MORGAN_LIMITS_QUIET_HOURS_CPU_LIMIT": "0"}
    daemon = make_daemon(NO_MODEL | nothing).start()
    assert ended(daemon, ping(daemon)).status is TaskStatus.COMPLETED
    assert daemon.cli("run", "ping", "none", "--set", "token=x").splitlines()[-1].split() == ["token", "x"]


def test_each_of_many_pings_at_once_is_answered_once_with_its_own_token(line: Line) -> None:
    for number in range(COUNT):
        line.ping(number + 1, token=str(number))
    tasks = [line.answer() for _ in range(COUNT)]
    assert {task.status for task in tasks} == {TaskStatus.COMPLETED}
    assert sorted(int((task.result or {})["token"]) for task in tasks) == list(range(COUNT))
    assert len({task.task_id for task in tasks}) == COUNT
    assert {task.attempt for task in tasks} == {1}


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_worker_held_when_it_died_or_left_is_done_by_others(line: Line, bare: Daemon, signum: int) -> None:
    pid = held(bare, task_id := ping(bare, params={"token": signal.Signals(signum).name, "hold_s": 600}))
    for number in range(COUNT):
        line.ping(number + 1, token=f"{signum} {number}")
    os.kill(pid, signum)
    task = ended(bare, task_id)
    # only a death counts against it: one that was told to leave has given it back
    assert (task.status, task.attempt, task.kills) == (TaskStatus.COMPLETED, 2, int(signum == signal.SIGKILL))
    tasks = [line.answer() for _ in range(COUNT)]
    assert {(task.status, task.kills) for task in tasks} == {(TaskStatus.COMPLETED, 0)}


def test_every_ping_is_answered_while_workers_leave_again_and_again(line: Line, bare: Daemon) -> None:
    for number in range(2 * COUNT):
        line.ping(number + 1, token=f"leave {number}")
    seen = set()
    for number in range(2 * COUNT):
        task = line.answer()
        seen.add((task.status, task.kills))
        if number in (10, COUNT):
            for worker in bare.client.status()["workers"]:
                if worker["role"] == "tasks" and worker["pid"]:
                    with suppress(ProcessLookupError):  # it has left since the status was made
                        os.kill(worker["pid"], signal.SIGTERM)
    assert seen == {(TaskStatus.COMPLETED, 0)}


def orders(*tokens: object, collection: str = "none") -> list[dict[str, object]]:
    return [{"task_type": "ping", "collection": collection, "params": {"token": str(token)}} for token in tokens]


def test_tasks_handed_in_together_have_ids_in_their_order_and_are_all_done(bare: Daemon) -> None:
    names = [f"together {number}" for number in range(3 * COUNT)]
    task_ids = bare.client.submit_many(orders(*names))
    assert len(set(task_ids)) == len(names)
    for name, task_id in zip(names, task_ids, strict=True):
        assert (ended(bare, task_id).result or {})["token"] == name
    assert bare.client.submit_many([]) == ()


def gathered(line: Line, *tokens: object, wait_s: float = 60.0, collection: str = "none") -> tuple[TaskRecord, ...]:
    wanted = tuple(Order(**one) for one in orders(*tokens, collection=collection))  # type: ignore[arg-type]
    line.socket.send(wire.encode(messages.SubmitMany(rid=7, orders=wanted, wait_s=wait_s)))
    assert line.socket.poll(int(TASK_S * 1000)), "no answer"
    return expect(messages.TaskList, wire.replies.decode(line.socket.recv())).tasks


def test_who_waits_for_tasks_handed_in_together_is_told_when_all_have_ended(line: Line, bare: Daemon) -> None:
    tasks = gathered(line, *range(COUNT))
    assert {task.status for task in tasks} == {TaskStatus.COMPLETED}
    assert [(task.result or {})["token"] for task in tasks] == [str(number) for number in range(COUNT)]
    assert bare.task(tasks[-1].task_id) == tasks[-1]  # what was answered is what is kept
    assert gathered(line) == ()


def test_a_wait_for_several_tasks_ends_with_what_there_is_and_equal_ones_are_one(line: Line, bare: Daemon) -> None:
    bare.client.request(messages.Pause(collection="held"))
    tasks = gathered(line, "a", "b", "a", wait_s=0.2, collection="held")
    assert [task.status for task in tasks] == [TaskStatus.PENDING] * 3
    assert tasks[0].task_id == tasks[2].task_id != tasks[1].task_id
    assert "held is paused" in tasks[0].waits_for
    assert bare.client.submit_many(orders("a", "b", collection="held")) == (tasks[0].task_id, tasks[1].task_id)
    bare.client.request(messages.Resume(collection="held"))
    assert {ended(bare, task.task_id).status for task in tasks} == {TaskStatus.COMPLETED}


def test_one_order_that_is_refused_refuses_those_with_it(bare: Daemon) -> None:
    bare.client.request(messages.Pause(collection="refused"))
    bad: list[dict[str, object]] = [
        {"task_type": "nap", "collection": "refused"},
        {"task_type": "ping", "collection": "refused", "params": {"colour": "red"}},
        {"task_type": "ping", "collection": ""},
        {"task_type": "ping", "collection": "refused", "deadline_s": -1.0},
    ]
    for one in bad:
        with pytest.raises(InvalidArgument):
            bare.client.submit_many([*orders("x", "y", collection="refused"), one])
    many = tuple(Order(task_type="ping", collection="c", params={"token": str(n)}) for n in range(1001))
    with pytest.raises(InvalidArgument, match="at most 1000"):
        bare.client.request(messages.SubmitMany(orders=many))
    listed = expect(messages.TaskList, bare.client.request(messages.ListTasks(limit=1000, status="pending"))).tasks
    assert not [one for one in listed if one.collection == "refused"]
    bare.client.request(messages.Resume(collection="refused"))


def test_tasks_handed_in_together_survive_a_kill_of_the_daemon(
    make_daemon: Callable[[Mapping[str, str]], Daemon],
) -> None:
    daemon = make_daemon(NO_MODEL).start()
    daemon.client.request(messages.Pause())
    task_ids = daemon.client.submit_many(orders(*range(COUNT)))
    assert daemon.process is not None
    daemon.process.kill()
    daemon.process.wait()
    daemon.start()
    daemon.client.request(messages.Resume())
    assert {ended(daemon, task_id).status for task_id in task_ids} == {TaskStatus.COMPLETED}


def test_a_task_is_given_up_at_its_deadline_whether_it_runs_or_waits(bare: Daemon) -> None:
    running = ping(bare, params={"token": "late", "hold_s": 600}, deadline_s=0.3)
    bare.client.request(messages.Pause(collection="still"))
    waiting = ping(bare, collection="still", deadline_s=0.3)
    for task_id in (running, waiting):
        task = ended(bare, task_id)
        assert (task.status, task.error_code) == (TaskStatus.FAILED, "deadline")
        assert "0.3 s after it was accepted" in (task.error_message or "")
    bare.client.request(messages.Resume(collection="still"))
    assert {one.task_id for one in executions(bare, task_type="ping", status="failed")} >= {running, waiting}
    bare.client.request(messages.Requeue(task_id=waiting))
    assert ended(bare, waiting).status is TaskStatus.COMPLETED


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, 1e12, float("nan")])
def test_a_deadline_that_is_none_is_refused(bare: Daemon, deadline_s: float) -> None:
    with pytest.raises(InvalidArgument, match="deadline_s"):
        ping(bare, deadline_s=deadline_s)


@pytest.fixture
def failed(bare: Daemon) -> TaskRecord:
    return bare.finished(bare.submit("warm", "no_such_thing"))


def test_the_history_says_what_an_attempt_took_and_is_asked_for_by_what_it_was(
    bare: Daemon, failed: TaskRecord
) -> None:
    (one,) = executions(bare, collection="no_such_thing", task_type="warm", status="failed")[:1]
    assert (one.task_id, one.task_type, one.attempt) == (failed.task_id, TaskType.WARM, failed.attempt)
    assert one.worker in (1, 2)
    assert one.budget == 1.0  # it was forced
    assert one.wall_s > 0
    assert 0 <= one.cpu_s <= one.wall_s + 0.1
    assert executions(bare, collection="no_such_thing", status="completed") == ()
    assert executions(bare, collection="no_such_thing", task_type="reindex") == ()
    filters = ("--type", "warm", "--collection", "no_such_thing", "--status", "failed", "--limit", "1")
    (shown,) = json.loads(bare.cli("tasks", "history", *filters, "--json"))
    assert (shown["task_id"], shown["worker"]) == (one.task_id, one.worker)
    assert failed.task_id in bare.cli("tasks", "history", *filters)
    with pytest.raises(InvalidArgument, match="status"):
        executions(bare, status="done")


def test_a_ping_is_done_again_after_a_kill_of_the_daemon(make_daemon: Callable[[Mapping[str, str]], Daemon]) -> None:
    daemon = make_daemon(NO_MODEL).start()
    waiting = [ping(daemon, params={"token": str(number), "hold_s": 600}) for number in range(2)]  # one worker
    held(daemon, waiting[0])
    assert daemon.process is not None
    daemon.process.kill()
    daemon.process.wait()
    daemon.start()
    tasks = [ended(daemon, waiting[0])]
    assert daemon.cancel(waiting[1]) == 1  # its first attempt holds
    tasks.append(ended(daemon, waiting[1]))
    assert [task.status for task in tasks] == [TaskStatus.COMPLETED, TaskStatus.CANCELLED]
