"""The control words between supervisor and worker: two real processes, one writer a word."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from morgan.background.ipc.board import Beat, Board
from morgan.background.ipc.errors import ResultStoreError

WORDS = st.integers(0, 2**64 - 1)

WORKER = """
import sys
from pathlib import Path
from morgan.background.ipc.board import Board

board, row = Board.attach(Path(sys.argv[1])), int(sys.argv[2])
for line in sys.stdin:
    match line.split():
        case ["beat", at, cpu]:
            board.beat(row, int(at), int(cpu))
        case ["steps", count]:
            for _ in range(int(count)):
                board.count_step(row)
    print(board.duty(row), flush=True)
"""


class Worker:
    """A process that has the board attached and does what it is told by lines."""

    def __init__(self, path: Path, row: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(path), str(row)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, line: str) -> int:
        """Return the duty that the worker reads after it did what `line` says."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self) -> None:
        self.process.communicate()


def test_two_processes_share_words_each_writing_its_own(tmp_path: Path) -> None:
    path = tmp_path / "board"
    board = Board.create(path, 2)
    workers = [Worker(path, row) for row in range(2)]
    board.set_duty(0, 250)
    board.set_duty(1, 1000)
    assert [one.tell("nothing") for one in workers] == [250, 1000]
    workers[0].tell("beat 7000 50")
    workers[1].tell("steps 3")
    assert board.read(0) == Beat(at_ns=7000, cpu_ns=50, steps=0)
    assert board.read(1) == Beat(at_ns=0, cpu_ns=0, steps=3)
    assert [board.is_small(row) for row in range(2)] == [False, False]
    board.set_small(1, True)
    assert [Board.attach(path).is_small(row) for row in range(2)] == [False, True]
    board.set_duty(0, 0)
    assert workers[0].tell(f"beat {2**64 - 1} 60") == 0
    assert board.read(0) == Beat(2**64 - 1, 60, 0)
    for one in workers:
        one.end()
    assert board.read(1).steps == 3  # what a dead worker wrote stays until its row is cleared
    board.clear(1)
    assert board.read(1) == Beat(0, 0, 0)
    assert board.duty(1) == 1000  # the supervisor's word is not the worker's
    assert board.read(0) == Beat(2**64 - 1, 60, 0)
    board.close()


def test_a_worker_of_an_earlier_board_cannot_write_into_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "board"
    old = Board.create(path, 1)
    worker = Worker(path, 0)
    assert worker.tell("beat 1 1") == 0
    fresh = Board.create(path, 1)
    fresh.set_duty(0, 500)
    assert worker.tell("beat 2 2") == 0
    assert (fresh.read(0), old.read(0)) == (Beat(0, 0, 0), Beat(2, 2, 0))
    worker.end()
    fresh.close()
    old.close()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    written=st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(["duty", "beat", "step", "clear"]), WORDS, WORDS), max_size=30
    )
)
def test_no_word_of_one_row_touches_another(tmp_path: Path, written: list[tuple[int, str, int, int]]) -> None:
    board = Board.create(tmp_path / "board", 5)
    attached = Board.attach(tmp_path / "board")
    duties, beats = [0] * 5, [Beat(0, 0, 0)] * 5
    for row, what, one, other in written:
        held = beats[row]
        match what:
            case "duty":
                board.set_duty(row, one)
                duties[row] = one
            case "beat":
                attached.beat(row, one, other)
                beats[row] = Beat(one, other, held.steps)
            case "step":
                attached.count_step(row)
                beats[row] = Beat(held.at_ns, held.cpu_ns, held.steps + 1)
            case _:
                board.clear(row)
                beats[row] = Beat(0, 0, 0)
        for side in (board, attached):
            assert [side.duty(n) for n in range(5)] == duties
            assert [side.read(n) for n in range(5)] == beats
    attached.close()
    board.close()


def test_a_file_of_another_layout_is_refused_and_no_board_is_no_board(tmp_path: Path) -> None:
    path = tmp_path / "board"
    path.write_bytes(b"MGBOARD9" + bytes(1016))
    with pytest.raises(ResultStoreError, match="is not a board of this version: restart the service"):
        Board.attach(path)
    with pytest.raises(FileNotFoundError):
        Board.attach(tmp_path / "none")


def test_a_board_is_its_owners_alone_and_begins_with_zeroes(tmp_path: Path) -> None:
    path = tmp_path / "board"
    (tmp_path / "board.new").write_bytes(b"left by a crash")
    path.write_bytes(b"an older board")
    board = Board.create(path, 3)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [board.read(row) for row in range(3)] == [Beat(0, 0, 0)] * 3
    assert [board.duty(row) for row in range(3)] == [0, 0, 0]
    assert [one.name for one in tmp_path.iterdir()] == ["board"]
    board.close()


def test_signs_of_life_within_a_step_are_a_word_of_their_own(tmp_path: Path) -> None:
    board = Board.create(tmp_path / "board", 2)
    for _ in range(3):
        board.count_pace(1)
    assert (board.read(1), board.read(0)) == (Beat(0, 0, 0, 3), Beat(0, 0, 0, 0))
    board.clear(1)
    assert board.read(1) == Beat(0, 0, 0, 0)
    board.close()
