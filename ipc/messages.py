"""Owns what an application may ask of the supervisor and what it answers. Every message is one msgpack map.

`type` says which message it is, `v` is the protocol's version, `rid` pairs a reply with its request (0: no reply
wanted). Documented for other languages in docs/protocol.md; decoded and bounded in wire.py.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .events import AnyEvent, WorkerJoined
from .records import (
    ComputedResult,
    DecisionRow,
    ExecutionRecord,
    Order,
    QueryRecord,
    ScheduleRecord,
    TaskRecord,
)

PROTOCOL_VERSION = 1


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", gc=False):
    """Base of all messages. Subclasses name their tag. None can be part of a cycle, so the collector need not look."""

    v: int = PROTOCOL_VERSION
    rid: int = 0


# --- requests ---------------------------------------------------------------------------------------------------------


class Hello(Message, tag="hello", frozen=True):
    """Ask who is there and where the shared memory is: Welcome."""


class Status(Message, tag="status", frozen=True):
    """Ask for the service's state: Report."""


class Activity(Message, tag="activity", frozen=True):
    """Ask for recent executions, quality trends and popular queries: Report."""

    limit: int = 20


class Submit(Message, tag="submit", frozen=True):
    """Hand in a task: Submitted, after it is durable. Unknown types and params are refused: Failure.

    An equal pending task (same type, collection and params) is returned instead of a second one.
    `is_forced` runs it although the budget admits nothing; `run_or_skip` ends it as SKIPPED instead of letting it wait
    when nothing is admitted. A task that has not ended `deadline_s` after it was accepted is given up. With `wait_s` the
    answer is a TaskReply instead: when it has ended, at the latest after so many seconds.
    """

    task_type: str
    collection: str
    params: dict[str, Any] = {}
    priority: int = 0
    is_forced: bool = False
    run_or_skip: bool = False
    deadline_s: float | None = None
    wait_s: float = 0.0


class SubmitMany(Message, tag="submit_many", frozen=True):
    """Hand in several tasks, at most 1,000: AllSubmitted, after all are durable. One that is refused refuses all.

    With `wait_s` the answer is a TaskList instead, in the order of the orders: when all have ended, at the latest after
    so many seconds.
    """

    orders: tuple[Order, ...]
    wait_s: float = 0.0


class GetTask(Message, tag="get_task", frozen=True):
    """Ask for one task: TaskReply; at once if its version is above `seen`, else when it changes or `wait_s` has passed.

    `until_ended`: whatever was seen, when it has ended or `wait_s` has passed.
    """

    task_id: str
    seen: int = -1
    wait_s: float = 0.0
    until_ended: bool = False


class ListTasks(Message, tag="list_tasks", frozen=True):
    """Ask for tasks, newest first: TaskList."""

    limit: int = 50
    status: str | None = None


class CancelTask(Message, tag="cancel_task", frozen=True):
    """Cancel a pending or running task (at its next step): Done with count 1, or 0 if it had ended already."""

    task_id: str


class Requeue(Message, tag="requeue", frozen=True):
    """Put a failed task back, attempts counted anew: Done."""

    task_id: str


class Pause(Message, tag="pause", frozen=True):
    """Let nothing run (collection None) or nothing on one collection: Done. Running tasks stop at their checkpoint."""

    collection: str | None = None


class Resume(Message, tag="resume", frozen=True):
    collection: str | None = None


class AddSchedule(Message, tag="add_schedule", frozen=True):
    """Schedule a task: ScheduleList of one."""

    task_type: str
    collection: str
    frequency: str
    metadata: dict[str, Any] = {}


class ListSchedules(Message, tag="list_schedules", frozen=True):
    """Ask for schedules, next one first: ScheduleList. `only_due`: those whose time has come."""

    only_due: bool = False


class RemoveSchedule(Message, tag="remove_schedule", frozen=True):
    task_id: str


class MarkScheduleCompleted(Message, tag="mark_schedule_completed", frozen=True):
    """Say that the application ran a schedule itself; its next run moves on: Done."""

    task_id: str


class Track(Message, tag="track", frozen=True):
    """Count one search by an application: Tracked, or no reply where rid is 0.

    Not one that shared memory answered: its reader counted that. `was_looked_up`: it counted the miss of this one.
    """

    query: str
    collection: str
    response_s: float = 0.0
    scope: str = ""
    was_looked_up: bool = False


class ListQueries(Message, tag="list_queries", frozen=True):
    """Ask for queries, most popular first: QueryList."""

    collection: str | None = None
    limit: int = 20
    min_frequency: int = 1


class Feedback(Message, tag="feedback", frozen=True):
    """Record a graded judgment (0: irrelevant; higher: better) of one document for one query: Done."""

    query: str
    collection: str
    document_id: str
    relevance: float


class Publish(Message, tag="publish", frozen=True):
    """Put a result the application computed into the result store: Done."""

    result: ComputedResult
    ttl_s: float | None = None


class FindSimilar(Message, tag="find_similar", frozen=True):
    """Ask whether a query that has no result may be served another's: Similar. `vector` is its own, float32."""

    query: str
    collection: str
    vector: bytes


class Invalidate(Message, tag="invalidate", frozen=True):
    """Drop results of a collection (None: all) whose query contains `pattern` (None: any): Done with their count."""

    collection: str | None = None
    pattern: str | None = None


class CacheStats(Message, tag="cache_stats", frozen=True):
    """Ask for the figures of the result store: Report."""


class ExecutionStats(Message, tag="execution_stats", frozen=True):
    """Ask for totals over all executions: Report."""


