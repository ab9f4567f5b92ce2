"""Owns what a subscriber is told: the events of the stream, each numbered, and nothing on how they travel.

Numbers grow by one within an `epoch`, one life of the supervisor, so that what is missing shows. How a client follows
them is in subscription.py, what the supervisor keeps of them in supervisor/feed.py.
"""

from __future__ import annotations

import msgspec

from .records import ScheduleRecord, TaskProgress, TaskRecord


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of the events. `seq` is the number in the stream, `at` when it was seen, in Unix seconds."""

    seq: int = 0
    at: float = 0.0


class TaskAccepted(Event, tag="task_accepted", frozen=True):
    """A task is in the queue and durable."""

    task: TaskRecord


class TaskStarted(Event, tag="task_started", frozen=True):
    """A worker has it: `task.attempt` is this attempt's number."""

    task: TaskRecord


class TaskProgressed(Event, tag="task_progressed", frozen=True):
    """How far a running task is. At most four a second for each task: the last report always comes."""

    task_id: str
    attempt: int
    progress: TaskProgress


class TaskChanged(Event, tag="task_changed", frozen=True):
    """An open task went back to waiting (an error, a pause, its worker's death), or its priority or marks changed."""

    task: TaskRecord


class TaskWaits(Event, tag="task_waits", frozen=True):
    """Why a pending task is not running became another reason. Told while somebody listens, of the next in turn."""

    task_id: str
    waits_for: str


class TaskEnded(Event, tag="task_ended", frozen=True):
    """A task reached a final state."""

    task: TaskRecord


class ScheduleChanged(Event, tag="schedule_changed", frozen=True):
    """A schedule was added, or its next run moved."""

    schedule: ScheduleRecord


class ScheduleRemoved(Event, tag="schedule_removed", frozen=True):
    task_id: str


class PauseChanged(Event, tag="pause_changed", frozen=True):
    """`paused` is all that is paused now: names of collections, None for everything."""

    paused: tuple[str | None, ...]


class WorkerJoined(Event, tag="worker_joined", frozen=True):
    """A worker process said that it is there. `role` is "owner" or "tasks"."""

    index: int
    role: str
    pid: int


class WorkerLeft(Event, tag="worker_left", frozen=True):
    """A worker process ended."""

    index: int
    pid: int


class BudgetChanged(Event, tag="budget_changed", frozen=True):
    """The governor admits tasks or stops to, or its budget moved by a twentieth of the machine. Shares are 0 to 1."""

    budget: float
    can_run_task: bool
    reason: str


class ProblemAppeared(Event, tag="problem_appeared", frozen=True):
    """Something is wrong, or its words changed. `about` says with what and names it until ProblemGone."""

    about: str
    what: str


class ProblemGone(Event, tag="problem_gone", frozen=True):
    about: str


class ResultsChanged(Event, tag="results_changed", frozen=True):
    """Precomputed results were published or made void (replaced or dropped) since the last one. At most one a second."""

    published: int
    voided: int


class Draining(Event, tag="draining", frozen=True):
    """The service ends: running tasks leave at their next step. The last events before it is gone follow."""


AnyEvent = (
    TaskAccepted
    | TaskStarted
    | TaskProgressed
    | TaskChanged
    | TaskWaits
    | TaskEnded
    | ScheduleChanged
    | ScheduleRemoved
    | PauseChanged
    | WorkerJoined
    | WorkerLeft
    | BudgetChanged
    | ProblemAppeared
    | ProblemGone
    | ResultsChanged
    | Draining
)
