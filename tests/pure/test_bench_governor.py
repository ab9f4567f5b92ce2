"""What `bench governor` makes of clocks: when requests are due, what they are late by, who used what, who gave way when."""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.cases import governor
from bench.daemon import serving, to_toml
from bench.foreground import IDLE, SLICE_S, Helper, corrected, schedule, slices
from bench.governing import (
    CONTROL,
    FREE,
    LIMITS,
    NONE,
    OURS,
    OURS_LOW,
    SEARCH_SHARE,
    SEARCHER_SHARE,
    Found,
    Window,
    limits,
    searchers,
)
from bench.governing import settings as settings_for
from bench.measure import Latency
from bench.report import Goal
from bench.shares import Sample, Shares, busy_s, clock_s, errors, reaction_s, shares
from morgan.background.supervisor.config import load as load_config

MS = 1_000_000


# --- when searches are due ----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.floats(1, 2000), st.floats(0.1, 5), st.integers(0, 2**32))
def test_every_period_has_one_request_and_a_seed_names_their_times(rate_hz: float, seconds: float, seed: int) -> None:
    due = schedule(rate_hz, seconds, seed)
    assert due == schedule(rate_hz, seconds, seed) == sorted(due)
    assert [int(ns * rate_hz / 1e9 + 1e-6) - i for i, ns in enumerate(due)] == pytest.approx([0] * len(due), abs=1)
    assert len(due) == int(rate_hz * seconds)
    assert all(0 <= ns < seconds * 1e9 for ns in due)


@given(st.lists(st.integers(0, 10 * MS), min_size=1, max_size=60), st.integers(1, 5 * MS), st.data())
def test_a_stall_counts_for_every_request_that_was_due_in_it(gaps: list[int], cost: int, data: st.DataObject) -> None:
    due = list(itertools.accumulate(gaps))
    stalled = data.draw(st.integers(0, len(due) - 1))
    stall = data.draw(st.integers(0, 100 * MS))
    free_at, ended = 0, []
    for i, at in enumerate(due):  # one request after the other, as in the process
        free_at = max(free_at, at) + cost + (stall if i == stalled else 0)
        ended.append(free_at)
    found = corrected(due, ended)
    assert all(latency >= cost for latency in found)
    for i in range(stalled, len(due)):  # who came while it stood still waited for the rest of the stall
        assert found[i] >= due[stalled] + stall + cost - due[i]


def test_a_closed_loop_would_have_hidden_what_the_correction_shows() -> None:
    due = [i * 10 * MS for i in range(10)]
    ended = [1 * MS, *(101 * MS + i * MS for i in range(9))]  # the second took 91 ms, the others one each
    assert sorted(corrected(due, ended))[5] > 50 * MS


@given(st.lists(st.integers(-5 * MS, 120 * MS), max_size=200))
def test_each_piece_is_counted_in_its_slice_and_late_ones_in_none(ended: list[int]) -> None:
    counts = slices(ended, 0.1)
    assert len(counts) == round(0.1 / SLICE_S)
    assert sum(counts) == sum(0 <= one < 100 * MS for one in ended)
    assert counts[3] == sum(30 * MS <= one < 40 * MS for one in ended)


# --- who used the CPUs --------------------------------------------------------------------------------------------------

uses = st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))


def samples_of(each: list[tuple[float, float, float]], step_s: float = 0.25, cpus: int = 2) -> list[Sample]:
    """Return samples of a machine in which own, foreground and others used these shares, at most all of it together."""
    found = [Sample(0.0, 0.0, 0.0, 0.0)]
    for own, front, others in each:
        whole = max(own + front + others, 1.0)
        last, of_all = found[-1], step_s * cpus / whole
        found.append(
            Sample(
                last.at_s + step_s,
                last.own_s + own * of_all,
                last.front_s + front * of_all,
                last.busy_s + (own + front + others) * of_all,
            )
        )
    return found


@given(uses, st.integers(1, 64))
def test_shares_are_of_all_cpus_and_whoever_else_is_told_apart(use: tuple[float, float, float], cpus: int) -> None:
    whole = max(sum(use), 1.0)
    first, last = samples_of([use], cpus=cpus)
    found = shares(first, last, cpus)
    assert (found.own, found.front, found.others) == pytest.approx([one / whole for one in use], abs=1e-9)


def test_ticks_that_lag_behind_the_clocks_make_nobody_negative() -> None:
    assert shares(Sample(0, 0, 0, 0), Sample(1, 1.0, 0.5, 1.4), 2) == Shares(0.5, 0.25, 0.0)
    assert Shares(0.5, 0.25, 0.5).left(0.7) == 0.0


