"""Owns the answer to "why is this not running", and to "when will it": a cause, words for it, a time. Pure.

Asked in the order in which the causes have to end: a paused task is paused, whatever else stands in its way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from zoneinfo import ZoneInfo

from ..ipc.errors import StoreUnavailable
from ..ipc.records import TaskRecord, TaskStatus, TaskType


class Cause(StrEnum):
    """What a pending task waits for."""

    DRAINING = "draining"  # the service ends: its next start
    PAUSED = "paused"  # somebody to resume it
    STORE = "store"  # the vector store to be reachable
    BACK_OFF = "back_off"  # the end of the wait after a failure
    OWNER = "owner"  # the store owner to have loaded the model
    COLLECTION = "collection"  # another task on the same collection
    BUDGET = "budget"  # CPU or memory that is to spare
    NO_WORKER = "no_worker"  # a worker to start
    WORKERS = "workers"  # a worker to be free
    NEXT = "next"  # nothing: the next turn


@dataclass(frozen=True, slots=True)
class Wait:
    """`why` and `expected` are sentences; `expected_at` is Unix seconds, None where the time cannot be known."""

    cause: Cause
    why: str
    expected_at: float | None
    expected: str


@dataclass(frozen=True, slots=True)
class Conditions:
    """What holds for all tasks at `now`. `admits_from` is called only for a task without budget."""

    now: float
    zone: ZoneInfo
    max_attempts: int
    paused: tuple[str | None, ...] = ()  # collections; None stands for everything
    running: tuple[TaskRecord, ...] = ()
    idle_workers: int = 0
    started_workers: int = 0
    workers_problem: str = ""
    store_problem: str = ""
    is_draining: bool = False
    is_owner_ready: bool = True
    is_admitting: bool = True
    is_budget_taken: bool = False  # as many tasks are at work as the budget keeps busy
    reason: str = ""  # of the governor
    admits_from: Callable[[], float | None] = lambda: None


def wait_of(task: TaskRecord, held: Conditions) -> Wait | None:  # noqa: PLR0911 - one return per cause
    """Say why `task` is not running; None where it is not pending."""
    if task.status is not TaskStatus.PENDING:
        return None
    if held.is_draining:
        return Wait(Cause.DRAINING, "the service is draining", None, "after its next start")
    if None in held.paused or task.collection in held.paused:
        what = "everything" if None in held.paused else task.collection
        command = "morgan-background tasks resume" + ("" if None in held.paused else f" {task.collection}")
        return Wait(Cause.PAUSED, f"{what} is paused: `{command}`", None, "when it is resumed")
    if task.not_before_at > held.now:
        return _after_failure(task, held)
    is_free = task.task_type is TaskType.PING  # it needs nothing but a worker
    if not held.is_owner_ready and not is_free:
        why = "the store owner is starting: it loads the embedding model"
        if held.workers_problem:
            why = f"the store owner is not there: {held.workers_problem}"
        return Wait(Cause.OWNER, why, None, "when the store owner answers")
    if not is_free and (other := next((one for one in held.running if _excludes(one, task)), None)):
        return _after(Cause.COLLECTION, f"{other.task_id} runs on the same collection", [other], held)
    if not held.is_admitting and not task.is_forced and not is_free:
        return _without_budget(held)
    if held.is_budget_taken and held.idle_workers and not task.is_forced and not is_free:
        others = [one for one in held.running if one.task_type is not TaskType.PING]
        return _after(Cause.BUDGET, f"the CPU budget is taken by the tasks that run: {held.reason}", others, held)
    if not held.started_workers:
        why = f"no worker: {held.workers_problem}" if held.workers_problem else "the workers are starting"
        return Wait(Cause.NO_WORKER, why, None, "when a worker has started")
    if not held.idle_workers:
        why = "all workers are busy" + (f"; {held.workers_problem}" if held.workers_problem else "")
        return _after(Cause.WORKERS, why, held.running, held)
    why = "next in turn"
    if held.store_problem:
        why += f", though the vector store did not answer lately: {held.store_problem}"
    return Wait(Cause.NEXT, why, held.now, "now")


def _excludes(running: TaskRecord, task: TaskRecord) -> bool:
    return running.collection == task.collection and running.task_type is not TaskType.PING


def _after_failure(task: TaskRecord, held: Conditions) -> Wait:
    at = clock(task.not_before_at, held)
    expected = f"at {at}"
    if task.error_code == StoreUnavailable.code:
        why = f"the vector store cannot be reached, tried again at {at}: {task.error_message}"
        return Wait(Cause.STORE, why, task.not_before_at, f"{expected}, if the store answers then")
    tries = f"attempt {task.failures} of {held.max_attempts}"
    why = f"tried again at {at} after: {task.error_message} ({tries})"
    return Wait(Cause.BACK_OFF, why, task.not_before_at, expected)


def _without_budget(held: Conditions) -> Wait:
    at = held.admits_from()
    if at is None:
        expected = "when others need less, whatever the hour"
    elif at <= held.now:
        expected = "within seconds, if others need no more than now"
    else:
        expected = f"from {clock(at, held)} on the limit allows it, if others need no more than now"
    return Wait(Cause.BUDGET, f"no CPU budget: {held.reason}", at, expected)


def _after(cause: Cause, why: str, others: tuple[TaskRecord, ...] | list[TaskRecord], held: Conditions) -> Wait:
    """Return the wait for the first of `others` to end, by the time left that they report."""
    etas = [(one.progress.eta_s, one.task_id) for one in others if one.progress.eta_s is not None]
    if not etas:
        return Wait(cause, why, None, "when that ends; it has not reported how long it takes")
    eta_s, task_id = min(etas)
    assert eta_s is not None
    return Wait(cause, why, held.now + eta_s, f"about {clock(held.now + eta_s, held)}, when {task_id} ends")


def clock(at: float, held: Conditions) -> str:
    """Return a time of the configured zone's clock, with the day where it is not today."""
    shown, today = datetime.fromtimestamp(at, held.zone), datetime.fromtimestamp(held.now, held.zone)
    return shown.strftime("%H:%M:%S" if shown.date() == today.date() else "%Y-%m-%d %H:%M:%S")
