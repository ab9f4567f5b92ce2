"""The budget: what is left under the limit, down at once and up slowly, nothing where the machine cannot be read."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morgan.background.supervisor.governor import (
    ADMIT_PERMILLE,
    MAX_QUERY_ROOM_PERMILLE,
    MEMORY_HYSTERESIS_PERMILLE,
    PSI_CALM_PERMILLE,
    PSI_OTHERS_PERMILLE,
    QUERY_COST_PERMILLE,
    RISE_PER_S,
    Decision,
    GovernorState,
    Limits,
    Readings,
    cpu_limit_permille,
    is_active_hours,
    step,
    threads_for,
    wide_duty_permille,
    worker_duty_permille,
    workers_for,
)

LIMITS = Limits()
NOON, NIGHT = 12.0, 2.0
SHARES = st.integers(0, 1000)
HOURS = st.floats(0, 24, exclude_max=True)
CALM = Readings(at_s=0.0, own_cpu_permille=0, others_cpu_permille=0, memory_used_permille=300, cpus=4)
READINGS = st.builds(
    Readings,
    at_s=st.floats(0, 100),
    own_cpu_permille=SHARES,
    others_cpu_permille=SHARES,
    memory_used_permille=SHARES,
    cpus=st.integers(1, 256),
    psi_some_permille=st.none() | SHARES,
    query_rate_hz=st.floats(0, 1e6),
    is_plausible=st.sampled_from([True, True, True, False]),
    reason=st.sampled_from(["", "cpu_percent says 101 %"]),
)


def history(readings: list[Readings], hour: float, limits: Limits = LIMITS) -> list[Decision]:
    state, found = GovernorState(), []
    for one in readings:
        state, decision = step(state, one, limits, hour)
        found.append(decision)
    return found


# --- the limit by the hour --------------------------------------------------------------------------------------------


def test_the_plateaus_are_30_and_70_percent_and_the_ramps_between_them_are_lines() -> None:
    assert {cpu_limit_permille(LIMITS, tenth / 10) for tenth in range(90, 180)} == {300}
    quiet = [*range(220, 240), *range(60)]
    assert {cpu_limit_permille(LIMITS, tenth / 10) for tenth in quiet} == {700}
    assert [cpu_limit_permille(LIMITS, hour) for hour in (6, 6.75, 7.5, 8.25)] == [700, 600, 500, 400]
    assert [cpu_limit_permille(LIMITS, hour) for hour in (18, 19, 20, 21)] == [300, 400, 500, 600]


@settings(deadline=None)
@given(HOURS)
def test_the_limit_has_no_cliff(hour: float) -> None:
    second = 1 / 3600
    change = cpu_limit_permille(LIMITS, (hour + second) % 24) - cpu_limit_permille(LIMITS, hour)
    assert abs(change) <= 1
    assert 300 <= cpu_limit_permille(LIMITS, hour) <= 700
    assert is_active_hours(LIMITS, hour) == (9 <= hour < 18)


# --- one step ---------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(readings=st.lists(READINGS, max_size=20), hour=HOURS)
def test_the_budget_never_exceeds_what_others_leave_under_the_limit(readings: list[Readings], hour: float) -> None:
    limit = cpu_limit_permille(LIMITS, hour)
    for one, decision in zip(readings, history(readings, hour), strict=True):
        assert 0 <= decision.budget_permille <= max(limit - one.others_cpu_permille, 0)
        assert decision.budget_permille == 0 or one.is_plausible
        assert decision.is_admitting == (decision.budget_permille >= ADMIT_PERMILLE and not decision.is_memory_tight)
        assert decision.reason


@settings(deadline=None)
@given(before=SHARES, elapsed_s=st.floats(0, 10), readings=READINGS, hour=HOURS)
def test_a_budget_falls_at_once_and_rises_by_a_quarter_of_the_machine_a_second_at_most(
    before: int, elapsed_s: float, readings: Readings, hour: float
) -> None:
    now = replace(readings, at_s=50.0 + elapsed_s, is_plausible=True)
    _, fresh = step(GovernorState(), now, LIMITS, hour)  # the first reading of all: the target itself
    _, decision = step(GovernorState(before, 50.0), now, LIMITS, hour)
    if fresh.budget_permille <= before:
        assert decision.budget_permille == fresh.budget_permille
    else:
        most = before + (now.at_s - 50.0) * RISE_PER_S
        assert min(fresh.budget_permille, most) - 1 <= decision.budget_permille <= most + 1


def test_a_quiet_machine_gives_all_its_spare_capacity_within_three_seconds() -> None:
    busy = replace(CALM, others_cpu_permille=900)
    seconds = [busy] + [replace(CALM, at_s=float(n)) for n in range(1, 4)]
    assert [one.budget_permille for one in history(seconds, NIGHT)] == [0, 250, 500, 700]


@settings(deadline=None)
@given(before=SHARES, at_s=st.floats(0, 100), readings=READINGS, hour=HOURS)
def test_a_clock_that_went_back_and_a_failed_reading_count_as_a_busy_machine(
    before: int, at_s: float, readings: Readings, hour: float
) -> None:
    went_back = readings.at_s < at_s
    state, decision = step(GovernorState(before, at_s), readings, LIMITS, hour)
    if not readings.is_plausible or went_back:
        assert (decision.budget_permille, decision.is_admitting) == (0, False)
        assert (readings.reason or "the clock went backwards") in decision.reason
        # and from there it rises again by the new clock
        later = replace(CALM, at_s=readings.at_s + 1.0)
        assert step(state, later, LIMITS, NOON)[1].budget_permille == RISE_PER_S


@settings(deadline=None)
@given(rate_hz=st.floats(0, 1e3), more_hz=st.floats(0, 1e3), others=SHARES)
def test_searches_are_given_room_before_their_cpu_shows_and_not_without_end(
    rate_hz: float, more_hz: float, others: int
) -> None:
    readings = replace(CALM, others_cpu_permille=others, query_rate_hz=rate_hz)
    (decision,) = history([readings], NIGHT)
    room = min(round(rate_hz * QUERY_COST_PERMILLE), MAX_QUERY_ROOM_PERMILLE)
    assert decision.budget_permille == max(700 - others - room, 0)
    (busier,) = history([replace(readings, query_rate_hz=rate_hz + more_hz)], NIGHT)
    assert busier.budget_permille <= decision.budget_permille


@settings(deadline=None)
@given(psi=SHARES, others=SHARES)
def test_pressure_lowers_the_budget_only_where_others_use_the_cpu(psi: int, others: int) -> None:
    plain = replace(CALM, others_cpu_permille=others)
    (without,), (decision,) = history([plain], NIGHT), history([replace(plain, psi_some_permille=psi)], NIGHT)
    if psi <= PSI_CALM_PERMILLE or others <= PSI_OTHERS_PERMILLE:
        assert decision == without
    elif others >= 2 * PSI_OTHERS_PERMILLE:
        assert decision.budget_permille == round(without.budget_permille * PSI_CALM_PERMILLE / psi)
        assert "wait for a CPU" in decision.reason
    (more,) = history([replace(plain, others_cpu_permille=min(others + 1, 1000), psi_some_permille=psi)], NIGHT)
    assert 0 <= decision.budget_permille - more.budget_permille <= 7  # no step: 5 for the pressure, 1 for the use


def test_memory_above_the_limit_admits_nothing_until_it_is_clearly_below() -> None:
    edge = LIMITS.memory_permille
    used = [edge, edge + 1, edge, edge - MEMORY_HYSTERESIS_PERMILLE + 1, edge - MEMORY_HYSTERESIS_PERMILLE, edge]
    readings = [replace(CALM, at_s=float(n), memory_used_permille=share) for n, share in enumerate(used)]
    found = history(readings, NIGHT)
    assert [one.is_memory_tight for one in found] == [False, True, True, True, False, False]
    assert [one.is_admitting for one in found] == [True, False, False, False, True, True]
    assert "memory is 80 % used, the limit is 80 %" in found[1].reason
    assert found[1].budget_permille == 700  # a running task goes on: only new ones are kept out


def test_short_memory_stops_admissions_then_shrinks_batches_then_replaces_workers() -> None:
    used = [800, 801, 850, 851, 900, 901, 1000, 880, 870, 830, 820, 780, 770]
    readings = [replace(CALM, at_s=float(n), memory_used_permille=share) for n, share in enumerate(used)]
    found = [int(one.memory) for one in history(readings, NIGHT)]
    assert found == [0, 1, 1, 2, 2, 3, 3, 3, 2, 2, 1, 1, 0]
    said = [one.reason.partition("; ")[2] for one in history(readings, NIGHT)]
    assert [said[1], said[3], said[5]] == ["", "batches are small", "batches are small, workers are replaced"]


def test_on_its_battery_a_machine_does_nothing_and_says_why() -> None:
    (decision,) = history([replace(CALM, is_on_battery=True)], NIGHT)
    assert (decision.budget_permille, decision.is_admitting) == (0, False)
    assert "battery" in decision.reason


def test_a_few_ticks_more_or_less_move_the_budget_by_their_mean_and_a_burst_at_once() -> None:
    shares = [100, 200, 100, 200, 100, 200, 100, 200, 100, 600, 600]
    readings = [replace(CALM, at_s=n / 10, others_cpu_permille=share) for n, share in enumerate(shares)]
    budgets = [one.budget_permille for one in history(readings, NIGHT)]
    assert all(700 - 200 <= budget <= 700 - 100 for budget in budgets[:9])
    assert max(budgets[4:9]) - min(budgets[4:9]) <= 41  # of 100: a fifth, and what it rises by meanwhile
    assert budgets[9:] == [100, 100]


@settings(deadline=None)
@given(budget=st.integers(0, 1000), cpus=st.floats(0.1, 256))
def test_the_workers_that_a_budget_keeps_busy_have_most_of_a_cpu_each(budget: int, cpus: float) -> None:
    count = workers_for(budget, cpus)
    assert count >= 1
    assert worker_duty_permille(budget, cpus, count) >= (500 if count > 1 else 0)
    assert budget * cpus / 1000 <= count


@settings(deadline=None)
@given(st.lists(READINGS, max_size=20))
def test_memory_is_tight_above_the_limit_and_easy_below_the_lower_edge(readings: list[Readings]) -> None:
    last_at = -1.0
    for one, decision in zip(readings, history(readings, NOON), strict=True):
        if one.is_plausible and one.at_s >= last_at:
            if one.memory_used_permille > LIMITS.memory_permille:
                assert decision.is_memory_tight
            if one.memory_used_permille <= LIMITS.memory_permille - MEMORY_HYSTERESIS_PERMILLE:
                assert not decision.is_memory_tight
        last_at = one.at_s


@pytest.mark.parametrize(
    ("hour", "words"),
    [
        (NOON, "active hours (09-18): 30 % of the machine; others use 10 %, 20 % left"),
        (23.0, "quiet hours (22-06): 70 % of the machine; others use 10 %, 60 % left"),
        (7.5, "between active and quiet hours: 50 % of the machine; others use 10 %, 40 % left"),
    ],
)
def test_a_decision_says_why_in_words(hour: float, words: str) -> None:
    readings = replace(CALM, others_cpu_permille=100)
    assert history([readings], hour)[0].reason == words
    (searched,) = history([replace(readings, query_rate_hz=2.0)], hour)
    assert "4 % kept for 2.0 searches a second" in searched.reason


@settings(deadline=None)
@given(budget=st.integers(-5, 1000), cpus=st.integers(1, 256), workers=st.integers(0, 300))
def test_the_workers_duties_together_fit_the_budget(budget: int, cpus: int, workers: int) -> None:
    duty = worker_duty_permille(budget, cpus, workers)
    assert 0 <= duty <= 1000
    assert duty * workers <= max(budget, 0) * cpus
    unused = max(budget, 0) * cpus - duty * max(workers, 1)
    assert duty == 1000 or unused < max(workers, 1)  # no less than an equal part either


@settings(deadline=None)
@given(
    budget=st.integers(0, 1000),
    cpus=st.floats(0.1, 256),
    narrow=st.integers(0, 20),
    wide=st.integers(1, 20),
    threads=st.integers(1, 64),
)
def test_workers_of_several_threads_share_what_the_others_leave_and_all_fit_the_budget(
    budget: int, cpus: float, narrow: int, wide: int, threads: int
) -> None:
    each = worker_duty_permille(budget, cpus, narrow + wide)
    duty = wide_duty_permille(budget, cpus, narrow, wide, threads)
    assert each <= duty <= 1000 * threads
    assert narrow * each + wide * duty <= budget * cpus + 1e-6
    if duty < 1000 * threads:  # nothing is left unused
        assert budget * cpus - narrow * each - wide * duty < wide
    used = threads_for(duty, threads)
    assert 1 <= used <= threads
    assert used == 1 or (used - 1) * 1000 < duty  # whoever does not pace itself fits


@pytest.mark.parametrize(
    ("duty", "threads", "used"),
    [(0, 4, 1), (700, 4, 1), (1000, 4, 1), (1099, 4, 1), (1101, 4, 2), (2000, 4, 2), (4000, 4, 4), (4000, 1, 1)],
)
def test_a_further_thread_is_worth_a_tenth_of_a_cpu(duty: int, threads: int, used: int) -> None:
    assert threads_for(duty, threads) == used


# --- governor and machine together ------------------------------------------------------------------------------------


class SimulatedMachine:
    """A stand-in for a machine: background work uses what it was granted `lag` looks ago, if the CPUs have it free.

    Pressure is an average over ten seconds, as the kernel's avg10, of how far the CPUs are asked for more than there is.
    """

    def __init__(self, cpus: int, look_s: float, lag: int, noise: int = 0) -> None:
        self.cpus, self.look_s, self.noise, self.rng = cpus, look_s, noise, random.Random(1)
        self.at_s, self.pressure, self.state = 0.0, 0.0, GovernorState()
        self.granted = deque([0] * lag, maxlen=lag)

    def look(self, others: int, hour: float = NIGHT) -> int:
        """Let `look_s` pass with others asking for `others` permille; return the budget decided from the readings."""
        wanted = self.granted[0]
        own = min(wanted, 1000 - others)
        asked = 2 * others + wanted  # bursts: what others use in the mean, they ask for at twice the rate
        self.pressure += (min(max(asked - 600, 0), 1000) - self.pressure) * min(self.look_s / 10, 1.0)
        self.at_s += self.look_s
        readings = Readings(
            at_s=self.at_s,
            own_cpu_permille=own,
            others_cpu_permille=min(max(others + self.rng.randint(-self.noise, self.noise), 0), 1000),
            memory_used_permille=300,
            cpus=self.cpus,
            psi_some_permille=round(self.pressure),
        )
        self.state, decision = step(self.state, readings, LIMITS, hour)
        self.granted.append(decision.budget_permille)
        return decision.budget_permille


@settings(deadline=None)
@given(
    others=st.integers(0, 900), look_s=st.sampled_from([0.1, 0.25, 1.0]), lag=st.integers(1, 4), cpus=st.integers(1, 64)
)
def test_under_a_steady_load_the_budget_settles_and_does_not_swing(
    others: int, look_s: float, lag: int, cpus: int
) -> None:
    machine = SimulatedMachine(cpus, look_s, lag)
    budgets = [machine.look(others) for _ in range(round(150 / look_s))]
    settled = budgets[-round(30 / look_s) :]
    assert max(settled) - min(settled) <= 2  # rounding
    if others <= PSI_OTHERS_PERMILLE:
        assert settled[-1] == 700 - others


@settings(deadline=None)
@given(steady=st.integers(0, 200), noise=st.integers(0, 40), lag=st.integers(1, 4))
def test_noise_in_the_load_moves_the_budget_by_no_more_than_itself(steady: int, noise: int, lag: int) -> None:
    steady = min(steady, PSI_OTHERS_PERMILLE - noise)
    machine = SimulatedMachine(4, 0.25, lag, noise)
    budgets = [machine.look(steady) for _ in range(400)][40:]
    assert max(abs(budget - (700 - steady)) for budget in budgets) <= 2 * noise


@settings(deadline=None)
@given(burst=st.integers(300, 1000), lag=st.integers(1, 4))
def test_the_budget_is_gone_in_the_look_that_sees_others_come_and_returns_without_overshoot(
    burst: int, lag: int
) -> None:
    machine = SimulatedMachine(4, 0.25, lag)
    for _ in range(40):
        machine.look(0)
    assert machine.state.budget_permille == 700
    assert machine.look(burst) <= max(700 - burst, 0)
    for _ in range(8):
        assert machine.look(burst) <= max(700 - burst, 0)
    back = [machine.look(0) for _ in range(40)]
    assert all(a <= b for a, b in pairwise(back))
    assert back[-1] == 700


@given(st.floats(0.05, 1.0), st.integers(ADMIT_PERMILLE, 1000), st.integers(1, 8))
def test_a_quota_below_one_workers_need_still_lets_one_worker_get_on(cpus: float, budget: int, workers: int) -> None:
    assert workers_for(budget, cpus) == 1
    duty = worker_duty_permille(budget, cpus, 1)
    assert 0 < duty <= 1000 * cpus + 1
    assert worker_duty_permille(budget, cpus, workers) * workers <= budget * cpus
