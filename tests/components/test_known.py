"""What a new version had at its last comparison: told apart in memory, and found again on the disk, whole or not at all."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from morgan.background.workers.known import KnownIds

SOME = [1, 2**64 - 1, str(uuid.UUID(int=5))]


def compared(folder: str, swap: str = "s") -> KnownIds:
    known = KnownIds(folder, "docs")
    known.begin()
    known.compared(SOME[:2])
    known.compared(SOME[2:])
    known.end(swap)
    return known


@pytest.mark.parametrize("is_kept", [True, False])
def test_what_was_not_compared_is_unknown_and_what_came_or_went_since_is_not_forgotten(
    tmp_path: Path, is_kept: bool
) -> None:
    known = compared(str(tmp_path) if is_kept else "")
    assert known.unknown([*SOME, 7, "a"]) == [7, "a"]
    known.copied([7])
    known.gone([1])
    assert known.unknown([*SOME, 7]) == [1]
    known.copied([1])
    known.gone([7])
    assert known.unknown([*SOME, 7]) == [7]
    assert bool(list(tmp_path.iterdir())) is is_kept


def test_nothing_is_known_before_a_comparison_is_through_and_all_is_unknown_after_one_of_nothing() -> None:
    known = KnownIds("", "docs")
    known.compared([1])
    assert known.unknown([1, 2]) == []
    known.begin()
    known.end("s")
    assert known.unknown([1, 2]) == [1, 2]


def test_another_process_finds_the_comparison_of_the_same_swap_and_no_other(tmp_path: Path) -> None:
    compared(str(tmp_path))
    later = KnownIds(str(tmp_path), "docs")
    assert not later.recall("another swap")
    assert later.unknown([9]) == []
    assert later.recall("s")
    assert later.unknown([*SOME, 9]) == [9]
    assert not KnownIds(str(tmp_path), "other").recall("s")
    later.discard()
    assert list(tmp_path.iterdir()) == []
    assert not later.recall("s")
    later.discard()  # twice is once


@pytest.mark.parametrize("keep", [0, 7, 8, 20, -8])
def test_a_damaged_file_is_none(tmp_path: Path, keep: int) -> None:
    compared(str(tmp_path))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:keep])
    assert not KnownIds(str(tmp_path), "docs").recall("s")
