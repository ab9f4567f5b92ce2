"""Owns when a schedule runs next: hourly, daily at 02:00, weekly on Sunday at 03:00, in local time. Pure.

Around a clock change: a time in the gap shifts forward, in the fold only the first pass counts, hourly runs in both
passes. Computed through UTC with zoneinfo; croniter, APScheduler and plain subtraction each fail some of these cases.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from zoneinfo import ZoneInfo

import msgspec

from ..ipc.errors import InvalidArgument
from ..ipc.records import ScheduleRecord, TaskFrequency, TaskType

DAILY_HOUR = 2
WEEKLY_HOUR = 3
SUNDAY = 6

PERIOD_S = {TaskFrequency.HOURLY: 3600.0, TaskFrequency.DAILY: 86400.0, TaskFrequency.WEEKLY: 7 * 86400.0}

MAX_SALT = 16**12

TOO_LATE = "a run was missed and left out: the next one is nearer than half a period"
HAS_RUN = "a run was left out: it had been started before the clock was set back"


class CatchUp(Enum):
    """What to do with a run whose time came while the service was down."""

    NOT_DUE = "not_due"  # its time has not come
    RUN_ONCE = "run_once"  # one run stands for all that were missed
    SKIP = "skip"  # the next one is so near that it stands for the missed one


_TASK_TYPES = {one.value: one for one in TaskType}


def parse_task_type(value: str | TaskType) -> TaskType:
    """Raises InvalidArgument naming the accepted values."""
    if (found := _TASK_TYPES.get(value)) is None:
        raise InvalidArgument(f"unknown task type {value!r}: one of {', '.join(_TASK_TYPES)}")
    return found


def parse_frequency(value: str | TaskFrequency) -> TaskFrequency:
    """Raises InvalidArgument naming the accepted values."""
    try:
        return TaskFrequency(value)
    except ValueError:
        accepted = ", ".join(one.value for one in TaskFrequency)
        raise InvalidArgument(f"unknown frequency {value!r}: one of {accepted}") from None


def schedule_id(task_type: TaskType, collection: str, salt: int) -> str:
    """Return an id that contains the type and the collection; unique as long as no salt is used twice."""
    return f"{task_type.value}_{collection}_{salt % MAX_SALT:012x}"


def next_run(frequency: TaskFrequency, after_at: float, zone: ZoneInfo) -> float:
    """Return the first run strictly after `after_at`; both in Unix seconds."""
    if frequency is TaskFrequency.HOURLY:
        return _next_hour(after_at, zone)
    day = datetime.fromtimestamp(after_at, zone).date()
    hour = DAILY_HOUR if frequency is TaskFrequency.DAILY else WEEKLY_HOUR
    while True:
        if frequency is TaskFrequency.DAILY or day.weekday() == SUNDAY:
            candidate = _instant(day, hour, zone)
            if candidate > after_at:
                return candidate
        day += timedelta(days=1)


def _instant(day: date, hour: int, zone: ZoneInfo) -> float:
    """Return the instant of a local wall time: fold 0 is the first pass, and lands after the gap inside one."""
    return datetime(day.year, day.month, day.day, hour, tzinfo=zone, fold=0).timestamp()


def _next_hour(after_at: float, zone: ZoneInfo) -> float:
    """Return the next instant at which the local clock shows a full hour, in both passes of a fold.

    Offsets are not whole hours everywhere and change by half an hour in places, so the clock is asked again after a
    step: one step to the hour by the current offset, then corrected by what the offset is there.
    """
    now = datetime.fromtimestamp(after_at, UTC).astimezone(zone)
    into_hour = timedelta(minutes=now.minute, seconds=now.second, microseconds=now.microsecond)
    candidate = (now.astimezone(UTC) - into_hour + timedelta(hours=1)).astimezone(zone)
    if candidate.minute or candidate.second:  # the offset changed on the way by part of an hour
        # Walk on from the change, minute by minute: this happens twice a year in a handful of zones.
        earliest = now.astimezone(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
        for minutes in range(121):
            candidate = (earliest + timedelta(minutes=minutes)).astimezone(zone)
            if candidate.minute == 0:
                break
        else:
            candidate = (now.astimezone(UTC) - into_hour + timedelta(hours=1)).astimezone(zone)
    return candidate.timestamp()


def period_s(schedule: ScheduleRecord) -> float:
    """Return how often a schedule runs, in seconds: as its frequency says, or as `paced` did."""
    return PERIOD_S[schedule.frequency] if (every_s := _paced_s(schedule)) is None else every_s


def _paced_s(schedule: ScheduleRecord) -> float | None:
    """Return what `paced` said; None of somebody's own schedule, whose metadata are his."""
    every_s = schedule.metadata.get("every_s") if schedule.metadata.get("origin") == "default" else None
    return float(every_s) if isinstance(every_s, int | float) and every_s > 0 else None


def paced(schedule: ScheduleRecord, every_s: float, why: str, now: float, zone: ZoneInfo) -> ScheduleRecord:
    """Return a default schedule that runs every so many seconds from now on, at full hours where that is hours."""
    held = msgspec.structs.replace(schedule, metadata=schedule.metadata | {"every_s": round(every_s), "why": why})
    return msgspec.structs.replace(held, next_run_at=_following(held, now, zone))


