"""Owns `run` and `tasks`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from ..ipc import messages
from ..ipc.client import Client, expect
from ..ipc.errors import InvalidArgument
from ..ipc.records import ExecutionRecord, TaskRecord, TaskStatus
from . import render
from .progress import Progress
from .session import client_of, print_json

LOOK_S = 1.0  # the reason for a wait changes without the task changing


def run(args: argparse.Namespace) -> int:
    """Hand in a task and follow it. Ctrl-C leaves it running and says how to cancel it."""
    params = _params(args.set) | ({"dry_run": True} if args.dry_run else {})
    submit = messages.Submit(
        task_type=args.type,
        collection=args.collection,
        params=params,
        priority=1,
        is_forced=args.force,
        deadline_s=args.deadline,
    )
    with client_of(args) as client:
        task_id = expect(messages.Submitted, client.request(submit)).task_id
        if args.no_wait:
            print_json({"task_id": task_id}) if args.json else print(task_id)
            return 0
        try:
            record = follow(client, task_id)
        except KeyboardInterrupt:
            print(f"\n{task_id} goes on; `morgan-background tasks cancel {task_id}` ends it", file=sys.stderr)
            raise
    if args.json:
        print_json(record)
    else:
        print(f"{record.task_id}: {record.status.value}")
        if record.result:
            print(render.result(record.result))
    if record.error_message:
        print(f"morgan-background: {record.error_message}", file=sys.stderr)
    if record.status is TaskStatus.FAILED:
        print(f"`morgan-background tasks requeue {record.task_id}` tries it again", file=sys.stderr)
    return 0 if record.status in (TaskStatus.COMPLETED, TaskStatus.SKIPPED) else 1


def tune(args: argparse.Namespace) -> int:
    """Run a tune task: `run tune` with its parameters as options."""
    # without --apply the configuration decides
    given = {"type": "tune", "set": ["apply=true"] if args.apply else [], "dry_run": False}
    return run(argparse.Namespace(**vars(args) | given | {"deadline": None, "no_wait": False}))


def learn(args: argparse.Namespace) -> int:
    """Run a learn task: `run learn` with its parameters as options. An undo is done at once: it costs nothing."""
    given = {
        "type": "learn",
        "set": ["undo=true"] if args.undo else [],
        "dry_run": False,
        "force": args.force or args.undo,
    }
    return run(argparse.Namespace(**vars(args) | given | {"deadline": None, "no_wait": False}))


def follow(client: Client, task_id: str, watch: Callable[[TaskRecord], None] | None = None) -> TaskRecord:
    """Show a task's progress until it has ended; return its record. `watch` is called at least every LOOK_S."""
    progress, seen, reason = Progress(), -1, ""
    while True:
        ask = messages.GetTask(task_id=task_id, seen=seen, wait_s=LOOK_S if seen >= 0 else 0)
        record = expect(messages.TaskReply, client.request(ask, LOOK_S + 10)).task
        seen = record.version
        if watch is not None:
            watch(record)
        if record.status.is_final:
            progress.clear()
            return record
        kind = record.waits_for.partition(":")[0]  # what follows are figures, which change with every look
        if record.status is TaskStatus.PENDING and kind != reason:
            reason = kind
            progress.say(f"waiting: {record.waits_for}")
        at = record.progress
        if record.status is TaskStatus.RUNNING:
            progress.show(at.done, at.total, at.note or "loading the model", at.eta_s)


def _params(pairs: list[str]) -> dict[str, Any]:
    """Return KEY=VALUE pairs as parameters; a value that is no JSON is a text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise InvalidArgument(f"--set {pair!r}: write KEY=VALUE")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def tasks(args: argparse.Namespace) -> int:
    with client_of(args) as client:
        match args.verb:
            case "list":
                limit, status = getattr(args, "limit", 20), getattr(args, "status", None)
                ask = messages.ListTasks(limit=limit, status=status)
                _print_tasks(args, expect(messages.TaskList, client.request(ask)).tasks)
            case "history":
                asked = messages.ListExecutions(
                    limit=args.limit, task_type=args.type, collection=args.collection, status=args.status
                )
                _print_history(args, expect(messages.ExecutionList, client.request(asked)).executions)
            case "show":
                record = expect(messages.TaskReply, client.request(messages.GetTask(task_id=args.id))).task
                print_json(record)
            case "cancel":
                done = expect(messages.Done, client.request(messages.CancelTask(task_id=args.id)))
                _say(args, "it had ended already" if done.count == 0 else "cancelled: it stops at its next step")
            case "requeue":
                client.request(messages.Requeue(task_id=args.id))
                _say(args, "it is tried again")
            case "pause":
                client.request(messages.Pause(collection=args.collection))
                _say(args, f"paused: {args.collection or 'everything'}")
            case "resume":
                client.request(messages.Resume(collection=args.collection))
                _say(args, f"resumed: {args.collection or 'everything'}")
    return 0


def _say(args: argparse.Namespace, words: str) -> None:
    print_json({"message": words}) if args.json else print(words)


def _print_tasks(args: argparse.Namespace, found: tuple[TaskRecord, ...]) -> None:
    if args.json:
        print_json(found)
        return
    rows = [
        (
            t.task_id,
            t.status.value,
            f"{t.progress.done}/{t.progress.total}" if t.progress.total else None,
            render.clock(t.created_at),
            t.waits_for or t.error_message or "",
        )
        for t in found
    ]
    print(render.table(("task", "state", "progress", "handed in", "why"), rows) if rows else "no tasks yet")


def _print_history(args: argparse.Namespace, found: tuple[ExecutionRecord, ...]) -> None:
    if args.json:
        print_json(found)
        return
    rows = [
        (
            e.task_id,
            e.status.value,
            render.clock(e.completed_at),
            e.attempt,
            e.worker,
            render.duration(e.wall_s),
            render.duration(e.cpu_s),
            render.percent(e.budget),
            render.change(e.metric, e.before_score, e.after_score) or e.error_message or "",
        )
        for e in found
    ]
    headers = ("task", "state", "ended", "attempt", "worker", "took", "CPU time", "of a CPU", "what came of it")
    print(render.table(headers, rows) if rows else "nothing was run yet")
