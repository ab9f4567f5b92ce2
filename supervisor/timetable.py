"""Owns the schedules that there are: durable, caught up after a downtime, noted with what became of their last run.

Which run is next, and what a missed one is worth, is scheduler.py's to say. What a run is made into is the core's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from zoneinfo import ZoneInfo

import msgspec

from ..ipc.records import ScheduleRecord, TaskRecord, TaskStatus, TaskType
from . import scheduler
from .journal import Journal


class Timetable:
    """`schedules` may be read, by id. Times are Unix seconds; the clock they mean is that of `zone`."""

    def __init__(self, journal: Journal, zone: ZoneInfo) -> None:
        self._journal, self.zone = journal, zone
        self.schedules: dict[str, ScheduleRecord] = {one.task_id: one for one in journal.schedules()}
        self._next_run_at: float | None = None  # None: to be looked up

    def save(self, schedule: ScheduleRecord) -> None:
        self.schedules[schedule.task_id] = schedule
        self._next_run_at = None
        self._journal.save_schedule(schedule)

    def remove(self, schedule_id: str) -> None:
        del self.schedules[schedule_id]
        self._next_run_at = None
        self._journal.remove_schedule(schedule_id)

    def next_run(self) -> float | None:
        """Return when the next one is due; None where none is enabled."""
        if self._next_run_at is None:
            runs = (one.next_run_at for one in self.schedules.values() if one.is_enabled)
            self._next_run_at = min(runs, default=math.inf)
        return None if self._next_run_at == math.inf else self._next_run_at

    def due(self, now: float) -> list[ScheduleRecord]:
        """Return those whose run is to be made now, the longest due first: each (schedule, instant) once, ever."""
        claimed = []
        for schedule in scheduler.due(self.schedules.values(), now):
            if self._journal.fire_once(schedule.task_id, schedule.next_run_at):
                claimed.append(schedule)
            else:
                self.save(scheduler.skip(schedule, now, self.zone, scheduler.HAS_RUN))
        return claimed

    def has_run(self, schedule: ScheduleRecord, now: float, note: str = "") -> None:
        """Move on to the next run. `note`: why this one did nothing."""
        advanced = scheduler.advance(schedule, now, self.zone, has_run=True)
        self.save(msgspec.structs.replace(advanced, note=note))

    def note_end(self, record: TaskRecord) -> None:
        """Say at its schedule why a task that came from it did nothing."""
        if (schedule := self.schedules.get(record.schedule_id or "")) is None:
            return
        is_done = record.status is TaskStatus.COMPLETED
        note = "" if is_done else f"{record.task_id} {record.status.value}: {record.error_message or 'nothing to do'}"
        if note != schedule.note:
            self.save(msgspec.structs.replace(schedule, note=note))

    # --- how often a collection is warmed ---------------------------------------------------------------------------

    def warmed(self) -> dict[str, float]:
        """Return by collection that is warmed by a schedule how often, in seconds."""
        found: dict[str, float] = {}
        for one in self.schedules.values():
            if one.task_type is TaskType.WARM and one.is_enabled:
                found[one.collection] = min(scheduler.period_s(one), found.get(one.collection, math.inf))
        return found

    def pace(self, collection: str, every_s: float, why: str, now: float, schedule_id: str | None) -> None:
        """Have the default schedule of a collection's warming run every so many seconds from now on.

        Its run that is next comes sooner where that is so; later only after a run of its own (`schedule_id`).
        """
        for one in list(self.schedules.values()):
            if one.task_type is TaskType.WARM and one.collection == collection and self.is_default(one.task_id):
                paced = scheduler.paced(one, every_s, why, now, self.zone)
                if one.task_id != schedule_id:
                    paced = msgspec.structs.replace(paced, next_run_at=min(paced.next_run_at, one.next_run_at))
                self.save(paced)

    # --- what nobody asked for ----------------------------------------------------------------------------------------

    def keep_defaults(
        self, collections: Sequence[str], active: frozenset[str], now: float, *, is_automatic: bool
    ) -> None:
        """Have the default schedules of `collections`, the `active` ones re-indexed daily; take the others' off."""
        held = self.schedules.values()
        for schedule in scheduler.unlisted(held, collections if is_automatic else ()):
            self.remove(schedule.task_id)
        if is_automatic:
            fresh = scheduler.default_schedules(collections, held, now, self.zone, active)
            for schedule in [*fresh, *scheduler.retuned(held, active, now, self.zone)]:
                self.save(schedule)

    def is_default(self, schedule_id: str | None) -> bool:
        """Say whether nobody asked for a schedule: its collection need not exist."""
        schedule = self.schedules.get(schedule_id or "")
        return schedule is not None and schedule.metadata.get("origin") == "default"

    # --- the clock ----------------------------------------------------------------------------------------------------

    def catch_up(self, now: float) -> None:
        """Have a run that was missed while nothing ran due at once, or move on: scheduler.catch_up."""
        for schedule in list(self.schedules.values()):
            if scheduler.catch_up(schedule, now, self.zone) is scheduler.CatchUp.SKIP:
                self.save(scheduler.skip(schedule, now, self.zone, scheduler.TOO_LATE))

    def time_moved(self, now: float) -> None:
        """Go on after the clock was set or the machine was suspended, as after a downtime."""
        self.catch_up(now)
        for schedule in scheduler.reset(self.schedules.values(), now, self.zone):
            self.save(schedule)

    def zone_moved(self, zone: ZoneInfo, now: float) -> None:
        """Go by the clock of another zone from the next run on; one that is due has its turn first."""
        self.zone = zone
        for schedule in list(self.schedules.values()):
            if schedule.next_run_at > now:
                next_run_at = scheduler.next_run(schedule.frequency, now, zone)
                self.save(msgspec.structs.replace(schedule, next_run_at=next_run_at))
