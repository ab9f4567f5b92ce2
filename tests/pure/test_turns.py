"""Writes that wait: in their order, a collection's own, and none for longer than it has to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from morgan.background.workers.turns import Turns

NONE: frozenset[str] = frozenset()


def test_writes_of_a_held_collection_wait_and_others_do_not_wait_for_them() -> None:
    turns: Turns[int] = Turns(10)
    turns.add("a", 0.0, 1)
    turns.add("b", 0.0, 2)
    turns.add("a", 0.0, 3)
    assert list(turns.ready(1.0, {"a"}, NONE)) == [2]
    assert turns.is_behind("a")
    assert not turns.is_behind("b")
    assert list(turns.ready(1.0, NONE, NONE)) == [1, 3]
    assert len(turns) == 0


def test_a_slowed_write_waits_until_it_is_due_and_no_longer_than_writes_are_slowed() -> None:
    turns: Turns[int] = Turns(10)
    turns.add("a", 5.0, 1)
    turns.add("a", 6.0, 2)
    assert list(turns.ready(4.0, NONE, {"a"})) == []
    assert turns.next_due_at(NONE) == 5.0
    assert turns.next_due_at({"a"}) is None
    assert list(turns.ready(5.0, NONE, {"a"})) == [1]
    assert list(turns.ready(5.0, NONE, NONE)) == [2]


def test_where_it_is_full_the_first_slowed_write_is_let_go_and_a_held_one_is_not() -> None:
    turns: Turns[int] = Turns(2)
    turns.add("a", 5.0, 1)
    turns.add("a", 6.0, 2)
    assert turns.is_full
    assert list(turns.ready(0.0, {"a"}, {"a"})) == []
    assert list(turns.ready(0.0, NONE, {"a"})) == [1]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 9)), max_size=20), st.lists(st.floats(0, 9), max_size=5))
def test_no_write_overtakes_another_of_its_collection_and_none_is_lost(
    writes: list[tuple[str, float]], looks: list[float]
) -> None:
    turns: Turns[tuple[str, int]] = Turns(100)
    for number, (name, due_at) in enumerate(writes):
        turns.add(name, due_at, (name, number))
    done = [one for now in sorted(looks) for one in turns.ready(now, NONE, {"a", "b"})]
    done += turns.ready(0.0, NONE, NONE)
    for name in "ab":
        mine = [number for one, number in done if one == name]
        assert mine == [number for number, (one, _) in enumerate(writes) if one == name]
