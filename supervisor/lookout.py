"""Owns the regular look at each worker: whether it lives, gets on and has grown. Decides by hangs.py and restarts.py."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterable

from ..ipc.board import Beat, Board
from ..ipc.commands import Role
from . import hangs, placement, procfs, stopping
from .hangs import Sight, Verdict, Watch
from .pool import Pool, Process
from .restarts import Wear
from .state import Health, Worker
from .stopping import Debt, Use

log = logging.getLogger(__name__)

LOOK_S = 1.0  # as often as workers with a task beat
IDLE_LOOK_S = 5.0  # while none has one, and none starts: as often as they then beat
LATE_S = 6.0  # of silence: an idle worker has missed a beat, and is looked at every LOOK_S
EARLY = 0.5  # of the time to a look: from there on a turn that is there anyway looks, so that none is made for it
GROWTH_NS = 1_000_000  # CPU time without which a process has not grown: its memory is not read anew
MAX_ELAPSED_S = 5.0  # more than the loop's longest wait is the supervisor's own lag, or the machine was suspended


class Lookout:
    """`look` is called in every turn of the loop and does something once in LOOK_S, or in IDLE_LOOK_S."""

    def __init__(self, pool: Pool, board: Board, config: Callable[[], tuple[hangs.Limits, Wear]]) -> None:
        self._pool, self._board, self._config = pool, board, config
        self._watches: dict[int, Watch] = {}  # by pid
        self._memory: dict[int, tuple[int, int]] = {}  # by pid: CPU time in ns when it was read, RSS in KiB
        self._looked_at = 0.0
        self._debts: dict[int, Debt] = {}  # by index
        self._placed_at, self._moved_at = 0.0, -placement.MOVE_S
        self._ticks: dict[int, int] = {}  # of each CPU, when workers were placed last
        self._used: dict[int, float] = {}  # CPU seconds of each worker that had a task then
        self._others: dict[int, float] = {}  # what others use of each CPU

    def next_look(self, workers: dict[int, Worker]) -> float:
        """Return when `look` is to be called at the latest (monotonic seconds)."""
        return self._looked_at + self._period_s(workers)

    def _period_s(self, workers: dict[int, Worker]) -> float:
        is_soon = len(workers) < len(self._pool.processes) or any(
            worker.task_id is not None or worker.health is None for worker in workers.values()
        )
        is_late = any(watch.silent_s >= LATE_S for watch in self._watches.values())
        return LOOK_S if is_soon or is_late else IDLE_LOOK_S

    def look(self, workers: dict[int, Worker], now: float, monotonic: float) -> list[int]:
        """Stop or kill what is hung, and return the idle workers that are to be replaced. `workers`: the core's."""
        elapsed_s, period_s = monotonic - self._looked_at, self._period_s(workers)
        if elapsed_s < (period_s if period_s == LOOK_S else EARLY * period_s):
            return []
        self._looked_at = monotonic
        self._pool.replan()
        self._place(workers, monotonic)
        limits, wear = self._config()
        worn: list[int] = []
        watches: dict[int, Watch] = {}
        for process in self._pool.processes.values():
            beat, worker = self._board.read(process.index), workers.get(process.index)
            last = self._watches.get(process.pid)
            age_s = max(monotonic - beat.at_ns / 1e9, 0.0) if beat.at_ns else now - process.started_at
            was_stopped = process.is_stopped
            self._stop_or_not(process, beat, worker, elapsed_s, is_told=last is not None and last.leaving_s is not None)
            if was_stopped and last is not None:  # it cannot beat while it is stopped: that is no silence of its own
                watches[process.pid] = last
                continue
            sight = self._sight(process, beat, worker, last, age_s)
            watch, verdict = hangs.step(last, sight, min(elapsed_s, MAX_ELAPSED_S), limits)
            watches[process.pid] = watch
            self._obey(process, watch, verdict, limits)
            if worker is not None:
                rss_kib = self._rss_kib(process.pid, beat.cpu_ns)
                worker.health = Health(heartbeat_age_s=age_s, steps=beat.steps, rss_kib=rss_kib)
                if process.role is Role.TASKS and worker.task_id is None and not process.is_leaving:
                    worn += [process.index] * wear.is_worn(rss_kib, worker.tasks)
        self._watches = watches
        self._memory = {pid: held for pid, held in self._memory.items() if pid in watches}
        return worn

    def _stop_or_not(
        self, process: Process, beat: Beat, worker: Worker | None, elapsed_s: float, *, is_told: bool
    ) -> None:
        """Stop a worker that uses far more than it is granted, and let one go on that has paid it back.

        `is_told`: it was told to leave, for a step without progress (hangs.py): its grace runs only while it does.
        """
        if process.role is not Role.TASKS or worker is None:
            return
        # it cannot owe anything, nor is a forced task's to be paid back
        is_all_granted = worker.is_forced or self._is_all_granted(process.index)
        is_bound = worker.task_id is not None and not (process.is_leaving or is_told or is_all_granted)
        task = (process.pid, worker.task_id, worker.attempt) if is_bound else None
        use = Use(task, self._used_s(process, beat), worker.granted_s)
        debt = self._debts[process.index] = stopping.step(self._debts.get(process.index), use, elapsed_s)
        if debt.stopped_s is None:
            process.go_on()
        elif not process.is_stopped:
            log.warning(
                "worker %d (pid %d) used %.1f s of CPU more than it was granted, and does not pace itself: stopped for a while",
                *(process.index, process.pid, debt.owed_s),
            )
            process.stop()

    def _is_all_granted(self, index: int) -> bool:
        return self._board.duty(index) >= 1000 * self._board.threads(index)

    def spread(self, workers: dict[int, Worker], threads: Callable[[int], int]) -> None:
        """Give each task worker as many CPUs as it has threads, `threads(index)`, and tell it so."""
        spreads = self._pool.spreads()
        for index in workers:
            held = spreads.get(index)
            if held is None:
                continue
            count = min(threads(index), len(self._pool.cpus))
            if count < self._board.threads(index):
                self._board.set_threads(index, count)  # before it has fewer CPUs
            if count != len(held):
                at_work = [w.index for w in workers.values() if w.task_id is not None and w.index != index]
                taken = {cpu for other in at_work for cpu in spreads.get(other, ())}
                cpus = placement.spread(held[0], count, self._pool.cpus, self._others, taken)
                self._pool.spread(index, cpus)
                spreads[index] = tuple(cpus)
            self._board.set_threads(index, count)

    def _place(self, workers: dict[int, Worker], monotonic: float) -> None:
        """Move a worker that has a task away from a CPU that others use, or another worker, once in MOVE_S at most."""
        elapsed_s = monotonic - self._placed_at
        at_work = [w.index for w in workers.values() if w.role is Role.TASKS and w.task_id is not None]
        if elapsed_s < placement.PERIOD_S or not at_work:
            return
        self._placed_at = monotonic
        places, spreads = self._pool.places(), self._pool.spreads()
        ticks, self._ticks = self._ticks, procfs.cpu_ticks()
        used_s, self._used = self._used, self._used_by(at_work)
        if elapsed_s > 2 * placement.PERIOD_S or not ticks:  # nothing ran for a while: a beginning, and no mean of it
            return
        busy = {
            cpu: min(max(now - ticks.get(cpu, now), 0) / procfs.TICKS_PER_S / elapsed_s, 1.0)
            for cpu, now in self._ticks.items()
            if cpu in self._pool.cpus
        }
        own: dict[int, float] = {}
        for index in self._used:
            fresh_s = max(self._used[index] - used_s.get(index, self._used[index]), 0.0)
            for cpu in (cpus := spreads[index]):  # evenly: no better is known
                own[cpu] = own.get(cpu, 0.0) + fresh_s / elapsed_s / len(cpus)
        self._others = placement.others_of(busy, own)
        if monotonic - self._moved_at < placement.MOVE_S:
            return
        move = placement.moved(places, at_work, self._others)
        if move is not None:
            log.info("worker %d moves from CPU %d to %d, which is used less", move[0], places[move[0]], move[1])
            self._moved_at = monotonic
            idle, left = placement.in_the_way(move[1], places, at_work), places[move[0]]
            self._pool.move(*move)
            if idle is not None:
                self._pool.move(idle, left)  # it will not have to share when it gets a task

    def _used_s(self, process: Process, beat: Beat) -> float:
        """Return the CPU seconds of a process: the kernel's figure, for one that cannot beat; the last beat's once it ended."""
        return max(procfs.cpu_s(process.pid) or 0.0, beat.cpu_ns / 1e9)

    def _used_by(self, indexes: Iterable[int]) -> dict[int, float]:
        processes = self._pool.processes
        return {i: self._used_s(processes[i], self._board.read(i)) for i in indexes if i in processes}

    def _rss_kib(self, pid: int, cpu_ns: int) -> int:
        """Return its resident memory, as of the last time that it has done anything: an idle worker costs no read."""
        held = self._memory.get(pid)
        if held is None or cpu_ns - held[0] >= GROWTH_NS:
            held = self._memory[pid] = cpu_ns, procfs.rss_kib(pid)
        return held[1]

    def _sight(self, process: Process, beat: Beat, worker: Worker | None, last: Watch | None, age_s: float) -> Sight:
        task = (worker.task_id, worker.attempt) if worker is not None and worker.task_id is not None else None
        is_silent = last is not None and last.sight.beat == beat.at_ns
        return Sight(
            beat=beat.at_ns,
            progress=(beat.steps, beat.paces),
            task=task,
            is_runnable=is_silent and procfs.is_runnable(process.pid),
            delay_s=procfs.delay_ns(process.pid) / 1e9 if task is not None else 0.0,
            age_s=age_s,
        )

    def _obey(self, process: Process, watch: Watch, verdict: Verdict, limits: hangs.Limits) -> None:
        if verdict is Verdict.STOP:
            log.warning(
                "worker %d (pid %d): its step has made no progress for %.0f s; it is told to leave",
                *(process.index, process.pid, watch.stalled_s),
            )
            process.signal(signal.SIGTERM)
        elif verdict is Verdict.KILL:
            process.killed_for = hangs.why_killed(watch, limits)
            log.warning("worker %d (pid %d) is killed: %s", process.index, process.pid, process.killed_for)
            process.signal(signal.SIGKILL)
