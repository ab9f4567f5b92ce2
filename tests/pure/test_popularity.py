"""Popularity: decayed counts order the queries, raw counts stay exact, memory stays bounded."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morgan.background.ipc.query import query_hash
from morgan.background.ipc.records import QueryRecord
from morgan.background.supervisor.popularity import HALF_LIVES_S, NOTHING, Popularity

DAY_S = 86400.0
WORDS = st.sampled_from(["a", "A ", "b", "c", "d"])
# (seconds since the search before, text, collection, response time)
SEARCHES = st.lists(
    st.tuples(st.floats(0, 30 * DAY_S), WORDS, st.sampled_from(["docs", "code"]), st.floats(0, 2)), max_size=40
)


def tracked(
    searches: list[tuple[float, str, str, float]], popularity: Popularity | None = None
) -> tuple[Popularity, float]:
    found, now = popularity or Popularity(), 1e9
    for gap_s, text, collection, response_s in searches:
        now += gap_s
        found.track(text, collection, "", response_s, now)
    return found, now


@settings(deadline=None)
@given(SEARCHES)
def test_a_score_is_the_sum_of_all_searches_each_halved_by_its_age(
    searches: list[tuple[float, str, str, float]],
) -> None:
    popularity, now = tracked(searches)
    at, expected = 1e9, dict[str, float]()
    for gap_s, text, collection, _ in searches:
        at += gap_s
        key = query_hash(text, collection)
        expected[key] = expected.get(key, 0.0) + sum(0.5 ** ((now - at) / half_s) for half_s in HALF_LIVES_S)
    assert {key: popularity.score(key, now) for key in expected} == pytest.approx(expected)


@settings(deadline=None)
@given(SEARCHES)
def test_raw_counts_and_times_are_exact(searches: list[tuple[float, str, str, float]]) -> None:
    popularity, now = tracked(searches)
    assert popularity.total_accesses == len(searches)
    counts = Counter(query_hash(text, collection) for _, text, collection, _ in searches)
    assert {one.query_hash: one.access_count for one in popularity.records(now)} == counts
    for record in popularity.records(now):
        mine = [r for _, t, c, r in searches if query_hash(t, c) == record.query_hash]
        assert record.total_response_s == pytest.approx(sum(mine))
        assert record.timed_count == sum(1 for response_s in mine if response_s > 0)
        assert record.first_accessed_at <= record.last_accessed_at <= now


@settings(deadline=None)
@given(
    searches=SEARCHES,
    collection=st.sampled_from([None, "docs", "code", "none"]),
    limit=st.integers(0, 5),
    least=st.integers(1, 4),
)
def test_the_most_popular_come_first_and_none_below_the_least_frequency(
    searches: list[tuple[float, str, str, float]], collection: str | None, limit: int, least: int
) -> None:
    popularity, now = tracked(searches)
    found = popularity.popular(now, collection, limit, least)
    wanted = [
        one.popularity
        for one in popularity.records(now)
        if one.access_count >= least and collection in (None, one.collection)
    ]
    assert [one.popularity for one in found] == sorted(wanted, reverse=True)[:limit]
    assert all(one.access_count >= least and collection in (None, one.collection) for one in found)


@settings(deadline=None)
@given(searches=SEARCHES, later_s=st.floats(1, 400 * DAY_S))
def test_time_alone_only_lowers_a_score(searches: list[tuple[float, str, str, float]], later_s: float) -> None:
    popularity, now = tracked(searches)
    for record in popularity.records(now):
        assert 0 <= popularity.score(record.query_hash, now + later_s) < record.popularity
        # and a clock set back makes nothing more popular than its searches
        assert popularity.score(record.query_hash, now - later_s) <= len(HALF_LIVES_S) * record.access_count
    assert popularity.score("never seen", now) == 0.0
    assert popularity.get("never seen", now) is None


@settings(deadline=None)
@given(SEARCHES)
def test_what_is_saved_and_loaded_again_keeps_its_score_and_its_figures(
    searches: list[tuple[float, str, str, float]],
) -> None:
    popularity, now = tracked(searches)
    restored = Popularity()
    restored.load(popularity.records(now), now)
    assert restored.total_accesses == popularity.total_accesses
    before = {one.query_hash: one for one in popularity.records(now)}
    after = {one.query_hash: one for one in restored.records(now)}
    assert after.keys() == before.keys()
    for key, record in before.items():
        assert after[key].popularity == pytest.approx(record.popularity)
        assert msgspec.structs.replace(after[key], popularity=record.popularity) == record


@settings(deadline=None)
@given(searches=SEARCHES, down_s=st.floats(0, 400 * DAY_S))
def test_each_decayed_count_survives_a_restart_exactly(
    searches: list[tuple[float, str, str, float]], down_s: float
) -> None:
    popularity, now = tracked(searches)
    saved = msgspec.msgpack.decode(msgspec.msgpack.encode(popularity.records(now)), type=list[QueryRecord])
    restored = Popularity()
    restored.load(saved, now + down_s)
    for record in saved:
        key = record.query_hash
        assert restored.evidence(key, now + down_s) == popularity.evidence(key, now + down_s)
        assert restored.last_at(key) == popularity.last_at(key)
        assert sum(popularity.evidence(key, now).decayed) == pytest.approx(record.popularity)


def test_a_record_of_before_the_decayed_counts_were_saved_keeps_its_score() -> None:
    popularity = Popularity()
    key = popularity.track("a", "docs", "", 0.0, 100.0)
    (record,) = popularity.records(100.0)
    fields = msgspec.to_builtins(record)
    del fields["decayed"], fields["decayed_at"]
    restored = Popularity()
    restored.load([msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=QueryRecord)], 100.0)
    assert restored.score(key, 100.0) == pytest.approx(3.0)


def test_more_records_than_there_is_room_for_are_cut_to_the_most_popular() -> None:
    popularity = Popularity()
    for n in range(20):
        popularity.add(f"q{n}", "docs", "", n + 1, 0.0)
    smaller = Popularity(5)
    smaller.load(popularity.records(0.0), 0.0)
    assert {one.query_text for one in smaller.records(0.0)} == {f"q{n}" for n in range(15, 20)}


def test_nothing_is_known_of_a_query_never_asked() -> None:
    popularity = Popularity()
    assert popularity.evidence("never", 0.0) == NOTHING
    assert popularity.last_at("never") < 0
    key = popularity.track("a", "docs", "", 0.0, 100.0)
    assert popularity.evidence(key, 160.0).age_s == 60.0


def test_hits_served_from_shared_memory_count_like_searches() -> None:
    popularity = Popularity()
    popularity.track("a", "docs", "", 0.0, 100.0)
    popularity.add("a", "docs", "", 4, 100.0)
    popularity.add("precomputed, never missed", "docs", "", 2, 100.0)
    first, second = popularity.records(100.0)
    assert (first.access_count, second.access_count, popularity.total_accesses) == (5, 2, 7)
    assert first.popularity == pytest.approx(15.0)


def test_a_search_counted_under_two_scopes_is_one_access() -> None:
    popularity = Popularity()
    popularity.add("a", "docs", "tenant", 3, 100.0, is_twin=True)
    popularity.add("a", "docs", "", 3, 100.0)
    assert [one.access_count for one in popularity.records(100.0)] == [3, 3]
    assert popularity.total_accesses == 3
    assert popularity.listed_count == 1
    (listed,) = popularity.popular(100.0)
    assert listed.scope == ""
    assert popularity.by_collection(100.0) == {"docs": pytest.approx(9.0)}


def test_a_burst_of_today_outranks_an_old_habit_and_a_week_later_does_not() -> None:
    popularity, day = Popularity(), 0.0
    for day in range(30):
        for _ in range(4):
            popularity.track("habit", "docs", "", 0.0, day * DAY_S)
    for _ in range(40):
        popularity.track("burst", "docs", "", 0.0, day * DAY_S)
    assert [one.query_text for one in popularity.popular(day * DAY_S)] == ["burst", "habit"]
    assert [one.query_text for one in popularity.popular((day + 7) * DAY_S)] == ["habit", "burst"]


@settings(deadline=None)
@given(texts=st.lists(st.integers(0, 200), max_size=150), capacity=st.integers(1, 25))
def test_memory_is_bounded_and_the_most_popular_query_is_never_forgotten(texts: list[int], capacity: int) -> None:
    popularity = Popularity(capacity)
    favourite = popularity.add("favourite", "docs", "", 1001, 0.0).key
    for number, text in enumerate(texts):
        popularity.track(f"q{text}", "docs", "", 0.0, float(number))
        assert len(popularity) <= capacity
        assert capacity == 1 or popularity.get(favourite, float(number)) is not None


def test_the_scopes_of_one_text_are_counted_apart() -> None:
    popularity = Popularity()
    for scope in ("", "t1", "t1", "t2"):
        popularity.track("a", "docs", scope, 0.0, 0.0)
    assert {one.scope: one.access_count for one in popularity.records(0.0)} == {"": 1, "t1": 2, "t2": 1}


@settings(deadline=None)
@given(SEARCHES)
def test_a_collections_popularity_is_the_sum_of_its_queries(searches: list[tuple[float, str, str, float]]) -> None:
    popularity, now = tracked(searches)
    expected: dict[str, float] = {}
    for record in popularity.records(now):
        expected[record.collection] = expected.get(record.collection, 0.0) + record.popularity
    assert popularity.by_collection(now) == pytest.approx(expected)


def test_the_most_popular_that_lack_something_are_handed_out_without_filters_and_other_collections() -> None:
    popularity = Popularity()
    keys = [popularity.add(f"q{i}", "docs", "", i + 1, 0.0).key for i in range(6)]
    popularity.add("other", "memories", "", 9, 0.0)
    popularity.add("filtered", "docs", "scope", 9, 0.0)

    def asked(least: int, most: int, without: set[str]) -> set[str]:
        return {one.text for one in popularity.asked(1.0, least, "docs", most, without)}

    assert asked(1, 9, set()) == {f"q{i}" for i in range(6)}
    assert asked(1, 2, {keys[5]}) == {"q4", "q3"}
    assert asked(5, 9, set()) == {"q4", "q5"}
