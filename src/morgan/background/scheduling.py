"""Owns `SimpleTaskScheduler` and `ScheduledTask`: when a task is to run next. Runs nothing itself."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from .ipc import messages
from .ipc.client import expect
from .ipc.errors import InvalidArgument, TaskNotFound
from .ipc.records import ScheduleRecord, TaskFrequency
from .lane import Lane
from .supervisor import scheduler
from .supervisor.config import load


@dataclass(slots=True)
class ScheduledTask:
    """A task and when it runs next.

    `next_run` and `last_run` are naive local times of this machine, comparable with `datetime.now()`; an aware time
    may be assigned as well. In the hour that a clock change repeats, `next_run.fold` tells the two passes apart.
    """

    task_id: str
    task_type: str
    collection_name: str
    frequency: TaskFrequency
    next_run: datetime
    last_run: datetime | None = None
    enabled: bool = True
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, record: ScheduleRecord) -> ScheduledTask:
        return cls(
            task_id=record.task_id,
            task_type=record.task_type.value,
            collection_name=record.collection,
            frequency=record.frequency,
            next_run=datetime.fromtimestamp(record.next_run_at),
            last_run=None if record.last_run_at is None else datetime.fromtimestamp(record.last_run_at),
            enabled=record.is_enabled,
            metadata=dict(record.metadata),
        )

    def to_record(self) -> ScheduleRecord:
        return ScheduleRecord(
            task_id=self.task_id,
            task_type=scheduler.parse_task_type(self.task_type),
            collection=self.collection_name,
            frequency=self.frequency,
            next_run_at=self.next_run.timestamp(),  # naive: local time, as datetime.now(); aware: its own zone
            last_run_at=None if self.last_run is None else self.last_run.timestamp(),
            is_enabled=self.enabled,
            metadata=self.metadata,
        )


class SimpleTaskScheduler:
    """Schedules tasks hourly (next full hour), daily (02:00) or weekly (Sunday 03:00), local time.

    Alone it keeps its tasks in memory and the caller runs what `get_pending_tasks` returns. With a `lane` (as in
    `BackgroundProcessingService`) the schedule is the service's, durable, and the service runs it.
    """

    def __init__(self, lane: Lane | None = None, zone: ZoneInfo | None = None) -> None:
        self._lane = lane
        self._zone = zone or load().zone()
        self._tasks: dict[str, ScheduledTask] = {}
        self._salt = time.time_ns()

    def schedule_task(
        self,
        task_type: str,
        collection_name: str,
        frequency: str | TaskFrequency,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """Schedule a task; return its id. Raises InvalidArgument (a ValueError) for an unknown type or frequency."""
        kind, often = scheduler.parse_task_type(task_type), scheduler.parse_frequency(frequency)
        if not collection_name:
            raise InvalidArgument("a scheduled task needs a collection name")
        if self._lane is not None:
            message = messages.AddSchedule(
                task_type=kind.value, collection=collection_name, frequency=often.value, metadata=dict(metadata or {})
            )
            return expect(messages.ScheduleList, self._lane.request(message)).schedules[0].task_id
        self._salt += 1
        task_id = scheduler.schedule_id(kind, collection_name, self._salt)
        next_run_at = scheduler.next_run(often, time.time(), self._zone)
        next_run = datetime.fromtimestamp(next_run_at)
        self._tasks[task_id] = ScheduledTask(
            task_id, kind.value, collection_name, often, next_run, metadata=dict(metadata or {})
        )
        return task_id

    @property
    def scheduled_tasks(self) -> dict[str, ScheduledTask]:
        """Tasks by id. Alone: the scheduler's own objects, changes count. With a service: a copy of its schedule."""
        if self._lane is None:
            return self._tasks
        rows = expect(messages.ScheduleList, self._lane.request(messages.ListSchedules())).schedules
        return {row.task_id: ScheduledTask.of(row) for row in rows}

    def list_tasks(self) -> list[ScheduledTask]:
        """Return all tasks, the next one first."""
        return sorted(self.scheduled_tasks.values(), key=lambda task: task.to_record().next_run_at)

    def get_pending_tasks(self, now: datetime | None = None) -> list[ScheduledTask]:
        """Return the enabled tasks whose time has come, the longest due first. `now` may be naive (local) or aware."""
        at = (now or datetime.now()).timestamp()
        return [task for task in self.list_tasks() if task.enabled and task.to_record().next_run_at <= at]

    def mark_task_completed(self, task_id: str) -> bool:
        """Say that a task has run: its next run moves on. False for an unknown id."""
        if self._lane is not None:
            return self._ask(messages.MarkScheduleCompleted(task_id=task_id))
        task = self._tasks.get(task_id)
        if task is None:
            return False
        advanced = scheduler.advance(task.to_record(), time.time(), self._zone, has_run=True)
        self._tasks[task_id] = ScheduledTask.of(advanced)
        return True

    def cancel_task(self, task_id: str) -> bool:
        """Take a task off the schedule. False for an unknown id."""
        if self._lane is not None:
            return self._ask(messages.RemoveSchedule(task_id=task_id))
        return self._tasks.pop(task_id, None) is not None

    def _ask(self, message: messages.Request) -> bool:
        assert self._lane is not None
        try:
            self._lane.request(message)
        except TaskNotFound:
            return False
        return True
