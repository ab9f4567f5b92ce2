"""Owns the service's state and every decision on it. Does no I/O but the journal's and the result store's.

    requests ──▶ Requests ─┐                         ┌─▶ SendReply   after the journal's commit
    events   ──▶ on_event ─┼─▶ state, journal, store ┤
    time     ──▶ tick ─────┘                         └─▶ SendCommand to a worker

The daemon (loop.py) and the inline lane drive the same core; only where tasks run differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from zoneinfo import ZoneInfo

import msgspec

from ..ipc.commands import (
    ChangeSeen,
    Configure,
    Event,
    Failed,
    Finished,
    PointsChanged,
    Progress,
    Published,
    Ready,
    Role,
    Run,
    Started,
    Stopped,
    StopTask,
)
from ..ipc.errors import CollectionNotFound, ResultStoreError, StoreUnavailable
from ..ipc.messages import TaskReply
from ..ipc.records import (
    ComputedResult,
    ExecutionRecord,
    QueryJob,
    QueryRecord,
    ScheduleRecord,
    TaskRecord,
    TaskStatus,
    TaskType,
)
from ..ipc.settings import WorkerSettings
from . import governor, scheduler
from .freshness import Freshness
from .journal import Journal
from .monitor import Monitor
from .params import jobs_for, params_of_schedule
from .popularity import Popularity
from .queue import Queue
from .results import ResultKeeper
from .state import Action, SendCommand, SendReply, Waiter, Worker

BUSY_PERIOD_S = 0.25  # between readings while a task runs: spec-notes wants a reaction within a second
IDLE_PERIOD_S = 2.0
REFRESH_PRIORITY = -1  # of what nobody asked for
SAVE_PERIOD_S = 60.0  # query analytics are statistics: losing a minute of them at a crash is accepted
SNAPSHOT_PERIOD_S = 1800.0  # some MB each time; a reboot costs what was computed in the last half hour
FRESH_S = 0.5  # a reading older than this is renewed before it is shown


@dataclass(frozen=True, slots=True)
class CoreSettings:
    worker: WorkerSettings
    limits: governor.Limits
    zone: ZoneInfo
    lane: str = "daemon"
    min_frequency: int = 3
    check_interval_s: float = 300.0
    is_auto_scheduling: bool = True
    collections: tuple[str, ...] = ()


class Core:
    """See the module. Not thread-safe: whoever drives it calls from one thread at a time."""

    def __init__(
        self,
        settings: CoreSettings,
        journal: Journal,
        queue: Queue,
        popularity: Popularity,
        keeper: ResultKeeper,
        monitor: Monitor,
        *,
        own_pids: Callable[[], list[int]],
        local_hour: Callable[[float], float],
        jitter: Callable[[], float],
        started_at: float,
        snapshot: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings, self.journal, self.queue = settings, journal, queue
        self.popularity, self.keeper = popularity, keeper
        self._monitor, self._own_pids, self._local_hour, self._jitter = monitor, own_pids, local_hour, jitter
        self.started_at = self.last_check_at = started_at
        self.schedules: dict[str, ScheduleRecord] = {}
        self.workers: dict[int, Worker] = {}
        self.problems: dict[str, str] = {}  # what is wrong now, by what it is about
        self.is_draining = False
        self._waiters: list[Waiter] = []
        self._actions: list[Action] = []
        self._searches = 0
        self._salt = int(started_at * 1e6)
        self._governor = governor.GovernorState()
        self._freshness = Freshness(keeper, popularity, settings.collections)
        self._snapshot, self._next_snapshot_at = snapshot, started_at + SNAPSHOT_PERIOD_S
        self._next_sample_at = self._next_save_at = 0.0
        self._next_check_at = started_at + settings.check_interval_s
        self._sampled_at = 0.0
        self._restore(started_at)
        self.sample(started_at)

    def _restore(self, now: float) -> None:
        self.popularity.load(self.journal.queries(), now)
        for record in self.queue.restore(self.journal.open_tasks()):
            self.journal.save_task(record)
        for collection in self.journal.paused():
            self.queue.pause(collection)
        for schedule in self.journal.schedules():
            # a run missed while the service was down is due at once, or moves on: scheduler.catch_up
            verdict = scheduler.catch_up(schedule, now, self.settings.zone)
            if verdict is scheduler.CatchUp.SKIP:
                schedule = scheduler.advance(schedule, now, self.settings.zone, has_run=False)  # noqa: PLW2901
                self.journal.save_schedule(schedule)
            self.schedules[schedule.task_id] = schedule
        self._check(now)

    # --- what others ask ----------------------------------------------------------------------------------------------

    def salt(self) -> int:
        """Return a number never used before in this state directory: ids made from it are unique."""
        self._salt += 1
        return self._salt

    def _check(self, now: float) -> None:
        """Look after what no event tells: default schedules, with the busiest collections re-indexed daily."""
        self.last_check_at = now
        self._next_check_at = now + self.settings.check_interval_s
        if self.settings.is_auto_scheduling:
            held, zone, active = self.schedules.values(), self.settings.zone, self._freshness.active(now)
            fresh = scheduler.default_schedules(self.settings.collections, held, now, zone, active)
            for schedule in [*fresh, *scheduler.retuned(held, active, now, zone)]:
                self.save_schedule(schedule)
        if not self.settings.worker.store.is_embedded or self.settings.lane == "inline":
            self._freshness.check_all()
        self._refresh(now)

    def _refresh(self, now: float) -> None:
        """Have results computed again that are past their soft age, and checked that may be older than their documents."""
        for collection in self._freshness.wanted(now):
            record, is_new = self.queue.submit(
                TaskType.WARM, collection, {}, now=now, priority=REFRESH_PRIORITY, salt=self.salt()
            )
            if is_new:
                self.changed(record)

    def save_schedule(self, schedule: ScheduleRecord) -> None:
        self.schedules[schedule.task_id] = schedule
        self.journal.save_schedule(schedule)

    def changed(self, record: TaskRecord | None) -> TaskRecord | None:
        """Make a task's new state durable, and tell who waits for it. None (nothing changed) passes through."""
        if record is None:
            return None
        self.journal.save_task(record)
        self._answer_waiters(record)
        return record

    def ended(self, record: TaskRecord | None, now: float, event: Finished | Failed | Stopped | None = None) -> None:
        """Write down a task that reached a final state. `event` is the worker's report, where there is one."""
        if self.changed(record) is None or record is None or not record.status.is_final:
            return
        self.journal.drop_checkpoint(record.task_id)
        if record.status is TaskStatus.SKIPPED and record.priority == REFRESH_PRIORITY:
            return  # nobody asked, and there was nothing to do: not worth a line in the history
        measured = event if isinstance(event, Finished) else None
        self.journal.add_execution(
            ExecutionRecord(
                task_id=record.task_id,
                task_type=record.task_type,
                collection=record.collection,
                status=record.status,
                started_at=record.started_at or now,
                completed_at=now,
                attempt=record.attempt,
                cpu_s=event.cpu_s if event else 0.0,
                result=record.result,
                error_message=record.error_message,
                metric=measured.metric if measured else None,
                before_score=measured.before_score if measured else None,
                after_score=measured.after_score if measured else None,
            )
        )

    def wait_for(self, waiter: Waiter) -> None:
        self._waiters.append(waiter)

    def stop_running(self, record: TaskRecord, *, is_cancelled: bool) -> None:
        """Tell the worker that runs `record` to leave it at its next step."""
        if record.worker is not None:
            self._actions.append(
                SendCommand(record.worker, StopTask(task_id=record.task_id, is_cancelled=is_cancelled))
            )

    def search_seen(self) -> None:
        """Count a search by an application: the governor makes room for them."""
        self._searches += 1

    # --- readings and budget ------------------------------------------------------------------------------------------

    def sample(self, now: float) -> None:
        """Take readings and decide the budget anew."""
        elapsed_s = max(now - self._sampled_at, 1e-3)
        self._searches += self.keeper.collect_counts(now)
        self.readings = self._monitor.sample(self._own_pids(), self._searches / elapsed_s)
        self._searches = 0
        self._sampled_at = now
        hour = self._local_hour(now)
        self._governor, self.decision = governor.step(self._governor, self.readings, self.settings.limits, hour)
        self.is_active_hours = governor.is_active_hours(self.settings.limits, hour)
        is_busy = any(worker.task_id for worker in self.workers.values())
        self._next_sample_at = now + (BUSY_PERIOD_S if is_busy or self.queue.has_pending else IDLE_PERIOD_S)

    def sample_if_stale(self, now: float) -> None:
        if not 0 <= now - self._sampled_at < FRESH_S:
            self.sample(now)

    def duty_permille(self, index: int) -> int:
        """Return the share of one CPU that the task worker `index` may use now: all of it for a forced task."""
        busy = [worker for worker in self.workers.values() if worker.task_id is not None]
        task_id = next((worker.task_id for worker in busy if worker.index == index), None)
        record = self.queue.get(task_id) if task_id else None
        if record is not None and record.is_forced:
            return 1000
        return governor.worker_duty_permille(self.decision.budget_permille, self.readings.cpus, max(len(busy), 1))

    # --- workers ------------------------------------------------------------------------------------------------------

    def on_event(self, index: int, event: Event, now: float) -> None:
        """Take a worker's report. One that is not of the current attempt changes nothing."""
        worker = self.workers.get(index)
        if worker is None:
            return  # it left, and what it still had to say is of an attempt that is not current
        match event:
            case Ready():
                worker.is_started = worker.role is Role.TASKS
            case Started():
                worker.is_started = True
            case PointsChanged():
                self._freshness.points_changed(event, now)
                self._actions.append(SendCommand(index, ChangeSeen(seq=event.seq)))
            case Progress():
                self._progressed(worker, event, now)
            case Published():
                self.publish(event.results, now)
            case Finished():
                self._free(worker, event.task_id)
                record = self.queue.complete(
                    event.task_id, event.attempt, event.result, now, is_skipped=event.is_skipped
                )
                self.problems.pop("vector store", None)
                self.ended(record, now, event)
                if record is not None and self._freshness.completed(record, now):
                    self._refresh(now)
            case Failed():
                self._free(worker, event.task_id)
                self.ended(self._failed(event, now), now, event)
            case Stopped():
                self._free(worker, event.task_id)
                self.ended(self.queue.stopped(event.task_id, event.attempt, event.is_cancelled, now), now, event)

    def _progressed(self, worker: Worker, event: Progress, now: float) -> None:
        self.changed(self.queue.progress(event.task_id, event.attempt, event.progress, now))
        for change in event.changes:  # also of an attempt that is over: the documents did change
            self._freshness.points_changed(change, now)
        if worker.task_id == event.task_id and worker.attempt == event.attempt:
            if event.checkpoint is not None:
                self.journal.save_checkpoint(event.task_id, event.attempt, event.checkpoint)
            self.publish(event.results, now)

    def _failed(self, event: Failed, now: float) -> TaskRecord | None:
        if event.code == StoreUnavailable.code:
            self.problems["vector store"] = event.message
        record = self.queue.get(event.task_id)
        if event.code == CollectionNotFound.code and record is not None:
            self._freshness.is_gone(record.collection)
            if record.priority == REFRESH_PRIORITY or self._is_default_schedule(event.task_id):
                return self.queue.skip(event.task_id, event.message, now)
        return self.queue.fail(
            event.task_id, event.attempt, event.code, event.message, event.is_transient, now, self._jitter()
        )

    def _is_default_schedule(self, task_id: str) -> bool:
        """Say whether a task comes from a schedule nobody asked for: its collection need not exist."""
        record = self.queue.get(task_id)
        schedule = self.schedules.get(record.schedule_id or "") if record else None
        return schedule is not None and schedule.metadata.get("origin") == "default"

    def _free(self, worker: Worker, task_id: str) -> None:
        if worker.task_id == task_id:
            worker.task_id, worker.attempt = None, 0

    def worker_joined(self, index: int, role: Role, pid: int, configure: Configure) -> None:
        self.workers[index] = Worker(index, role, pid)
        self._actions.append(SendCommand(index, configure))

    def worker_left(self, index: int, now: float) -> None:
        """A worker's process ended: its task goes back to the queue, or to the dead letters if it kills workers."""
        if self.workers.pop(index, None) is not None:
            for record in self.queue.worker_died(index, now):
                self.ended(record, now)

    def publish(self, results: Iterable[ComputedResult], now: float) -> None:
        for result in results:
            try:
                if not self.keeper.put(result, now):
                    self._freshness.check(result.collection)  # it was overtaken by a change: it is computed again
                self.problems.pop("result store", None)
            except ResultStoreError as error:
                self.problems["result store"] = str(error)  # shown by status; what is stored stays served

    def idle_worker(self) -> Worker | None:
        return next(
            (w for w in self.workers.values() if w.role is Role.TASKS and w.is_started and w.task_id is None), None
        )

    def is_owner_ready(self) -> bool:
        """Say whether the vectors can be reached: a server always can be tried, an embedded store needs its owner."""
        if self.settings.lane == "inline" or not self.settings.worker.store.is_embedded:
            return True
        return any(worker.role is Role.OWNER and worker.is_started for worker in self.workers.values())

    # --- time ---------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Action]:
        """Do what is due at `now`; return what to send, in order, once the journal is committed."""
        if now >= self._next_sample_at or now < self._sampled_at:
            self.sample(now)
        if now >= self._next_check_at:
            self._check(now)
        if not self.is_draining:
            self._fire_schedules(now)
            self._dispatch(now)
        self._expire_waiters(now)
        if void := self.keeper.take_void():
            self.journal.void_results(void)
        if now >= self._next_save_at:
            self.save(now)
        actions, self._actions = self._actions, []
        return actions

    def save(self, now: float, *, is_last: bool = False) -> None:
        self.journal.save_queries(self.popularity.records(now))
        self.journal.prune(now)
        self._next_save_at = now + SAVE_PERIOD_S
        if is_last or now >= self._next_snapshot_at:
            self._next_snapshot_at = now + SNAPSHOT_PERIOD_S
            self._snapshot()
            self.journal.snapshot_taken()

    def next_deadline(self, now: float) -> float:
        """Return when the next tick has something to do (Unix seconds)."""
        deadlines = [
            self._next_sample_at,
            self._next_save_at,
            self._next_check_at,
            *(waiter.deadline_at for waiter in self._waiters),
        ]
        if (backoff_end_at := self.queue.next_deadline(now)) is not None:
            deadlines.append(backoff_end_at)
        deadlines += [s.next_run_at for s in self.schedules.values() if s.is_enabled]
        return min(deadlines)

    def _fire_schedules(self, now: float) -> None:
        for schedule in scheduler.due(self.schedules.values(), now):
            self.last_check_at = now
            if self.journal.fire_once(schedule.task_id, schedule.next_run_at):
                record, _ = self.queue.submit(
                    schedule.task_type,
                    schedule.collection,
                    params_of_schedule(schedule.task_type, schedule.metadata),
                    now=now,
                    schedule_id=schedule.task_id,
                    salt=self.salt(),
                )
                self.changed(record)
            self.save_schedule(scheduler.advance(schedule, now, self.settings.zone, has_run=True))

    def _dispatch(self, now: float) -> None:
        while (worker := self.idle_worker()) is not None and self.is_owner_ready():
            record = self.queue.next_ready(now, is_admitting=self.decision.is_admitting)
            if record is None:
                return
            leased = self.queue.lease(record.task_id, worker.index, now)
            self.changed(leased)
            worker.task_id, worker.attempt = leased.task_id, leased.attempt
            self.last_check_at = now
            self._actions.append(
                SendCommand(
                    worker.index,
                    Run(
                        task_id=leased.task_id,
                        task_type=leased.task_type,
                        collection=leased.collection,
                        attempt=leased.attempt,
                        params=leased.params,
                        queries=self._queries_for(leased, now),
                        cached=self._freshness.to_check(leased, now),
                        checkpoint=self.journal.checkpoint(leased.task_id),
                    ),
                )
            )

    def _queries_for(self, record: TaskRecord, now: float) -> tuple[QueryJob, ...]:
        def popular(limit: int, min_frequency: int) -> list[QueryRecord]:
            return self.popularity.popular(now, record.collection, limit, min_frequency)

        return jobs_for(
            record.task_type,
            record.collection,
            record.params,
            popular,
            self.journal.judgments(record.collection),
            max_queries=self.settings.worker.rerank.max_queries,
            min_frequency=self.settings.min_frequency,
            is_cached=lambda text: self.keeper.holds(text, record.collection, "", now),
            stale=self._freshness.stale_queries(record.collection, now),
        )

    def why_waiting(self, record: TaskRecord, now: float) -> str:
        """Say in words why a pending task is not running."""
        if not self.is_owner_ready() and self.settings.worker.store.is_embedded:
            return "the store owner is starting: it loads the embedding model"
        return self.queue.waits_for(
            record.task_id,
            now,
            is_admitting=self.decision.is_admitting,
            admission_reason=self.decision.reason,
            idle_workers=int(self.idle_worker() is not None),
        )

    def _answer_waiters(self, record: TaskRecord) -> None:
        served = [w for w in self._waiters if w.task_id == record.task_id and record.version > w.seen]
        for waiter in served:
            self._waiters.remove(waiter)
            self._actions.append(SendReply(waiter.reply_to, TaskReply(rid=waiter.rid, task=record)))

    def _expire_waiters(self, now: float) -> None:
        for waiter in [w for w in self._waiters if w.deadline_at <= now]:
            self._waiters.remove(waiter)
            if (record := self.find_task(waiter.task_id)) is not None:
                shown = self.with_reason(record, now)
                self._actions.append(SendReply(waiter.reply_to, TaskReply(rid=waiter.rid, task=shown)))

    def find_task(self, task_id: str) -> TaskRecord | None:
        return self.queue.get(task_id) or self.journal.task(task_id)

    def with_reason(self, record: TaskRecord, now: float) -> TaskRecord:
        if record.status is not TaskStatus.PENDING:
            return record
        return msgspec.structs.replace(record, waits_for=self.why_waiting(record, now))
