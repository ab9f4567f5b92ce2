"""Threads that compute beside the one that asks: each piece once, never more at once than may be, none while it is paced."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from morgan.background.workers.batches import SubBatches
from morgan.background.workers.crew import Crew, Rows

WAIT_S = 30.0  # far more than it takes, for a machine under load


class Pieces:
    """Work of `count` pieces, a row each."""

    def __init__(self, count: int) -> None:
        self.left = [[row] for row in reversed(range(count))]

    def take(self) -> Rows | None:
        return self.left.pop() if self.left else None

    @property
    def is_taken(self) -> bool:
        return not self.left


class Floor:
    """Where pieces are computed: who is at it, and a barrier that as many as are expected have to come to."""

    def __init__(self, at_once: int) -> None:
        self.lock = threading.Lock()
        self.meeting = threading.Barrier(at_once)
        self.rows: list[int] = []
        self.now = self.most = 0
        self.who: set[int] = set()

    def compute(self, rows: Rows) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.who.add(threading.get_ident())
        self.meeting.wait(WAIT_S)
        with self.lock:
            self.now -= 1
            self.rows += rows


@pytest.mark.parametrize("size", [1, 2, 4])
def test_so_many_threads_as_may_compute_at_once_do_each_piece_once(size: int) -> None:
    crew, floor = Crew(lambda: size), Floor(size)
    for _ in range(3):  # the same threads each time
        crew.share(Pieces(5 * size), floor.compute, lambda: None)
    assert sorted(floor.rows) == sorted(list(range(5 * size)) * 3)
    assert (floor.most, len(floor.who)) == (size, size)


def test_a_single_piece_wakes_nobody() -> None:
    before = threading.active_count()
    crew = Crew(lambda: 4)
    crew.share(Pieces(1), lambda rows: None, None)
    crew.share(Pieces(0), lambda rows: None, None)
    assert threading.active_count() == before


def test_fewer_compute_from_the_next_piece_on_where_fewer_may() -> None:
    size, floor = 3, Floor(3)
    crew = Crew(lambda: size)
    alone: list[int] = []

    def compute(rows: Rows) -> None:
        nonlocal size
        if rows[0] < 3:
            floor.compute(rows)
            size = 1
        else:
            alone.append(threading.get_ident())

    crew.share(Pieces(9), compute, lambda: None)
    assert floor.most == 3
    assert alone == [threading.get_ident()] * 6


def test_no_piece_is_begun_while_the_asker_waits_for_its_budget() -> None:
    crew, both = Crew(lambda: 2), threading.Barrier(2)
    began: list[int] = []
    is_waiting, seen = threading.Event(), list[int]()

    def compute(rows: Rows) -> None:
        began.append(rows[0])
        if rows[0] < 2:
            both.wait(WAIT_S)  # one of them is the asker's
        if threading.current_thread() is not threading.main_thread():
            assert rows[0] < 2 or not is_waiting.is_set()

    def pace() -> None:
        is_waiting.set()
        for _ in range(3):  # longer than a helper needs to come for more
            seen.append(len(began))
            threading.Event().wait(0.01)
        is_waiting.clear()

    crew.share(Pieces(8), compute, pace)
    assert sorted(began) == list(range(8))
    waits = [seen[start : start + 3] for start in range(0, len(seen), 3)]
    assert all(wait[1] == wait[2] for wait in waits)  # the first look may come before a helper has seen the wait


def test_where_the_asker_is_told_to_stop_nobody_computes_any_more_when_it_leaves() -> None:
    crew, both, work = Crew(lambda: 2), threading.Barrier(2), Pieces(1000)
    at_it: list[int] = []

    def compute(rows: Rows) -> None:
        at_it.append(rows[0])
        if rows[0] < 2:
            both.wait(WAIT_S)
        threading.Event().wait(0.001)
        at_it.remove(rows[0])

    def pace() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        crew.share(work, compute, pace)
    assert at_it == []
    left = len(work.left)
    crew.share(Pieces(5), lambda rows: None, None)
    assert len(work.left) == left > 0


def test_what_goes_wrong_in_a_helper_is_raised_by_the_asker_and_the_crew_goes_on() -> None:
    crew, both = Crew(lambda: 2), threading.Barrier(2)

    def compute(rows: Rows) -> None:
        both.wait(WAIT_S)
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("no such text")

    with pytest.raises(ValueError, match="no such text"):
        crew.share(Pieces(20), compute, None)
    floor = Floor(2)
    crew.share(Pieces(4), floor.compute, None)
    assert sorted(floor.rows) == [0, 1, 2, 3]


COURTEOUS = """
import json, os, threading
from morgan.background.supervisor import procfs
from morgan.background.workers.batches import SubBatches
from morgan.background.workers.courtesy import make_courteous, pin

cpu = max(os.sched_getaffinity(0))
pin(0, [cpu])
make_courteous(0)
batches, meeting, threads = SubBatches(1), threading.Barrier(3), set()
batches.watch(lambda: False, lambda: 3)

def compute(rows):
    if rows != [0]:  # the first one is computed alone
        meeting.wait(30)
    threads.add(threading.get_native_id())

batches.each(range(7), compute, lambda: None)
tasks = procfs.threads(os.getpid())
print(json.dumps([sorted(threads) == sorted(tasks), procfs.courtesy(os.getpid()), [cpu],
    [sorted(os.sched_getaffinity(one)) for one in tasks]]))
"""


def test_its_threads_have_the_courtesy_and_the_cpus_of_the_process_that_starts_them() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COURTEOUS],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        start_new_session=True,  # the autogroup that is niced is of the whole session
    )
    assert done.returncode == 0, done.stderr  # it ends, and its threads with it
    are_all, words, cpus, places = json.loads(done.stdout)
    assert are_all
    assert {"nice 19", "SCHED_IDLE", "idle I/O"} <= set(words)  # each of its threads
    assert places == [cpus] * 3


def sizes_of(batches: SubBatches, count: int, pace: Callable[[], None] | None) -> list[int]:
    found: list[int] = []
    batches.each([9] * count, lambda rows: found.append(len(rows)), pace)
    assert sum(found) == count
    return found


def test_the_first_batch_is_computed_alone_and_the_last_ones_are_equal_parts_of_what_is_left() -> None:
    me, who = threading.get_ident(), list[int]()
    batches = SubBatches(8, cpu=lambda: 0.0)
    batches.watch(lambda: False, lambda: 2)
    batches.each([9, 9], lambda rows: who.append(threading.get_ident()), lambda: None)
    assert who[0] == me
    assert sizes_of(batches, 17, lambda: None) == [8, 5, 2, 1, 1]


def test_where_memory_is_short_one_thread_computes_one_text() -> None:
    before = threading.active_count()
    batches = SubBatches(8, cpu=lambda: 0.0)
    batches.watch(lambda: True, lambda: 4)
    assert sizes_of(batches, 6, lambda: None) == [1] * 6
    assert threading.active_count() == before
