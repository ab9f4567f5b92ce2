"""A paced worker keeps to its share. The clock and the CPU figure are simulated: what is proved is the arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morgan.background.ipc.errors import TaskCancelled
from morgan.background.workers.pacing import BURST_S, SLICE_S, Pacer

DUTIES = st.integers(20, 1000)  # below, a simulated second has too many slices to be quick
BATCHES_S = st.floats(0.001, 0.3)  # CPU seconds of one sub-batch

TICK_S = 1e-4  # no real wait is shorter


class SimulatedTime:
    """Time that passes by working (with CPU) and by waiting (without), and a pacer that lives in it."""

    def __init__(self, duty: Callable[[], int], check: Callable[[], None] = lambda: None) -> None:
        self.now = self.used = 0.0
        self.waits = list[float]()
        self.pacer = Pacer(duty, self.wait, check, lambda: self.now, lambda: self.used)

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += max(seconds, TICK_S)

    def work(self, cpu_s: float, stretched: float = 1.0) -> None:
        """Use `cpu_s` of CPU; a busy machine stretches it over more wall time."""
        self.used += cpu_s
        self.now += cpu_s * stretched
        self.pacer.pace()


@settings(deadline=None)
@given(duty=DUTIES, batch_s=BATCHES_S, stretched=st.floats(1, 3))
def test_the_share_of_a_steady_worker_converges_to_its_duty(duty: int, batch_s: float, stretched: float) -> None:
    time = SimulatedTime(lambda: duty)
    for _ in range(40):
        time.work(batch_s, stretched)
    granted = duty / 1000 * time.now
    assert time.used <= granted + BURST_S + 1e-6  # never ahead by more than one burst
    if duty / 1000 * stretched < 1:
        assert time.used == pytest.approx(granted, abs=BURST_S + 2 * TICK_S)  # nor behind: what was granted is used
    else:
        assert time.used == pytest.approx(40 * batch_s)  # the machine gives less than the duty: no wait at all
        assert time.pacer.waited_s <= SLICE_S


@settings(deadline=None)
@given(st.lists(st.tuples(DUTIES, BATCHES_S), min_size=1, max_size=20))
def test_a_worker_is_never_ahead_of_what_was_granted_by_more_than_a_burst(turns: list[tuple[int, float]]) -> None:
    duty, granted = 0, 0.0
    time = SimulatedTime(lambda: duty)
    for duty, batch_s in turns:
        before = time.now
        time.work(batch_s)
        granted += (time.now - before) * duty / 1000
        assert time.used <= granted + BURST_S + 1e-6


@settings(deadline=None)
@given(idle_s=st.floats(0, 1e6), duty=DUTIES)
def test_time_spent_idle_is_not_saved_up(idle_s: float, duty: int) -> None:
    time = SimulatedTime(lambda: duty)
    time.now += idle_s
    time.pacer.pace()
    time.work(BURST_S + 0.1)
    earned_s = (BURST_S + 0.1) * duty / 1000  # while it worked
    assert time.pacer.waited_s >= (0.1 - earned_s) * 1000 / duty - 1e-6


def test_a_whole_cpu_is_never_waited_for() -> None:
    time = SimulatedTime(lambda: 1000)
    for _ in range(100):
        time.work(0.2)
    assert time.waits == []


def test_a_first_sub_batch_within_the_burst_runs_at_once_and_a_reset_forgives_the_past() -> None:
    time = SimulatedTime(lambda: 10)
    time.work(BURST_S)
    assert time.waits == []
    time.used += 30.0  # loading a model
    time.now += 30.0
    time.pacer.reset()
    time.work(BURST_S)
    assert time.waits == []


def test_with_no_duty_it_waits_until_there_is_one() -> None:
    left = [0] * 20
    time = SimulatedTime(lambda: left.pop() if left else 500)
    time.pacer.pace()
    assert time.waits == [SLICE_S] * 20
    assert time.pacer.waited_s == pytest.approx(20 * SLICE_S)


@settings(deadline=None)
@given(DUTIES)
def test_no_wait_is_longer_than_a_slice_so_that_a_new_duty_takes_effect(duty: int) -> None:
    time = SimulatedTime(lambda: duty)
    time.work(0.3)
    assert max(time.waits, default=0.0) <= SLICE_S


def test_a_duty_raised_while_it_waits_ends_the_wait_early() -> None:
    time = SimulatedTime(lambda: 1 if len(time.waits) < 3 else 1000)
    time.work(1.0)
    assert 3 <= len(time.waits) <= 3 + 1 / SLICE_S
    assert time.pacer.waited_s < 2.0  # at the duty of 1 permille it would have been 950 s


@pytest.mark.parametrize("duty", [0, 1, 500])
def test_a_stop_while_waiting_raises_what_check_raises(duty: int) -> None:
    def check() -> None:
        if len(time.waits) == 2:
            raise TaskCancelled("stop")

    time = SimulatedTime(lambda: duty, check)
    with pytest.raises(TaskCancelled):
        time.work(10.0)
    assert len(time.waits) == 2


def test_a_stop_is_not_asked_for_where_nothing_is_waited_for() -> None:
    def check() -> None:
        raise TaskCancelled("stop")

    time = SimulatedTime(lambda: 1000, check)
    time.work(0.01)


@settings(deadline=None)
@given(back_s=st.floats(0, 1e6))
def test_a_clock_that_goes_back_grants_nothing_and_hangs_nothing(back_s: float) -> None:
    time = SimulatedTime(lambda: 500)
    time.now -= back_s
    time.pacer.pace()
    time.work(0.2)
    assert time.pacer.waited_s <= 0.2 / 0.5


def test_every_slice_of_a_wait_is_a_sign_of_life() -> None:
    """Who waits for its budget, for however long, has not hung."""
    left, signs = [0] * 20, [0]

    def count() -> None:
        signs[0] += 1

    pacer = Pacer(
        lambda: left.pop() if left else 500, lambda _: None, lambda: None, lambda: 0.0, lambda: 0.0, count=count
    )
    pacer.pace()
    assert signs[0] == 1 + 20
