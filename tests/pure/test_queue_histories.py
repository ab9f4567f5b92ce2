"""Whatever order things happen in, the queue loses no task, counts no report twice, and agrees with a naive model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from morgan.background.ipc.errors import TaskCancelled
from morgan.background.ipc.records import TaskProgress, TaskRecord, TaskStatus, TaskType
from morgan.background.supervisor.queue import DEADLINE, Queue, QueuePolicy
from morgan.background.supervisor.waiting import Cause, Conditions, wait_of

POLICY = QueuePolicy(max_attempts=3, max_kills=2, backoff_base_s=2.0, backoff_cap_s=60.0)
COLLECTIONS = st.sampled_from(["docs", "code"])
TYPES = st.sampled_from(list(TaskType))
PARAMS: st.SearchStrategy[dict[str, Any]] = st.sampled_from([{}, {"max_queries": 3}])
WORKERS = range(3)
DEADLINES = st.none() | st.sampled_from([0.5, 5.0, 50.0])


def naively_next(
    tasks: Iterable[TaskRecord], paused: set[str | None], now: float, is_admitting: bool, is_store_ready: bool
) -> TaskRecord | None:
    """Return what to run next by looking at every task: what the queue's heaps must find without that."""
    tasks = list(tasks)
    busy = {t.collection for t in tasks if t.status is TaskStatus.RUNNING and t.task_type is not TaskType.PING}

    def may_run(task: TaskRecord) -> bool:
        if task.status is not TaskStatus.PENDING or task.not_before_at > now or {None, task.collection} & paused:
            return False
        if task.task_type is TaskType.PING:
            return True
        return is_store_ready and task.collection not in busy and (is_admitting or task.is_forced)

    ready = (task for task in tasks if may_run(task))
    return min(ready, key=lambda task: (-task.priority, task.created_at, task.task_id), default=None)


def naive_deadline(tasks: Iterable[TaskRecord], now: float) -> float | None:
    """Return the nearest end of a back-off or of what a task was given, by looking at every task."""

    def is_told(task: TaskRecord) -> bool:  # to leave its worker: there is nothing more to do at its deadline
        return task.status is TaskStatus.RUNNING and task.error_code in (DEADLINE, TaskCancelled.code)

    open_tasks = [task for task in tasks if not task.status.is_final]
    ends = [t.not_before_at for t in open_tasks if t.status is TaskStatus.PENDING and t.not_before_at > now]
    ends += [t.deadline_at for t in open_tasks if t.deadline_at is not None and not is_told(t)]
    return min(ends, default=None)


