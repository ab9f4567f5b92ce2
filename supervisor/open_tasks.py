"""Owns the tasks that have not ended, by everything they are looked for: order, equals, worker, collection, time. Pure.

    enter ─▶ waiting ──start──▶ running ─leave▶      each takes O(log n) of the open tasks
               ▲  │ backing off    │
               └──┴───── change ───┘

Decides nothing: what becomes of a task is queue.py's. Times are Unix seconds; `now` is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Any

import msgspec

from ..ipc.records import TaskRecord, TaskStatus, TaskType
from .ready import Kind, Order, Place, Ready

Key = tuple[TaskType, str, bytes]

# an enum's member costs 0.1 us a look on Python 3.11: as much as a dict's whole lookup and more
_PING, _RUNNING = TaskType.PING, TaskStatus.RUNNING
_FREE, _FORCED, _PLAIN = Kind.FREE, Kind.FORCED, Kind.PLAIN
_encode_sorted = msgspec.msgpack.Encoder(order="sorted").encode


class OpenTasks:
    """See the module. `tasks`, `running` and `paused` may be read; they are changed by the methods alone."""

    def __init__(self) -> None:
        self.tasks: dict[str, TaskRecord] = {}
        self.running: dict[str, None] = {}
        self.paused: set[str | None] = set()
        self.deadlines: list[tuple[float, str]] = []  # heaps of (when, task id); what changed since is still in them
        self._back_offs: list[tuple[float, str]] = []
        self._backing_off: set[str] = set()
        self._ready = Ready(self._is_ready, self._is_open)
        self._waiting: dict[str, tuple[Order, Place]] = {}  # pending tasks that do not back off
        self._equal: dict[Key, dict[str, None]] = {}  # pending tasks by what makes two of them equal, oldest first
        self._keys: dict[str, Key] = {}  # of the pending tasks
        self._of_worker: dict[int, dict[str, None]] = {}
        self._busy: dict[str, set[str]] = {}  # collection -> running tasks that have it to themselves
        self._looked_at = 0.0  # when back-offs were last looked at

    # --- what there is ------------------------------------------------------------------------------------------------

    def of_worker(self, worker: int) -> list[TaskRecord]:
        return [self.tasks[task_id] for task_id in self._of_worker.get(worker, ())]

    def equal_to(self, key: Key) -> TaskRecord | None:
        """Return the oldest pending task with this key."""
        equal = self._equal.get(key)
        return self.tasks[next(iter(equal))] if equal else None

    def best(self, kinds: Iterable[Kind]) -> TaskRecord | None:
        """Return the task whose turn it is; call `end_back_offs` before."""
        order = self._ready.best(kinds)
        return None if order is None else self.tasks[order[2]]

    # --- changes ------------------------------------------------------------------------------------------------------

    def enter(self, task: TaskRecord, key: Key | None = None) -> None:
        """Take a task in, by its state."""
        task_id = task.task_id
        self.tasks[task_id] = task
        if task.status is _RUNNING:
            self._run(task)
            return
        self._keys[task_id] = key = key or key_of(task.task_type, task.collection, task.params)
        self._equal.setdefault(key, {})[task_id] = None
        if task.not_before_at > 0:
            self._backing_off.add(task_id)
            heappush(self._back_offs, (task.not_before_at, task_id))
        else:
            self._wait(task)

    def leave(self, task: TaskRecord) -> None:
        """Undo `enter`. What the heaps hold of it no longer stands, and is dropped when it comes up."""
        task_id = task.task_id
        del self.tasks[task_id]
        if task.status is not _RUNNING:
            self._forget_pending(task_id)
            return
        del self.running[task_id]
        if task.worker is not None:
            _discard(self._of_worker, task.worker, task_id)
        if task.task_type is not _PING:
            busy = self._busy[task.collection]
            busy.discard(task_id)
            if not busy:
                del self._busy[task.collection]
                self.show(task.collection)

    def start(self, leased: TaskRecord) -> None:
        """Take it that a pending task runs now: `leave` and `enter` in one."""
        task_id = leased.task_id
        self.tasks[task_id] = leased
        if (waiting := self._waiting.get(task_id)) is not None:
            self._ready.take(*waiting)
        self._forget_pending(task_id)
        self._run(leased)

    def change(self, held: TaskRecord, changed: TaskRecord) -> None:
        """Take an open task's new state, which is open too."""
        if _stands_as(held) == _stands_as(changed):
            self.tasks[held.task_id] = changed  # a report or a mark: nothing that an index is by
        else:
            self.leave(held)
            self.enter(changed)

    def _run(self, task: TaskRecord) -> None:
        task_id, worker = task.task_id, task.worker
        self.running[task_id] = None
        if worker is not None:
            held = self._of_worker.get(worker)
            if held is None:
                self._of_worker[worker] = {task_id: None}
            else:
                held[task_id] = None
        if task.task_type is not _PING:
            self._busy.setdefault(task.collection, set()).add(task_id)

    def _forget_pending(self, task_id: str) -> None:
        _discard(self._equal, self._keys.pop(task_id), task_id)
        self._backing_off.discard(task_id)
        self._waiting.pop(task_id, None)

    def _wait(self, task: TaskRecord) -> None:
        task_id = task.task_id
        order, place = (-task.priority, task.created_at, task_id), (_kind(task), task.collection)
        self._waiting[task_id] = order, place
        self._ready.add(order, place)

    def show(self, collection: str) -> None:
        """Let a collection's tasks be seen again that nothing holds back any more."""
        for kind in Kind:
            self._ready.show((kind, collection))

    def _is_ready(self, order: Order, place: Place) -> bool:
        waiting = self._waiting.get(order[2])
        return waiting is not None and waiting[0] == order and waiting[1] == place

    def _is_open(self, place: Place) -> bool:
        kind, collection = place
        return collection not in self.paused and (kind is _FREE or collection not in self._busy)

    # --- time ---------------------------------------------------------------------------------------------------------

    def next_back_off(self) -> float | None:
        """Return when the next back-off ends; None without one."""
        while self._back_offs and not self._is_back_off(*self._back_offs[0]):
            heappop(self._back_offs)
        return self._back_offs[0][0] if self._back_offs else None

    def _is_back_off(self, at: float, task_id: str) -> bool:
        return task_id in self._backing_off and self.tasks[task_id].not_before_at == at

    def end_back_offs(self, now: float) -> None:
        """Let the tasks wait for their turn whose back-off is over."""
        if now < self._looked_at:  # the clock was set back: a back-off that was over may not be
            for task in [self.tasks[task_id] for task_id in self._waiting]:
                if task.not_before_at > now:
                    del self._waiting[task.task_id]
                    self._backing_off.add(task.task_id)
                    heappush(self._back_offs, (task.not_before_at, task.task_id))
        self._looked_at = now
        while self._back_offs and self._back_offs[0][0] <= now:
            at, task_id = heappop(self._back_offs)
            if self._is_back_off(at, task_id):
                self._backing_off.remove(task_id)
                self._wait(self.tasks[task_id])


def key_of(task_type: TaskType, collection: str, params: dict[str, Any]) -> Key:
    """Return what two equal tasks have in common; the order of parameters is none of it."""
    return task_type, collection, _encode_sorted(params) if params else b""


def order_of(task: TaskRecord) -> Order:
    return -task.priority, task.created_at, task.task_id


def _kind(task: TaskRecord) -> Kind:
    if task.task_type is _PING:
        return _FREE
    return _FORCED if task.is_forced else _PLAIN


def _stands_as(task: TaskRecord) -> tuple[object, ...]:
    """Return what the indexes know of a task."""
    return task.status, task.worker, task.priority, task.is_forced, task.not_before_at


def _discard(index: dict[Any, dict[str, None]], key: Any, task_id: str) -> None:
    held = index[key]
    del held[task_id]
    if not held:
        del index[key]
