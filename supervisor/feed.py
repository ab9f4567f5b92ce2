"""Owns the numbered events of one life of the supervisor: what makes one, which are kept, who waits for the next.

    task(record) ──┐                          ┌─▶ since(epoch, after): events, or a gap
    results(...) ──┼─▶ turn(now, state) ─▶ seq ┤
    state ─────────┘   compares, coalesces    └─▶ served(now): the answers that are due

Pure: no I/O, no clock. Kept are the last BACKLOG events. A reader asks for what it has not seen, so one that is slow or
gone costs nothing: it finds a gap and takes a new snapshot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from ..ipc import events as e
from ..ipc.messages import EventList
from ..ipc.records import ScheduleRecord, TaskRecord, TaskStatus
from .state import ReplyTo

BACKLOG = (
    4096  # events kept: some 3 MB of references to records; seconds of the fastest queue, hours of an ordinary one
)
MAX_EVENTS = 256  # in one answer: some 100 KB
PROGRESS_PERIOD_S = 0.25  # between reports of one task's progress
BATCH_PERIOD_S = 0.05  # between answers while events come: a reader costs twenty turns of the loop a second at most
RESULTS_PERIOD_S = 1.0  # between counts of published results
REASONS_PERIOD_S = 1.0  # between looks at why tasks wait
REASONS = 50  # tasks whose reason is looked at: the next in turn
LISTENING_S = 70.0  # after its last request somebody counts as listening: longer than a long poll
BUDGET_STEP_PERMILLE = 50  # a twentieth of the machine is worth an event
MAX_READERS = 256  # long polls held; further ones are answered at once


@dataclass(frozen=True, slots=True)
class Reader:
    """A client that waits for events after `after`."""

    reply_to: ReplyTo
    rid: int
    after: int
    limit: int
    deadline_at: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What is compared from turn to turn. Its mappings are the core's own: they are copied only where they changed."""

    schedules: Mapping[str, ScheduleRecord]
    workers: Mapping[int, tuple[str, int]]  # index -> role, pid
    problems: Mapping[str, str]
    paused: tuple[str | None, ...]
    budget_permille: int
    is_admitting: bool
    reason: object  # str() makes its words: ten times a second would be a waste
    is_draining: bool


@dataclass(slots=True)
class _Task:
    """What was last told of an open task: a change of `marks` is an event of its own."""

    marks: tuple[object, ...]
    progress_at: float = 0.0
    held: TaskRecord | None = None  # a report of progress whose time has not come
    waits_for: str = ""


def _marks(record: TaskRecord) -> tuple[object, ...]:
    """Return what of an open task is more than progress."""
    return record.status, record.attempt, record.priority, record.is_forced, record.error_code, record.not_before_at


@dataclass(slots=True)
class _Counts:
    published: int = 0
    voided: int = 0
    told_at: float = 0.0


