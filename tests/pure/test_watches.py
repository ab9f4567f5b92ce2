"""What the owner remembers of writes to a watched collection: nothing is missed, whatever the order of writes and questions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from morgan.background.workers.watches import Watches


@given(st.lists(st.one_of(st.lists(st.integers(0, 9), max_size=4), st.none())), st.integers(1, 5))
def test_every_point_touched_is_told_until_it_is_said_to_be_copied(events: list[list[int] | None], limit: int) -> None:
    watches, seq, copied = Watches(0), 0, 0
    token = watches.begin("docs")
    owed: dict[int, int] = {}
    for ids in events:
        if ids is not None:
            seq += 1
            watches.note("docs", ids, seq)
            owed |= dict.fromkeys(ids, seq)
            continue
        found = watches.since(token, copied, seq, limit)
        assert found is not None
        assert all(owed[one] > copied for one in found.ids)
        copied = found.seq
        owed = {one: at for one, at in owed.items() if at > copied}
    while True:
        found = watches.since(token, copied, seq, limit)
        assert found is not None
        copied = found.seq
        owed = {one: at for one, at in owed.items() if at > copied}
        if not found.ids:
            break
    assert owed == {}
    assert copied == seq


def test_a_watch_that_is_not_known_says_so_and_a_later_one_ends_it() -> None:
    watches = Watches(100)
    assert watches.since(7, 0, 0, 10) is None
    first = watches.begin("docs")
    second = watches.begin("docs")
    assert watches.since(first, 0, 0, 10) is None
    assert watches.since(second, 0, 0, 10) is not None
    watches.end("docs")
    assert watches.since(second, 0, 0, 10) is None
    assert first != second


def test_a_change_of_any_point_is_told_as_such() -> None:
    watches = Watches(0)
    token = watches.begin("docs")
    watches.note("docs", None, 5)
    found = watches.since(token, 0, 5, 10)
    assert found is not None
    assert found.is_whole
    found = watches.since(token, 5, 5, 10)
    assert found is not None
    assert not found.is_whole


def test_writes_are_held_until_released_or_until_their_time_is_over() -> None:
    watches = Watches(0)
    token = watches.begin("docs")
    assert not watches.hold(token + 1, 10.0)
    assert watches.hold(token, 10.0)
    assert watches.held(9.0) == {"docs"}
    assert watches.next_release() == 10.0
    watches.release(token)
    assert watches.held(9.0) == frozenset()
    watches.hold(token, 10.0)
    assert watches.held(10.0) == frozenset()
    assert watches.next_release() is None
