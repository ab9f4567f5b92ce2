"""Owns `stop`, `status`, `why`, `reload` and `config`."""

from __future__ import annotations

import argparse

import msgspec

from ..ipc import messages
from ..ipc.client import expect
from ..supervisor.config import default_toml
from . import render
from .session import client_of, config_of, print_json


def stop(args: argparse.Namespace) -> int:
    with client_of(args) as client:
        client.request(messages.Shutdown())
    words = "draining: the service leaves when its running steps are done"
    print_json({"message": words}) if args.json else print(words)
    return 0


def status(args: argparse.Namespace) -> int:
    with client_of(args) as client:
        report = expect(messages.Report, client.request(messages.Status())).report
    if args.json:
        print_json(report)
    else:
        print(render.status(report))
    return 0


def why(args: argparse.Namespace) -> int:
    """Say what every waiting task waits for and what every schedule last left out, or the same of one."""
    with client_of(args) as client:
        waiting = expect(messages.Report, client.request(messages.Status())).report["waiting"]
        schedules = expect(messages.ScheduleList, client.request(messages.ListSchedules())).schedules
        if args.id is not None:
            waiting = [one for one in waiting if one["task_id"] == args.id]
            schedules = tuple(one for one in schedules if one.task_id == args.id)
            if not waiting and not schedules:
                task = expect(messages.TaskReply, client.request(messages.GetTask(task_id=args.id))).task
                words = f"{task.task_id} does not wait: it is {task.status.value}"
                words += f", {task.error_message}" if task.error_message else ""
                print_json({"task": task, "message": words}) if args.json else print(words)
                return 0
    if args.json:
        print_json({"waiting": waiting, "schedules": schedules})
        return 0
    lines = [f"{one['task_id']}: {one['why']}\n    expected: {one['expected']}" for one in waiting]
    for one in schedules:
        note = f"\n    last time: {one.note}" if one.note else ""
        lines.append(f"{one.task_id} ({one.frequency.value}): next run {render.clock(one.next_run_at)}{note}")
    print("\n".join(lines) if lines else "nothing waits, nothing is scheduled")
    return 0


def reload(args: argparse.Namespace) -> int:
    with client_of(args) as client:
        changes = expect(messages.Reloaded, client.request(messages.Reload()))
    if args.json:
        print_json({"applied": changes.applied, "needs_restart": changes.needs_restart})
        return 0
    print(f"in force now: {', '.join(changes.applied) or 'nothing that was not before'}")
    if changes.needs_restart:
        print(f"needs a restart: {', '.join(changes.needs_restart)}")
    return 0


def config(args: argparse.Namespace) -> int:
    if args.defaults:
        print(default_toml(), end="")
        return 0
    found = config_of(args)
    shown = msgspec.to_builtins(found, builtin_types=())
    shown["api_key"] = str(found.api_key)
    shown["source"] = None if found.source is None else str(found.source)
    shown["in_force"] = {"state_dir": str(found.state_dir()), "runtime_dir": str(found.runtime_dir())}
    if args.json:
        print_json(shown)
        return 0
    print(f"# from {shown['source'] or 'defaults (no file was found)'}")
    for section, values in shown.items():
        if isinstance(values, dict):
            print(f"\n[{section}]")
            print(render.result(values))
    return 0
