"""When a dead worker comes back: soon after one death, ever later after many, never not at all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morgan.background.supervisor.restarts import BASE_S, CALM_S, CAP_S, INTENSITY, Slot, Wear, after_death

SHORT = st.floats(0, CALM_S, exclude_max=True)
LIVES = st.lists(st.tuples(SHORT, st.floats(0, 1)), min_size=1, max_size=40)


def delays(lives: list[tuple[float, float]], now: float = 1000.0) -> list[float]:
    slot, found = Slot(), []
    for lived_s, jitter in lives:
        slot = after_death(slot, now, lived_s, jitter)
        found.append(slot.start_at - now)
    return found


def test_one_death_waits_for_nothing_those_after_it_four_times_longer_each_and_a_minute_past_the_intensity() -> None:
    assert delays([(0.0, 0.0)] * 7) == pytest.approx([0, 0.1, 0.4, 1.6, 60, 60, 60])


@settings(deadline=None)
@given(LIVES)
def test_a_delay_is_none_or_between_the_base_and_the_cap_and_jitter_adds_at_most_half(
    lives: list[tuple[float, float]],
) -> None:
    plain = delays([(lived_s, 0.0) for lived_s, _ in lives])
    assert plain == sorted(plain)
    for least, delay in zip(plain, delays(lives), strict=True):
        assert least == 0.0 or least >= BASE_S
        assert least * 0.999 <= delay <= least * 1.501 <= CAP_S * 1.502


@settings(deadline=None)
@given(LIVES)
def test_a_slot_is_degraded_from_its_fifth_short_life_on(lives: list[tuple[float, float]]) -> None:
    slot = Slot()
    assert not slot.is_degraded
    for count, (lived_s, jitter) in enumerate(lives, start=1):
        slot = after_death(slot, 0.0, lived_s, jitter)
        assert slot.deaths == count
        assert slot.is_degraded == (count >= INTENSITY)


@settings(deadline=None)
@given(lives=LIVES, calm_s=st.floats(CALM_S, 1e9), jitter=st.floats(0, 1))
def test_a_calm_life_or_one_that_got_something_done_forgets_the_deaths_before_it(
    lives: list[tuple[float, float]], calm_s: float, jitter: float
) -> None:
    slot = Slot()
    for lived_s, each in lives:
        slot = after_death(slot, 0.0, lived_s, each)
    after = after_death(slot, 5.0, calm_s, jitter)
    assert after == after_death(Slot(), 5.0, 0.0, jitter)
    assert after == after_death(slot, 5.0, 0.0, jitter, is_proven=True)
    assert not after.is_degraded


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 50), st.integers(1, 10_000), st.integers(0, 50))
def test_a_worker_is_replaced_for_its_memory_or_its_tasks_and_never_before_its_first(
    rss_kib: int, tasks: int, max_rss_kib: int, max_tasks: int
) -> None:
    wear = Wear(max_rss_kib, max_tasks)
    is_over = rss_kib > max_rss_kib or (max_tasks != 0 and tasks >= max_tasks)
    assert wear.is_worn(rss_kib, tasks) == (is_over and tasks > 0)
