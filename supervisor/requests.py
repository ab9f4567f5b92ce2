"""Owns what each request of ipc/messages.py does to the core and what it is answered with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, assert_never

from ..ipc import messages as m
from ..ipc.checks import check_collection, check_number, check_result, check_vector
from ..ipc.errors import InvalidArgument, MorganError, TaskNotFound
from ..ipc.events import WorkerJoined
from ..ipc.paths import RuntimePaths
from ..ipc.query import query_hash
from ..ipc.records import Order, ScheduleRecord, TaskRecord, TaskStatus, TaskType
from ..ipc.version import VERSION
from . import scheduler
from .core import PING, Core
from .decisions import page
from .feed import Reader
from .params import check_params
from .quality import KEPT_DAYS
from .reload import Changes
from .state import Gathering, ReplyTo, Waiter
from .status import activity, execution_stats, quality, resources, service_status

MAX_ROWS = 1000  # of any list in one reply
MAX_WAIT_S = 60.0  # of a long poll: the client asks again
MAX_DEADLINE_S = 366 * 86400.0
CALM = m.Submit, m.SubmitMany, m.GetTask, m.Track, m.Hello  # what they change says so by itself, if it is worth upkeep


class Requests:
    """Answers requests. `handle` never raises on what a client sent: a MorganError becomes a Failure."""

    def __init__(
        self,
        core: Core,
        state_dir: str,
        runtime: RuntimePaths,
        pid: int,
        reload: Callable[[float], Changes] | None = None,
    ) -> None:
        self._reload = reload
        self._core, self._state_dir, self._runtime, self._pid = core, state_dir, runtime, pid
        self.is_shutdown_asked = False

    def handle(self, request: m.Request, reply_to: ReplyTo, now: float) -> m.Reply | None:
        """Return the reply, or None where it comes later (a long poll) or is not wanted (rid 0)."""
        if not isinstance(request, CALM):
            self._core.is_stirred = True
        try:
            reply = self._answer(request, reply_to, now)
        except MorganError as error:
            reply = m.Failure(rid=request.rid, code=error.code, message=str(error))
        return reply if request.rid else None

    def _answer(self, request: m.Request, reply_to: ReplyTo, now: float) -> m.Reply | None:  # noqa: PLR0911, PLR0912, PLR0915 - one case a request
        core, rid = self._core, request.rid
        match request:
            case m.Hello():
                return m.Welcome(
                    rid=rid,
                    pid=self._pid,
                    version=VERSION,
                    state_dir=self._state_dir,
                    results_path=str(self._runtime.results),
                    readers_dir=str(self._runtime.readers),
                    owner_socket=str(self._runtime.owner),
                )
            case m.Status():
                core.sample_if_stale(now)
                return m.Report(rid=rid, report=service_status(core, now, self._pid))
            case m.Activity():
                core.collect_counts(now)
                return m.Report(rid=rid, report=activity(core, _bounded(request.limit), now))
            case m.Resources():
                core.sample_if_stale(now)
                return m.Report(rid=rid, report=resources(core))
            case m.CacheStats():
                core.collect_counts(now)
                return m.Report(rid=rid, report=core.keeper.stats(now))
            case m.ExecutionStats():
                return m.Report(rid=rid, report=execution_stats(core))
            case m.Quality():
                core.collect_counts(now)
                return m.Report(rid=rid, report=quality(core, now, _days(request.days)))
            case m.Submit():
                return self._submit(request, reply_to, now)
            case m.SubmitMany():
                return self._submit_many(request, reply_to, now)
            case m.GetTask():
                return self._get_task(request, reply_to, now)
            case m.ListTasks():
                status = _status(request.status)
                found = core.tasks(_bounded(request.limit), status)
                return m.TaskList(rid=rid, tasks=core.with_reasons(found, now))
            case m.CancelTask():
                return self._cancel(request, now)
            case m.Requeue():
                record = self._known(request.task_id)
                core.changed(core.queue.requeue(record, now))
                return m.Done(rid=rid)
            case m.Pause():
                core.queue.pause(_collection_or_all(request.collection))
                core.journal.set_paused(core.queue.paused)
                for running in core.queue.running(request.collection):
                    core.stop_running(running, is_cancelled=False)
                return m.Done(rid=rid)
            case m.Resume():
                core.queue.resume(request.collection)
                core.journal.set_paused(core.queue.paused)
                return m.Done(rid=rid)
            case m.AddSchedule():
                return self._add_schedule(request, now)
            case m.ListSchedules():
                rows = sorted(core.schedules.values(), key=lambda schedule: schedule.next_run_at)
                due = {s.task_id for s in scheduler.due(rows, now)} if request.only_due else None
                return m.ScheduleList(rid=rid, schedules=tuple(s for s in rows if due is None or s.task_id in due))
            case m.RemoveSchedule():
                self._schedule(request.task_id)
                core.timetable.remove(request.task_id)
                return m.Done(rid=rid)
            case m.MarkScheduleCompleted():
                schedule = self._schedule(request.task_id)
                core.save_schedule(scheduler.advance(schedule, now, core.settings.zone, has_run=True))
                return m.Done(rid=rid)
            case m.Track():
                check_number("response_s", request.response_s)
                if not request.was_looked_up:
                    core.search_seen()
                core.quality.searched(request.collection, request.response_s, now)
                key = core.popularity.track(request.query, request.collection, request.scope, request.response_s, now)
                return m.Tracked(rid=rid, query_hash=key)
            case m.ListQueries():
                core.collect_counts(now)
                found_queries = core.popularity.popular(
                    now, request.collection, _bounded(request.limit), request.min_frequency
                )
                return m.QueryList(rid=rid, queries=tuple(found_queries))
            case m.Feedback():
                return self._feedback(request, now)
            case m.Publish():
                check_result(request.result)
                ttl_s = None if request.ttl_s is None else check_number("ttl_s", request.ttl_s)
                core.publish_of_application(request.result, now, ttl_s)
                return m.Done(rid=rid)
            case m.FindSimilar():
                check_collection(request.collection)
                vector = check_vector(request.vector)
                served = core.keeper.find_similar(request.query, request.collection, vector, now)
                if served is None:
                    return m.Similar(rid=rid)
                return m.Similar(rid=rid, query=served.query_text, computed_at=served.computed_at)
            case m.Invalidate():
                return m.Done(rid=rid, count=core.keeper.invalidate(request.collection, request.pattern))
            case m.ListExecutions():
                rows_run = core.journal.executions(
                    _bounded(request.limit),
                    only_measured=request.only_measured,
                    task_type=None if request.task_type is None else scheduler.parse_task_type(request.task_type),
                    collection=request.collection,
                    status=_status(request.status),
                )
                return m.ExecutionList(rid=rid, executions=tuple(rows_run))
            case m.ListDecisions():
                return self._decisions(request, now)
            case m.Reload():
                # the inline lane's configuration is what its application gave: there is nothing to read again
                changes = self._reload(now) if self._reload is not None else Changes((), ())
                return m.Reloaded(rid=rid, applied=changes.applied, needs_restart=changes.needs_restart)
            case m.GetSnapshot():
                return self._snapshot(rid, now)
            case m.NextEvents():
                return self._next_events(request, reply_to, now)
            case m.Shutdown():
                self.is_shutdown_asked = True
                return m.Done(rid=rid)
            case _:
                assert_never(request)

    def _submit(self, request: m.Submit, reply_to: ReplyTo, now: float) -> m.Reply | None:
        core = self._core
        check_number("wait_s", request.wait_s)
        record, is_new = self._accept(_checked(request), now, is_awaited=request.wait_s > 0)
        core.sample_if_stale(now)
        if is_new and request.run_or_skip and not request.is_forced and not core.budget.decision.is_admitting:
            record = core.queue.skip(record.task_id, core.budget.decision.reason, now) or record
            core.ended(record, now)
        if request.wait_s > 0:
            return self._when_ended(record, request.wait_s, request.rid, reply_to, now)
        return m.Submitted(rid=request.rid, task_id=record.task_id, is_new=is_new)

    def _submit_many(self, request: m.SubmitMany, reply_to: ReplyTo, now: float) -> m.Reply | None:
        check_number("wait_s", request.wait_s)
        if len(request.orders) > MAX_ROWS:
            raise InvalidArgument(f"at most {MAX_ROWS} tasks can be handed in at once, not {len(request.orders)}")
        wanted = [_checked(order) for order in request.orders]  # all of them, before the first is accepted
        found = [self._accept(one, now, is_awaited=request.wait_s > 0) for one in wanted]
        self._core.sample_if_stale(now)
        task_ids = tuple(record.task_id for record, _ in found)
        if request.wait_s <= 0:
            return m.AllSubmitted(rid=request.rid, task_ids=task_ids, are_new=tuple(is_new for _, is_new in found))
        if not task_ids:
            return m.TaskList(rid=request.rid, tasks=())
        if request.rid:
            deadline_at = now + min(request.wait_s, MAX_WAIT_S)
            self._core.wait_for(Gathering(reply_to, request.rid, task_ids, deadline_at, set(task_ids), {}))
        return None

    def _accept(self, wanted: _Wanted, now: float, *, is_awaited: bool) -> tuple[TaskRecord, bool]:
        core, (order, task_type, params) = self._core, wanted
        record, is_new = core.queue.submit(
            task_type,
            order.collection,
            params,
            now=now,
            salt=core.salt(),
            priority=order.priority,
            is_forced=order.is_forced,
            deadline_s=order.deadline_s,
        )
        # a client that waits for a ping's end is told nothing before: one commit, at its end, is enough
        core.accepted(record, is_new=is_new, can_wait=is_awaited and task_type is PING)
        return record, is_new

    def _get_task(self, request: m.GetTask, reply_to: ReplyTo, now: float) -> m.Reply | None:
        record = self._known(request.task_id)
        check_number("wait_s", request.wait_s)
        if request.until_ended and request.wait_s > 0:
            return self._when_ended(record, request.wait_s, request.rid, reply_to, now)
        if request.wait_s == 0 or record.version > request.seen or record.status.is_final:
            return m.TaskReply(rid=request.rid, task=self._core.with_reason(record, now))
        deadline_at = now + min(request.wait_s, MAX_WAIT_S)
        self._core.wait_for(Waiter(reply_to, request.rid, request.task_id, request.seen, deadline_at))
        return None

    def _when_ended(self, record: TaskRecord, wait_s: float, rid: int, reply_to: ReplyTo, now: float) -> m.Reply | None:
        """Answer now where the task has ended, else when it has, or when `wait_s` has passed."""
        if record.status.is_final:
            return m.TaskReply(rid=rid, task=record)
        if rid:
            ends_at = now + min(wait_s, MAX_WAIT_S)
            self._core.wait_for(Waiter(reply_to, rid, record.task_id, record.version, ends_at, until_ended=True))
        return None

    def _cancel(self, request: m.CancelTask, now: float) -> m.Reply:
        core = self._core
        record = self._known(request.task_id)
        if record.status.is_final:
            return m.Done(rid=request.rid, count=0)
        if record.status is TaskStatus.RUNNING:
            core.stop_running(record, is_cancelled=True)
        # a running one is marked, so that it does not come back should its worker die before it leaves
        core.ended(core.queue.cancel(record.task_id, now), now)
        return m.Done(rid=request.rid)

    def _add_schedule(self, request: m.AddSchedule, now: float) -> m.Reply:
        core = self._core
        task_type = scheduler.parse_task_type(request.task_type)
        frequency = scheduler.parse_frequency(request.frequency)
        collection = check_collection(request.collection)
        schedule = ScheduleRecord(
            task_id=scheduler.schedule_id(task_type, collection, core.salt()),
            task_type=task_type,
            collection=collection,
            frequency=frequency,
            next_run_at=scheduler.next_run(frequency, now, core.settings.zone),
            metadata=request.metadata,
        )
        core.save_schedule(schedule)
        return m.ScheduleList(rid=request.rid, schedules=(schedule,))

    def _feedback(self, request: m.Feedback, now: float) -> m.Reply:
        if not request.document_id:
            raise InvalidArgument("feedback needs a document_id")
        check_number("relevance (0: irrelevant)", request.relevance)
        key = query_hash(request.query, request.collection)
        self._core.journal.add_judgment(
            key, request.query, request.collection, request.document_id, request.relevance, now
        )
        self._core.quality.fed_back(request.collection, request.relevance, now)
        return m.Done(rid=request.rid)

    def _decisions(self, request: m.ListDecisions, now: float) -> m.Reply:
        core, since, limit = self._core, check_number("since", request.since), _bounded(request.limit)
        core.sample_if_stale(now)
        written = core.journal.decisions(since, now, limit)
        rows = [*written, *(row for row in core.decisions.rows() if since < row.started_at <= now)]
        limits = core.settings.limits
        return m.DecisionList(
            rid=request.rid,
            decisions=tuple(page(sorted(rows, key=lambda row: row.started_at), limit)),
            zone=core.settings.zone.key,
            active_start_h=limits.active_start_h,
            active_end_h=limits.active_end_h,
            quiet_start_h=limits.quiet_start_h,
            quiet_end_h=limits.quiet_end_h,
        )

    def _snapshot(self, rid: int, now: float) -> m.Reply:
        core = self._core
        core.feed.listened(now)
        core.tell(now)  # so that `seq` is of this very state
        open_tasks = core.queue.open()
        return m.Snapshot(
            rid=rid,
            epoch=core.feed.epoch,
            seq=core.feed.seq,
            tasks=core.with_reasons(open_tasks[:MAX_ROWS], now),
            open_tasks=len(open_tasks),
            schedules=tuple(sorted(core.schedules.values(), key=lambda schedule: schedule.next_run_at)),
            paused=core.queue.paused,
            workers=tuple(WorkerJoined(index=w.index, role=w.role.value, pid=w.pid) for w in core.workers.values()),
            problems=dict(core.problems),
            resources=resources(core),
            is_draining=core.is_draining,
        )

    def _next_events(self, request: m.NextEvents, reply_to: ReplyTo, now: float) -> m.Reply | None:
        check_number("wait_s", request.wait_s)
        limit, deadline_at = _bounded(request.limit), now + min(request.wait_s, MAX_WAIT_S)
        reader = Reader(reply_to, request.rid, request.after, limit, deadline_at)
        return self._core.feed.ask(reader, request.epoch, now)

    def _known(self, task_id: str) -> TaskRecord:
        record = self._core.find_task(task_id)
        if record is None:
            raise TaskNotFound(f"no task {task_id!r}: `morgan-background tasks list` shows the known ones")
        return record

    def _schedule(self, task_id: str) -> ScheduleRecord:
        try:
            return self._core.schedules[task_id]
        except KeyError:
            raise TaskNotFound(
                f"no schedule {task_id!r}: `morgan-background schedule list` shows the known ones"
            ) from None


_Wanted = tuple[m.Submit | Order, TaskType, dict[str, Any]]
"""A task as it is asked for, its type and its parameters, once nothing is wrong with it."""


def _checked(order: m.Submit | Order) -> _Wanted:
    """Raises InvalidArgument."""
    deadline_s = order.deadline_s
    if deadline_s is not None and not 0 < check_number("deadline_s", deadline_s) <= MAX_DEADLINE_S:
        raise InvalidArgument(f"deadline_s must be above 0 and at most {MAX_DEADLINE_S:g}: {deadline_s}")
    task_type = scheduler.parse_task_type(order.task_type)
    params = check_params(task_type, order.params)
    check_collection(order.collection)
    return order, task_type, params


def _bounded(limit: int) -> int:
    if limit < 0:
        raise InvalidArgument(f"limit must be 0 or more, not {limit}")
    return min(limit, MAX_ROWS)


def _days(days: int) -> int:
    if not 1 <= days <= KEPT_DAYS:
        raise InvalidArgument(f"days must be 1 to {KEPT_DAYS}, not {days}")
    return days


def _collection_or_all(name: str | None) -> str | None:
    return None if name is None else check_collection(name)


def _status(value: str | None) -> TaskStatus | None:
    if value is None:
        return None
    try:
        return TaskStatus(value)
    except ValueError:
        raise InvalidArgument(f"no status {value!r}: one of {', '.join(s.value for s in TaskStatus)}") from None
