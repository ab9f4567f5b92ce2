"""How a copy catches up with writes that do not pause: a model of writers and copier decides nothing but by what rounds say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morgan.background.workers.chase import HOLD_S, LEAST_SHARE, SHORT_S, TRIES, Chase, Move, Round

CALLS_S = 0.003  # of a round without points
AT_ONCE = 1000
COLLECTION = 50_000  # points: no more can be touched


def play(chase: Chase, written_per_s: float, copied_per_s: float, least_per_s: float, backlog: float) -> list[Move]:
    """Let writers write, as slow as they are asked to be but for `least_per_s`, until a move other than COPY."""
    moves: list[Move] = []
    since_s = 0.0
    for _ in range(2000):
        points = int(min(backlog, AT_ONCE))
        seconds = CALLS_S + points / copied_per_s
        left = int(backlog) - points
        moves.append(chase.after(Round(points, left, seconds, since_s)))
        if moves[-1] is not Move.COPY:
            return moves
        since_s = seconds
        rate = min(written_per_s, max(chase.slowed_to, least_per_s)) if chase.slowed_to else written_per_s
        backlog = min(left + rate * seconds, COLLECTION)
    raise AssertionError("it neither swaps nor gives up")


@given(st.floats(1, 1e6), st.floats(20, 1e5), st.floats(0, 1e5), st.floats(0, COLLECTION))
def test_it_ends_by_a_hold_that_fits_or_gives_up(written: float, copied: float, least: float, backlog: float) -> None:
    chase = Chase()
    end = play(chase, written, copied, least, backlog)[-1]
    assert end in (Move.HOLD, Move.GIVE_UP)
    assert chase.slowed_to == 0.0 or chase.slowed_to >= 1.0


@given(st.floats(1, 1e6), st.floats(2000, 1e5), st.floats(0, COLLECTION))
def test_writers_that_wait_for_their_turn_are_caught_up_with_however_fast_they_are(
    written: float, copied: float, backlog: float
) -> None:
    assert play(Chase(), written, copied, 0.0, backlog)[-1] is Move.HOLD


def test_writers_that_are_slow_enough_are_not_slowed() -> None:
    chase = Chase()
    assert play(chase, 1000.0, 10_000.0, 1000.0, 50_000.0)[-1] is Move.HOLD
    assert chase.slowed_to == 0.0


def test_some_short_rounds_try_between_two_writes_before_writes_are_held() -> None:
    chase = Chase()
    moves = [chase.after(Round(3, 0, SHORT_S / 2, SHORT_S)) for _ in range(TRIES + 1)]
    assert moves == [Move.COPY] * TRIES + [Move.HOLD]


def test_what_writes_faster_than_it_is_copied_even_when_slowed_is_given_up_with_both_figures() -> None:
    chase = Chase()
    assert play(chase, 5000.0, 25.0, 5000.0, 100.0)[-1] is Move.GIVE_UP
    assert chase.share == LEAST_SHARE
    assert "faster than embedded" in chase.reason
    assert f"{chase.written_per_s:.0f}/s" in chase.reason
    assert f"{chase.copied_per_s:.0f}/s" in chase.reason


def test_a_backlog_that_shrinks_is_no_reason_to_slow_writers() -> None:
    chase = Chase()
    for left in range(100_000, 0, -1000):
        assert chase.after(Round(1000, left, 0.2, 0.2)) is Move.COPY
    assert chase.slowed_to <= chase.copied_per_s


@pytest.mark.parametrize(("points", "left_s", "fits"), [(0, -1.0, True), (100, 0.2, True), (100, 0.05, False)])
def test_what_does_not_fit_into_the_hold_is_not_begun(points: int, left_s: float, fits: bool) -> None:
    chase = Chase()
    chase.after(Round(100, 0, 0.1, 0.1))
    assert chase.fits(points, left_s) is fits
    assert left_s < HOLD_S
