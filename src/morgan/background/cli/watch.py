"""Owns `watch`: the events of the service, a line each."""

from __future__ import annotations

import argparse
import json
import time
from typing import assert_never

import msgspec

from ..ipc import events as e
from ..ipc.messages import Snapshot
from . import render
from .session import client_of


def watch(args: argparse.Namespace) -> int:
    """Print the state and then what happens. With --json a document a line: `snapshot` and the events."""
    with client_of(args) as client:
        for one in client.events(getattr(args, "for")):
            if args.json:
                print(json.dumps(msgspec.to_builtins(one), ensure_ascii=False, default=str), flush=True)
            else:
                at = time.time() if isinstance(one, Snapshot) else one.at
                print(f"{time.strftime('%H:%M:%S', time.localtime(at))}  {line(one)}", flush=True)
    return 0


def line(one: Snapshot | e.AnyEvent) -> str:  # noqa: PLR0911, PLR0912 - one return an event
    """Return an event in words."""
    match one:
        case Snapshot():
            problems = "".join(f"; {about}: {what}" for about, what in one.problems.items())
            is_draining = ", draining" if one.is_draining else ""
            return f"{one.open_tasks} tasks open, {len(one.workers)} workers{is_draining}{problems}"
        case e.TaskAccepted():
            return f"{one.task.task_id} is accepted"
        case e.TaskStarted():
            return f"{one.task.task_id} runs on worker {render.text(one.task.worker)}, attempt {one.task.attempt}"
        case e.TaskProgressed():
            at = one.progress
            return f"{one.task_id}: {render.bar(at.done, at.total, at.note, at.eta_s)}"
        case e.TaskChanged():
            why = f": {one.task.error_message}" if one.task.error_message else ""
            return f"{one.task.task_id} is {one.task.status.value}{why}"
        case e.TaskWaits():
            return f"{one.task_id} waits: {one.waits_for}"
        case e.TaskEnded():
            why = f": {one.task.error_message}" if one.task.error_message else ""
            return f"{one.task.task_id} {one.task.status.value}{why}"
        case e.ScheduleChanged():
            return f"{one.schedule.task_id} runs next at {render.clock(one.schedule.next_run_at)}"
        case e.ScheduleRemoved():
            return f"{one.task_id} is off the schedule"
        case e.PauseChanged():
            names = ", ".join(name or "everything" for name in one.paused)
            return f"paused: {names}" if names else "nothing is paused"
        case e.WorkerJoined():
            return f"worker {one.index} ({one.role}, pid {one.pid}) joined"
        case e.WorkerLeft():
            return f"worker {one.index} (pid {one.pid}) left"
        case e.BudgetChanged():
            return f"budget {render.percent(one.budget)}, {'tasks may run' if one.can_run_task else 'no tasks'}: {one.reason}"
        case e.ProblemAppeared():
            return f"problem with {one.about}: {one.what}"
        case e.ProblemGone():
            return f"no problem with {one.about} any more"
        case e.ResultsChanged():
            return f"{one.published} results published, {one.voided} made void"
        case e.Draining():
            return "the service is draining"
        case _:
            assert_never(one)
