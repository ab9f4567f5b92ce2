"""Owns the clients that wait for tasks: which for which, until when, and what each is told. Pure.

add(Waiter)  ──┐                      ┌─▶ SendReply: the task has changed, or ended
add(Gathering)─┼─▶ changed(record) ───┤   all of them have ended
               └─▶ expired(now) ──────┴─▶ the wait is over: what there is
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

from ..ipc.messages import TaskList, TaskReply
from ..ipc.records import TaskRecord
from .state import Gathering, SendReply, Waiter

Poll = Waiter | Gathering
P = TypeVar("P", Waiter, Gathering)


class Polls:
    """See the module. Times are Unix seconds; `now` is the caller's. `next_deadline` may be too early, never too late.

    `waiters` may be looked into: of most tasks nobody waits for a change that is not the end.
    """

    def __init__(self) -> None:
        self.waiters: dict[str, list[Waiter]] = {}  # by task
        self._gatherings: dict[str, list[Gathering]] = {}
        self.next_deadline = math.inf

    def add(self, poll: Poll) -> None:
        if isinstance(poll, Waiter):
            self.waiters.setdefault(poll.task_id, []).append(poll)
        else:
            for task_id in poll.open:
                self._gatherings.setdefault(task_id, []).append(poll)
        self.next_deadline = min(self.next_deadline, poll.deadline_at)

    def _all(self) -> list[Poll]:
        """Return each once."""
        waiters = [one for polls in self.waiters.values() for one in polls]
        return [*waiters, *{one for polls in self._gatherings.values() for one in polls}]

    def changed(self, record: TaskRecord) -> Iterable[SendReply]:
        """Return what is to be told now that a task is in this state."""
        task_id, is_final, told = record.task_id, record.status.is_final, list[SendReply]()
        if is_final and (gatherings := self._gatherings.pop(task_id, None)) is not None:
            for one in gatherings:
                one.ended[task_id] = record
                one.open.remove(task_id)
                if not one.open:
                    told.append(_gathered(one, one.ended.get))
        if (waiters := self.waiters.pop(task_id, None)) is None:
            return told
        left = []
        for waiter in waiters:
            if record.version > waiter.seen and (is_final or not waiter.until_ended):
                told.append(SendReply(waiter.reply_to, TaskReply(rid=waiter.rid, task=record)))
            else:
                left.append(waiter)
        if left:
            self.waiters[task_id] = left
        return told

    def expired(self, now: float, find: Callable[[str], TaskRecord | None]) -> Iterable[SendReply]:
        """Return what those are told whose wait is over. `find` returns a task as it is to be shown."""
        if now < self.next_deadline:
            return ()
        polls = self._all()
        self.next_deadline = min((poll.deadline_at for poll in polls if poll.deadline_at > now), default=math.inf)
        told = []
        for poll in polls:
            if poll.deadline_at > now:
                continue
            if isinstance(poll, Gathering):
                for task_id in poll.open:
                    _remove(self._gatherings, task_id, poll)
                told.append(_gathered(poll, find))
                continue
            _remove(self.waiters, poll.task_id, poll)
            if (record := find(poll.task_id)) is not None:
                told.append(SendReply(poll.reply_to, TaskReply(rid=poll.rid, task=record)))
        return told

    def time_moved(self, by_s: float) -> None:
        """Go on after the clock was set: a client waits by one that neither is set nor runs during a suspend."""
        polls = self._all()
        for poll in polls:
            poll.deadline_at += by_s
        self.next_deadline = min((poll.deadline_at for poll in polls), default=math.inf)


def _remove(held: dict[str, list[P]], task_id: str, poll: P) -> None:
    held[task_id].remove(poll)
    if not held[task_id]:
        del held[task_id]


def _gathered(poll: Gathering, find: Callable[[str], TaskRecord | None]) -> SendReply:
    found = (poll.ended.get(task_id) or find(task_id) for task_id in poll.task_ids)
    return SendReply(poll.reply_to, TaskList(rid=poll.rid, tasks=tuple(one for one in found if one is not None)))
