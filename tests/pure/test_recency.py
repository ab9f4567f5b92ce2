from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morgan.background.ipc.records import Hit
from morgan.background.ipc.settings import RecencySettings
from morgan.background.workers.recency import FIGURES_KEY, by_recency, recency_of, time_of

AT = datetime(2026, 11, 29, 12, 30, tzinfo=UTC)
DAY_S = 86400.0
SETTINGS = RecencySettings(time_field="at", half_life_s=10 * DAY_S, weight=0.5)


@pytest.mark.parametrize(
    "value",
    [
        AT.timestamp(),
        round(AT.timestamp() * 1000),
        "2026-11-29T12:30:00Z",
        "2026-11-29T14:30:00+02:00",
        "2026-11-29 12:30",
        AT,
        AT.astimezone(timezone(timedelta(hours=9))),
        AT.replace(tzinfo=None),
    ],
)
def test_a_time_is_read_in_each_form_a_payload_has_it_in(value: object) -> None:
    assert time_of(value) == AT.timestamp()


@pytest.mark.parametrize("value", [None, True, "yesterday", "", [], {}, float("nan"), float("inf"), "2026-13-01"])
def test_what_is_no_time_is_infinitely_old(value: object) -> None:
    assert time_of(value) is None
    assert recency_of(value, SETTINGS, AT.timestamp()) == 0.0


def test_recency_halves_with_every_half_life_and_the_future_is_now() -> None:
    now = AT.timestamp()
    assert [recency_of(now - days * DAY_S, SETTINGS, now) for days in (-3, 0, 10, 20)] == [1.0, 1.0, 0.5, 0.25]


def hits(*rows: tuple[float | None, float]) -> list[Hit]:
    return [
        Hit(id=n, score=0.5, payload={"at": AT.timestamp() - days * DAY_S}, rerank_score=score)
        for n, (score, days) in enumerate(rows)
    ]


def test_the_order_is_that_of_the_documented_sum() -> None:
    found = by_recency(hits((3.0, 20), (2.0, 0), (1.0, 10)), SETTINGS, AT.timestamp())
    assert [(hit.id, hit.payload[FIGURES_KEY]) for hit in found] == [
        (1, {"recency": 1.0, "order_score": 0.75}),
        (0, {"recency": 0.25, "order_score": 0.625}),
        (2, {"recency": 0.5, "order_score": 0.25}),
    ]
    assert [(hit.score, hit.rerank_score) for hit in found] == [(0.5, 2.0), (0.5, 3.0), (0.5, 1.0)]


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(0, 400)), max_size=9))
def test_without_weight_the_order_stays_and_with_all_of_it_the_newest_is_first(rows: list[tuple[float, float]]) -> None:
    given_hits = hits(*sorted(rows, key=lambda row: -row[0]))
    plain = RecencySettings(time_field="at", half_life_s=DAY_S, weight=0.0)
    assert [hit.id for hit in by_recency(given_hits, plain, AT.timestamp())] == [hit.id for hit in given_hits]
    newest = RecencySettings(time_field="at", half_life_s=DAY_S, weight=1.0)
    ages = [
        recency_of(hit.payload["at"], newest, AT.timestamp()) for hit in by_recency(given_hits, newest, AT.timestamp())
    ]
    assert ages == sorted(ages, reverse=True)


def test_what_was_not_reranked_is_left_as_it_is() -> None:
    given_hits = hits((None, 5), (None, 0))
    assert by_recency(given_hits, SETTINGS, AT.timestamp()) == given_hits
    assert by_recency([], SETTINGS, AT.timestamp()) == []
    alike = by_recency(hits((1.0, 5), (1.0, 0)), SETTINGS, AT.timestamp())
    assert [hit.id for hit in alike] == [1, 0]
