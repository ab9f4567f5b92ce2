"""When a schedule runs next, against an oracle that shares no line with it: the `whenever` package and brute force."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest
import whenever
from hypothesis import given, settings
from hypothesis import strategies as st

from morgan.background.ipc.errors import InvalidArgument
from morgan.background.ipc.records import ScheduleRecord, TaskFrequency, TaskType
from morgan.background.supervisor import scheduler
from morgan.background.supervisor.scheduler import PERIOD_S, CatchUp, catch_up, next_run

HOURLY, DAILY, WEEKLY = TaskFrequency
SUNDAY = 7  # ISO
QUARTER_S = 900  # every offset in use since 2020 is whole quarters of an hour, Antarctica/Troll's two-hour change too

# One hour in Europe and America at different local hours, half an hour, two hours, a change at midnight, at -1 h of
# Berlin's instant, a negative DST, quarters of an hour, and none at all.
ODD_ZONES = (
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Antarctica/Troll",
    "America/Havana",
    "Asia/Beirut",
    "Atlantic/Azores",
    "Europe/Dublin",
    "Pacific/Chatham",
    "America/St_Johns",
    "Africa/Casablanca",
    "Asia/Kathmandu",
)
CHANGING = ODD_ZONES[:4]

ZONES = st.one_of(
    st.sampled_from(ODD_ZONES), st.sampled_from(sorted(available_timezones() & whenever.available_timezones()))
)
FREQUENCIES = st.sampled_from(list(TaskFrequency))
FIRST_S, LAST_S = 1577836800, 2114380800  # 2020 to 2036: no offset of parts of a minute, no rule that ends


@cache
def changes(zone: str) -> list[int]:
    """Return instants less than six hours after each clock change of 2026 and 2027, Unix seconds."""
    shown = [local(at, zone) for at in range(1767225600, 1830297600, 6 * 3600)]
    return [int(b.timestamp()) for a, b in pairwise(shown) if a.offset != b.offset]


def near_a_change(zone: str) -> st.SearchStrategy[int]:
    """Return instants within two days of a clock change, many of them at or beside a quarter of an hour."""
    if not changes(zone):
        return st.integers(FIRST_S, LAST_S)
    quarters = st.integers(-2 * 96, 2 * 96).map(lambda n: n * QUARTER_S)
    beside = st.one_of(st.integers(-1, 1), st.integers(0, QUARTER_S))
    return st.builds(lambda *parts: sum(parts), st.sampled_from(changes(zone)), quarters, beside)


INSTANTS = ZONES.flatmap(
    lambda zone: st.tuples(st.just(zone), st.one_of(st.integers(FIRST_S, LAST_S), near_a_change(zone)))
)


def local(at_s: float, zone: str) -> whenever.ZonedDateTime:
    return whenever.Instant.from_timestamp(at_s).to_tz(zone)


def wall(day: whenever.Date, hour: int, zone: str) -> whenever.ZonedDateTime:
    """Return a wall time as RFC 5545 reads it: shifted over a gap, and the first of two passes."""
    return whenever.ZonedDateTime(day.year, day.month, day.day, hour, tz=zone, disambiguation="compatible")


def oracle(frequency: TaskFrequency, after_at: float, zone: str) -> float:
    """Return the first run after `after_at`: of all candidates in reach, the nearest."""
    if frequency is HOURLY:
        first = int(after_at // 60 + 1) * 60
        shown = (first + 60 * n for n in range(4 * 60))
        return next(float(at) for at in shown if local(at, zone).minute == 0)
    hour, found = (2 if frequency is DAILY else 3), []
    for days in range(-3, 10):
        day = local(after_at, zone).date().add(days=days)
        if frequency is DAILY or day.day_of_week().value == SUNDAY:
            found.append(wall(day, hour, zone).timestamp())
    return float(min(at for at in found if at > after_at))


@settings(deadline=None, max_examples=400)
@given(frequency=FREQUENCIES, instant=INSTANTS, part=st.sampled_from([0.0, 0.25, 0.999]))
def test_the_next_run_is_the_oracles_in_any_zone_at_any_instant(
    frequency: TaskFrequency, instant: tuple[str, int], part: float
) -> None:
    zone, after = instant
    found = next_run(frequency, after + part, ZoneInfo(zone))
    assert found == oracle(frequency, after + part, zone)
    assert found > after + part
    assert next_run(frequency, found - 0.5, ZoneInfo(zone)) == found  # a run is not passed over just before it


def runs_of(frequency: TaskFrequency, zone: str, first: whenever.Date, last: whenever.Date) -> list[float]:
    """Return every run from the start of `first` to the start of `last`, each found from the one before."""
    start = wall(first, 0, zone).timestamp()
    end = wall(last, 0, zone).timestamp()
    found, at = [], float(start - 1)
    while (at := next_run(frequency, at, ZoneInfo(zone))) < end:
        found.append(at)
    return found


YEARS = whenever.Date(2026, 1, 1), whenever.Date(2028, 1, 1)


@pytest.mark.parametrize("zone", CHANGING)
def test_two_years_of_hourly_runs_are_every_full_hour_of_the_local_clock_once(zone: str) -> None:
    found = runs_of(HOURLY, zone, *YEARS)
    start = wall(YEARS[0], 0, zone).timestamp()
    end = wall(YEARS[1], 0, zone).timestamp()
    assert found == [at for at in range(start, end, QUARTER_S) if local(at, zone).minute == 0]
    half_hours = {5400} if zone == "Australia/Lord_Howe" else set()  # its changes are of half an hour
    assert {round(b - a) for a, b in pairwise(found)} == {3600} | half_hours


@pytest.mark.parametrize("zone", ODD_ZONES)
def test_two_years_of_daily_and_weekly_runs_are_one_for_each_date_at_its_wall_time(zone: str) -> None:
    days = [YEARS[0].add(days=n) for n in range(730)]
    sundays = [day for day in days if day.day_of_week().value == SUNDAY]
    for frequency, hour, dates in ((DAILY, 2, days), (WEEKLY, 3, sundays)):
        found = [local(at, zone) for at in runs_of(frequency, zone, *YEARS)]
        assert [one.date() for one in found] == dates
        assert found == [wall(day, hour, zone) for day in dates]


@pytest.mark.parametrize(
    ("frequency", "zone", "after", "expected"),
    [
        # the gap: 02:00 does not exist and becomes the wall time after it
        (DAILY, "Europe/Berlin", "2026-03-28T12:00+01:00", "2026-03-29T03:00+02:00"),
        (DAILY, "America/New_York", "2026-03-07T12:00-05:00", "2026-03-08T03:00-04:00"),
        (DAILY, "Australia/Lord_Howe", "2026-10-03T12:00+10:30", "2026-10-04T02:30+11:00"),
        (DAILY, "Antarctica/Troll", "2026-03-28T12:00+00:00", "2026-03-29T04:00+02:00"),
        # the fold: the first pass runs, the second does not
        (DAILY, "Europe/Berlin", "2026-10-24T12:00+02:00", "2026-10-25T02:00+02:00"),
        (DAILY, "Europe/Berlin", "2026-10-25T02:00+02:00", "2026-10-26T02:00+01:00"),
        (DAILY, "Antarctica/Troll", "2026-10-25T02:00+02:00", "2026-10-26T02:00+00:00"),
        (WEEKLY, "Europe/Berlin", "2026-10-25T02:30+02:00", "2026-10-25T03:00+01:00"),
        (WEEKLY, "Europe/Berlin", "2026-03-29T01:59+01:00", "2026-03-29T03:00+02:00"),
        # hourly: both passes
        (HOURLY, "Europe/Berlin", "2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00"),
        (HOURLY, "Antarctica/Troll", "2026-10-25T02:00+02:00", "2026-10-25T01:00+00:00"),
        (HOURLY, "Australia/Lord_Howe", "2026-04-05T01:10+11:00", "2026-04-05T02:00+10:30"),
        (HOURLY, "Australia/Lord_Howe", "2026-10-04T01:10+10:30", "2026-10-04T03:00+11:00"),
        (HOURLY, "Asia/Kathmandu", "2026-05-01T12:00+05:45", "2026-05-01T13:00+05:45"),
    ],
)
def test_a_clock_change_shifts_forward_in_the_gap_and_counts_once_in_the_fold(
    frequency: TaskFrequency, zone: str, after: str, expected: str
) -> None:
    found = next_run(frequency, datetime.fromisoformat(after).timestamp(), ZoneInfo(zone))
    assert datetime.fromtimestamp(found, ZoneInfo(zone)).isoformat(timespec="minutes") == expected


def schedule(frequency: TaskFrequency, next_run_at: float, *, is_enabled: bool = True) -> ScheduleRecord:
    return ScheduleRecord(
        task_id="s",
        task_type=TaskType.WARM,
        collection="docs",
        frequency=frequency,
        next_run_at=next_run_at,
        is_enabled=is_enabled,
    )


@settings(deadline=None)
@given(frequency=FREQUENCIES, instant=INSTANTS, late_s=st.integers(-100_000, 10_000_000), is_enabled=st.booleans())
def test_a_missed_run_is_made_up_once_unless_the_next_is_nearer_than_half_a_period(
    frequency: TaskFrequency, instant: tuple[str, int], late_s: int, is_enabled: bool
) -> None:
    zone, now = ZoneInfo(instant[0]), float(instant[1])
    missed = schedule(frequency, now - late_s, is_enabled=is_enabled)
    is_near = next_run(frequency, now, zone) - now < PERIOD_S[frequency] / 2
    expected = CatchUp.SKIP if is_near and frequency is not HOURLY else CatchUp.RUN_ONCE
    assert catch_up(missed, now, zone) is (expected if is_enabled and late_s >= 0 else CatchUp.NOT_DUE)


@settings(deadline=None)
@given(frequency=FREQUENCIES, instant=INSTANTS, late_s=st.floats(0, 1e7), has_run=st.booleans())
def test_an_advanced_schedule_is_due_again_only_at_its_next_run(
    frequency: TaskFrequency, instant: tuple[str, int], late_s: float, has_run: bool
) -> None:
    zone, now = ZoneInfo(instant[0]), float(instant[1])
    before = schedule(frequency, now - late_s)
    assert scheduler.due([before], now) == [before]
    after = scheduler.advance(before, now, zone, has_run=has_run)
    assert scheduler.due([after], now) == []
    assert catch_up(after, now, zone) is CatchUp.NOT_DUE
    assert scheduler.due([after], after.next_run_at) == [after]
    assert after.last_run_at == (now if has_run else None)
    assert scheduler.advance(after, now, zone, has_run=False) == after  # once advanced, always advanced


@settings(deadline=None)
@given(
    times=st.lists(st.floats(0, 100), max_size=20),
    enabled=st.lists(st.booleans(), min_size=20, max_size=20),
    now=st.floats(0, 100),
)
def test_what_is_due_comes_longest_due_first(times: list[float], enabled: list[bool], now: float) -> None:
    held = [schedule(HOURLY, at, is_enabled=is_on) for at, is_on in zip(times, enabled, strict=False)]
    found = [one.next_run_at for one in scheduler.due(held, now)]
    assert found == sorted(one.next_run_at for one in held if one.is_enabled and one.next_run_at <= now)


NOW, UTC = 1_800_000_000.0, ZoneInfo("UTC")
Default = tuple[str, TaskType, TaskFrequency, str]


def kinds(found: list[ScheduleRecord]) -> set[Default]:
    return {(one.collection, one.task_type, one.frequency, one.metadata.get("scope", "")) for one in found}


def whole_default(collection: str, reindex: TaskFrequency) -> set[Default]:
    return {
        (collection, TaskType.REINDEX, reindex, ""),
        (collection, TaskType.RERANK, HOURLY, "popular"),
        (collection, TaskType.RERANK, DAILY, "all"),
        (collection, TaskType.WARM, HOURLY, ""),
    }


def test_the_default_schedule_is_the_specifications() -> None:
    found = scheduler.default_schedules(["a", "b"], [], NOW, UTC, active=frozenset({"b"}))
    assert kinds(found) == whole_default("a", WEEKLY) | whole_default("b", DAILY)
    assert len({one.task_id for one in found}) == 8
    assert all(f"{one.task_type.value}_{one.collection}" in one.task_id for one in found)
    assert all(one.next_run_at == next_run(one.frequency, NOW, UTC) for one in found)
    assert all(one.is_enabled and one.metadata["origin"] == "default" for one in found)


@settings(deadline=None)
@given(st.sets(st.integers(0, 7)))
def test_what_is_missing_of_the_default_schedule_is_added_and_nothing_twice(kept: set[int]) -> None:
    whole = scheduler.default_schedules(["a", "b"], [], NOW, UTC)
    held = [whole[n] for n in sorted(kept)]
    assert held + scheduler.default_schedules(["a", "b"], held, NOW, UTC) == sorted(
        whole, key=lambda one: (one not in held, whole.index(one))
    )


def test_a_schedule_of_ones_own_stands_alone_for_its_type_and_collection() -> None:
    own = schedule(WEEKLY, NOW)
    found = scheduler.default_schedules(["docs", "b"], [own], NOW, UTC)
    assert kinds(found) == (whole_default("docs", WEEKLY) | whole_default("b", WEEKLY)) - {
        ("docs", TaskType.WARM, HOURLY, "")
    }


def test_a_default_reindex_follows_its_collections_activity_and_nothing_else_does() -> None:
    held = [*scheduler.default_schedules(["a", "b"], [], NOW, UTC, active=frozenset({"b"})), schedule(WEEKLY, NOW + 9)]
    changed = scheduler.retuned(held, frozenset({"a", "docs"}), NOW, UTC)
    assert kinds(changed) == {("a", TaskType.REINDEX, DAILY, ""), ("b", TaskType.REINDEX, WEEKLY, "")}
    assert all(one.next_run_at == next_run(one.frequency, NOW, UTC) for one in changed)
    assert {one.task_id for one in changed} <= {one.task_id for one in held}
    assert scheduler.retuned(changed, frozenset({"a"}), NOW, UTC) == []
    at_its_time = max(one.next_run_at for one in held)
    assert scheduler.retuned(held, frozenset({"a"}), at_its_time, UTC) == []  # one that is due runs first


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 10)))
def test_the_busiest_are_at_most_half_and_none_of_them_idle(activity: dict[str, float]) -> None:
    found = scheduler.busiest(activity)
    assert len(found) == min((len(activity) + 1) // 2, sum(1 for amount in activity.values() if amount > 0))
    rest = [amount for name, amount in activity.items() if name not in found]
    assert all(activity[name] > 0 and activity[name] >= max(rest, default=0) for name in found)


@settings(deadline=None)
@given(st.lists(st.integers(0, scheduler.MAX_SALT - 1), unique=True, max_size=50))
def test_ids_are_unique_while_no_salt_is_used_twice(salts: list[int]) -> None:
    found = {scheduler.schedule_id(TaskType.WARM, "docs", salt) for salt in salts}
    assert len(found) == len(salts)
    assert all("warm_docs" in one for one in found)


def test_an_unknown_type_or_frequency_is_refused_with_the_accepted_ones() -> None:
    with pytest.raises(InvalidArgument, match=r"'nightly'.*hourly, daily, weekly"):
        scheduler.parse_frequency("nightly")
    with pytest.raises(InvalidArgument, match=r"'index'.*reindex, rerank, warm"):
        scheduler.parse_task_type("index")
    assert [scheduler.parse_frequency(one.value) for one in TaskFrequency] == list(TaskFrequency)
    assert [scheduler.parse_task_type(one) for one in TaskType] == list(TaskType)
