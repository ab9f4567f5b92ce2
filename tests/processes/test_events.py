"""The event stream of the real daemon, as the Python client, the command line and a bare socket see it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping

import msgspec
import psutil

from morgan.background.ipc import events as e
from morgan.background.ipc import messages
from morgan.background.ipc.client import expect
from morgan.background.ipc.sockets import connect_dealer
from tests.processes.daemons import NO_MODEL, START_S, Context, Daemon, received

Told = Iterator[messages.Snapshot | e.AnyEvent]


def until(told: Told, is_it: Callable[[messages.Snapshot | e.AnyEvent], bool]) -> list[messages.Snapshot | e.AnyEvent]:
    """Return what is told up to and with the one that `is_it`."""
    found = []
    for one in told:
        found.append(one)
        if is_it(one):
            return found
    raise AssertionError(f"it was not told within the time: {found[-20:]}")


def ends(task_id: str) -> Callable[[object], bool]:
    return lambda one: isinstance(one, e.TaskEnded) and one.task.task_id == task_id


def test_a_task_is_followed_from_a_snapshot_to_its_end(bare: Daemon) -> None:
    bare.until(lambda report: report["workers"] if len(report["workers"]) == 3 else None)
    told = bare.client.events(START_S)
    first = next(told)
    assert isinstance(first, messages.Snapshot)
    assert {worker.role for worker in first.workers} == {"owner", "tasks"}
    task_id = bare.submit("warm", "no_such_collection")
    seen = until(told, ends(task_id))
    assert [one.seq for one in seen] == list(range(first.seq + 1, first.seq + 1 + len(seen)))
    of_task = [type(one) for one in seen if task_id in str(one)]
    assert of_task[0] is e.TaskAccepted
    assert of_task[-1] is e.TaskEnded
    assert e.TaskStarted in of_task


def test_what_an_operator_does_is_told(bare: Daemon) -> None:
    client, told = bare.client, bare.client.events(START_S)
    next(told)
    client.request(messages.Pause(collection="told"))
    until(told, lambda one: isinstance(one, e.PauseChanged) and one.paused == ("told",))
    waiting = bare.submit("warm", "told")
    until(
        told,
        lambda one: isinstance(one, e.TaskWaits) and (one.task_id, one.waits_for[:14]) == (waiting, "told is paused"),
    )
    held = next(bare.client.events(START_S))
    assert isinstance(held, messages.Snapshot)
    assert {task.task_id: task.waits_for[:14] for task in held.tasks}[waiting] == "told is paused"
    bare.cancel(waiting)
    until(told, ends(waiting))
    client.request(messages.Resume(collection="told"))
    until(told, lambda one: isinstance(one, e.PauseChanged) and one.paused == ())
    added = messages.AddSchedule(task_type="warm", collection="told", frequency="daily")
    (schedule,) = expect(messages.ScheduleList, client.request(added)).schedules
    until(told, lambda one: isinstance(one, e.ScheduleChanged) and one.schedule == schedule)
    client.request(messages.RemoveSchedule(task_id=schedule.task_id))
    until(told, lambda one: isinstance(one, e.ScheduleRemoved) and one.task_id == schedule.task_id)


def test_a_worker_that_is_killed_and_the_one_in_its_place_are_told(bare: Daemon) -> None:
    told = bare.client.events(START_S)
    first = next(told)
    assert isinstance(first, messages.Snapshot)
    killed = next(worker for worker in first.workers if worker.role == "tasks")
    os.kill(killed.pid, signal.SIGKILL)
    until(told, lambda one: isinstance(one, e.WorkerLeft) and one.pid == killed.pid)
    until(told, lambda one: isinstance(one, e.WorkerJoined) and one.index == killed.index and one.pid != killed.pid)


def test_a_gap_is_said_to_another_language_and_a_poll_is_answered_when_something_happens(
    bare: Daemon, context: Context
) -> None:
    pack = msgspec.msgpack.encode
    with connect_dealer(context, bare.runtime / "clients.sock") as socket:
        socket.send(pack({"type": "next_events", "v": 1, "rid": 1, "epoch": 0, "after": 0, "wait_s": 60.0}))
        gap = received(socket)
        assert (gap["is_gap"], gap["events"]) == (True, [])
        socket.send(pack({"type": "get_snapshot", "v": 1, "rid": 2}))
        snapshot = received(socket)
        after = {"epoch": snapshot["epoch"], "after": snapshot["seq"]}
        socket.send(pack({"type": "next_events", "v": 1, "rid": 3, "limit": 1, "wait_s": 60.0} | after))
        task_id = bare.submit("warm", "no_such_collection")
        told = received(socket)
        assert (told["rid"], told["is_gap"], len(told["events"])) == (3, False, 1)
        assert told["events"][0]["seq"] == snapshot["seq"] + 1
        bare.finished(task_id)
        future = {"epoch": snapshot["epoch"], "after": snapshot["seq"] + 10**6}
        socket.send(pack({"type": "next_events", "v": 1, "rid": 4} | future))
        assert received(socket)["is_gap"]


def test_a_subscriber_outlives_the_supervisor_and_starts_again_from_a_snapshot(
    make_daemon: Callable[[Mapping[str, str]], Daemon],
) -> None:
    daemon = make_daemon(NO_MODEL).start()
    told = daemon.client.events(2 * START_S, patience_s=START_S)
    first = next(told)
    assert isinstance(first, messages.Snapshot)
    assert daemon.process is not None
    children = daemon.children()
    daemon.process.kill()
    daemon.process.wait()
    psutil.wait_procs(children, 30)
    daemon.start()
    (*_, again) = until(told, lambda one: isinstance(one, messages.Snapshot))
    assert isinstance(again, messages.Snapshot)
    assert again.epoch != first.epoch
    task_id = daemon.submit("warm", "no_such_collection")
    until(told, ends(task_id))


def test_watch_prints_the_state_and_then_the_events(bare: Daemon) -> None:
    command = [sys.executable, "-m", "morgan.background", "watch", "--json"]
    with subprocess.Popen(command, env=bare.env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert json.loads(process.stdout.readline())["type"] == "snapshot"
            task_id = bare.submit("warm", "no_such_collection")
            lines = (json.loads(line) for line in process.stdout)
            ended = next(one for one in lines if one["type"] == "task_ended" and one["task"]["task_id"] == task_id)
            assert ended["task"]["status"] == "failed"
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert "workers" in bare.cli("watch", "--for", "0.5")
