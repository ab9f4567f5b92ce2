"""Whatever order things happen in, the queue loses no task and counts no report twice."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from morgan.background.ipc.records import TaskProgress, TaskRecord, TaskStatus, TaskType
from morgan.background.supervisor.queue import Queue, QueuePolicy

POLICY = QueuePolicy(max_attempts=3, max_kills=2, backoff_base_s=2.0, backoff_cap_s=60.0)
COLLECTIONS = st.sampled_from(["docs", "code"])
TYPES = st.sampled_from(list(TaskType))
PARAMS: st.SearchStrategy[dict[str, Any]] = st.sampled_from([{}, {"max_queries": 3}])
WORKERS = range(3)


class Supervision(RuleBasedStateMachine):
    """Drives a queue as the core does, and keeps what the journal would."""

    def __init__(self) -> None:
        super().__init__()
        self.queue, self.now, self.salt = Queue(POLICY), 1000.0, 0
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

    @rule(kind=TYPES, collection=COLLECTIONS, params=PARAMS, priority=st.integers(0, 2), is_forced=st.booleans())
    def submit(self, kind: TaskType, collection: str, params: dict[str, Any], priority: int, is_forced: bool) -> None:
        waiting = self.tasks(TaskStatus.PENDING)
        equal = {t.task_id for t in waiting if (t.task_type, t.collection, t.params) == (kind, collection, params)}
        self.salt += 1
        record, is_new = self.queue.submit(
            kind, collection, params, now=self.now, salt=self.salt, priority=priority, is_forced=is_forced
        )
        assert is_new == (not equal)
        assert is_new or record.task_id in equal
        assert f"{kind.value}_{collection}" in record.task_id
        assert record.priority >= priority
        assert record.is_forced >= is_forced
        self.save(record)

    @rule(by_s=st.sampled_from([0.0, 1.0, 10.0, 100.0]))
    def time_passes(self, by_s: float) -> None:
        self.now += by_s

    @rule(is_admitting=st.booleans())
    def dispatch(self, is_admitting: bool) -> None:
        idle = set(WORKERS) - {task.worker for task in self.tasks(TaskStatus.RUNNING)}
        task = self.queue.next_ready(self.now, is_admitting=is_admitting)
        if task is None or not idle:
            return
        assert is_admitting or task.is_forced
        assert task.not_before_at <= self.now
        assert not {None, task.collection} & set(self.queue.paused)
        leased = self.queue.lease(task.task_id, min(idle), self.now)
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
            assert (record.status is TaskStatus.FAILED) <= (record.kills == POLICY.max_kills)
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
        assert (back.failures, back.outages, back.kills, back.error_code) == (0, 0, 0, None)
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

    @invariant()
    def queue_and_journal_agree(self) -> None:
        tasks = self.tasks(TaskStatus.PENDING, TaskStatus.RUNNING)
        assert {task.task_id: task for task in self.queue.open()} == {task.task_id: task for task in tasks}

    @invariant()
    def one_task_runs_on_a_collection(self) -> None:
        running = [task.collection for task in self.queue.running()]
        assert len(running) == len(set(running))

    @invariant()
    def every_waiting_task_says_why(self) -> None:
        for task in self.tasks(TaskStatus.PENDING):
            assert self.queue.waits_for(
                task.task_id, self.now, is_admitting=False, admission_reason="busy", idle_workers=0
            )

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
        self.now = self.queue.next_deadline(self.now) or self.now
        return self.queue.next_ready(self.now, is_admitting=True)


TestSupervision = Supervision.TestCase
TestSupervision.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
