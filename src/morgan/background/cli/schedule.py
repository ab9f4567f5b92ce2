"""Owns `schedule`."""

from __future__ import annotations

import argparse

from ..ipc import messages
from ..ipc.client import expect
from . import render
from .session import client_of, print_json


def schedule(args: argparse.Namespace) -> int:
    with client_of(args) as client:
        match args.verb:
            case "add":
                ask = messages.AddSchedule(task_type=args.type, collection=args.collection, frequency=args.frequency)
                rows = expect(messages.ScheduleList, client.request(ask)).schedules
            case "remove":
                client.request(messages.RemoveSchedule(task_id=args.id))
                print_json({"message": "removed"}) if args.json else print("removed")
                return 0
            case _:
                rows = expect(messages.ScheduleList, client.request(messages.ListSchedules())).schedules
    if args.json:
        print_json(rows)
        return 0
    shown = [
        (
            s.task_id,
            s.task_type.value,
            s.collection,
            s.frequency.value,
            render.clock(s.next_run_at),
            render.clock(s.last_run_at),
            s.note,
        )
        for s in rows
    ]
    headers = ("schedule", "type", "collection", "often", "next run", "last run", "left out")
    print(render.table(headers, shown) if shown else "nothing is scheduled")
    return 0
