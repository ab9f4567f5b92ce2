"""Owns what supervisor and workers say to each other. Same envelope as messages.py, on a socket of its own.

worker ──Ready──▶ supervisor ──Run──▶ worker ──Progress*──▶ ... ──Finished | Failed | Stopped──▶ supervisor
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from .messages import Message
from .records import ComputedResult, QueryJob, TaskProgress, TaskType
from .settings import WorkerSettings


class Role(StrEnum):
    OWNER = "owner"  # holds the vector store open, serves it to applications and workers
    TASKS = "tasks"  # runs tasks


# --- supervisor -> worker ---------------------------------------------------------------------------------------------


class Configure(Message, tag="configure", frozen=True):
    """The answer to Ready: what to work with. `board_row` is the worker's row of the board (board.py)."""

    settings: WorkerSettings
    board_path: str
    owner_socket: str
    board_row: int


class Run(Message, tag="run", frozen=True):
    """Run one attempt of a task. Only this attempt's reports count."""

    task_id: str
    task_type: TaskType
    collection: str
    attempt: int
    params: dict[str, Any] = {}
    queries: tuple[QueryJob, ...] = ()
    checkpoint: dict[str, Any] | None = None


class StopTask(Message, tag="stop_task", frozen=True):
    """Leave the task at its next step: paused to be resumed later, or cancelled for good."""

    task_id: str
    is_cancelled: bool = False


class Drain(Message, tag="drain", frozen=True):
    """Finish the step, report Stopped, leave."""


Command = Configure | Run | StopTask | Drain

# --- worker -> supervisor ---------------------------------------------------------------------------------------------


class Ready(Message, tag="ready", frozen=True):
    role: Role
    index: int
    pid: int


class Started(Message, tag="started", frozen=True):
    """The owner serves its socket from now on."""


class Progress(Message, tag="progress", frozen=True):
    task_id: str
    attempt: int
    progress: TaskProgress
    checkpoint: dict[str, Any] | None = None
    results: tuple[ComputedResult, ...] = ()


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


Event = Ready | Started | Progress | Published | Finished | Failed | Stopped