class Supervision(RuleBasedStateMachine):
    """Drives a queue as the core does, and keeps what the journal would."""

    def __init__(self) -> None:
        super().__init__()
        self.queue, self.now, self.salt = Queue(POLICY), 1e9, 0
        self.journal: dict[str, TaskRecord] = {}

    def save(self, record: TaskRecord | None) -> None:
        if record is not None:
            before = self.journal.get(record.task_id)
            assert before is None or (record.version > before.version and not before.status.is_final)
            self.journal[record.task_id] = record

    def tasks(self, *statuses: TaskStatus) -> list[TaskRecord]:
        return [task for task in self.journal.values() if task.status in statuses]

    def report(self, kind: str, task: TaskRecord, attempt: int, jitter: float = 0.5) -> TaskRecord | None:
        queue, task_id = self.queue, task.task_id
        match kind:
            case "progress":
                return queue.progress(task_id, attempt, TaskProgress(done=1, total=2), self.now)
            case "complete":
                return queue.complete(task_id, attempt, {"success": True}, self.now)
            case "pause" | "cancel":
                return queue.stopped(task_id, attempt, kind == "cancel", self.now)
        return queue.fail(task_id, attempt, kind, "it broke", kind != "permanent", self.now, jitter)

    @rule(
        kind=TYPES,
        collection=COLLECTIONS,
        params=PARAMS,
        priority=st.integers(0, 2),
        is_forced=st.booleans(),
        deadline_s=DEADLINES,
    )
    def submit(
        self,
        kind: TaskType,
        collection: str,
        params: dict[str, Any],
        priority: int,
        is_forced: bool,
        deadline_s: float | None,
    ) -> None:
        waiting = self.tasks(TaskStatus.PENDING)
        equal = {t.task_id for t in waiting if (t.task_type, t.collection, t.params) == (kind, collection, params)}
        self.salt += 1
        record, is_new = self.queue.submit(
            kind,
            collection,
            params,
            now=self.now,
            salt=self.salt,
            priority=priority,
            is_forced=is_forced,
            deadline_s=deadline_s,
        )
        assert is_new == (not equal)
        assert is_new or record.task_id in equal
        assert f"{kind.value}_{collection}" in record.task_id
        assert record.priority >= priority
        assert record.is_forced >= is_forced
        assert record.deadline_at is None or (deadline_s is not None and record.deadline_at >= self.now + deadline_s)
        self.save(record)

    @rule(by_s=st.sampled_from([-3.0, 0.0, 1.0, 10.0, 100.0]))
    def time_passes(self, by_s: float) -> None:
        self.now += by_s  # also back: somebody sets the clock

    @rule()
    def deadlines_are_looked_at(self) -> None:
        late = {
            task.task_id
            for task in self.tasks(TaskStatus.PENDING, TaskStatus.RUNNING)
            if task.deadline_at is not None and task.deadline_at <= self.now
        }
        for record in self.queue.expire(self.now):
            assert record.task_id in late
            assert record.error_code == DEADLINE
            assert record.status is (TaskStatus.RUNNING if record.worker is not None else TaskStatus.FAILED)
            self.save(record)
        assert not late & {task.task_id for task in self.tasks(TaskStatus.PENDING)}

    @rule(is_admitting=st.booleans(), is_store_ready=st.booleans(), worker=st.sampled_from(WORKERS))
    def dispatch(self, is_admitting: bool, is_store_ready: bool, worker: int) -> None:
        task = self.queue.next_ready(self.now, is_admitting=is_admitting, is_store_ready=is_store_ready)
        paused = set(self.queue.paused)
        assert task == naively_next(self.journal.values(), paused, self.now, is_admitting, is_store_ready)
        if task is None:
            return
        leased = self.queue.lease(task.task_id, worker, self.now)
        assert leased.attempt == task.attempt + 1
        self.save(leased)

    @precondition(lambda self: self.journal)
    @rule(
        data=st.data(),
        kind=st.sampled_from(["progress", "complete", "pause", "cancel", "error", "permanent", "store_unavailable"]),
        late=st.integers(0, 2),
        jitter=st.floats(0, 1),
    )
    def report_arrives(self, data: st.DataObject, kind: str, late: int, jitter: float) -> None:
        task = data.draw(st.sampled_from(list(self.journal.values())))
        is_current = task.status is TaskStatus.RUNNING and late == 0
        changed = self.report(kind, task, task.attempt - late, jitter)
        assert (changed is not None) == is_current
        self.save(changed)

    @rule(worker=st.sampled_from(WORKERS))
    def worker_dies(self, worker: int) -> None:
        changed = self.queue.worker_died(worker, self.now)
        assert {t.task_id for t in changed} == {t.task_id for t in self.tasks(TaskStatus.RUNNING) if t.worker == worker}
        for record in changed:
            is_given_up = record.status is TaskStatus.FAILED and record.error_code != DEADLINE
            assert is_given_up <= (record.kills == POLICY.max_kills)
            self.save(record)

    @precondition(lambda self: self.journal)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(list(self.journal.values())))
        self.save(self.queue.cancel(task.task_id, self.now))

    @precondition(lambda self: self.tasks(TaskStatus.FAILED))
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(self.tasks(TaskStatus.FAILED)))
        back = self.queue.requeue(task, self.now)
        assert back is not None
        assert (back.failures, back.outages, back.kills, back.error_code, back.deadline_at) == (0, 0, 0, None, None)
        self.journal[task.task_id] = back

    @rule(name=st.none() | COLLECTIONS, is_paused=st.booleans())
    def pause_or_resume(self, name: str | None, is_paused: bool) -> None:
        (self.queue.pause if is_paused else self.queue.resume)(name)

    @rule()
    def supervisor_restarts(self) -> None:
        paused = self.queue.paused
        self.queue = Queue(POLICY)
        for record in self.queue.restore(self.tasks(TaskStatus.PENDING, TaskStatus.RUNNING)):
            self.save(record)
        for name in paused:
            self.queue.pause(name)
        assert not self.queue.running()

    @rule(set_s=st.sampled_from([-3600.0, -10.0, 5.0, 1e6]), suspended_s=st.sampled_from([0.0, 100.0]))
    def time_is_seen_to_move(self, set_s: float, suspended_s: float) -> None:
        open_tasks = [t for t in self.journal.values() if not t.status.is_final]
        waits = {t.task_id: t.not_before_at - self.now for t in open_tasks if t.not_before_at > self.now}
        left = {t.task_id: t.deadline_at - self.now for t in open_tasks if t.deadline_at is not None}
        self.now += set_s + suspended_s
        for record in self.queue.time_moved(set_s, suspended_s, self.now):
            self.save(record)
        for task_id, wait_s in waits.items():
            assert abs(self.journal[task_id].not_before_at - self.now - (wait_s - suspended_s)) < 1e-3
        for task_id, left_s in left.items():
            held = self.journal[task_id].deadline_at
            assert held is not None
            assert abs(held - self.now - left_s) < 1e-3

    @invariant()
    def queue_and_journal_agree(self) -> None:
        tasks = self.tasks(TaskStatus.PENDING, TaskStatus.RUNNING)
        assert {task.task_id: task for task in self.queue.open()} == {task.task_id: task for task in tasks}

    @invariant()
    def one_task_runs_on_a_collection(self) -> None:
        assert {t.task_id for t in self.queue.running()} == {t.task_id for t in self.tasks(TaskStatus.RUNNING)}
        running = [task.collection for task in self.queue.running() if task.task_type is not TaskType.PING]
        assert len(running) == len(set(running))

    @invariant()
    def what_is_asked_each_turn_is_what_looking_at_every_task_says(self) -> None:
        assert self.queue.has_pending == bool(self.tasks(TaskStatus.PENDING))
        for collection in ("docs", "code"):
            running = {t.task_id for t in self.tasks(TaskStatus.RUNNING) if t.collection == collection}
            assert {task.task_id for task in self.queue.running(collection)} == running
        assert self.queue.next_deadline(self.now) == naive_deadline(self.journal.values(), self.now)

    @invariant()
    def every_waiting_task_says_why_and_the_next_one_that_it_waits_for_nothing(self) -> None:
        held = Conditions(
            now=self.now,
            zone=ZoneInfo("UTC"),
            max_attempts=POLICY.max_attempts,
            paused=self.queue.paused,
            running=tuple(self.queue.running()),
            idle_workers=1,
            started_workers=1,
        )
        waits = {task.task_id: wait_of(task, held) for task in self.tasks(TaskStatus.PENDING)}
        assert all(wait is not None and wait.why and wait.expected for wait in waits.values())
        free = {task_id for task_id, wait in waits.items() if wait is not None and wait.cause is Cause.NEXT}
        ready = self.queue.next_ready(self.now, is_admitting=True)
        assert (ready.task_id in free) if ready is not None else not free

    def teardown(self) -> None:
        """Every accepted task ends once the workers keep working."""
        self.queue.resume(None)
        for task in self.queue.running():
            self.save(self.report("complete", task, task.attempt))
        while (task := self._next()) is not None:
            leased = self.queue.lease(task.task_id, 0, self.now)
            self.save(leased)
            self.save(self.report("complete", leased, leased.attempt))
        assert all(task.status.is_final for task in self.journal.values())

    def _next(self) -> TaskRecord | None:
        """Let time pass until a task is ready; None where none waits any more."""
        while (ready := self.queue.next_ready(self.now, is_admitting=True)) is None and self.queue.has_pending:
            self.now = max(self.queue.next_deadline(self.now) or self.now, self.now)
            for record in self.queue.expire(self.now):
                self.save(record)
        return ready


TestSupervision = Supervision.TestCase
TestSupervision.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
