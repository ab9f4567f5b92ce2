"""A worker that does not pace itself is stopped by a real signal and goes on again; the clock is the test's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from morgan.background.ipc.board import Board
from morgan.background.ipc.commands import Role
from morgan.background.supervisor import hangs, procfs
from morgan.background.supervisor.lookout import Lookout
from morgan.background.supervisor.pool import Process
from morgan.background.supervisor.restarts import Wear
from morgan.background.supervisor.state import Worker
from morgan.background.supervisor.stopping import STOPPED_S

ROW = 1


class FakePool:
    """The part of a Pool that a Lookout uses, around one real process."""

    def __init__(self, process: Process) -> None:
        self.processes = {process.index: process}
        self.cpus = sorted(os.sched_getaffinity(0))
        self.moves: list[tuple[int, int]] = []

    def replan(self) -> bool:
        return False

    def places(self) -> dict[int, int]:
        return {ROW: self.cpus[-1]}

    def move(self, index: int, cpu: int) -> None:
        self.moves.append((index, cpu))


class Watched:
    """A process that burns CPU without end, and a lookout that is told the time."""

    def __init__(self, board: Board, role: Role = Role.TASKS) -> None:
        self.child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        pidfd = os.pidfd_open(self.child.pid)
        self.process = Process(ROW, role, self.child.pid, pidfd, started_at=time.time())
        self.board, self.now, self.cpu_s = board, 1000.0, 0.0
        self.worker = Worker(ROW, role, self.child.pid, task_id="t", attempt=1)
        limits = hangs.Limits(step_timeout_s=1e6, grace_s=10.0)
        self.lookout = Lookout(FakePool(self.process), board, lambda: (limits, Wear(1 << 40)))  # type: ignore[arg-type]

    def second(self, used_s: float, granted_s: float) -> None:
        """Let a second pass in which the worker used and was granted so much. It beats unless it is stopped."""
        self.now += 1.0
        self.worker.granted_s += granted_s
        if not self.process.is_stopped:
            self.cpu_s += used_s
            self.board.beat(ROW, int(self.now * 1e9), int(self.cpu_s * 1e9))
            self.board.count_pace(ROW)
        self.lookout.look({ROW: self.worker}, time.time(), self.now)

    def wait_for(self, *, is_stopped: bool) -> None:
        """Wait until the kernel says so: a signal takes effect when its process has a CPU next."""
        while procfs.is_stopped(self.child.pid) is not is_stopped:
            assert self.child.poll() is None
            os.sched_yield()

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        os.close(self.process.pidfd)


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    board = Board.create(tmp_path / "board", 2)
    yield board
    board.close()


@pytest.fixture
def watched(board: Board) -> Iterator[Watched]:
    watched = Watched(board)
    yield watched
    watched.close()


def test_it_is_stopped_and_goes_on_when_it_has_paid_and_never_counts_as_hung(watched: Watched) -> None:
    for _ in range(4):
        watched.second(1.0, 0.2)
    watched.wait_for(is_stopped=True)
    assert "stopped" in procfs.courtesy(watched.child.pid)
    for _ in range(int(STOPPED_S)):
        watched.second(0.0, 0.0)
    watched.wait_for(is_stopped=False)
    for _ in range(60):  # minutes of it: half of them stopped
        watched.second(1.0, 0.2)
    assert watched.process.killed_for == ""
    assert watched.child.poll() is None


def test_one_that_is_granted_everything_or_told_to_leave_is_left_alone(watched: Watched) -> None:
    watched.board.set_duty(ROW, 1000)
    for _ in range(10):
        watched.second(2.0, 1.0)  # two threads, say
    assert not watched.process.is_stopped
    watched.board.set_duty(ROW, 100)
    watched.process.is_leaving = True
    for _ in range(10):
        watched.second(1.0, 0.1)
    assert not watched.process.is_stopped


def test_a_stopped_worker_hears_a_signal(watched: Watched) -> None:
    for _ in range(4):
        watched.second(1.0, 0.0)
    watched.wait_for(is_stopped=True)
    watched.process.signal(signal.SIGTERM)
    assert watched.child.wait(30) == -15
    assert not watched.process.is_stopped


def test_the_owner_is_never_stopped(board: Board) -> None:
    watched = Watched(board, Role.OWNER)
    for _ in range(10):
        watched.second(1.0, 0.0)
    assert not watched.process.is_stopped
    watched.close()
