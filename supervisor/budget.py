"""Owns what may be used now and by whom: the last readings, the governor's decision, each worker's share, what it was given.

readings ─▶ governor.step ─▶ decision ─▶ duty of each busy worker ─▶ granted, added up over a task
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from ..ipc.commands import Role
from ..ipc.records import TaskRecord
from . import governor
from .monitor import Monitor
from .state import Worker


@dataclass(frozen=True, slots=True)
class Spent:
    """What the last attempt at a task was given: its worker, wall seconds, mean share of one CPU (2.0: of two)."""

    worker: int | None = None
    wall_s: float = 0.0
    budget: float | None = None


NOTHING = Spent()
HOUR_PERIOD_S = 1.0  # between looks at what hour it is: the limit moves by 0.03 permille in that time


class Budget:
    """`workers` is the core's own; `find` returns an open task. Times are Unix seconds. `sample` before anything is asked.

    `threads`: in how many a worker may compute at most; 0: in as many as there are CPUs.
    """

    readings: governor.Readings
    decision: governor.Decision
    is_active_hours: bool
    limit_permille: int  # of the machine, at this hour

    def __init__(
        self,
        monitor: Monitor,
        own_pids: Callable[[], list[int]],
        local_hour: Callable[[ZoneInfo, float], float],
        workers: Mapping[int, Worker],
        find: Callable[[str], TaskRecord | None],
        threads: int = 0,
    ) -> None:
        self._monitor, self._own_pids, self._local_hour = monitor, own_pids, local_hour
        self._workers, self._find, self._threads = workers, find, threads
        self._governor = governor.GovernorState()
        self.sampled_at = 0.0
        self._hour, self._hour_at = 0.0, float("-inf")
        self._hour_of: tuple[governor.Limits, ZoneInfo] | None = None

    def sample(self, now: float, query_rate_hz: float, limits: governor.Limits, zone: ZoneInfo) -> None:
        """Take readings and decide anew. `query_rate_hz`: of the searches of applications."""
        self.readings = self._monitor.sample(self._own_pids(), query_rate_hz)
        self.sampled_at = now
        if not 0 <= now - self._hour_at < HOUR_PERIOD_S or (limits, zone) != self._hour_of:
            self._hour_at, self._hour_of = now, (limits, zone)
            self._hour = self._local_hour(zone, now)
            self.is_active_hours = governor.is_active_hours(limits, self._hour)
            self.limit_permille = governor.cpu_limit_permille(limits, self._hour)
        self._governor, self.decision = governor.step(self._governor, self.readings, limits, self._hour)
        for worker in self._workers.values():
            if worker.task_id is not None:
                self._add_grant(worker, now)

    def task_ids(self) -> list[str | None]:
        """Return what each worker runs."""
        return [worker.task_id for worker in self._workers.values()]

    @property
    def is_busy(self) -> bool:
        return any(worker.task_id is not None for worker in self._workers.values())

    @property
    def is_taken(self) -> bool:
        """Whether as many workers are at work as the budget keeps busy: one more would take turns with them."""
        at_work = sum(worker.task_id is not None and worker.is_heavy for worker in self._workers.values())
        return at_work >= governor.workers_for(self.decision.budget_permille, self.readings.cpus)

    def admits_from(self, limits: governor.Limits, zone: ZoneInfo, now: float) -> float | None:
        """Return when a task will be admitted if others go on as they do; None where that cannot be known."""
        if self.decision.is_memory_tight:
            return None
        return governor.admits_from(self.readings, limits, now, lambda at: self._local_hour(zone, at))

    # --- of one worker ------------------------------------------------------------------------------------------------

    def duty_permille(self, index: int) -> int:
        """Return the share of one CPU that the task worker `index` may use now, in permille: more than 1000 in several threads.

        A forced task has all of one CPU whatever the budget is, and more where the budget has it.
        """
        busy = [worker for worker in self._workers.values() if worker.task_id is not None]
        budget_permille, cpus = self.decision.budget_permille, self.readings.cpus
        worker, record = self._workers.get(index), self.task_of(index)
        if worker is not None and record is not None and worker.is_wide:
            wide = sum(one.is_wide for one in busy)
            duty = governor.wide_duty_permille(budget_permille, cpus, len(busy) - wide, wide, self._most_threads)
        else:
            duty = governor.worker_duty_permille(budget_permille, cpus, max(len(busy), 1))
        return max(duty, 1000) if record is not None and record.is_forced else duty

    @property
    def _most_threads(self) -> int:
        cpus = max(math.ceil(self.readings.cpus), 1)
        return min(self._threads or cpus, cpus)

    def threads(self, index: int) -> int:
        """Return in how many threads, each on a CPU of its own, the task worker `index` computes: one where memory is short."""
        worker = self._workers.get(index)
        if worker is None or not worker.is_wide or self.decision.memory >= governor.Memory.SHORT:
            return 1
        return governor.threads_for(self.duty_permille(index), self._most_threads)

    def task_of(self, index: int) -> TaskRecord | None:
        """Return what a worker runs."""
        worker = self._workers.get(index)
        return None if worker is None or worker.task_id is None else self._find(worker.task_id)

    def to_relieve(self) -> int | None:
        """Return the largest task worker whose memory may be taken back: it has run something, and nothing forced now."""
        sizes = [
            (worker.health.rss_kib, index)
            for index, worker in self._workers.items()
            if worker.role is Role.TASKS and worker.health is not None and not worker.is_leaving
            if worker.tasks or worker.task_id
            if (record := self.task_of(index)) is None or not record.is_forced
        ]
        return max(sizes)[1] if sizes else None

    def begin(self, worker: Worker, task_id: str, attempt: int, now: float) -> None:
        """Count what a worker is given from now on as this attempt's."""
        worker.task_id, worker.attempt = task_id, attempt
        worker.leased_at = worker.granted_at = now
        worker.granted_s = 0.0

    def spent(self, worker: Worker, now: float) -> Spent:
        """Return what a worker's task was given so far."""
        if worker.is_tiny:
            return NOTHING
        self._add_grant(worker, now)
        wall_s = max(now - worker.leased_at, 0.0)
        budget = worker.granted_s / wall_s if wall_s > 0 else self.duty_permille(worker.index) / 1000
        return Spent(worker.index, wall_s, min(budget, float(self._most_threads)))

    def free(self, worker: Worker, task_id: str, now: float) -> Spent:
        """Take a task off a worker, which goes on with the next that it holds; return what the task was given."""
        if worker.task_id != task_id:
            worker.ahead.pop(task_id, None)
            return NOTHING
        spent = self.spent(worker, now)
        worker.task_id, worker.attempt = None, 0
        worker.tasks += 1
        if worker.ahead:
            following = next(iter(worker.ahead))
            self.begin(worker, following, worker.ahead.pop(following), now)
        return spent

    def _add_grant(self, worker: Worker, now: float) -> None:
        """Add up what the worker was granted since the last time."""
        worker.granted_s += max(now - worker.granted_at, 0.0) * self.duty_permille(worker.index) / 1000
        worker.granted_at = now
