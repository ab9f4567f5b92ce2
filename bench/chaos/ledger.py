"""Owns what the service has acknowledged, and what it may say of it from then on. Talks to nobody."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from morgan.background.ipc.records import TaskRecord, TaskStatus, TaskType

POINTS = 160  # of each collection that is re-indexed: two whole steps of 64 and some more
KEPT_ENDED = 20  # ended tasks that are looked at again after each fault


@dataclass(slots=True)
class Accepted:
    """An acknowledged task. `token`: what a ping has to give back."""

    task_id: str
    task_type: TaskType
    token: str = ""
    seen_version: int = -1
    may_be_cancelled: bool = False
    may_be_forgotten: bool = False  # once it has ended: the clock was set past the time for which ends are kept
    ended: TaskRecord | None = None


@dataclass
class Ledger:
    """Use from any thread."""

    tasks: dict[str, Accepted] = field(default_factory=dict)
    written: set[int] = field(default_factory=set)  # points that were acknowledged
    unanswered: int = 0  # requests without an answer: what became of them is not known
    accepted: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def accept(self, task_id: str, task_type: TaskType, token: str = "") -> None:
        with self.lock:
            if task_id not in self.tasks:  # an equal task that waited is returned again
                self.accepted += 1
                self.tasks[task_id] = Accepted(task_id, task_type, token)

    def open(self) -> list[Accepted]:
        with self.lock:
            return [one for one in self.tasks.values() if one.ended is None]

    def ended(self) -> list[Accepted]:
        """Return the tasks that were seen to have ended, the last KEPT_ENDED of them."""
        with self.lock:
            return [one for one in self.tasks.values() if one.ended is not None][-KEPT_ENDED:]

    def may_forget(self) -> None:
        """Take down that the clock was set while these tasks were there: what has ended may be forgotten early."""
        with self.lock:
            for one in self.tasks.values():
                one.may_be_forgotten = True

    def drop(self, one: Accepted) -> None:
        with self.lock:
            self.tasks.pop(one.task_id, None)

    def forget_ended(self) -> None:
        with self.lock:
            self.tasks = {task_id: one for task_id, one in self.tasks.items() if one.ended is None}


def fault_of(one: Accepted, record: TaskRecord) -> str:
    """Return what is wrong with the state of an acknowledged task, "" if nothing is."""
    if one.ended is not None:
        # what was told of an end stands; a version is not compared, since it grows with what nobody was told
        before, now = one.ended, record
        if (before.status, before.result, before.attempt) != (now.status, now.result, now.attempt):
            return f"an end was taken back: {before} is now {now}"
        return ""
    if not record.status.is_final or (record.status is TaskStatus.CANCELLED and one.may_be_cancelled):
        return ""
    if record.status is not TaskStatus.COMPLETED:
        return f"{record.task_id} is {record.status.value}, not completed: {record.error_code}: {record.error_message}"
    return _fault_of_result(one, record.result or {})


def _fault_of_result(one: Accepted, result: Mapping[str, Any]) -> str:
    if one.task_type is TaskType.PING and result.get("token") != one.token:
        return f"{one.task_id} gave back {result.get('token')!r}, not {one.token!r}"
    if one.task_type is TaskType.REINDEX:
        seen, embedded = result.get("documents_processed"), result.get("documents_embedded", 0)
        if seen != POINTS or embedded + result.get("documents_unchanged", 0) != POINTS:
            return f"{one.task_id} did not see each of {POINTS} points once: {result}"
    return ""
