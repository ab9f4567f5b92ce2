"""How often a collection is warmed: as its results go missing, within bounds, and for no more than there is to spend."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morgan.background.supervisor.cadence import LEAST_S, LONGEST_S, SHORTEST_S, STEP, USUAL_S, WORTH, Looked, step

HOUR_S = 3600.0
amount = st.floats(0, 1e4)
time_s = st.floats(0, 1e6)
looked = st.builds(Looked, at=time_s, lacking=amount, left=amount, waiting=amount, cost_s=amount)
interval = st.floats(SHORTEST_S, LONGEST_S)


def run_of(gone: float, *, runs: int = 12, waiting: float = 0.0, spare_s: float | None = None) -> tuple[float, str]:
    """Return the interval after so many runs, results worth `gone` hits an hour going missing each hour, and the reason."""
    every_s, at, why = USUAL_S, 0.0, ""
    before: Looked | None = None
    for _ in range(runs):
        found = Looked(at, gone * every_s / HOUR_S + waiting, waiting, waiting, cost_s=20.0)
        before, cadence = step(every_s, before, found, spare_s)
        if cadence is not None:
            every_s, why = cadence.every_s, cadence.why
        at += every_s
    return every_s, why


@given(interval, looked, looked, st.one_of(st.none(), amount))
def test_an_interval_stays_within_its_bounds_and_says_why(
    held_s: float, before: Looked, found: Looked, spare_s: float | None
) -> None:
    _, cadence = step(held_s, before, found, spare_s)
    if cadence is not None:
        assert SHORTEST_S <= cadence.every_s <= LONGEST_S
        assert "went missing" in cadence.why
        if spare_s is not None and cadence.every_s < LONGEST_S:
            assert found.cost_s * HOUR_S / cadence.every_s <= spare_s * (1 + 1e-9)


@given(interval, looked, looked)
def test_an_interval_changes_by_no_more_than_a_step(held_s: float, before: Looked, found: Looked) -> None:
    _, cadence = step(held_s, before, found, None)
    if cadence is not None:
        assert held_s / STEP <= cadence.every_s * (1 + 1e-9)
        assert cadence.every_s <= max(held_s * STEP, SHORTEST_S) * (1 + 1e-9)


@given(amount, amount)
def test_what_goes_missing_faster_is_warmed_no_less_often(slow: float, fast: float) -> None:
    slow, fast = sorted((slow, fast))
    assert run_of(fast)[0] <= run_of(slow)[0]


def test_a_collection_that_loses_a_hit_an_hour_each_hour_is_warmed_hourly_one_that_nobody_asks_seldom() -> None:
    assert run_of(WORTH)[0] == pytest.approx(HOUR_S)
    assert run_of(0.0)[0] == LONGEST_S
    assert run_of(50.0)[0] == SHORTEST_S
    assert run_of(0.0, waiting=5.0)[0] == SHORTEST_S


def test_no_collection_is_warmed_more_often_than_its_runs_can_be_paid_and_the_reason_says_so() -> None:
    every_s, why = run_of(50.0, spare_s=40.0)
    assert every_s == pytest.approx(20.0 / 40.0 * HOUR_S)
    assert "20 of the 40 CPU seconds" in why
    assert run_of(50.0, spare_s=0.0)[0] == LONGEST_S


def test_nothing_changes_before_there_are_two_looks_some_minutes_apart() -> None:
    found = Looked(0.0, 5.0, 0.0, 0.0, 1.0)
    assert step(USUAL_S, None, found, None) == (found, None)


def test_looks_in_quick_succession_add_up_to_one() -> None:
    before = Looked(0.0, 0.0, 0.0, 0.0, 1.0)
    for at in range(60, int(LEAST_S), 60):
        before, cadence = step(USUAL_S, before, Looked(float(at), 0.2, 0.0, 0.0, 1.0), None)
        assert cadence is None
    gone = 0.2 * (LEAST_S // 60 - 1) + 0.2
    _, cadence = step(USUAL_S, before, Looked(LEAST_S, 0.2, 0.0, 0.0, 1.0), None)
    assert cadence is not None
    assert cadence.every_s == pytest.approx(max(LEAST_S * WORTH / gone, USUAL_S / STEP))
    assert f"worth {gone:.2g} hits" in cadence.why
