"""What the owner remembers of writes to a watched collection: nothing is missed, whatever the order of writes and questions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from morgan.background.workers.watches import MAX_DELAY_S, Watches


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


def test_it_says_how_many_points_more_were_touched() -> None:
    watches = Watches(0)
    token = watches.begin("docs")
    for seq in range(1, 8):
        watches.note("docs", [seq], seq)
    found = watches.since(token, 2, 7, 3)
    assert found is not None
    assert (found.ids, found.seq, found.left) == ((3, 4, 5), 5, 2)


@given(st.lists(st.tuples(st.floats(0, 0.1), st.integers(1, 50)), min_size=1, max_size=30), st.floats(1, 1e5))
def test_slowed_writes_take_turns_and_none_is_delayed_for_long(writes: list[tuple[float, int]], per_s: float) -> None:
    watches, now, last = Watches(0), 0.0, 0.0
    token = watches.begin("docs")
    assert watches.slow(token, 1e9, per_s)
    spent = 0.0  # the time that the points before it have
    for pause, points in writes:
        now += pause
        due_at = watches.due_at("docs", points, now)
        assert now <= due_at <= now + MAX_DELAY_S
        assert due_at >= last
        assert due_at >= min(last + spent, now + MAX_DELAY_S) - 1e-9
        last, spent = due_at, points / per_s


def test_writes_are_slowed_until_it_is_taken_back_or_their_time_is_over() -> None:
    watches = Watches(0)
    token = watches.begin("docs")
    assert not watches.slow(token + 1, 10.0, 5.0)
    assert watches.slow(token, 10.0, 5.0)
    assert watches.due_at("docs", 1, 1.0) == 1.0
    assert watches.due_at("docs", 1, 1.0) > 1.0
    assert watches.due_at("other", 1, 1.0) == 1.0
    assert watches.slowed(9.0) == {"docs"}
    assert watches.slow(token, 20.0, 0.0)
    assert watches.slowed(9.0) == frozenset()
    watches.slow(token, 10.0, 5.0)
    assert watches.slowed(10.0) == frozenset()