@given(st.floats(0, 0.6), st.floats(0, 0.3), st.floats(0.1, 1))
def test_steady_use_is_off_the_limit_by_the_same_in_every_window(own: float, front: float, limit: float) -> None:
    found = errors(samples_of([(own, front, 0.0)] * 20), limit, 2.0, 2)
    assert len(found) == 20 - 8 + 1
    assert found == pytest.approx([100 * min(own + front - limit, own)] * len(found), abs=1e-6)


@given(st.lists(uses, min_size=8, max_size=60), st.floats(0.1, 1))
def test_no_window_is_worse_than_the_worst_of_the_samples_in_it(
    each: list[tuple[float, float, float]], limit: float
) -> None:
    made = samples_of(each)
    single = errors(made, limit, 0.25, 2)
    found = errors(made, limit, 2.0, 2)
    for start, error in enumerate(found):
        assert error <= max(single[start : start + 8]) + 1e-6
        used = shares(made[start], made[start + 8], 2)
        assert error <= 100 * used.own + 1e-6  # what others use alone is no error of ours


def test_a_burst_of_others_is_no_error_of_a_background_that_gives_way() -> None:
    made = samples_of([(0.5, 0.0, 0.2), (0.0, 0.0, 1.0)] * 4)
    assert errors(made, 0.7, 2.0, 2) == pytest.approx([0.0])


def test_a_burst_of_our_own_shows_in_a_short_window_and_less_in_a_long_one() -> None:
    made = samples_of([(0.5, 0.1, 0.1)] * 20 + [(0.8, 0.1, 0.1)] * 4 + [(0.5, 0.1, 0.1)] * 20)
    assert max(errors(made, 0.7, 2.0, 2)) == pytest.approx(15)
    assert max(errors(made, 0.7, 10.0, 2)) == pytest.approx(3)
    assert errors(made[:5], 0.7, 2.0, 2) == []


def test_the_busy_time_is_that_of_the_named_cpus_without_idle_and_iowait() -> None:
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    text = "cpu  99 99 99 99 99 99 99 99 99 99\ncpu0 1 2 3 100 50 4 5 6 1 1\ncpu1 10 0 0 7 0 0 0 0 9 0\ncpu10 1000\nintr 5\n"
    assert busy_s([0], text) == pytest.approx(21 * tick_s)
    assert busy_s([0, 1], text) == pytest.approx(31 * tick_s)


def test_a_process_has_a_clock_and_one_that_has_ended_has_none() -> None:
    used = clock_s(os.getpid())
    assert used is not None
    assert used <= time.process_time()
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    assert clock_s(pid) is None


# --- who gave way when --------------------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), max_size=80), st.integers(1, 10))
def test_the_reaction_is_where_the_first_stretch_at_full_rate_begins(full: list[bool], hold: int) -> None:
    found = reaction_s([80 if one else 40 for one in full], 76, hold, 0.01)
    stretches = [at for at in range(len(full) - hold + 1) if all(full[at : at + hold])]
    assert found == (pytest.approx(stretches[0] * 0.01) if stretches else None)


def test_a_rate_that_comes_and_goes_is_no_reaction() -> None:
    assert reaction_s([10, 80, 80, 10, 80, 80, 80, 80], 76, 3, 0.01) == pytest.approx(0.04)


# --- the processes ------------------------------------------------------------------------------------------------------


def test_naive_background_has_its_class_and_a_session_of_its_own_and_leaves_nothing_behind() -> None:
    helper = Helper("burn", IDLE, "2")
    try:
        pids = helper.hear()["pids"]
        family = [psutil.Process(pid) for pid in (helper.pid, *pids)]
        assert [os.sched_getscheduler(pid) for pid in pids] == [os.SCHED_IDLE] * 2
        assert {os.getsid(one.pid) for one in family} == {helper.pid}
    finally:
        helper.close()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive


def test_a_search_process_answers_with_the_end_of_every_search_that_was_due() -> None:
    helper = Helper("search")
    try:
        assert helper.hear()["cost_s"] > 0
        helper.tell(start_ns=time.monotonic_ns(), rate_hz=50.0, seconds=0.2, seed=3)
        due, ended = schedule(50.0, 0.2, 3), helper.hear()
    finally:
        helper.close()
    assert len(ended) == len(due) == 10
    assert ended == sorted(ended)
    assert min(corrected(due, ended)) > 0


def test_a_load_answers_with_what_it_has_done_in_each_slice() -> None:
    helper = Helper("load")
    try:
        helper.hear()
        helper.tell(start_ns=time.monotonic_ns() - 10**10, rate_hz=100.0, seconds=0.1, seed=3)  # all of it long due
        assert helper.hear() == [0] * 10
        helper.tell(start_ns=time.monotonic_ns() + 10**7, rate_hz=100.0, seconds=0.1, seed=3)
        assert len(helper.hear()) == 10
    finally:
        helper.close()


def test_a_helper_that_was_called_wrongly_says_so_instead_of_being_waited_for() -> None:
    helper = Helper("juggle")
    try:
        with pytest.raises(RuntimeError, match="exit status 1"):
            helper.hear()
    finally:
        helper.close()


