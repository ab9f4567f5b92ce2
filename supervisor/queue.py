"""Owns what becomes of the tasks that have not ended: leases, retries, ends. Pure. Where each stands: open_tasks.py.

    submit ─▶ PENDING ─lease▶ RUNNING ─complete▶ COMPLETED | SKIPPED
                 ▲               │ ├─fail, for good▶ FAILED (the dead letters: `requeue` brings one back)
                 └─back-off──────┘ └─stopped, cancelled▶ CANCELLED

Every mutation returns the new record, for the journal, or None where it changed nothing: a report of an attempt that
is not the current one is such a case, so a result counts at most once. Each takes O(log n) of the open tasks. Why one
waits is waiting.py's to say.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

import msgspec
from msgspec.structs import replace

from ..ipc.errors import StoreUnavailable, TaskCancelled
from ..ipc.records import TaskProgress, TaskRecord, TaskStatus, TaskType
from .open_tasks import Key, OpenTasks, key_of, order_of
from .ready import Kind

_RUNNING = TaskStatus.RUNNING  # an enum's member costs 0.1 us a look on Python 3.11
_KINDS = {  # by whether the store is ready and whether tasks are admitted
    (False, False): (Kind.FREE,),
    (False, True): (Kind.FREE,),
    (True, False): (Kind.FREE, Kind.FORCED),
    (True, True): (Kind.FREE, Kind.FORCED, Kind.PLAIN),
}

DEADLINE = "deadline"  # error_code of a task that had not ended by its deadline


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    max_attempts: int = 5  # failures of a task before it is given up
    max_kills: int = 3  # worker deaths of a task before it is taken for their cause
    backoff_base_s: float = 2.0
    backoff_cap_s: float = 300.0


class Queue:
    """See the module. Times are Unix seconds; `now` is the caller's."""

    def __init__(self, policy: QueuePolicy) -> None:
        self._policy = policy
        self._open = OpenTasks()
        self._paces: dict[str, tuple[float, int]] = {}  # of running tasks: when the first report came, and what it said

    # --- what there is ------------------------------------------------------------------------------------------------

    def get(self, task_id: str | None) -> TaskRecord | None:
        """Return an open task; None if it ended or never was."""
        return self._open.tasks.get(task_id or "")

    def open(self) -> list[TaskRecord]:
        return sorted(self._open.tasks.values(), key=order_of)

    def running(self, collection: str | None = None) -> list[TaskRecord]:
        tasks = [self._open.tasks[task_id] for task_id in self._open.running]
        return tasks if collection is None else [task for task in tasks if task.collection == collection]

    @property
    def has_pending(self) -> bool:
        return len(self._open.tasks) > len(self._open.running)

    @property
    def paused(self) -> tuple[str | None, ...]:
        """What is paused: names of collections; None stands for everything."""
        return tuple(sorted(self._open.paused, key=lambda name: name or ""))

    def pause(self, collection: str | None) -> None:
        self._open.paused.add(collection)

    def resume(self, collection: str | None) -> None:
        """Resume one collection; None resumes everything, also what was paused by name."""
        opened = [name for name in self._open.paused if collection in (None, name)]
        self._open.paused.difference_update(opened)
        for name in opened:
            if name is not None:
                self._open.show(name)

    # --- in ---------------------------------------------------------------------------------------------------------

    def submit(
        self,
        task_type: TaskType,
        collection: str,
        params: dict[str, Any],
        *,
        now: float,
        salt: int,
        priority: int = 0,
        is_forced: bool = False,
        schedule_id: str | None = None,
        deadline_s: float | None = None,
    ) -> tuple[TaskRecord, bool]:
        """Accept a task; return it and whether it is new. Instead of a second equal pending one, raise the first.

        The raised one keeps the later deadline of the two: none is to end earlier than its client asked for.
        """
        deadline_at = None if deadline_s is None else now + deadline_s
        key = key_of(task_type, collection, params)
        if (task := self._open.equal_to(key)) is not None:
            changes: dict[str, Any] = {
                "priority": max(priority, task.priority),
                "is_forced": is_forced or task.is_forced,
                "deadline_at": _later(deadline_at, task.deadline_at),
            }
            return self._change(task, **changes), False
        record = TaskRecord(
            task_id=f"{task_type}_{collection}_{salt:x}",
            task_type=task_type,
            collection=collection,
            params=params,
            priority=priority,
            is_forced=is_forced,
            created_at=now,
            schedule_id=schedule_id,
            deadline_at=deadline_at,
        )
        self._accept(record, key)
        return record, True

    def restore(self, records: Iterable[TaskRecord]) -> list[TaskRecord]:
        """Take over the open tasks of an earlier service: a lease of its workers is over. Return what changed."""
        changed = []
        for record in records:
            self._accept(record)
            if record.status is TaskStatus.RUNNING:
                # when its service ended is not known, so a cancelled one counts as ended when it began
                changed.append(self._back(record, record.started_at or record.created_at))
        return changed

    def requeue(self, record: TaskRecord, now: float) -> TaskRecord | None:
        """Bring an ended task back, with its attempts counted anew and without a deadline; None if it is open."""
        if not record.status.is_final:
            return None
        return self._change(
            record,
            status=TaskStatus.PENDING,
            kills=0,
            failures=0,
            outages=0,
            not_before_at=now,
            started_at=None,
            completed_at=None,
            progress=TaskProgress(),
            result=None,
            error_code=None,
            error_message=None,
            deadline_at=None,
        )

    # --- out --------------------------------------------------------------------------------------------------------

    def next_ready(self, now: float, *, is_admitting: bool, is_store_ready: bool = True) -> TaskRecord | None:
        """Return the task to run next: the highest priority, then the oldest; one at a time on a collection.

        Without the store, or without budget for a task that is not forced, only a ping may run.
        """
        opened = self._open
        if None in opened.paused:
            return None
        opened.end_back_offs(now)
        return opened.best(_KINDS[is_store_ready, is_admitting])

    def lease(self, task_id: str, worker: int, now: float) -> TaskRecord:
        """Give a pending task to a worker under a new attempt id."""
        task = self._open.tasks[task_id]
        self._paces.pop(task_id, None)
        leased = replace(
            task,
            version=task.version + 1,
            status=_RUNNING,
            worker=worker,
            attempt=task.attempt + 1,
            started_at=now if task.started_at is None else task.started_at,
            waits_for="",
        )
        self._open.start(leased)
        return leased

    def progress(
        self, task_id: str, attempt: int, progress: TaskProgress, now: float | None = None
    ) -> TaskRecord | None:
        """Take a report. Given `now`, a time left that the worker did not give comes from the pace since the lease's
        first report: what an earlier attempt had done, or the wait between them, does not count."""
        task = self._current(task_id, attempt)
        if task is None:
            return None
        if now is not None and progress.eta_s is None:
            since, done_before = self._paces.setdefault(task_id, (now, progress.done))
            if (fresh := progress.done - done_before) > 0 and progress.total >= progress.done:
                eta_s = max(now - since, 0.0) / fresh * (progress.total - progress.done)
                progress = msgspec.structs.replace(progress, eta_s=eta_s)
        return self._change(task, progress=progress)

    def complete(
        self, task_id: str, attempt: int, result: dict[str, Any], now: float, *, is_skipped: bool = False
    ) -> TaskRecord | None:
        status = TaskStatus.SKIPPED if is_skipped else TaskStatus.COMPLETED
        return self._end(
            self._current(task_id, attempt), status, now, result=result, error_code=None, error_message=None
        )

    def skip(self, task_id: str, reason: str, now: float) -> TaskRecord | None:
        """End an open task without running it (again)."""
        return self._end(self.get(task_id), TaskStatus.SKIPPED, now, error_message=reason)

    def fail(
        self, task_id: str, attempt: int, code: str, message: str, is_transient: bool, now: float, jitter: float
    ) -> TaskRecord | None:
        """Take a failure: back to pending after a back-off, or given up where trying again cannot help.

        An unreachable store uses up no attempts: the task waits for it as long as it takes. `jitter` is 0..1.
        """
        task = self._current(task_id, attempt)
        if task is None:
            return None
        is_store_down = code == StoreUnavailable.code
        failures = task.failures + (0 if is_store_down else 1)
        if _is_cancelling(task):
            return self._end_cancelled(task, now, failures=failures)
        if _is_overdue(task, now):
            return self._end_overdue(task, now, message, failures=failures)
        if not is_transient or failures >= self._policy.max_attempts:
            return self._end(task, TaskStatus.FAILED, now, failures=failures, error_code=code, error_message=message)
        # an outage doubles the wait with each look at it, errors with each failure
        doublings = task.outages if is_store_down else failures - 1
        delay_s = min(self._policy.backoff_base_s * 2 ** min(doublings, 30), self._policy.backoff_cap_s)
        not_before_at = now + delay_s * (1 + jitter / 2)
        if task.deadline_at is not None and not_before_at >= task.deadline_at:
            return self._end_overdue(task, now, message, failures=failures)  # waiting for it would help nobody
        return self._change(
            task,
            status=TaskStatus.PENDING,
            worker=None,
            failures=failures,
            outages=task.outages + 1 if is_store_down else 0,
            not_before_at=not_before_at,
            error_code=code,
            error_message=message,
        )

    def stopped(self, task_id: str, attempt: int, is_cancelled: bool, now: float) -> TaskRecord | None:
        """Take a task that left at a step boundary: cancelled for good, or pending until it may go on."""
        task = self._current(task_id, attempt)
        if task is None:
            return None
        if is_cancelled:
            return self._end_cancelled(task, now)
        return self._back(task, now)

    def cancel(self, task_id: str, now: float) -> TaskRecord | None:
        """Cancel a pending task. A running one is marked: its worker has to be told, and `stopped` ends it.

        A marked task never runs again, however its worker leaves it; only its completion comes before the mark.
        """
        task = self.get(task_id)
        if task is None or _is_cancelling(task):
            return None
        if task.status is TaskStatus.PENDING:
            return self._end_cancelled(task, now)
        return self._change(task, error_code=TaskCancelled.code, error_message="to be cancelled at its next step")

    def expire(self, now: float) -> list[TaskRecord]:
        """Give up the tasks whose deadline has passed. A running one is marked: its worker has to be told.

        A marked task ends when it leaves its worker; only its completion comes before the mark.
        """
        changed: list[TaskRecord | None] = []
        deadlines = self._open.deadlines
        while deadlines and deadlines[0][0] <= now:
            at, task_id = heappop(deadlines)
            task = self.get(task_id)
            if task is None or not self._is_deadline(at, task_id):
                continue
            if task.status is TaskStatus.PENDING:
                changed.append(self._end_overdue(task, now, task.error_message))
            else:
                message = "its deadline has passed: it stops at its next step"
                changed.append(self._change(task, error_code=DEADLINE, error_message=message))
        return [task for task in changed if task is not None]

    def worker_died(self, worker: int, now: float, begun: str | None = None, *, why: str = "") -> list[TaskRecord]:
        """Take back the leases of a dead worker. A task that kills its worker again and again is given up.

        `begun`: the one it had begun, where it held several; the others cannot be the cause. None: all had. `why` says
        in words how it ended.
        """
        changed = []
        for task in self._open.of_worker(worker):
            kills = task.kills + (begun is None or task.task_id == begun)
            if kills >= self._policy.max_kills and not _is_cancelling(task) and not _is_overdue(task, now):
                last = f" ({why})" if why else ""
                message = f"its worker died {kills} times while it ran{last}: it is taken for the cause"
                ended = self._end(task, TaskStatus.FAILED, now, kills=kills, error_code="killed", error_message=message)
                changed += [ended] if ended else []
            else:
                changed.append(self._back(task, now, kills=kills))
        return changed

    # --- when -------------------------------------------------------------------------------------------------------

    def next_deadline(self, now: float) -> float | None:
        """Return the nearest end of a back-off or deadline of a task; None without one."""
        self._open.end_back_offs(now)
        deadlines, back_off_end_at = self._open.deadlines, self._open.next_back_off()
        while deadlines and not self._is_deadline(*deadlines[0]):
            heappop(deadlines)
        if not deadlines:
            return back_off_end_at
        return deadlines[0][0] if back_off_end_at is None else min(deadlines[0][0], back_off_end_at)

    @property
    def policy(self) -> QueuePolicy:
        return self._policy

    def set_policy(self, policy: QueuePolicy) -> None:
        """Count by another policy from the next failure on."""
        self._policy = policy

    def time_moved(self, set_s: float, suspended_s: float, now: float) -> list[TaskRecord]:
        """Keep waits as long as they were when the clock was set by `set_s` to `now`, and deadlines also by what the
        machine was suspended: none of its work could be done then. Return what changed.
        """
        changed = []
        for task in list(self._open.tasks.values()):
            # one that is over must not begin again where the clock went back
            is_over = task.not_before_at <= now - set_s - suspended_s
            wait_end_at = min(task.not_before_at, now) if is_over else task.not_before_at + set_s
            deadline_at = None if task.deadline_at is None else task.deadline_at + set_s + suspended_s
            if (wait_end_at, deadline_at) != (task.not_before_at, task.deadline_at):
                changed.append(self._change(task, not_before_at=wait_end_at, deadline_at=deadline_at))
        return changed

    # --- changes ------------------------------------------------------------------------------------------------------

    def _accept(self, task: TaskRecord, key: Key | None = None) -> None:
        self._open.enter(task, key)
        if task.deadline_at is not None:
            heappush(self._open.deadlines, (task.deadline_at, task.task_id))

    def _current(self, task_id: str, attempt: int) -> TaskRecord | None:
        task = self._open.tasks.get(task_id)
        is_current = task is not None and task.status is _RUNNING and task.attempt == attempt
        return task if is_current else None

    def _is_deadline(self, at: float, task_id: str) -> bool:
        task = self.get(task_id)
        # one that is told to leave already, for whatever reason, has no deadline to wait for
        return task is not None and task.deadline_at == at and not (_is_cancelling(task) or _is_marked(task))

    def _change(self, task: TaskRecord, **fields: Any) -> TaskRecord:
        changed = replace(task, version=task.version + 1, **fields)
        held = self._open.tasks.get(task.task_id)
        if changed.status.is_final:
            if held is not None:
                self._open.leave(held)
        elif held is None:
            self._open.enter(changed)
        else:
            self._open.change(held, changed)
        if changed.deadline_at is not None and held is not None and held.deadline_at != changed.deadline_at:
            heappush(self._open.deadlines, (changed.deadline_at, changed.task_id))
        return changed

    def _back(self, task: TaskRecord, now: float, **fields: Any) -> TaskRecord:
        """Take a lease back: the task waits for another, or ends where its end was asked for."""
        if _is_cancelling(task):
            return self._end_cancelled(task, now, **fields)
        if _is_overdue(task, now):
            return self._end_overdue(task, now, None, **fields)
        return self._change(task, status=TaskStatus.PENDING, worker=None, **fields)

    def _end_cancelled(self, task: TaskRecord, now: float, **fields: Any) -> TaskRecord:
        fields |= {"error_code": TaskCancelled.code, "error_message": "cancelled"}
        ended = self._end(task, TaskStatus.CANCELLED, now, **fields)
        assert ended is not None
        return ended

    def _end_overdue(self, task: TaskRecord, now: float, error: str | None, **fields: Any) -> TaskRecord:
        """Give a task up for its deadline. `error`: what kept it from ending, where that is known."""
        allowed_s = (task.deadline_at or now) - task.created_at
        message = f"it had not ended {allowed_s:g} s after it was accepted" + (f"; before: {error}" if error else "")
        ended = self._end(task, TaskStatus.FAILED, now, error_code=DEADLINE, error_message=message, **fields)
        assert ended is not None
        return ended

    def _end(self, task: TaskRecord | None, status: TaskStatus, now: float, **fields: Any) -> TaskRecord | None:
        if task is None:
            return None
        self._paces.pop(task.task_id, None)
        ended = replace(task, version=task.version + 1, status=status, completed_at=now, worker=None, **fields)
        self._open.leave(task)
        return ended


def _later(one: float | None, other: float | None) -> float | None:
    """Return the later of two deadlines; None is none at all, the latest."""
    return None if one is None or other is None else max(one, other)


def _is_cancelling(task: TaskRecord) -> bool:
    """Say whether a running task's cancellation was asked for: it is in the record, so it survives a restart."""
    return task.status is TaskStatus.RUNNING and task.error_code == TaskCancelled.code


def _is_marked(task: TaskRecord) -> bool:
    """Say whether a running task's deadline has passed and its worker was to be told."""
    return task.status is TaskStatus.RUNNING and task.error_code == DEADLINE


def _is_overdue(task: TaskRecord, now: float) -> bool:
    """Say whether a running task must not be tried again: its deadline has passed, or it was marked when it had."""
    return task.deadline_at is not None and (task.deadline_at <= now or task.error_code == DEADLINE)
