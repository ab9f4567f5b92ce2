"""Owns what supervisor and workers say to each other. Same envelope as messages.py, on a socket of its own.

worker ──Ready──▶ supervisor ──Run──▶ worker ──Progress*──▶ ... ──Finished | Failed | Stopped──▶ supervisor
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from .messages import Message
from .records import ComputedResult, Measure, PointId, QueryJob, TaskProgress, TaskType
from .settings import WorkerSettings


class Role(StrEnum):
    OWNER = "owner"  # holds the vector store open, serves it to applications and workers
    TASKS = "tasks"  # runs tasks


# --- supervisor -> worker ---------------------------------------------------------------------------------------------


class Configure(Message, tag="configure", frozen=True):
    """The answer to Ready: what to work with. `board_row` is the worker's row of the board (board.py).

    `allowed_uids` may call the owner.
    """

    settings: WorkerSettings
    board_path: str
    owner_socket: str
    results_path: str
    board_row: int
    allowed_uids: tuple[int, ...]


class Run(Message, tag="run", frozen=True):
    """Run one attempt of a task. Only this attempt's reports count."""

    task_id: str
    task_type: TaskType
    collection: str
    attempt: int
    params: dict[str, Any] = {}
    queries: tuple[QueryJob, ...] = ()
    cached: tuple[QueryJob, ...] = ()  # those that have a result, to be seen whether it still holds
    why_none: str = ""  # why there are no queries although some lack a result
    checkpoint: dict[str, Any] | None = None


class StopTask(Message, tag="stop_task", frozen=True):
    """Leave the task at its next step: paused to be resumed later, or cancelled for good."""

    task_id: str
    is_cancelled: bool = False


class Drain(Message, tag="drain", frozen=True):
    """Finish the step, report Stopped, leave."""


class ChangeSeen(Message, tag="change_seen", frozen=True):
    """What PointsChanged `seq` can alter is out of the result store."""

    seq: int


Command = Configure | Run | StopTask | Drain | ChangeSeen

# --- worker -> supervisor ---------------------------------------------------------------------------------------------


class Ready(Message, tag="ready", frozen=True):
    role: Role
    index: int
    pid: int


class Started(Message, tag="started", frozen=True):
    """The owner serves its socket from now on."""


class PointsChanged(Message, tag="points_changed", frozen=True):
    """Documents of a collection were written (`vectors`: float32 of shape (vector_count, D)) or deleted.

    The owner answers whoever wrote them after the supervisor's ChangeSeen: from then on no cached result is older.
    """

    seq: int  # grows with every change; results say up to which one they were computed
    names: tuple[str, ...]  # the collection's own and its aliases
    ids: tuple[PointId, ...] = ()
    vectors: bytes = b""
    vector_count: int = 0
    distance: str = "cosine"
    is_whole: bool = False  # any document may have changed: dropped, or an alias was pointed elsewhere
    is_soft: bool = False  # a re-index: what was computed before it is served until it is computed again


class Progress(Message, tag="progress", frozen=True):
    task_id: str
    attempt: int
    progress: TaskProgress
    checkpoint: dict[str, Any] | None = None
    results: tuple[ComputedResult, ...] = ()
    changes: tuple[PointsChanged, ...] = ()
    measures: tuple[Measure, ...] = ()


class Published(Message, tag="published", frozen=True):
    """Results computed outside a task: what a search that missed the result store found."""

    results: tuple[ComputedResult, ...]


class Finished(Message, tag="finished", frozen=True):
    task_id: str
    attempt: int
    result: dict[str, Any]
    cpu_s: float
    metric: str | None = None
    before_score: float | None = None
    after_score: float | None = None
    is_skipped: bool = False


class Failed(Message, tag="failed", frozen=True):
    task_id: str
    attempt: int
    code: str
    message: str
    is_transient: bool
    cpu_s: float


class Stopped(Message, tag="stopped", frozen=True):
    """The task left at a step boundary because StopTask or Drain said so."""

    task_id: str
    attempt: int
    is_cancelled: bool
    cpu_s: float


class Leaving(Message, tag="leaving", frozen=True):
    """The worker was told to leave: it begins nothing more, and gives back what it holds."""


Event = Ready | Started | Progress | Published | PointsChanged | Finished | Failed | Stopped | Leaving