def test_the_service_has_a_session_of_its_own_and_takes_other_limits_while_it_runs() -> None:
    with serving(settings_for(1), is_own_session=True) as service:
        supervisor = service.processes()["supervisor"].pid
        assert os.getsid(supervisor) == supervisor
        service.reload(limits(0.0))
        assert not service.client.status()["resources"]["can_run_task"]
        with pytest.raises(RuntimeError, match=r"restart changes service\.workers"):
            service.reload({"service": {"workers": 2}})


# --- what is made of the rounds -----------------------------------------------------------------------------------------


def window(
    p50_ms: float = 1.0, own: float = 0.0, others: float = 0.0, over: float = 0.0, per_cpu: float = 90
) -> Window:
    return Window(
        latency=Latency(p50_ms * MS, 3 * p50_ms * MS, 1000),
        shares=Shares(own, 0.13, others),
        load=1.0,
        errors={2.0: [over, 0.0], 10.0: [over / 2, 0.0]},
        supervisor_percent=0.2,
        texts_per_cpu_s=per_cpu,
        reason="",
    )


def rounds(**changed: list[Window]) -> Found:
    windows = {
        NONE: [window()] * 3,
        CONTROL: [window(1.02)] * 3,
        OURS: [window(1.05, own=0.55, over=4.0)] * 3,
        OURS_LOW: [window(own=0.16, over=1.0)] * 3,
        FREE: [window(own=0.8)] * 3,
    }
    full, slow = [64] * 100, [20] * 5 + [64] * 95
    steps = {NONE: [full] * 3, OURS: [slow] * 3}
    return Found(windows=windows | changed, steps=steps, governing_percent=[0.9, 0.2, 0.1], units_hz=1e9)


def goals(found: Found) -> dict[str, Goal]:
    return {words.split(" (")[0].split(",")[0]: goal for words, goal in governor._goals(found, is_quick=False).items()}


def test_every_goal_is_met_by_figures_that_are_good_enough() -> None:
    found = governor._goals(rounds(), is_quick=False)
    assert len(found) == 8
    assert {goal.met for goal in found.values()} == {True}
    assert goals(rounds())["reaction to a foreground step 0 -> 80 %"].value == pytest.approx(50)


def test_a_latency_that_the_noise_hides_is_neither_met_nor_missed() -> None:
    noisy = rounds(**{CONTROL: [window(1.4)] * 3, OURS: [window(1.3, own=0.55)] * 3})
    goal = goals(noisy)["foreground p50"]
    assert goal.met is None
    assert "40 %" in goal.why
    assert goals(rounds(**{OURS: [window(1.3, own=0.55)] * 3}))["foreground p50"].met is False


def test_a_missed_limit_is_held_against_us_unless_others_were_at_work() -> None:
    over = goals(rounds(**{OURS: [window(own=0.55), window(own=0.55, over=8.0), window(own=0.55)]}))
    assert over["cap error"].met is False
    crowded = goals(rounds(**{OURS: [window(own=0.4, others=0.3, over=8.0)] * 3}))
    assert crowded["cap error"].met is None
    assert "30 %" in crowded["cap error"].why


def test_a_service_that_could_do_nothing_has_kept_no_limit() -> None:
    idle = [window(own=0.001, others=0.6)] * 3
    found = goals(rounds(**{OURS: [window(own=0.5), *idle], OURS_LOW: idle}))
    assert found["cap error"].met is None
    assert "1 of 7 windows" in found["cap error"].why
    assert found["throughput per CPU second"].met is None
    assert found["background's share of the capacity that limits and foreground leave over"].met is None


def test_a_load_that_never_has_its_rate_has_missed_the_goal_without_a_figure() -> None:
    found = rounds()
    found.steps[OURS] = [[20] * 100] * 3
    goal = goals(found)["reaction to a foreground step 0 -> 80 %"]
    assert (goal.value, goal.met) == (None, False)
    assert "Infinity" not in json.dumps(governor._figures(found, 2))


def test_one_disturbed_round_does_not_move_a_ratio_of_the_case() -> None:
    bad = rounds(**{OURS: [window(1.05, own=0.55), window(50, own=0.55), window(1.05, own=0.55)]})
    assert governor.ratio(bad, OURS, governor._p50) == pytest.approx(1.05)


def test_the_search_processes_share_the_work_of_many_cpus() -> None:
    assert searchers(1) == searchers(2) == 1
    for cpus in range(1, 200):
        assert SEARCH_SHARE * cpus / searchers(cpus) <= SEARCHER_SHARE


def test_the_settings_of_the_governor_are_ones_the_service_takes(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(to_toml(settings_for(3)))
    assert load_config(path, {}).service.workers == 3
    assert set(LIMITS) == {OURS, OURS_LOW}
