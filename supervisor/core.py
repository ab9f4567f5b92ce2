"""Owns the service's state and every decision on it. Does no I/O but the journal's and the result store's.

    requests ──▶ Requests ─┐                         ┌─▶ SendReply   after the journal's commit
    events   ──▶ on_event ─┼─▶ state, journal, store ┤
    time     ──▶ tick ─────┘                         └─▶ SendCommand to a worker

The daemon (loop.py) and the inline lane drive the same core; only where tasks run differs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from ..ipc.commands import (
    ChangeSeen,
    Configure,
    Event,
    Failed,
    Finished,
    Leaving,
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
from ..ipc.query import query_hash
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
from . import governor, waiting
from .budget import NOTHING, Budget, Spent
from .clock import Moved
from .decisions import KEPT_DECISIONS, DecisionLog
from .feed import Feed, Seen
from .freshness import Freshness
from .governor import Memory
from .journal import Journal
from .monitor import Monitor
from .params import bounds, jobs_for, params_of_schedule
from .planning import SPARE_S, spare_s
from .polls import Poll, Polls
from .popularity import Popularity
from .quality import QualityLog
from .queue import Queue, QueuePolicy
from .results import CachePolicy, ResultKeeper
from .state import Action, SendCommand, SendReply, Worker
from .timetable import Timetable
from .warming import Plan, Warming

BUSY_PERIOD_S = 0.1  # between readings while a task runs: what the budget is late by when somebody comes back
WAITING_PERIOD_S = 0.5  # while tasks wait and none runs
WATCHED_PERIOD_S = 2.0  # while there is no task, and somebody follows the events
IDLE_PERIOD_S = 5.0  # while nobody asks: with the look at idle workers. A task that comes has one made at once
REFRESH_PRIORITY = -1  # of what nobody asked for
SAVE_PERIOD_S = 60.0  # query analytics are statistics: losing a minute of them at a crash is accepted
SNAPSHOT_PERIOD_S = 1800.0  # some MB each time; a reboot costs what was computed in the last half hour
COUNT_PERIOD_S = 0.5  # between looks at what readers counted: the rate of searches says nothing in less
DUTY_STEP_PERMILLE = 5  # of the machine: workers may be told so much too little or too much; half a tick in 0.5 s
FRESH_S = 0.5  # a reading older than this is renewed before it is shown
PING, REINDEX = TaskType.PING, TaskType.REINDEX  # looked up once: an enum's member costs 0.1 us a look on Python 3.11
WINDOW = 256  # tiny tasks a worker holds besides the one it runs


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
        local_hour: Callable[[ZoneInfo, float], float],
        jitter: Callable[[], float],
        started_at: float,
        snapshot: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings, self.journal, self.queue = settings, journal, queue
        self.popularity, self.keeper = popularity, keeper
        self.warming = Warming(popularity, keeper)
        self._jitter = jitter
        self.started_at = self.last_check_at = started_at
        self.timetable = Timetable(journal, settings.zone)
        self.workers: dict[int, Worker] = {}
        self.budget = Budget(monitor, own_pids, local_hour, self.workers, queue.get, _threads_of(settings))
        self.fork_server: int | None = None  # its pid, while there is one
        self.problems: dict[str, str] = {}  # what is wrong now, by what it is about
        self.is_draining = False
        self.is_stirred = True  # more has happened than pings: `upkeep` has something to do
        self.refused_connections = 0  # of users that may not connect
        self._polls = Polls()
        self._actions: list[Action] = []
        self._searches, self._rate_hz, self._counted_at = 0, 0.0, 0.0
        self._salt = int(started_at * 1e6)
        self.decisions, self.quality = DecisionLog(), QualityLog()
        self._freshness = Freshness(keeper, popularity, settings.collections)
        self._snapshot, self._next_snapshot_at = snapshot, started_at + SNAPSHOT_PERIOD_S
        self._next_sample_at = self._next_save_at = 0.0
        self._spare_s: float | None = None
        self._spare_at = -math.inf
        # what the last upkeep knew of what the shares of workers follow from: the decision, the CPUs, what each one runs
        self._told = governor.Decision(0, False, Memory.EASY, ""), 0.0, list[str | None]()
        self._next_check_at = started_at + settings.check_interval_s
        self.feed = Feed(int(started_at * 1e6))
        self._restore(started_at)
        self.sample(started_at)
        # from now on: what readers that were there already had counted was counted before
        keeper.on_counts = self.quality.looked_up
        self.feed.known(self.queue.open(), self._seen())

    def _restore(self, now: float) -> None:
        self.popularity.load(self.journal.queries(), now)
        for record in self.queue.restore(self.journal.open_tasks()):
            if record.status.is_final:  # it was to be cancelled, or its time was up, when its supervisor died
                self.ended(record, record.completed_at or now)
            else:
                self.journal.save_task(record)
        for collection in self.journal.paused():
            self.queue.pause(collection)
        self.timetable.catch_up(now)
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
        self.timetable.keep_defaults(
            self.settings.collections,
            self._freshness.active(now),
            now,
            is_automatic=self.settings.is_auto_scheduling,
        )
        worker = self.settings.worker
        is_reported = worker.store.is_embedded and self.settings.lane != "inline"
        if not is_reported:
            self._freshness.check_all()
        if self.settings.is_auto_scheduling:
            for collection in self._freshness.with_new(
                worker.collections, self._was_reindexed, is_reported=is_reported
            ):
                self._look_after(TaskType.REINDEX, collection, {"only_new": True}, now)
        self._refresh(now)

    def _refresh(self, now: float) -> None:
        """Have results computed again that are past their soft age, and checked that may be older than their documents."""
        for collection in self._freshness.wanted(now):
            self._look_after(TaskType.WARM, collection, {}, now)

    def _was_reindexed(self, collection: str) -> bool:
        done, kind = TaskStatus.COMPLETED, TaskType.REINDEX
        return bool(self.journal.executions(1, task_type=kind, collection=collection, status=done))

    def _look_after(self, task_type: TaskType, collection: str, params: dict[str, Any], now: float) -> None:
        """Hand in a task that nobody asked for, unless its like waits already."""
        record, is_new = self.queue.submit(
            task_type, collection, params, now=now, priority=REFRESH_PRIORITY, salt=self.salt()
        )
        if is_new:
            self.changed(record)

    @property
    def schedules(self) -> Mapping[str, ScheduleRecord]:
        return self.timetable.schedules

    def save_schedule(self, schedule: ScheduleRecord) -> None:
        self.timetable.save(schedule)

    def accepted(self, record: TaskRecord, *, is_new: bool, can_wait: bool) -> None:
        """Make a task durable that was handed in. `can_wait`: as for `changed`."""
        if not is_new or record.task_type is not PING:
            self.changed(record, can_wait=can_wait)
        else:
            self.journal.save_task(record, can_wait=can_wait)  # nobody can wait for it yet

    def changed(self, record: TaskRecord | None, *, can_wait: bool = False) -> TaskRecord | None:
        """Make a task's new state durable, and tell who waits for it. None (nothing changed) passes through.

        `can_wait`: nobody is told of it yet and losing it in a crash loses nothing, so no commit is made for it alone.
        """
        if record is None:
            return None
        self.journal.save_task(record, can_wait=can_wait)
        if told := self._polls.changed(record):
            self._actions += told
        if record.task_type is not PING:  # thousands of them would push all else out of what is kept
            self.feed.task(record)
            self.is_stirred = True
            if record.status is TaskStatus.PENDING:  # it is not admitted on a reading of some seconds ago
                self._next_sample_at = min(self._next_sample_at, self.budget.sampled_at + BUSY_PERIOD_S)
        return record

    def ended(
        self,
        record: TaskRecord | None,
        now: float,
        event: Finished | Failed | Stopped | None = None,
        spent: Spent = NOTHING,
    ) -> None:
        """Write down a task that reached a final state. `event` is the worker's report, where there is one."""
        if self.changed(record) is None or record is None or not record.status.is_final:
            return
        self.journal.drop_checkpoint(record.task_id)
        self.warming.ended(record, event.cpu_s if event else 0.0, now)
        if record.schedule_id is not None:
            self.timetable.note_end(record)
        if record.task_type is PING and record.status is TaskStatus.COMPLETED:
            return  # nothing was done; one a minute would push what was out of the history within a week
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
                worker=spent.worker,
                wall_s=spent.wall_s,
                cpu_s=event.cpu_s if event else 0.0,
                budget=spent.budget,
                result=record.result,
                error_message=record.error_message,
                metric=measured.metric if measured else None,
                before_score=measured.before_score if measured else None,
                after_score=measured.after_score if measured else None,
            )
        )

    def wait_for(self, poll: Poll) -> None:
        """Owe a client an answer: when what it waits for happens, or its wait is over."""
        self._polls.add(poll)

    def stop_running(self, record: TaskRecord, *, is_cancelled: bool) -> None:
        """Tell the worker that runs `record` to leave it at its next step."""
        if record.worker is not None:
            self._actions.append(
                SendCommand(record.worker, StopTask(task_id=record.task_id, is_cancelled=is_cancelled))
            )

    def search_seen(self) -> None:
        """Count a search by an application: the governor makes room for them."""
        self._searches += 1

    def collect_counts(self, now: float) -> None:
        """Take over what the readers counted: read the popularity of queries after this."""
        self._searches += self.keeper.collect_counts(now)
        elapsed_s = now - self._counted_at
        if not 0 <= elapsed_s < COUNT_PERIOD_S:  # a rate of less says little
            self._rate_hz = self._searches / elapsed_s if elapsed_s > 0 else 0.0
            self._searches, self._counted_at = 0, now

    # --- readings and budget ------------------------------------------------------------------------------------------

    def sample(self, now: float) -> None:
        """Take readings and decide the budget anew. Stirs where that makes a difference to workers or to who follows."""
        if not 0 <= now - self._counted_at < COUNT_PERIOD_S:
            self.collect_counts(now)
        self.budget.sample(now, self._rate_hz, self.settings.limits, self.settings.zone)
        if self._differs():
            self.is_stirred = True
        limit = self.budget.limit_permille
        self.decisions.add(now, self.budget.readings, self.budget.decision, limit)
        is_busy = self.budget.is_busy
        idle_s = WATCHED_PERIOD_S if self.feed.is_listened_to(now) else IDLE_PERIOD_S
        period_s = BUSY_PERIOD_S if is_busy else WAITING_PERIOD_S if self.queue.has_pending else idle_s
        self._next_sample_at = now + period_s

    def _differs(self) -> bool:
        """Say whether what workers may use is another than at the last upkeep, by more than DUTY_STEP_PERMILLE or to none."""
        decision, (told, cpus, task_ids) = self.budget.decision, self._told
        return (
            decision.is_admitting is not told.is_admitting
            or decision.memory is not told.memory
            or decision.memory is Memory.CRITICAL
            or (decision.budget_permille == 0) is not (told.budget_permille == 0)
            or abs(decision.budget_permille - told.budget_permille) >= DUTY_STEP_PERMILLE
            or self.budget.readings.cpus != cpus
            or self.budget.task_ids() != task_ids
        )

    def sample_if_stale(self, now: float) -> None:
        if not 0 <= now - self.budget.sampled_at < FRESH_S:
            self.sample(now)

    # --- workers ------------------------------------------------------------------------------------------------------

    def on_event(self, index: int, event: Event, now: float) -> None:
        """Take a worker's report. One that is not of the current attempt changes nothing."""
        worker = self.workers.get(index)
        if worker is None:
            return  # it left, and what it still had to say is of an attempt that is not current
        if isinstance(event, Finished):
            self._finished(worker, event, now)
            return
        self.is_stirred = True
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
                self.publish(event.results, now, is_asked_for=True)
                self.warming.refilled(len(event.results))
            case Leaving():
                worker.is_leaving = True
            case Failed():
                spent = self.budget.free(worker, event.task_id, now)
                self.ended(self._failed(event, now), now, event, spent)
            case Stopped():
                spent = self.budget.free(worker, event.task_id, now)
                record = self.queue.stopped(event.task_id, event.attempt, event.is_cancelled, now)
                self.ended(record, now, event, spent)

    def _finished(self, worker: Worker, event: Finished, now: float) -> None:
        spent = self.budget.free(worker, event.task_id, now)
        record = self.queue.complete(event.task_id, event.attempt, event.result, now, is_skipped=event.is_skipped)
        self.ended(record, now, event, spent)
        if record is not None and record.task_type is not PING:
            self.problems.pop("vector store", None)
            if record.result and "reranker_problem" in record.result and not event.is_skipped:
                self.reranked(record.result["reranker_problem"])
            if not record.params.get("dry_run") and self._freshness.completed(record, now):
                self._refresh(now)

    def reranked(self, problem: str | None) -> None:
        """Show in the status why results keep the vector search's order; None: the reranker works."""
        if problem:
            self.problems["reranker"] = f"{problem}; results keep the vector search's order"
        else:
            self.problems.pop("reranker", None)

    def _progressed(self, worker: Worker, event: Progress, now: float) -> None:
        self.changed(self.queue.progress(event.task_id, event.attempt, event.progress, now))
        for change in event.changes:  # also of an attempt that is over: the documents did change
            self._freshness.points_changed(change, now)
        if worker.task_id == event.task_id and worker.attempt == event.attempt:
            if event.checkpoint is not None:
                self.journal.save_checkpoint(event.task_id, event.attempt, event.checkpoint)
            record = self.queue.get(event.task_id)
            if record is not None:
                self.journal.quality.add_measures(record.collection, event.measures, now)
            is_asked_for = record is not None and "queries" in record.params
            self.publish(event.results, now, is_asked_for=is_asked_for)

    def _failed(self, event: Failed, now: float) -> TaskRecord | None:
        if event.code == StoreUnavailable.code:
            self.problems["vector store"] = event.message
        record = self.queue.get(event.task_id)
        if event.code == CollectionNotFound.code and record is not None:
            self._freshness.is_gone(record.collection)
            if record.priority == REFRESH_PRIORITY or self.timetable.is_default(record.schedule_id):
                return self.queue.skip(event.task_id, event.message, now)
        return self.queue.fail(
            event.task_id, event.attempt, event.code, event.message, event.is_transient, now, self._jitter()
        )

    def worker_joined(self, index: int, role: Role, pid: int, configure: Configure) -> None:
        self.workers[index] = Worker(index, role, pid)
        self._actions.append(SendCommand(index, configure))

    def worker_left(self, index: int, now: float, why: str = "", *, has_left: bool = False) -> None:
        """A worker's process ended: its task goes back to the queue, or to the dead letters if it kills workers.

        `why` says in words how it ended. `has_left`: as one does that was told to; its last reports may still be on
        their way, and a task it had is not the cause.
        """
        if (worker := self.workers.get(index)) is not None:
            spent = self.budget.spent(worker, now) if worker.task_id else NOTHING
            del self.workers[index]
            # one that left when it was told to has begun nothing that it has not reported
            begun = "" if worker.is_leaving or has_left else worker.task_id
            for record in self.queue.worker_died(index, now, why=why, begun=begun):
                self.ended(record, now, spent=spent if record.task_id == worker.task_id else NOTHING)

    def publish(self, results: Iterable[ComputedResult], now: float, *, is_asked_for: bool) -> None:
        """Keep results; of those nobody asked for, the ones that are worth their place."""
        for result in results:
            try:
                if not self.keeper.put(result, now, is_asked_for=is_asked_for):
                    self._freshness.check(result.collection)  # it was overtaken by a change: it is computed again
                else:
                    self.feed.results(published=1)
                if result.rerank_scores:  # of another depth of search the cost says nothing of a warm task's
                    key = query_hash(result.query_text, result.collection, result.scope)
                    self.popularity.note_cost(key, result.cost_s)
                self.problems.pop("result store", None)
            except ResultStoreError as error:
                self.problems["result store"] = str(error)  # shown by status; what is stored stays served

    def publish_of_application(self, result: ComputedResult, now: float, ttl_s: float | None) -> None:
        """Keep what an application computed. Raises ResultStoreError where the store cannot take it."""
        self.popularity.computed(result.query_text, result.collection, result.scope, now)
        self.feed.results(published=int(self.keeper.put(result, now, ttl_s)))
        self.warming.refilled(1)

    def is_owner_ready(self) -> bool:
        """Say whether the vectors can be reached: a server always can be tried, an embedded store needs its owner."""
        if self.settings.lane == "inline" or not self.settings.worker.store.is_embedded:
            return True
        return any(worker.role is Role.OWNER and worker.is_started for worker in self.workers.values())

    # --- time ---------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Action]:
        """Do what is due at `now`; return what to send, in order, once the journal is committed."""
        return [*self.turn(now), *self.upkeep(now)]

    def turn(self, now: float) -> list[Action]:
        """Do what cannot wait: tasks that are due, late or to be handed out. `upkeep` has to follow where `is_stirred`."""
        if now >= self._next_sample_at or now < self.budget.sampled_at:
            self.sample(now)
        if now >= self._next_check_at:
            self._check(now)
        for late in self.queue.expire(now):
            if not late.status.is_final:
                self.stop_running(late, is_cancelled=False)
            self.ended(late, now)
        if not self.is_draining:
            if (run_at := self.next_schedule()) is not None and run_at <= now:
                self._fire_schedules(now)
            self._dispatch(now)
        if now >= self._polls.next_deadline:
            self._actions += self._polls.expired(now, functools.partial(self._shown, now=now))
        actions, self._actions = self._actions, []
        return actions

    def upkeep(self, now: float) -> list[Action]:
        """Do what follows from what has changed since the last time, and what is done now and then."""
        self.is_stirred = False
        self._told = self.budget.decision, self.budget.readings.cpus, self.budget.task_ids()
        if void := self.keeper.take_void():
            self.journal.void_results(void)
            self.feed.results(voided=len(void))
        if now >= self._next_save_at:
            self.save(now)
        self.tell(now)
        self._actions += [SendReply(reply_to, reply) for reply_to, reply in self.feed.served(now)]
        actions, self._actions = self._actions, []
        return actions

    def tell(self, now: float) -> None:
        """Have what has happened numbered, for who follows the events."""
        self.feed.turn(self._seen(), now)
        if self.feed.wants_reasons(now):
            held = self.conditions(now)
            waits = ((record, waiting.wait_of(record, held)) for record in self.queue.open())
            self.feed.reasons(((record, wait.why) for record, wait in waits if wait is not None), now)

    def _seen(self) -> Seen:
        return Seen(
            schedules=self.schedules,
            workers={worker.index: (worker.role.value, worker.pid) for worker in self.workers.values()},
            problems=self.problems,
            paused=self.queue.paused,
            budget_permille=self.budget.decision.budget_permille,
            is_admitting=self.budget.decision.is_admitting,
            reason=self.budget.decision.why,
            is_draining=self.is_draining,
        )

    def save(self, now: float, *, is_last: bool = False) -> None:
        self.journal.save_queries(self.popularity.records(now))
        self.journal.save_demand(self.keeper.admission.weights)
        self.journal.add_decisions(self.decisions.take(is_last=is_last))
        self.journal.quality.add_days(self.quality.take())
        self.journal.quality.sum_up(now)
        self.journal.prune(now)
        self._next_save_at = now + SAVE_PERIOD_S
        if is_last or now >= self._next_snapshot_at:
            self._next_snapshot_at = now + SNAPSHOT_PERIOD_S
            try:
                self._snapshot()
                self.journal.snapshot_taken()
                self.problems.pop("saved results", None)
            except ResultStoreError as error:
                self.problems["saved results"] = str(error)  # the last copy stays, and what was voided since is known

    def next_deadline(self, now: float) -> float:
        """Return when the next tick has something to do (Unix seconds)."""
        return min(self._next_sample_at, self.next_upkeep(now))

    def next_turn(self, now: float) -> float:
        """Return when `turn` has something to do of which `upkeep` need not hear: a sample is due, or a wait ends."""
        return min(self._next_sample_at, self.next_end_of_a_wait(now))

    def next_upkeep(self, now: float) -> float:
        """Return when there is more to do than to take a sample."""
        deadlines = [self._next_save_at, self._next_check_at, self.next_end_of_a_wait(now)]
        if (next_run_at := self.next_schedule()) is not None:
            deadlines.append(next_run_at)
        if (tell_at := self.feed.next_deadline(now)) is not None:
            deadlines.append(tell_at)
        return min(deadlines)

    def next_end_of_a_wait(self, now: float) -> float:
        """Return when the next back-off, deadline of a task or long poll ends (Unix seconds)."""
        of_tasks = self.queue.next_deadline(now)
        return self._polls.next_deadline if of_tasks is None else min(of_tasks, self._polls.next_deadline)

    def next_schedule(self) -> float | None:
        """Return when the next schedule is due; None where none is, or where none is started any more."""
        if self.is_draining:
            return None
        return self.timetable.next_run()

    def time_moved(self, moved: Moved, now: float) -> None:
        """Go on after the clock was set or the machine was suspended: runs that were missed meanwhile are caught up on
        as after a downtime, waits end when they would have ended.
        """
        self.timetable.time_moved(now)
        for record in self.queue.time_moved(moved.set_s, moved.suspended_s, now):
            self.changed(record)
        self._polls.time_moved(moved.set_s + moved.suspended_s)
        self.feed.time_moved(moved.set_s + moved.suspended_s)
        self.started_at += moved.set_s
        self._next_check_at += moved.set_s
        self._next_save_at += moved.set_s
        self._next_snapshot_at += moved.set_s
        self._next_sample_at = now

    def reconfigure(self, settings: CoreSettings, policy: QueuePolicy, cache: CachePolicy, now: float) -> None:
        """Take what may change while the service runs. What the next check would find is looked for at once."""
        has_moved = settings.zone.key != self.settings.zone.key
        self.settings, self.keeper.policy = settings, cache
        self.queue.set_policy(policy)
        self._freshness.collections = settings.collections
        if has_moved:
            self.timetable.zone_moved(settings.zone, now)
        self.sample(now)
        self._check(now)

    def _fire_schedules(self, now: float) -> None:
        for schedule in self.timetable.due(now):
            record, is_new = self.queue.submit(
                schedule.task_type,
                schedule.collection,
                params_of_schedule(schedule.task_type, schedule.metadata),
                now=now,
                schedule_id=schedule.task_id,
                salt=self.salt(),
            )
            self.changed(record)
            note = "" if is_new else f"its task of an earlier run still waits: {record.task_id}"
            self.timetable.has_run(schedule, now, note)
        self.last_check_at = now

    def _dispatch(self, now: float) -> None:
        if not self.queue.has_pending:
            return
        if now >= self._next_sample_at:  # see `changed`
            self.sample(now)
        is_store_ready = self.is_owner_ready()
        is_admitting = self.budget.decision.is_admitting and not self.budget.is_taken
        workers = [one for one in self.workers.values() if one.role is Role.TASKS and one.is_started]
        while True:
            record = self.queue.next_ready(now, is_admitting=is_admitting, is_store_ready=is_store_ready)
            if record is None:
                return
            is_tiny = record.task_type is PING and "hold_s" not in record.params
            worker = _worker_for(workers, is_tiny=is_tiny)
            if worker is None:
                return
            leased = self.queue.lease(record.task_id, worker.index, now)
            if record.task_type is not PING:
                self.changed(leased)
            elif leased.task_id in self._polls.waiters:  # not kept: docs/design.md, "Durability"
                self._actions += self._polls.changed(leased)
            if worker.task_id is None:
                self.budget.begin(worker, leased.task_id, leased.attempt, now)
                worker.is_tiny, worker.is_heavy = is_tiny, leased.task_type is not PING
                worker.is_wide, worker.is_forced = leased.task_type is REINDEX, leased.is_forced
                is_admitting = is_admitting and not (worker.is_heavy and self.budget.is_taken)
            else:
                worker.ahead[leased.task_id] = leased.attempt
            self.last_check_at = now
            self._actions.append(SendCommand(worker.index, self._order_for(leased, now)))

    def _order_for(self, leased: TaskRecord, now: float) -> Run:
        """Return what a worker needs to run a task."""
        checkpoint = self.journal.checkpoint(leased.task_id)
        if leased.task_type is PING:
            return Run(
                task_id=leased.task_id,
                task_type=PING,
                collection=leased.collection,
                attempt=leased.attempt,
                params=leased.params,
                checkpoint=checkpoint,
            )
        queries, why_none = self._queries_for(leased, now)
        return Run(
            task_id=leased.task_id,
            task_type=leased.task_type,
            collection=leased.collection,
            attempt=leased.attempt,
            params=leased.params,
            queries=queries,
            cached=self._freshness.to_check(leased, now),
            why_none=why_none,
            checkpoint=checkpoint,
        )

    def _queries_for(self, record: TaskRecord, now: float) -> tuple[tuple[QueryJob, ...], str]:
        """Return what a task computes, and why that is nothing although results are lacking."""

        def popular(limit: int, min_frequency: int) -> list[QueryRecord]:
            self.collect_counts(now)  # what readers were served counts as much as what was searched
            return self.popularity.popular(now, record.collection, limit, min_frequency)

        stale, why_none = self._freshness.stale_queries(record.collection, now), ""
        if self.warming.plans(record):
            self.collect_counts(now)
            plan = self._plan(record, stale, now)
            popular, stale, why_none = (lambda *_: list(plan.queries)), list(plan.stale), plan.why_none
        jobs = jobs_for(
            record.task_type,
            record.collection,
            record.params,
            popular,
            self.journal.judgments(record.collection),
            max_queries=self.settings.worker.rerank.max_queries,
            min_frequency=self.settings.min_frequency,
            is_cached=lambda text: self.keeper.holds(text, record.collection, "", now),
            is_worth=lambda text: self.keeper.is_worth(text, record.collection, now),
            stale=stale,
        )
        return jobs, why_none

    def _plan(self, record: TaskRecord, stale: Sequence[str], now: float) -> Plan:
        """Plan what a warm or rerank task computes, and when its collection is warmed next."""
        limit, least = bounds(record.params, self.settings.worker.rerank.max_queries, self.settings.min_frequency)
        if record.task_type is TaskType.WARM:
            least = 1  # the forecast weighs every query: bench warm
        spare = self.spare_s(now)
        warmed = self.timetable.warmed()
        plan = self.warming.plan(record, now, limit=limit, least=least, spare_s=spare, every_s=warmed, stale=stale)
        if (cadence := plan.cadence) is not None:
            self.timetable.pace(record.collection, cadence.every_s, cadence.why, now, record.schedule_id)
        return plan

    def spare_s(self, now: float) -> float | None:
        """Return the CPU seconds an hour that the governor left for background work in the last hours."""
        if not 0 <= now - self._spare_at < SAVE_PERIOD_S:  # the log gets a row a minute
            log = [*self.journal.decisions(now - SPARE_S, now, KEPT_DECISIONS), *self.decisions.rows()]
            self._spare_s, self._spare_at = spare_s(log, self.budget.readings.cpus), now
        return self._spare_s

    def why_waiting(self, record: TaskRecord, now: float) -> str:
        """Say in words why a pending task is not running; "" for one that is not pending."""
        wait = waiting.wait_of(record, self.conditions(now))
        return wait.why if wait is not None else ""

    def conditions(self, now: float) -> waiting.Conditions:
        """Return what every pending task's wait is explained from."""
        tasks = [worker for worker in self.workers.values() if worker.role is Role.TASKS and worker.is_started]
        limits, zone = self.settings.limits, self.settings.zone
        return waiting.Conditions(
            now=now,
            zone=zone,
            max_attempts=self.queue.policy.max_attempts,
            paused=self.queue.paused,
            running=tuple(self.queue.running()),
            idle_workers=sum(worker.task_id is None for worker in tasks),
            started_workers=len(tasks),
            workers_problem=self.problems.get("workers", ""),
            store_problem=self.problems.get("vector store", ""),
            is_draining=self.is_draining,
            is_owner_ready=self.is_owner_ready(),
            is_admitting=self.budget.decision.is_admitting,
            is_budget_taken=self.budget.is_taken,
            reason=self.budget.decision.reason,
            admits_from=functools.cache(lambda: self.budget.admits_from(limits, zone, now)),
        )

    def tasks(self, limit: int, status: TaskStatus | None) -> list[TaskRecord]:
        """Return tasks, newest first. The queue knows the open ones better than the journal: see `changed`."""
        if status is None or status.is_final:
            return [self.queue.get(record.task_id) or record for record in self.journal.tasks(limit, status)]
        found = [task for task in self.queue.open() if task.status is status]
        return sorted(found, key=lambda task: (task.created_at, task.task_id), reverse=True)[:limit]

    def find_task(self, task_id: str) -> TaskRecord | None:
        return self.queue.get(task_id) or self.journal.task(task_id)

    def _shown(self, task_id: str, now: float) -> TaskRecord | None:
        record = self.find_task(task_id)
        return None if record is None else self.with_reason(record, now)

    def with_reason(self, record: TaskRecord, now: float) -> TaskRecord:
        return self.with_reasons([record], now)[0]

    def with_reasons(self, records: Iterable[TaskRecord], now: float) -> tuple[TaskRecord, ...]:
        """Return the records, those of pending tasks with the reason for their wait."""
        held = self.conditions(now)
        waits = [(record, waiting.wait_of(record, held)) for record in records]
        return tuple(msgspec.structs.replace(record, waits_for=wait.why) if wait else record for record, wait in waits)


def _threads_of(settings: CoreSettings) -> int:
    """Return in how many threads a worker may compute at most; 0: in as many as there are CPUs.

    The application's thread computes alone, since nobody can say of further ones whose CPU time theirs is. So does one
    whose model is on another device.
    """
    model = settings.worker.model
    return 1 if settings.lane == "inline" or model.device != "cpu" else model.threads


def _worker_for(workers: Iterable[Worker], *, is_tiny: bool) -> Worker | None:
    """Return the worker to give a task to: an idle one, or for a tiny task one that holds the fewest of them."""
    best: Worker | None = None
    fewest = WINDOW
    for worker in workers:
        if worker.is_leaving:
            continue
        if worker.task_id is None:
            return worker
        if is_tiny and worker.is_tiny and (held := len(worker.ahead)) < fewest:
            best, fewest = worker, held
    return best
