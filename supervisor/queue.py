"""Owns the tasks that have not ended: their order, leases, retries and why each one waits. Pure.

    submit ─▶ PENDING ─lease▶ RUNNING ─complete▶ COMPLETED | SKIPPED
                 ▲               │ ├─fail, for good▶ FAILED (the dead letters: `requeue` brings one back)
                 └─back-off──────┘ └─stopped, cancelled▶ CANCELLED

Every mutation returns the new record, for the journal, or None where it changed nothing: a report of an attempt that
is not the current one is such a case, so a result counts at most once.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from ..ipc.errors import StoreUnavailable, TaskCancelled
from ..ipc.records import TaskProgress, TaskRecord, TaskStatus, TaskType


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
        self._open: dict[str, TaskRecord] = {}
        self._paused: set[str | None] = set()
        self._paces: dict[str, tuple[float, int]] = {}  # of running tasks: when the first report came, and what it said

    # --- what there is ------------------------------------------------------------------------------------------------

    def get(self, task_id: str | None) -> TaskRecord | None:
        """Return an open task; None if it ended or never was."""
        return self._open.get(task_id or "")

    def open(self) -> list[TaskRecord]:
        return sorted(self._open.values(), key=_order)

    def running(self, collection: str | None = None) -> list[TaskRecord]:
        return [
            task
            for task in self._open.values()
            if task.status is TaskStatus.RUNNING and (collection is None or task.collection == collection)
        ]

    @property
    def has_pending(self) -> bool:
        return any(task.status is TaskStatus.PENDING for task in self._open.values())

    @property
    def paused(self) -> tuple[str | None, ...]:
        """What is paused: names of collections; None stands for everything."""
        return tuple(sorted(self._paused, key=lambda name: name or ""))

    def pause(self, collection: str | None) -> None:
        self._paused.add(collection)

    def resume(self, collection: str | None) -> None:
        """Resume one collection; None resumes everything, also what was paused by name."""
        if collection is None:
            self._paused.clear()
        else:
            self._paused.discard(collection)

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
    ) -> tuple[TaskRecord, bool]:
        """Accept a task; return it and whether it is new. Instead of a second equal pending one, raise the first."""
        for task in self._open.values():
            is_equal = (task.task_type, task.collection, task.params) == (task_type, collection, params)
            if is_equal and task.status is TaskStatus.PENDING:
                raised = self._change(
                    task, priority=max(priority, task.priority), is_forced=is_forced or task.is_forced
                )
                return raised, False
        record = TaskRecord(
            task_id=f"{task_type.value}_{collection}_{salt:x}",
            task_type=task_type,
            collection=collection,
            params=params,
            priority=priority,
            is_forced=is_forced,
            created_at=now,
            schedule_id=schedule_id,
        )
        self._open[record.task_id] = record
        return record, True

    def restore(self, records: Iterable[TaskRecord]) -> list[TaskRecord]:
        """Take over the open tasks of an earlier service: a lease of its workers is over. Return what changed."""
        changed = []
        for record in records:
            self._open[record.task_id] = record
            if record.status is TaskStatus.RUNNING:
                # when its service ended is not known, so a cancelled one counts as ended when it began
                changed.append(self._back(record, record.started_at or record.created_at))
        return changed

    def requeue(self, record: TaskRecord, now: float) -> TaskRecord | None:
        """Bring an ended task back, with its attempts counted anew; None if it is open."""
        if not record.status.is_final:
            return None
        self._open[record.task_id] = record
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
        )

    # --- out --------------------------------------------------------------------------------------------------------

    def next_ready(self, now: float, *, is_admitting: bool) -> TaskRecord | None:
        """Return the task to run next: the highest priority, then the oldest; one at a time on a collection."""
        busy = {task.collection for task in self.running()}
        ready = (
            task
            for task in self._open.values()
            if task.status is TaskStatus.PENDING
            and task.not_before_at <= now
            and task.collection not in busy
            and not self._is_paused(task)
            and (is_admitting or task.is_forced)
        )
        return min(ready, key=_order, default=None)

    def _is_paused(self, task: TaskRecord) -> bool:
        return None in self._paused or task.collection in self._paused

    def lease(self, task_id: str, worker: int, now: float) -> TaskRecord:
        """Give a pending task to a worker under a new attempt id."""
        task = self._open[task_id]
        self._paces.pop(task_id, None)
        started_at = now if task.started_at is None else task.started_at
        return self._change(
            task,
            status=TaskStatus.RUNNING,
            worker=worker,
            attempt=task.attempt + 1,
            started_at=started_at,
            waits_for="",
        )

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
        if not is_transient or failures >= self._policy.max_attempts:
            return self._end(task, TaskStatus.FAILED, now, failures=failures, error_code=code, error_message=message)
        # an outage doubles the wait with each look at it, errors with each failure
        doublings = task.outages if is_store_down else failures - 1
        delay_s = min(self._policy.backoff_base_s * 2 ** min(doublings, 30), self._policy.backoff_cap_s)
        return self._change(
            task,
            status=TaskStatus.PENDING,
            worker=None,
            failures=failures,
            outages=task.outages + 1 if is_store_down else 0,
            not_before_at=now + delay_s * (1 + jitter / 2),
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

    def worker_died(self, worker: int, now: float) -> list[TaskRecord]:
        """Take back the leases of a dead worker. A task that kills its worker again and again is given up."""
        changed = []
        for task in [task for task in self.running() if task.worker == worker]:
            kills = task.kills + 1
            if kills >= self._policy.max_kills and not _is_cancelling(task):
                message = f"its worker died {kills} times while it ran: it is taken for the cause"
                ended = self._end(task, TaskStatus.FAILED, now, kills=kills, error_code="killed", error_message=message)
                changed += [ended] if ended else []
            else:
                changed.append(self._back(task, now, kills=kills))
        return changed

    # --- why and when -------------------------------------------------------------------------------------------------

    def waits_for(  # noqa: PLR0911 - one return per reason
        self, task_id: str, now: float, *, is_admitting: bool, admission_reason: str, idle_workers: int
    ) -> str:
        """Say in words why a pending task is not running."""
        task = self.get(task_id)
        if task is None or task.status is not TaskStatus.PENDING:
            return ""
        if None in self._paused:
            return "everything is paused: `morgan-background tasks resume`"
        if task.collection in self._paused:
            return f"{task.collection} is paused: `morgan-background tasks resume {task.collection}`"
        if task.not_before_at > now:
            at = time.strftime("%H:%M:%S", time.localtime(task.not_before_at))
            tries = f"attempt {task.failures} of {self._policy.max_attempts}" if task.failures else "it waits for that"
            return f"tried again at {at} after: {task.error_message} ({tries})"
        if others := self.running(task.collection):
            return f"{others[0].task_id} runs on the same collection"
        if not is_admitting and not task.is_forced:
            return f"no CPU budget: {admission_reason}"
        return "next in turn" if idle_workers else "all workers are busy"

    def next_deadline(self, now: float) -> float | None:
        """Return the nearest end of a back-off; None without one."""
        return min((end for t in self._open.values() if (end := t.not_before_at) > now), default=None)

    # --- changes ------------------------------------------------------------------------------------------------------

    def _current(self, task_id: str, attempt: int) -> TaskRecord | None:
        task = self.get(task_id)
        is_current = task is not None and task.status is TaskStatus.RUNNING and task.attempt == attempt
        return task if is_current else None

    def _change(self, task: TaskRecord, **fields: Any) -> TaskRecord:
        changed = msgspec.structs.replace(task, version=task.version + 1, **fields)
        self._open[task.task_id] = changed
        return changed

    def _back(self, task: TaskRecord, now: float, **fields: Any) -> TaskRecord:
        """Take a lease back: the task waits for another, or ends where its cancellation was asked for."""
        if _is_cancelling(task):
            return self._end_cancelled(task, now, **fields)
        return self._change(task, status=TaskStatus.PENDING, worker=None, **fields)

    def _end_cancelled(self, task: TaskRecord, now: float, **fields: Any) -> TaskRecord:
        fields |= {"error_code": TaskCancelled.code, "error_message": "cancelled"}
        ended = self._end(task, TaskStatus.CANCELLED, now, **fields)
        assert ended is not None
        return ended

    def _end(self, task: TaskRecord | None, status: TaskStatus, now: float, **fields: Any) -> TaskRecord | None:
        if task is None:
            return None
        ended = self._change(task, status=status, completed_at=now, worker=None, **fields)
        del self._open[task.task_id]
        self._paces.pop(task.task_id, None)
        return ended


def _is_cancelling(task: TaskRecord) -> bool:
    """Say whether a running task's cancellation was asked for: it is in the record, so it survives a restart."""
    return task.status is TaskStatus.RUNNING and task.error_code == TaskCancelled.code


def _order(task: TaskRecord) -> tuple[int, float, str]:
    return -task.priority, task.created_at, task.task_id
