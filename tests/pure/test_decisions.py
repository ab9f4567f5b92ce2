"""The log of the governor's decisions: bounded, nothing lost but the moment of a change, means over time."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morgan.background.ipc.records import DecisionRow
from morgan.background.supervisor import decisions
from morgan.background.supervisor.decisions import DecisionLog
from morgan.background.supervisor.governor import Decision, GovernorState, Limits, Memory, Readings, step

DAY_S = 86400.0

Sample = tuple[float, int, bool]  # seconds since the one before, permille of every figure, whether tasks are admitted


def samples(least_s: float = 0.01, most_s: float = 30.0) -> st.SearchStrategy[list[Sample]]:
    one = st.tuples(st.floats(least_s, most_s) | st.just(least_s), st.integers(0, 1000), st.booleans())
    return st.lists(one, min_size=2, max_size=80)


def decided(permille: int, *, is_admitting: bool) -> Decision:
    return Decision(permille, is_admitting, Memory.EASY, f"because of {permille}")


def read(at_s: float, permille: int) -> Readings:
    return Readings(at_s, permille, permille // 2, permille // 4, 2.0, query_rate_hz=permille / 100)


def logged(given_: Iterable[Sample], log: DecisionLog | None = None, *, clock_s: float = 1e9) -> list[DecisionRow]:
    """Return all rows of a log that took these samples."""
    log = log or DecisionLog()
    at_s = 5.0
    for elapsed_s, permille, is_admitting in given_:
        at_s += elapsed_s
        log.add(clock_s + at_s, read(at_s, permille), decided(permille, is_admitting=is_admitting), permille)
    return log.rows()


def changes(given_: list[Sample]) -> int:
    return sum(before[2] is not after[2] for before, after in itertools.pairwise(given_))


@given(samples())
def test_every_second_and_every_change_is_in_one_row_and_means_are_over_time(given_: list[Sample]) -> None:
    given_ = [*given_, (1.0, 0, given_[-1][2])]  # so that a row which the last of them began has lasted
    rows = logged(given_)
    seconds = [elapsed_s for elapsed_s, _, _ in given_][1:]
    assert sum(row.seconds for row in rows) == pytest.approx(sum(seconds), abs=1e-3 * len(rows))

    def total(figure: str) -> float:
        return sum(getattr(row, figure).mean * row.seconds for row in rows)

    used = sum(elapsed_s * permille / 1000 for elapsed_s, permille, _ in given_[1:])  # of the time before a reading
    held = sum(
        elapsed_s * before[1] / 1000 for elapsed_s, before in zip(seconds, given_, strict=False)
    )  # until the next
    admitted = sum(elapsed_s for elapsed_s, before in zip(seconds, given_, strict=False) if before[2])
    room = 0.01 * sum(seconds) * 1e-2 + 1e-2 * len(rows)  # figures are rounded to 1e-5, seconds to a millisecond
    assert total("own") == pytest.approx(used, abs=room)
    assert total("budget") == pytest.approx(held, abs=room)
    assert total("limit") == pytest.approx(held, abs=room)
    assert total("query_rate") == pytest.approx(10 * used, abs=10 * room)
    assert sum(row.admitted * row.seconds for row in rows) == pytest.approx(admitted, abs=room)
    for row in rows:
        for figure in ("budget", "limit", "own", "others", "memory", "query_rate"):
            spread = getattr(row, figure)
            assert 0 <= spread.mean <= spread.peak + 1e-4
    assert sum(row.changes for row in rows) == changes(given_)


@given(samples(least_s=0.1))
def test_a_change_begins_a_row_with_its_reason_while_there_are_few(given_: list[Sample]) -> None:
    few = given_[: decisions.CHANGES_AT_ONCE]
    rows = logged([*few, (1.0, 0, few[-1][2])])  # so that the last row has begun
    moments, at_s = [], 5.0
    for before, (elapsed_s, permille, is_admitting) in zip((None, *few), few, strict=False):
        at_s += elapsed_s
        if before is not None and before[2] is not is_admitting:
            moments.append((1e9 + at_s, is_admitting, f"because of {permille}"))
    begun = [(row.started_at, row.is_admitting, row.reason) for row in rows if row.is_change]
    assert begun == moments
    assert [row.changes for row in rows] == [int(row.is_change) for row in rows]


@pytest.mark.parametrize("period_s", [0.1, 2.0, 50.0, 70.0])
def test_a_machine_that_flaps_for_a_day_makes_a_bounded_number_of_rows_and_every_change_is_counted(
    period_s: float,
) -> None:
    count = int(min(DAY_S, 200_000 * period_s) / period_s)
    given_ = [(period_s, 100, bool(number % 2)) for number in range(count)]
    rows = logged(given_)
    hours_s = count * period_s
    at_most = hours_s / decisions.ROW_S + hours_s / decisions.CHANGE_EVERY_S + decisions.CHANGES_AT_ONCE + 1
    assert len(rows) <= at_most <= decisions.KEPT_DECISIONS * hours_s / DAY_S + decisions.CHANGES_AT_ONCE + 1
    assert count - 2 <= sum(row.changes for row in rows) <= count - 1
    if period_s < 50:
        assert sum(row.admitted * row.seconds for row in rows) == pytest.approx(hours_s / 2, rel=0.01)


def test_rows_of_25_hours_are_fewer_than_are_kept() -> None:
    kept_s = decisions.KEPT_DECISIONS_S
    most = kept_s / decisions.ROW_S + kept_s / decisions.CHANGE_EVERY_S + decisions.CHANGES_AT_ONCE
    assert most == 2780 < decisions.KEPT_DECISIONS


@given(samples(least_s=0.1, most_s=2.0), st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_a_clock_that_is_set_to_and_fro_loses_no_time_and_does_not_flood_the_log(
    given_: list[Sample], steps: list[float]
) -> None:
    log, at_s, clock = DecisionLog(), 0.0, 1e9
    for number, (elapsed_s, permille, is_admitting) in enumerate(given_):
        at_s += elapsed_s
        clock += steps[number % len(steps)]
        log.add(clock + at_s, read(at_s, permille), decided(permille, is_admitting=is_admitting), permille)
    rows = log.rows()
    lasted_s = sum(elapsed_s for elapsed_s, _, _ in given_[1:])
    assert sum(row.seconds for row in rows) == pytest.approx(lasted_s, abs=1e-3 * len(rows))
    assert len(rows) <= lasted_s / decisions.ROW_S + lasted_s / decisions.CHANGE_EVERY_S + decisions.CHANGES_AT_ONCE + 1


def test_another_kind_of_reason_begins_a_row_and_other_figures_do_not() -> None:
    log, state, at_s = DecisionLog(), GovernorState(), 0.0
    calm = Readings(0.0, 0, 0, 300, 2.0)
    # (what differs from a calm machine at noon, whether it is another kind of reason than the one before)
    history: list[tuple[dict[str, Any], bool]] = [
        ({"others_cpu_permille": 400}, False),
        ({"others_cpu_permille": 900}, False),
        ({"memory_used_permille": 820}, True),
        ({"memory_used_permille": 845}, False),
        ({"memory_used_permille": 870}, True),  # batches are small now
        ({"is_on_battery": True}, True),
        ({"is_plausible": False, "reason": "ValueError: cpu_percent says 103 %"}, True),
        ({"is_plausible": False, "reason": "ValueError: cpu_percent says 104 %"}, False),
    ]
    for changed, _ in history:
        at_s += 2.0
        readings = dataclasses.replace(calm, at_s=at_s, **changed)
        state, decision = step(state, readings, Limits(), 12.0)
        assert not decision.is_admitting
        log.add(1e9 + at_s, readings, decision, 300)
    log.add(1e9 + at_s + 2, dataclasses.replace(readings, at_s=at_s + 2), decision, 300)
    rows = log.rows()
    assert [row.started_at - 1e9 for row in rows[1:]] == [
        2.0 * number for number, (_, is_another) in enumerate(history, 1) if is_another
    ]
    assert all(row.is_change and row.changes == 1 for row in rows[1:])
    assert "small" in rows[2].reason
    assert "battery" in rows[3].reason


@pytest.mark.parametrize("period_s", [0.1, 2.0])
def test_reasons_that_come_and_go_cannot_flood_the_log(period_s: float) -> None:
    log, count = DecisionLog(), 50_000
    for number in range(count):
        reason = f"{'memory' if number % 2 else 'battery'}: {number} %"
        log.add(1e9 + number * period_s, read(number * period_s, 1), Decision(0, False, Memory.TIGHT, reason), 300)
    rows, lasted_s = log.rows(), count * period_s
    assert len(rows) <= lasted_s / decisions.ROW_S + lasted_s / decisions.CHANGE_EVERY_S + decisions.CHANGES_AT_ONCE + 1
    assert count - 2 <= sum(row.changes for row in rows) <= count - 1


def test_a_row_begins_where_the_clock_is_set_and_has_the_time_of_the_new_clock() -> None:
    log = DecisionLog()
    for at_s, clock_s in ((0.0, 1000.0), (2.0, 1002.0), (4.0, 404.0), (6.0, 406.0)):
        log.add(clock_s, read(at_s, 100), decided(100, is_admitting=True), 300)
    assert [(row.started_at, row.seconds) for row in log.rows()] == [(1000.0, 4.0), (404.0, 2.0)]


def test_monotonic_time_that_goes_backwards_or_stands_still_adds_nothing() -> None:
    log = DecisionLog()
    for at_s in (5.0, 5.0, 3.0):
        log.add(1e9, read(at_s, 100), decided(int(at_s), is_admitting=at_s > 3), 300)
    assert log.rows() == []
    log.add(1e9 + 1, read(4.0, 700), decided(100, is_admitting=True), 300)
    (row,) = log.rows()
    assert (row.seconds, row.own.mean, row.admitted) == (1.0, 0.7, 0.0)
    # what was decided at the end of no time is what the row begins with
    assert (row.is_admitting, row.reason, row.is_change, row.changes) == (False, "because of 3", True, 1)


def test_rows_are_given_out_once_and_the_last_of_them_at_the_end() -> None:
    log = DecisionLog()
    logged([(30.0, 100, True)] * 4, log)
    assert [row.seconds for row in log.rows()] == [60.0, 30.0]
    assert [row.seconds for row in log.take()] == [60.0]
    assert log.take() == []
    assert [row.seconds for row in log.rows()] == [30.0]
    assert [row.seconds for row in log.take(is_last=True)] == [30.0]
    assert log.rows() == log.take(is_last=True) == []
    assert [row.seconds for row in logged([(1.0, 5, True)] * 3, log)] == [2.0]  # it goes on


@given(st.floats(0, 23.99), st.floats(0, 23.99), st.integers(0, 1000), st.integers(0, 1000))
def test_the_kind_of_a_reason_is_told_without_its_words_as_by_them(
    hour: float, later: float, permille: int, other: int
) -> None:
    one, two = (
        step(GovernorState(), Readings(1.0, 0, others, 300, 2.0), Limits(), at)[1]
        for at, others in ((hour, permille), (later, other))
    )
    assert decisions._is_other_kind(one, two) is decisions.is_other(one.reason, two.reason)


def test_decisions_with_the_same_outcome_and_words_are_equal() -> None:
    one, same, other = (
        step(GovernorState(), Readings(at_s, 0, others, 300, 2.0), Limits(), 12.0)[1]
        for at_s, others in ((1.0, 100), (2.0, 100), (1.0, 600))
    )
    assert (one, hash(one)) == (same, hash(same))
    assert one == Decision(one.budget_permille, one.is_admitting, one.memory, one.reason)
    assert one not in (other, Decision(one.budget_permille, one.is_admitting, one.memory, "else"), one.reason)
