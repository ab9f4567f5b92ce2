"""Owns `governor`: what the governor decided, in words, as JSON or as a picture (plot.py)."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec

from ..ipc import messages
from ..ipc.checks import check_number
from ..ipc.client import Client, expect
from ..ipc.records import DecisionRow
from ..supervisor.decisions import KEPT_DECISIONS_S, is_other
from . import render
from .session import client_of, print_json

LEAST_HOURS = 0.01  # half a minute
GAP_S = 10.0  # readings are 5 s apart at most: after a longer one the service was away, or the machine slept


def governor(args: argparse.Namespace) -> int:
    hours_s = min(check_number("--hours", args.hours, LEAST_HOURS) * 3600, KEPT_DECISIONS_S)
    if args.plot:
        from . import plot  # before the service is asked: what is missing is said at once

        plot.check()
    now = time.time()
    with client_of(args) as client:
        found = decisions(client, now - hours_s)
    if args.plot:
        plot.draw(found, now - hours_s, now, Path(args.plot))
    if args.json:
        shown = {name: value for name, value in msgspec.to_builtins(found).items() if name not in ("type", "v", "rid")}
        print_json(shown | ({"plot": args.plot} if args.plot else {}))
    elif args.plot:
        print(f"{len(found.decisions)} rows drawn into {args.plot}")
    else:
        lines = [words(stretch, ZoneInfo(found.zone)) for stretch in stretches(found.decisions)]
        print("\n".join(lines) if lines else "nothing was decided yet")
    return 0


def decisions(client: Client, since: float) -> messages.DecisionList:
    """Ask for all rows that began after `since`, page by page."""
    pages = []
    while True:
        page = expect(messages.DecisionList, client.request(messages.ListDecisions(since=since)))
        pages.append(page)
        if len(page.decisions) < messages.ListDecisions().limit:
            rows = tuple(row for one in pages for row in one.decisions)
            return msgspec.structs.replace(page, decisions=rows)
        since = page.decisions[-1].started_at


def is_gap(before: DecisionRow, after: DecisionRow) -> bool:
    """Say whether there is time between two rows of which nothing is known, or the clock was set back."""
    return abs(after.started_at - before.started_at - before.seconds) > GAP_S


def stretches(rows: Iterable[DecisionRow]) -> Iterator[list[DecisionRow]]:
    """Yield rows in a row in which nothing changed: each begins with a change, or after a gap."""
    held: list[DecisionRow] = []
    for row in rows:
        if held and (row.is_change or is_gap(held[-1], row) or is_other_outcome(held[-1], row)):
            yield held
            held = []
        held.append(row)
    if held:
        yield held


def is_other_outcome(before: DecisionRow, after: DecisionRow) -> bool:
    """Say whether something changed between two rows; the second need not have begun with it: decisions.py."""
    return before.is_admitting is not after.is_admitting or is_other(after.reason, before.reason)


def words(stretch: list[DecisionRow], zone: ZoneInfo) -> str:
    """Return what was decided in a stretch of time: when, for how long, why, and two lines of figures at the most."""
    first, seconds = stretch[0], sum(row.seconds for row in stretch)

    def mean(figure: str) -> str:
        return render.percent(sum(getattr(row, figure).mean * row.seconds for row in stretch) / seconds)

    at = datetime.fromtimestamp(first.started_at, zone)
    what = "tasks may begin" if first.is_admitting else "no tasks"
    lines = [f"{at:%Y-%m-%d %H:%M:%S}  {what} for {render.duration(seconds)}: {first.reason}"]
    own_peak = render.percent(max(row.own.peak for row in stretch))
    lines.append(
        f"    budget {mean('budget')} of the machine, used {mean('own')} (at most {own_peak}), others {mean('others')},"
        f" memory {mean('memory')}"
    )
    changes = sum(row.changes for row in stretch) - int(first.is_change)
    if changes:
        admitted = sum(row.admitted * row.seconds for row in stretch) / seconds
        lines.append(f"    it changed {changes} times: tasks might begin {render.percent(admitted)} of the time")
    return "\n".join(lines)