def _following(schedule: ScheduleRecord, now: float, zone: ZoneInfo) -> float:
    """Return the run after one at `now`."""
    if (every_s := _paced_s(schedule)) is None:
        return next_run(schedule.frequency, now, zone)
    hour_s = PERIOD_S[TaskFrequency.HOURLY]
    return now + every_s if every_s < hour_s else next_run(TaskFrequency.HOURLY, now + every_s - hour_s, zone)


def due(schedules: Iterable[ScheduleRecord], now: float) -> list[ScheduleRecord]:
    """Return the enabled schedules whose time has come, the longest due first."""
    found = [one for one in schedules if one.is_enabled and one.next_run_at <= now]
    return sorted(found, key=lambda one: one.next_run_at)


def catch_up(schedule: ScheduleRecord, now: float, zone: ZoneInfo) -> CatchUp:
    """Decide on a run missed during downtime: hourly coalesces to one, others run unless the next is nearer than half
    a period.
    """
    if not schedule.is_enabled or schedule.next_run_at > now:
        return CatchUp.NOT_DUE
    if schedule.frequency is TaskFrequency.HOURLY:
        return CatchUp.RUN_ONCE
    wait_s = next_run(schedule.frequency, now, zone) - now
    return CatchUp.SKIP if wait_s < PERIOD_S[schedule.frequency] / 2 else CatchUp.RUN_ONCE


def advance(schedule: ScheduleRecord, now: float, zone: ZoneInfo, *, has_run: bool) -> ScheduleRecord:
    """Return the schedule with its next run in the future; `has_run` says whether it ran at `now`."""
    return msgspec.structs.replace(
        schedule,
        next_run_at=_following(schedule, now, zone),
        last_run_at=now if has_run else schedule.last_run_at,
    )


def skip(schedule: ScheduleRecord, now: float, zone: ZoneInfo, reason: str) -> ScheduleRecord:
    """Return the schedule moved on without a run, with the reason."""
    return msgspec.structs.replace(advance(schedule, now, zone, has_run=False), note=reason)


def reset(schedules: Iterable[ScheduleRecord], now: float, zone: ZoneInfo) -> list[ScheduleRecord]:
    """Return the schedules whose next run the clock was set back behind, with the run that comes next from `now`.

    Its instant may have had its run before: `Journal.fire_once` knows.
    """
    nearer = [(one, next_run(one.frequency, now, zone)) for one in schedules]
    return [msgspec.structs.replace(one, next_run_at=at) for one, at in nearer if at < one.next_run_at]


def unlisted(schedules: Iterable[ScheduleRecord], collections: Sequence[str]) -> list[ScheduleRecord]:
    """Return the default schedules of collections that are not scheduled any more."""
    return [one for one in schedules if one.metadata.get("origin") == "default" and one.collection not in collections]


def default_schedules(
    collections: Sequence[str],
    existing: Iterable[ScheduleRecord],
    now: float,
    zone: ZoneInfo,
    active: frozenset[str] = frozenset(),
) -> list[ScheduleRecord]:
    """Return what is missing of the default schedule.

    Re-index weekly (daily for `active` collections), rerank popular queries hourly and all queries daily, warm hourly.
    A collection that has a schedule of somebody's own for a task type keeps that one alone.
    """
    held = list(existing)
    fresh = []
    for collection in collections:
        reindex_often = TaskFrequency.DAILY if collection in active else TaskFrequency.WEEKLY
        wanted = (
            (TaskType.REINDEX, reindex_often, ""),
            (TaskType.RERANK, TaskFrequency.HOURLY, "popular"),
            (TaskType.RERANK, TaskFrequency.DAILY, "all"),
            (TaskType.WARM, TaskFrequency.HOURLY, ""),
        )
        for task_type, frequency, scope in wanted:
            same = [one for one in held if one.collection == collection and one.task_type is task_type]
            is_own = any(one.metadata.get("origin") != "default" for one in same)
            if is_own or any(one.metadata.get("scope", "") == scope for one in same):
                continue
            name = f"{task_type.value}_{collection}_default" + (f"_{scope}" if scope else "")
            metadata = {"origin": "default"} | ({"scope": scope} if scope else {})
            fresh.append(
                ScheduleRecord(
                    task_id=name,
                    task_type=task_type,
                    collection=collection,
                    frequency=frequency,
                    next_run_at=next_run(frequency, now, zone),
                    metadata=metadata,
                )
            )
    return fresh


def retuned(
    existing: Iterable[ScheduleRecord], active: frozenset[str], now: float, zone: ZoneInfo
) -> list[ScheduleRecord]:
    """Return the default re-index schedules that change: daily for `active` collections, weekly for the others."""
    changed = []
    for one in existing:
        if one.task_type is not TaskType.REINDEX or one.metadata.get("origin") != "default":
            continue
        wanted = TaskFrequency.DAILY if one.collection in active else TaskFrequency.WEEKLY
        if one.frequency is not wanted and one.next_run_at > now:
            next_run_at = next_run(wanted, now, zone)
            changed.append(msgspec.structs.replace(one, frequency=wanted, next_run_at=next_run_at))
    return changed


def busiest(activity: Mapping[str, float]) -> frozenset[str]:
    """Return the more active half of the collections (rounded up) among those with any activity."""
    ranked = sorted((name for name, amount in activity.items() if amount > 0), key=lambda n: (-activity[n], n))
    return frozenset(ranked[: (len(activity) + 1) // 2])
