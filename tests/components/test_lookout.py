"""What a look does to real processes: one that does not pace itself is stopped and goes on, one that others press is moved.

The test plays the worker's watch thread: it writes the beats on a real board, so that each second is one that it names.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import psutil
import pytest

from morgan.background.ipc.board import Board
from morgan.background.ipc.commands import Role
from morgan.background.supervisor import placement, procfs
from morgan.background.supervisor.hangs import Limits
from morgan.background.supervisor.lookout import Lookout
from morgan.background.supervisor.pool import Pool, Process
from morgan.background.supervisor.restarts import Wear
from morgan.background.supervisor.state import Worker
from morgan.background.supervisor.stopping import DEBT_S, STOPPED_S

OWNER, TASKS = 0, 1
SLEEPER = """
import signal, sys, threading, time
signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True))
# for the main thread, whose read it interrupts: the kernel may pick any thread of a stopped process
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
for _ in range(3):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
print("ready", flush=True)
for line in sys.stdin:  # so many seconds of CPU
    while time.process_time() < float(line):
        pass
    print("used", flush=True)
"""


class FakePool:
    """Holds processes as a Pool does; it has none forked."""

    def __init__(self, processes: dict[int, Process], cpus: list[int]) -> None:
        self.processes, self.cpus = processes, cpus
        self._places = {TASKS: cpus[-1]}
        self.beside: dict[int, tuple[int, ...]] = {}

    def replan(self) -> bool:
        return False

    def places(self) -> dict[int, int]:
        return self._places

    def spreads(self) -> dict[int, tuple[int, ...]]:
        return {index: (cpu, *self.beside.get(index, ())) for index, cpu in self._places.items()}

    def spread(self, index: int, cpus: Sequence[int]) -> None:
        self.beside[index] = tuple(cpus[1:])
        procfs.set_cpus(self.processes[index].pid, tuple(cpus))

    def move(self, index: int, cpu: int) -> None:
        self._places[index] = cpu
        procfs.set_cpus(self.processes[index].pid, (cpu,))


@dataclass
class Bench:
    """A lookout over two real processes in the places of an owner and a task worker that runs a task."""

    look_out: Lookout
    board: Board
    pool: FakePool
    workers: dict[int, Worker]
    heard: list[IO[bytes]]  # what each process prints
    told: list[IO[bytes]]  # what it reads: how much CPU to use
    at_s: float = 1000.0

    @property
    def process(self) -> Process:
        return self.pool.processes[TASKS]

    @property
    def is_stopped(self) -> bool:
        """Say whether the kernel has stopped the task worker; waits until it has, of one that it was told to."""
        if self.process.is_stopped:
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)
        return procfs.is_stopped(self.process.pid)

    def second(self, *, used_s: float = 1.0, granted_s: float = 0.0) -> None:
        """Let a second pass in which each process that is not stopped uses so much, then look."""
        self.at_s += 1.0
        for index, worker in self.workers.items():
            worker.granted_s += granted_s
            if not self.pool.processes[index].is_stopped:
                cpu_ns = self.board.read(index).cpu_ns + int(used_s * 1e9)
                self.board.beat(index, int(self.at_s * 1e9), cpu_ns)
        self.look_out.look(self.workers, self.at_s, self.at_s)


@pytest.fixture
def limits() -> Limits:
    return Limits(step_timeout_s=1000.0, grace_s=5.0)


@pytest.fixture
def bench(tmp_path: Path, limits: Limits) -> Iterator[Bench]:
    board = Board.create(tmp_path / "board", 2)
    running = [
        subprocess.Popen([sys.executable, "-c", SLEEPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in (0, 1)
    ]
    processes, workers, heard, told = {}, {}, [], []
    for index, (role, one) in enumerate(zip((Role.OWNER, Role.TASKS), running, strict=True)):
        assert one.stdout is not None
        assert one.stdin is not None
        one.stdout.readline()
        heard.append(one.stdout)
        told.append(one.stdin)
        processes[index] = Process(index, role, one.pid, os.pidfd_open(one.pid), 0.0)
        workers[index] = Worker(index, role, one.pid, is_started=True, task_id="t", attempt=1)
    pool = FakePool(processes, sorted(os.sched_getaffinity(0)))
    look_out = Lookout(cast(Pool, pool), board, lambda: (limits, Wear(max_rss_kib=1 << 40, max_tasks=1 << 40)))
    bench = Bench(look_out, board, pool, workers, heard, told)
    look_out.look(workers, bench.at_s, bench.at_s)
    yield bench
    for process, one in zip(processes.values(), running, strict=True):
        one.kill()
        one.communicate()
        os.close(process.pidfd)
    board.close()


def until_stopped(bench: Bench) -> None:
    for _ in range(10):
        if bench.process.is_stopped:
            break
        bench.second()
    assert bench.is_stopped


def test_a_worker_that_does_not_pace_itself_is_stopped_and_goes_on_and_never_counts_as_hung(bench: Bench) -> None:
    seen = []
    for _ in range(60):
        bench.second()
        assert bench.is_stopped == bench.process.is_stopped
        seen.append(bench.process.is_stopped)
    assert 0 < seen.count(False) < seen.count(True)
    longest = max(len(run) for run in "".join("T" if one else " " for one in seen).split())
    assert longest == STOPPED_S
    assert bench.process.killed_for == ""


def test_one_that_keeps_to_its_grant_and_the_store_owner_are_never_stopped(bench: Bench) -> None:
    for _ in range(30):
        bench.second(used_s=0.5, granted_s=0.5)
        assert not bench.is_stopped
    until_stopped(bench)
    assert not procfs.is_stopped(bench.pool.processes[OWNER].pid)
    assert not bench.pool.processes[OWNER].is_stopped


def forced(bench: Bench) -> None:
    bench.board.set_duty(TASKS, 1000)


def ended(bench: Bench) -> None:
    bench.workers[TASKS].task_id = None


def leaving(bench: Bench) -> None:
    bench.process.is_leaving = True


def paid(bench: Bench) -> None:
    bench.workers[TASKS].granted_s += 60.0


@pytest.mark.parametrize("change", [forced, ended, leaving, paid])
def test_a_stopped_worker_goes_on_at_once_when_it_may(change: Callable[[Bench], None], bench: Bench) -> None:
    until_stopped(bench)
    change(bench)
    bench.second()
    assert not bench.is_stopped


@pytest.mark.parametrize("limits", [Limits(step_timeout_s=4.0, grace_s=5.0)])
def test_one_that_was_told_to_leave_is_not_stopped_again_and_its_grace_ends(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    until_stopped(bench)
    while not re.search(rf"\(pid {bench.process.pid}\): its step .* it is told to leave", caplog.text):
        assert bench.at_s < 1060
        bench.second()
    told_at_s = bench.at_s
    while not bench.process.killed_for:  # the time in which it really waited for a CPU does not count: a second more
        assert not bench.is_stopped
        assert bench.at_s < told_at_s + 8
        bench.second()
    assert bench.at_s >= told_at_s + 5
    assert bench.process.killed_for == "its step made no progress for 4 s, and it did not leave in 5 s"


def test_one_whose_watch_thread_gets_no_chance_to_say_what_it_uses_is_stopped_all_the_same(bench: Bench) -> None:
    """A call that holds the interpreter's lock: no beat comes, and the kernel alone knows of the CPU time."""
    bench.told[TASKS].write(f"{DEBT_S + 0.5}\n".encode())
    bench.told[TASKS].flush()
    assert bench.heard[TASKS].readline() == b"used\n"
    bench.at_s += 1.0
    bench.look_out.look(bench.workers, bench.at_s, bench.at_s)
    assert bench.board.read(TASKS).cpu_ns == 0
    assert bench.is_stopped