class ListExecutions(Message, tag="list_executions", frozen=True):
    """Ask for executions, newest first: ExecutionList. `only_measured`: those with a before and an after score.

    `task_type`, `collection` and `status` leave out all others.
    """

    limit: int = 20
    only_measured: bool = False
    task_type: str | None = None
    collection: str | None = None
    status: str | None = None


class Quality(Message, tag="quality", frozen=True):
    """Ask what is known of quality, with counts and intervals, over the last so many days of UTC: Report."""

    days: int = 30


class Resources(Message, tag="resources", frozen=True):
    """Ask for the governor's last readings and decision: Report."""


class ListDecisions(Message, tag="list_decisions", frozen=True):
    """Ask what the governor decided, oldest first: DecisionList. `since`: rows that began after it (Unix seconds).

    Kept for 25 hours. For the next page ask again with the `started_at` of the last row. Rows that began at the same time
    are in one page, which may be longer than `limit` then.
    """

    since: float = 0.0
    limit: int = 1000


class Reload(Message, tag="reload", frozen=True):
    """Read the configuration again, as at SIGHUP: Reloaded. Failure where it is wrong: the old one stays in force."""


class GetSnapshot(Message, tag="get_snapshot", frozen=True):
    """Ask for the state that events change, and the number it is as of: Snapshot."""


class NextEvents(Message, tag="next_events", frozen=True):
    """Ask for the events after number `after` of an epoch: EventList; once there are some, or when `wait_s` has passed."""

    epoch: int = 0
    after: int = 0
    limit: int = 256
    wait_s: float = 0.0


class Shutdown(Message, tag="shutdown", frozen=True):
    """Drain and end the service: Done, before it does."""


Request = (
    Hello
    | Status
    | Activity
    | Submit
    | SubmitMany
    | GetTask
    | ListTasks
    | CancelTask
    | Requeue
    | Pause
    | Resume
    | AddSchedule
    | ListSchedules
    | RemoveSchedule
    | MarkScheduleCompleted
    | Track
    | ListQueries
    | Feedback
    | Publish
    | FindSimilar
    | Invalidate
    | CacheStats
    | ExecutionStats
    | ListExecutions
    | Quality
    | Resources
    | ListDecisions
    | GetSnapshot
    | NextEvents
    | Reload
    | Shutdown
)

# --- replies ----------------------------------------------------------------------------------------------------------


class Failure(Message, tag="failure", frozen=True):
    """The request was understood as an error: `code` names an exception of errors.py, `message` says what to do."""

    code: str
    message: str


class Welcome(Message, tag="welcome", frozen=True):
    pid: int
    version: str
    state_dir: str
    results_path: str
    readers_dir: str
    owner_socket: str


class Report(Message, tag="report", frozen=True):
    """A map whose keys the request's documentation lists."""

    report: dict[str, Any]


class Submitted(Message, tag="submitted", frozen=True):
    task_id: str
    is_new: bool  # False: an equal task was pending already


class AllSubmitted(Message, tag="all_submitted", frozen=True):
    """In the order of the orders: ids, and whether each is new (False: an equal task was pending already)."""

    task_ids: tuple[str, ...]
    are_new: tuple[bool, ...]


class TaskReply(Message, tag="task", frozen=True):
    task: TaskRecord


class TaskList(Message, tag="tasks", frozen=True):
    tasks: tuple[TaskRecord, ...]


class ScheduleList(Message, tag="schedules", frozen=True):
    schedules: tuple[ScheduleRecord, ...]


class Tracked(Message, tag="tracked", frozen=True):
    query_hash: str


class Similar(Message, tag="similar", frozen=True):
    """The query whose result may be served, as long as it is the one of `computed_at`; None: search."""

    query: str | None = None
    computed_at: float = 0.0


class QueryList(Message, tag="queries", frozen=True):
    queries: tuple[QueryRecord, ...]


class ExecutionList(Message, tag="executions", frozen=True):
    executions: tuple[ExecutionRecord, ...]


class DecisionList(Message, tag="decisions", frozen=True):
    """`zone` and the hours of its clock that were in force when it was asked; the last row may still grow."""

    decisions: tuple[DecisionRow, ...]
    zone: str
    active_start_h: int
    active_end_h: int
    quiet_start_h: int
    quiet_end_h: int


class Reloaded(Message, tag="reloaded", frozen=True):
    """Keys of the configuration, `section.key`, that differ from what was in force."""

    applied: tuple[str, ...]  # in force now
    needs_restart: tuple[str, ...]  # in force from the next start on


class Snapshot(Message, tag="snapshot", frozen=True):
    """The state as of event `seq` of `epoch`. Every number is of one life of the supervisor: its epoch.

    `tasks` are the open ones, in the order of their turn, at most 1,000; `open_tasks` is how many there are.
    """

    epoch: int
    seq: int
    tasks: tuple[TaskRecord, ...]
    open_tasks: int
    schedules: tuple[ScheduleRecord, ...]
    paused: tuple[str | None, ...]
    workers: tuple[WorkerJoined, ...]
    problems: dict[str, str]
    resources: dict[str, Any]
    is_draining: bool = False


class EventList(Message, tag="events", frozen=True):
    """Events in a row. `is_gap`: what follows `after` is not all there (any more): take a Snapshot."""

    epoch: int
    events: tuple[AnyEvent, ...] = ()
    is_gap: bool = False


class Done(Message, tag="done", frozen=True):
    count: int = 1


Reply = (
    Failure
    | Welcome
    | Report
    | Submitted
    | AllSubmitted
    | TaskReply
    | TaskList
    | ScheduleList
    | Tracked
    | Similar
    | QueryList
    | ExecutionList
    | DecisionList
    | Snapshot
    | EventList
    | Reloaded
    | Done
)