@dataclass(slots=True)
class _State:
    schedules: dict[str, ScheduleRecord] = field(default_factory=dict)
    workers: dict[int, tuple[str, int]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    paused: tuple[str | None, ...] = ()
    budget: tuple[int, bool] = (0, False)
    is_draining: bool = False


class Feed:
    """See the module. `epoch` names this life of the supervisor; times are Unix seconds."""

    def __init__(self, epoch: int, backlog: int = BACKLOG) -> None:
        self.epoch, self.seq = epoch, 0
        self._kept: deque[e.AnyEvent] = deque(maxlen=backlog)
        self._changed: list[TaskRecord] = []
        self._tasks: dict[str, _Task] = {}
        self._progressing: set[str] = set()  # tasks that hold back a report
        self._counts = _Counts()
        self._state = _State()
        self._readers: list[Reader] = []
        self._listened_at = self._reasons_at = self._answered_at = float("-inf")

    # --- what happens ---------------------------------------------------------------------------------------------

    def known(self, records: Iterable[TaskRecord], seen: Seen) -> None:
        """Take what there is at the start: no event, a snapshot has it."""
        for record in records:
            self._tasks[record.task_id] = _Task(_marks(record))
        self._compare(seen, 0.0)
        self._kept.clear()
        self._changed, self.seq = [], 0

    def task(self, record: TaskRecord) -> None:
        """Take a task's new state; it is numbered at the next turn, after the journal has it."""
        self._changed.append(record)

    def results(self, *, published: int = 0, voided: int = 0) -> None:
        self._counts.published += published
        self._counts.voided += voided

    def turn(self, seen: Seen, now: float) -> None:
        """Number what has happened since the last turn."""
        if self._changed:
            changed, self._changed = self._changed, []
            for record in changed:
                self._task(record, now)
        for task_id in [name for name in self._progressing if now >= self._tasks[name].progress_at + PROGRESS_PERIOD_S]:
            self._progress(task_id, self._tasks[task_id], now)
        self._compare(seen, now)
        counts = self._counts
        if (counts.published or counts.voided) and not 0 <= now - counts.told_at < RESULTS_PERIOD_S:
            self._counts = _Counts(told_at=now)
            self._say(e.ResultsChanged, now, published=counts.published, voided=counts.voided)

    def _say(self, kind: type[e.AnyEvent], now: float, **fields: Any) -> None:
        self.seq += 1
        self._kept.append(kind(seq=self.seq, at=now, **fields))

    def _task(self, record: TaskRecord, now: float) -> None:
        told = self._tasks.get(record.task_id)
        if record.status.is_final:
            self._forget(record.task_id)
            self._say(e.TaskEnded, now, task=record)
        elif told is None:
            self._tasks[record.task_id] = _Task(_marks(record))
            self._say(e.TaskAccepted, now, task=record)
        elif record.status is TaskStatus.RUNNING and record.attempt != told.marks[1]:
            self._tasks[record.task_id] = _Task(_marks(record))
            self._progressing.discard(record.task_id)
            self._say(e.TaskStarted, now, task=record)
        elif record.status is TaskStatus.RUNNING and _marks(record) == told.marks:
            told.held = record
            self._progressing.add(record.task_id)
            if not 0 <= now - told.progress_at < PROGRESS_PERIOD_S:
                self._progress(record.task_id, told, now)
        else:
            self._tasks[record.task_id] = _Task(_marks(record))
            self._progressing.discard(record.task_id)
            self._say(e.TaskChanged, now, task=record)

    def _progress(self, task_id: str, told: _Task, now: float) -> None:
        record, told.held, told.progress_at = told.held, None, now
        self._progressing.discard(task_id)
        if record is not None:
            self._say(e.TaskProgressed, now, task_id=task_id, attempt=record.attempt, progress=record.progress)

    def _forget(self, task_id: str) -> None:
        self._tasks.pop(task_id, None)
        self._progressing.discard(task_id)

    def _compare(self, seen: Seen, now: float) -> None:
        state = self._state
        if seen.schedules != state.schedules:
            self._compare_schedules(seen.schedules, now)
        if seen.workers != state.workers:
            self._compare_workers(seen.workers, now)
        if seen.problems != state.problems:
            self._compare_problems(seen.problems, now)
        if seen.paused != state.paused:
            state.paused = seen.paused
            self._say(e.PauseChanged, now, paused=seen.paused)
        budget, is_admitting = state.budget
        if abs(seen.budget_permille - budget) >= BUDGET_STEP_PERMILLE or seen.is_admitting != is_admitting:
            state.budget = seen.budget_permille, seen.is_admitting
            share = seen.budget_permille / 1000
            self._say(e.BudgetChanged, now, budget=share, can_run_task=seen.is_admitting, reason=str(seen.reason))
        if seen.is_draining and not state.is_draining:
            state.is_draining = True
            self._say(e.Draining, now)

    def _compare_schedules(self, seen: Mapping[str, ScheduleRecord], now: float) -> None:
        told, self._state.schedules = self._state.schedules, dict(seen)
        for name, schedule in seen.items():
            if told.get(name) != schedule:
                self._say(e.ScheduleChanged, now, schedule=schedule)
        for name in told.keys() - seen.keys():
            self._say(e.ScheduleRemoved, now, task_id=name)

    def _compare_workers(self, seen: Mapping[int, tuple[str, int]], now: float) -> None:
        told, self._state.workers = self._state.workers, dict(seen)
        for index, (_, pid) in told.items():
            if seen.get(index, ("", 0))[1] != pid:
                self._say(e.WorkerLeft, now, index=index, pid=pid)
        for index, (role, pid) in seen.items():
            if told.get(index) != (role, pid):
                self._say(e.WorkerJoined, now, index=index, role=role, pid=pid)

    def _compare_problems(self, seen: Mapping[str, str], now: float) -> None:
        told, self._state.problems = self._state.problems, dict(seen)
        for about, what in seen.items():
            if told.get(about) != what:
                self._say(e.ProblemAppeared, now, about=about, what=what)
        for about in told.keys() - seen.keys():
            self._say(e.ProblemGone, now, about=about)

    # --- why tasks wait -------------------------------------------------------------------------------------------

    def wants_reasons(self, now: float) -> bool:
        """Say whether it is time to look at why tasks wait: somebody listens, and the last look is a second ago."""
        is_due = not 0 <= now - self._reasons_at < REASONS_PERIOD_S
        return is_due and self.is_listened_to(now)

    def reasons(self, waits: Iterable[tuple[TaskRecord, str]], now: float) -> None:
        """Tell what is new in why the first REASONS pending tasks wait. Figures behind a colon are not new."""
        self._reasons_at = now
        for record, waits_for in islice(waits, REASONS):
            if (told := self._tasks.get(record.task_id)) is None:
                continue
            if waits_for.partition(":")[0] != told.waits_for.partition(":")[0]:
                told.waits_for = waits_for
                self._say(e.TaskWaits, now, task_id=record.task_id, waits_for=waits_for)

    def is_listened_to(self, now: float) -> bool:
        """Say whether somebody follows the events."""
        return 0 <= now - self._listened_at < LISTENING_S

    # --- who is told ----------------------------------------------------------------------------------------------

    def listened(self, now: float) -> None:
        """Note that somebody took a snapshot or asked for events."""
        self._listened_at = now

    def since(self, rid: int, epoch: int, after: int, limit: int) -> EventList:
        """Return the events that follow number `after`, at most `limit`, or a gap where they are not all there."""
        oldest = self.seq - len(self._kept)  # the number before the first that is kept
        if epoch != self.epoch or not oldest <= after <= self.seq:
            return EventList(rid=rid, epoch=self.epoch, is_gap=True)
        first, count = after - oldest, min(limit, MAX_EVENTS, self.seq - after)
        found = tuple(islice(self._kept, first, first + count))
        return EventList(rid=rid, epoch=self.epoch, events=found)

    def ask(self, reader: Reader, epoch: int, now: float) -> EventList | None:
        """Return the answer to a request for events, None where it is held: there are none yet, or others came
        a moment ago. Where too many are held it is answered at once, with what there is.
        """
        self.listened(now)
        found = self.since(reader.rid, epoch, reader.after, reader.limit)
        is_held = reader.deadline_at > now and not found.is_gap and not self._is_due(reader, now)
        if not is_held or len(self._readers) >= MAX_READERS:
            if found.events:
                self._answered_at = now
            return found
        self._readers.append(reader)
        return None

    def _is_due(self, reader: Reader, now: float) -> bool:
        """Say whether there is something for `reader` that need not wait for more."""
        count = self.seq - reader.after
        return count >= min(reader.limit, MAX_EVENTS) or (
            count > 0 and not 0 <= now - self._answered_at < BATCH_PERIOD_S
        )

    def served(self, now: float) -> list[tuple[ReplyTo, EventList]]:
        """Return the answers that are due: events are there, or the wait is over."""
        if not self._readers:
            return []
        due = [one for one in self._readers if one.deadline_at <= now or self._is_due(one, now)]
        if not due:
            return []
        self._readers = [one for one in self._readers if one not in due]
        if any(one.after < self.seq for one in due):
            self._answered_at = now
        return [(one.reply_to, self.since(one.rid, self.epoch, one.after, one.limit)) for one in due]

    def time_moved(self, by_s: float) -> None:
        """Go on after the clock was set: a client waits by one that was not."""
        self._readers = [replace(one, deadline_at=one.deadline_at + by_s) for one in self._readers]

    def next_deadline(self, now: float) -> float | None:
        """Return when the next turn has something to tell; None while nobody waits."""
        if not self._readers:
            return None
        deadlines = [one.deadline_at for one in self._readers]
        if any(one.after < self.seq for one in self._readers):
            deadlines.append(self._answered_at + BATCH_PERIOD_S)
        deadlines += [self._tasks[name].progress_at + PROGRESS_PERIOD_S for name in self._progressing]
        if self._counts.published or self._counts.voided:
            deadlines.append(self._counts.told_at + RESULTS_PERIOD_S)
        if any(told.marks[0] is TaskStatus.PENDING for told in self._tasks.values()):
            deadlines.append(self._reasons_at + REASONS_PERIOD_S)
        return max(min(deadlines), now)