def test_a_signal_reaches_a_stopped_process(bench: Bench) -> None:
    until_stopped(bench)
    bench.process.signal(signal.SIGTERM)
    assert bench.heard[TASKS].readline() == b"told\n"


def test_a_process_that_ended_while_it_was_stopped_is_no_error(bench: Bench) -> None:
    until_stopped(bench)
    os.kill(bench.process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, bench.process.pid, os.WEXITED | os.WNOWAIT)
    bench.process.go_on()
    bench.process.stop()
    assert bench.process.is_stopped


def test_the_status_says_stopped_and_nothing_of_a_thread_that_ends_while_it_is_looked_at(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    until_stopped(bench)
    assert procfs.courtesy(bench.process.pid)[0] == "stopped"

    def ended(thread: int) -> psutil.Process:
        raise psutil.NoSuchProcess(thread)

    monkeypatch.setattr(psutil, "Process", ended)
    assert procfs.courtesy(bench.process.pid) == []


def test_a_worker_with_a_task_moves_with_all_its_threads_and_not_again_within_ten_seconds(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    if len(bench.pool.cpus) < 2:
        pytest.skip("needs two CPUs")
    first, pressed = bench.pool.cpus[0], bench.pool.cpus[-1]
    bench.pool.cpus[:] = [first, pressed]
    busy = [pressed]  # the CPUs that others use, wholly
    ticks = dict.fromkeys(bench.pool.cpus, 0)

    def fake_ticks() -> dict[int, int]:
        """As /proc/stat counts."""
        return dict(ticks)

    def seconds(count: int) -> None:
        for _ in range(count):
            for cpu in busy:
                ticks[cpu] += procfs.TICKS_PER_S
            bench.second(used_s=0.0)

    def at() -> set[int]:
        (cpus,) = {frozenset(os.sched_getaffinity(thread)) for thread in procfs.threads(bench.process.pid)}
        return set(cpus)

    def moves_in(cpu: int) -> int:
        """Let seconds pass until it is on `cpu`; return how many."""
        return next(count for count in range(1, 60) if [seconds(1)] and at() == {cpu})

    monkeypatch.setattr(procfs, "cpu_ticks", fake_ticks)
    assert len(procfs.threads(bench.process.pid)) == 4
    assert moves_in(first) <= 2 * placement.PERIOD_S
    assert f"on CPU {first}" in procfs.courtesy(bench.process.pid)
    busy[:] = [first]
    assert moves_in(pressed) >= placement.MOVE_S
    busy[:] = [first, pressed]
    seconds(30)
    assert at() == {pressed}
    bench.workers[TASKS].task_id = None  # an idle one is left where it is
    busy[:] = [pressed]
    seconds(30)
    assert at() == {pressed}


# Has one thread at a time besides the main one, which starts the next and ends.
BRANCHING = """
import sys, threading
def branch():
    threading.Thread(target=branch, daemon=True).start()
branch()
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_process_is_moved_with_the_threads_that_it_starts_meanwhile() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    with subprocess.Popen([sys.executable, "-c", BRANCHING], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as one:
        assert one.stdout is not None
        one.stdout.readline()
        for cpu in cpus[:2] * 100:
            procfs.set_cpus(one.pid, (cpu,))
            found = []
            for thread in procfs.threads(one.pid):
                with suppress(ProcessLookupError):
                    found.append(os.sched_getaffinity(thread))
            assert all(at == {cpu} for at in found)
        one.kill()


def test_a_worker_has_as_many_cpus_as_threads_and_is_told_so(bench: Bench) -> None:
    cpus = bench.pool.cpus

    def places() -> set[frozenset[int]]:
        return {frozenset(os.sched_getaffinity(thread)) for thread in procfs.threads(bench.process.pid)}

    assert bench.board.threads(TASKS) == 1
    bench.look_out.spread(bench.workers, lambda _: 256)  # not more than there are
    assert bench.board.threads(TASKS) == len(cpus)
    assert places() == {frozenset(cpus)}
    bench.look_out.spread(bench.workers, lambda _: 1)
    assert bench.board.threads(TASKS) == 1
    assert places() == {frozenset(cpus[-1:])}


def test_a_worker_on_two_cpus_is_stopped_for_what_it_uses_of_the_second_and_not_one_with_a_forced_task(
    bench: Bench,
) -> None:
    if len(bench.pool.cpus) < 2:
        pytest.skip("needs two CPUs")
    bench.board.set_duty(TASKS, 1500)
    bench.look_out.spread(bench.workers, lambda _: 2)
    worker = bench.workers[TASKS]
    worker.is_forced = True
    for _ in range(10):
        bench.second(used_s=2.0, granted_s=1.5)
    assert not bench.process.is_stopped
    worker.is_forced = False
    for _ in range(10):
        if bench.process.is_stopped:
            break
        bench.second(used_s=2.0, granted_s=1.5)
    assert bench.is_stopped
