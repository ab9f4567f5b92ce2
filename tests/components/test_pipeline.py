"""What a re-index does at once: reading, embedding and writing of three pieces in a row; in real threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import pytest

from morgan.background.ipc.records import Point, PointId
from morgan.background.workers.pipeline import IN_FLIGHT, pieces

WAIT_S = 30.0
COUNT = 6


class Shelf:
    """A store of COUNT points, one a piece. It tells in which order what was done; `on` runs at the beginning of a deed."""

    def __init__(self) -> None:
        self.did: list[tuple[str, int]] = []
        self.reported: list[int] = []
        self.most = 0  # pieces made and not reported
        self.on: Callable[[str, int], None] = lambda what, number: None
        self.threads: dict[str, set[int]] = {}

    def _do(self, what: str, number: int) -> None:
        self.threads.setdefault(what, set()).add(threading.get_ident())
        self.on(what, number)
        self.did.append((what, number))

    def read(self, after: PointId | None) -> tuple[list[Point], PointId | None]:
        number = int(after or 0)
        self._do("read", number)
        return [Point(id=number)], number + 1 if number + 1 < COUNT else None

    def make(self, points: Sequence[Point]) -> int:
        self._do("make", int(points[0].id))
        self.most = max(self.most, int(points[0].id) + 1 - len(self.reported))
        return int(points[0].id)

    def write(self, made: int) -> int:
        self._do("write", made)
        return made

    def run(self, until: int = COUNT, **options: Any) -> None:
        with closing(pieces(self.read, self.make, self.write, None, **{"is_overlapping": True} | options)) as found:
            for piece in found:
                assert ("write", piece.done) in self.did
                assert piece.after == (piece.done + 1 if piece.done + 1 < COUNT else None)
                self.reported.append(piece.done)
                if len(self.reported) == until:
                    return

    def numbers(self, what: str) -> list[int]:
        return [number for did, number in self.did if did == what]


@pytest.mark.parametrize("is_overlapping", [False, True])
def test_each_piece_is_read_made_written_and_reported_once_in_order(is_overlapping: bool) -> None:
    shelf = Shelf()
    shelf.run(is_overlapping=is_overlapping)
    for what in ("read", "make", "write"):
        assert shelf.numbers(what) == list(range(COUNT))
    assert shelf.reported == list(range(COUNT))
    assert shelf.most == (IN_FLIGHT if is_overlapping else 1)
    me = {threading.get_ident()}
    assert shelf.threads["make"] == me
    assert all((me == shelf.threads[what]) is not is_overlapping for what in ("read", "write"))


def test_while_a_piece_is_embedded_the_next_is_read_and_the_last_is_written() -> None:
    shelf = Shelf()
    begun = {(what, number): threading.Event() for what in ("read", "make", "write") for number in range(COUNT + 1)}

    def on(what: str, number: int) -> None:
        begun[what, number].set()
        if what == "read" and number >= 2:  # nor does a read wait for a write
            assert begun["write", number - 2].wait(WAIT_S)
        if what == "make" and 0 < number < COUNT - 1:  # it goes on when both have begun
            assert begun["read", number + 1].wait(WAIT_S)
            assert begun["write", number - 1].wait(WAIT_S)

    shelf.on = on
    shelf.run()
    assert shelf.reported == list(range(COUNT))


@pytest.mark.parametrize("until", [1, 3])
def test_left_early_what_was_made_is_written_and_the_store_is_let_go(until: int) -> None:
    shelf = Shelf()
    shelf.run(until)
    assert shelf.reported == list(range(until))
    assert shelf.numbers("make") == shelf.numbers("write") == list(range(until + 1))
    assert not any(one.name.startswith("store") for one in threading.enumerate())


@pytest.mark.parametrize("what", ["read", "make", "write"])
def test_where_one_goes_wrong_nothing_after_it_is_reported(what: str) -> None:
    shelf = Shelf()

    def on(did: str, number: int) -> None:
        if (did, number) == (what, 3):
            raise OSError("no answer")

    shelf.on = on
    with pytest.raises(OSError, match="no answer"):
        shelf.run()
    assert shelf.reported == list(range(len(shelf.reported)))
    assert len(shelf.reported) <= 3
    assert ("write", len(shelf.reported)) in shelf.did or what != "make"
    assert not any(one.name.startswith("store") for one in threading.enumerate())
