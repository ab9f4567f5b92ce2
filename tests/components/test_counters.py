"""Hits and misses counted by real reader processes: exact, also after they have ended in any way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from morgan.background.ipc.counters import CounterFold, CounterTotals, ReaderCounters, start_time
from morgan.background.ipc.durations import bucket_of

SLOTS = 4

READER = """
import sys
from pathlib import Path
from morgan.background.ipc.counters import ReaderCounters

counters = ReaderCounters(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
print("ready", flush=True)

for line in sys.stdin:
    misses, *slots = map(int, line.split())
    for _ in range(misses):
        counters.miss()
    for slot in slots:
        counters.hits[slot] += 1
    print("counted", flush=True)
"""


class Reader:
    """A process with a row of its own that counts what it is told."""

    def __init__(self, folder: Path, slots: int = SLOTS, epoch: int = 0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", READER, str(folder), str(slots), str(epoch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.hear("ready")

    def hear(self, word: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == word + "\n"

    def count(self, misses: int, *slots: int) -> None:
        self.tell(misses, *slots)
        self.hear("counted")

    def tell(self, misses: int, *slots: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, (misses, *slots))) + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.communicate()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
        assert self.process.returncode == -signal.SIGKILL


def totals(misses: int, hits: int, per_slot: dict[int, int] | None = None, readers: int = 0) -> CounterTotals:
    return CounterTotals(lookups=misses + hits, hits=hits, per_slot=per_slot or {}, readers=readers)


def test_what_several_processes_counted_is_summed_exactly_while_they_run_and_after(tmp_path: Path) -> None:
    fold, readers = CounterFold(tmp_path), [Reader(tmp_path) for _ in range(3)]
    assert fold.fold() == totals(0, 0, {}, 3)
    for number, reader in enumerate(readers):
        reader.tell(1000 * (number + 1), *([number] * 200), 3)
    for reader in readers:
        reader.hear("counted")
    assert fold.fold() == totals(6000, 603, {0: 200, 1: 200, 2: 200, 3: 3}, 3)
    assert fold.fold() == totals(6000, 603, {}, 3)  # slots count since the last fold
    readers[0].count(5, 1, 1)
    readers[0].end()
    readers[1].kill()
    assert fold.fold() == totals(6005, 605, {1: 2}, 1)
    assert len(list(tmp_path.iterdir())) == 1  # the rows of the dead are gone, their counts are not
    readers[2].count(1, 0)
    assert fold.fold() == totals(6006, 606, {0: 1}, 1)
    readers[2].end()
    for _ in range(3):
        assert fold.fold() == totals(6006, 606)
    assert list(tmp_path.iterdir()) == []


def test_what_a_reader_counted_before_it_died_unseen_is_folded_once(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    reader.count(7, 2, 2, 3)
    reader.kill()
    fold = CounterFold(tmp_path)
    assert fold.fold() == totals(7, 3, {2: 2, 3: 1})
    assert fold.fold() == totals(7, 3)


def test_a_reader_killed_while_it_counts_loses_nothing_it_had_counted(tmp_path: Path) -> None:
    fold, reader = CounterFold(tmp_path), Reader(tmp_path)
    reader.count(50_000)
    reader.tell(1_000_000_000)
    seen = fold.fold().lookups
    while seen <= 50_000:  # until it is at it
        seen = fold.fold().lookups
    reader.kill()
    last = fold.fold().lookups
    assert seen <= last < 1_000_050_000
    assert fold.fold().lookups == last


def test_hits_of_another_file_of_the_store_count_in_the_total_alone(tmp_path: Path) -> None:
    fold = CounterFold(tmp_path)
    readers = [Reader(tmp_path, epoch=epoch) for epoch in (1, 2)]
    for reader in readers:
        reader.count(0, 3)
    assert fold.fold(2) == totals(0, 2, {3: 1}, 2)
    for reader in readers:
        reader.count(0, 0)
        reader.end()
    assert fold.fold(2) == totals(0, 4, {0: 1})


def test_a_closed_row_is_folded_once_while_its_process_lives_on(tmp_path: Path) -> None:
    rows = [ReaderCounters(tmp_path, SLOTS, 0) for _ in range(2)]
    assert len({row.path for row in rows}) == 2
    fold = CounterFold(tmp_path)
    for row in rows:
        row.miss()
        row.hits[1] += 1
    rows[0].close()
    assert fold.fold() == totals(2, 2, {1: 2}, 1)
    assert [path.name for path in tmp_path.iterdir()] == [rows[1].path.name]
    rows[1].miss()
    assert fold.fold() == totals(3, 2, {}, 1)
    rows[1].close()
    assert fold.fold() == fold.fold() == totals(3, 2)


def test_response_times_are_counted_by_bucket_and_given_out_once(tmp_path: Path) -> None:
    fold, rows = CounterFold(tmp_path), [ReaderCounters(tmp_path, SLOTS, epoch) for epoch in (0, 1)]
    for row in rows:
        for seconds in (20e-6, 20e-6, 3e-3):
            row.timed(seconds)
    slow, fast = bucket_of(3e-3), bucket_of(20e-6)
    assert fold.fold(1).timed == {fast: 4, slow: 2}  # those of a store that was replaced as well
    rows[0].timed(20e-6)
    rows[0].close()
    assert fold.fold(1).timed == {fast: 1}
    threads = [threading.Thread(target=lambda: [rows[1].timed(3e-3) for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows[1].timed(3e-3)  # a thread may have stored its number late: the next one is above all of them
    assert fold.fold(1).timed == {slow: 2001}
    assert fold.fold(1).timed == {}
    rows[1].close()


def test_reports_a_reader_dropped_are_summed_too(tmp_path: Path) -> None:
    fold, row = CounterFold(tmp_path), ReaderCounters(tmp_path, SLOTS, 0)
    row.set_dropped(4)
    assert fold.fold().dropped == 4
    row.set_dropped(6)
    row.close()
    assert (fold.fold().dropped, fold.fold().dropped) == (6, 6)


def test_the_threads_of_one_process_lose_no_miss(tmp_path: Path) -> None:
    counters, fold = ReaderCounters(tmp_path, SLOTS, 0), CounterFold(tmp_path)

    def count() -> None:
        for _ in range(20_000):
            counters.miss()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    # a thread may be put aside between counting and storing and then store an older number
    assert fold.fold().lookups <= 80_000
    counters.miss()
    assert fold.fold().lookups == 80_001  # the next one puts it right: no count was lost
    counters.close()


def test_a_row_that_finds_no_room_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"File too large|No space left|Invalid argument"):
        ReaderCounters(tmp_path, 2**58, 0)
    assert list(tmp_path.iterdir()) == []


def test_the_row_of_a_pid_used_again_belongs_to_the_dead_reader(tmp_path: Path) -> None:
    counters = ReaderCounters(tmp_path, SLOTS, 0)
    counters.miss()
    pid, started, number = counters.path.name.split("-")
    counters.path.rename(tmp_path / f"{pid}-{int(started) - 1}-{number}")
    assert CounterFold(tmp_path).fold() == totals(1, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_row_just_being_made_and_a_missing_folder_are_nothing_yet(tmp_path: Path) -> None:
    (tmp_path / f"{os.getpid()}-{start_time(os.getpid())}-99").touch()
    (tmp_path / f"{os.getpid()}-{start_time(os.getpid())}-98").write_bytes(bytes(8 * (16 + SLOTS)))
    assert CounterFold(tmp_path).fold() == totals(0, 0)
    assert len(list(tmp_path.iterdir())) == 2  # not removed: their reader is about to finish them
    assert CounterFold(tmp_path / "none").fold() == totals(0, 0)


def test_the_row_that_a_killed_reader_had_not_finished_is_removed(tmp_path: Path) -> None:
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as reader:
        name = f"{reader.pid}-{start_time(reader.pid)}-0"
        (tmp_path / name).write_bytes(bytes(8 * (16 + SLOTS)))
        fold = CounterFold(tmp_path)
        fold.fold()
        assert [path.name for path in tmp_path.iterdir()] == [name]
    assert fold.fold() == totals(0, 0)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_row_is_left_alone(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    reader.count(1, 2)
    (row,) = tmp_path.iterdir()
    for name in ("notes.txt", "1-2", "a-b-c", "1-2-3-4"):
        (tmp_path / name).write_bytes(row.read_bytes())
    (tmp_path / "1-2-3").mkdir()
    os.mkfifo(tmp_path / "1-2-4")
    (tmp_path / f"{os.getpid()}-{start_time(os.getpid())}-77").write_bytes(row.read_bytes() + b"odd")
    fold = CounterFold(tmp_path)
    assert fold.fold() == totals(1, 1, {2: 1}, 1)
    reader.end()
    assert fold.fold() == totals(1, 1)
    assert len(list(tmp_path.iterdir())) == 7


def test_a_number_that_a_thread_stored_late_lowers_no_sum(tmp_path: Path) -> None:
    fold, row = CounterFold(tmp_path), ReaderCounters(tmp_path, SLOTS, 0)
    row.hits[1], row.hits[2] = 5, 1
    for _ in range(3):
        row.miss()
    assert fold.fold() == totals(3, 6, {1: 5, 2: 1}, 1)
    row.hits[1] = 4
    row._words[3] = 2
    assert fold.fold() == totals(3, 6, {}, 1)
    row.hits[1] = 7
    assert fold.fold() == totals(3, 8, {1: 2}, 1)
    row.hits[1] = 6
    row.close()
    assert fold.fold() == fold.fold() == totals(3, 8)


def test_the_start_of_a_process_is_its_own_and_none_once_it_is_reaped() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        started = start_time(child.pid)
        assert started is not None
        assert started >= (start_time(os.getpid()) or 0)
        child.kill()
    assert start_time(child.pid) is None


@pytest.mark.parametrize("name", ["a) b", "(", "x x x) R 1"])
def test_a_process_name_cannot_fake_its_start(tmp_path: Path, name: str) -> None:
    program = tmp_path / name
    program.symlink_to("/bin/cat")
    with subprocess.Popen([program], stdin=subprocess.PIPE) as child:
        assert isinstance(start_time(child.pid), int)
        assert (start_time(child.pid) or 0) >= (start_time(os.getpid()) or 0)


def test_hits_per_slot_add_up_over_many_folds(tmp_path: Path) -> None:
    fold, reader, expected = CounterFold(tmp_path), Reader(tmp_path), Counter[int]()
    found = Counter[int]()
    for turn in range(20):
        slots = [turn % SLOTS] * (turn % 3)
        reader.count(1, *slots)
        expected.update(slots)
        found.update(fold.fold().per_slot)
    reader.end()
    found.update(fold.fold().per_slot)
    assert found == expected
