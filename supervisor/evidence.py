"""Owns what the figures of quality say: each with its count and its 95 % interval, or how much is missing. Pure.

What cannot be compared is never averaged together: before and after are of the same queries by the same reranker, and
the gain in response time is of queries that the store holds now and that were searched for before it did.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..ipc.durations import bucket_of, middle_of
from . import intervals
from .intervals import Interval, Sums
from .quality import ALL, DAY_S, Counts, Day, add_counts, day_of
from .quality_tables import Measured

LEAST = 20  # queries, judgments, lookups or searches below which nothing is concluded
LEAST_TAIL = 60  # searches for a 95th percentile: of 59, one in twenty draws has none above it
LEAST_DAYS = 3  # with feedback, for a trend
BONFERRONI = 1 - (1 - intervals.CONFIDENCE) / 2  # of each of two intervals that are to hold together

NDCG, MRR, OVERLAP, AGREEMENT = "nDCG@10", "MRR@10", "overlap@10", "rank-biased overlap"


def report(
    by_collection: Mapping[str, Sequence[Day]],
    latest: Iterable[Measured],
    response_times: Iterable[float],
    *,
    since: float,
    now: float,
) -> dict[str, Any]:
    """Return the keys of a quality report (docs/protocol.md), but for its history.

    `days`: as `joined` gives them. `response_times`: of queries that the store holds, in seconds.
    """
    by_name = {one.collection: one for one in latest}
    of_all = _sum_of(by_collection.get(ALL, []))
    computed: Counts = {}
    for rows in by_collection.values():
        add_counts(computed, _sum_of(rows).computed)
    names = sorted((by_collection.keys() | by_name.keys()) - {ALL})
    return {
        "since": since,
        "until": now,
        "hit_rate": _share(of_all.hits, of_all.lookups, "lookups"),
        "response_time": {
            "computed": response_time(computed),
            "served": response_time(of_all.served),
            "gain": gain(response_times, of_all.served),
        },
        "collections": [_of_collection(name, by_collection.get(name, []), by_name.get(name)) for name in names],
    }


def _sum_of(rows: Iterable[Day]) -> Day:
    total = Day(0)
    for row in rows:
        total.add(row)
    return total


def _of_collection(name: str, rows: Sequence[Day], measured: Measured | None) -> dict[str, Any]:
    total = _sum_of(rows)
    return {
        "collection_name": name,
        "reranker": measured.reranker if measured else "",
        "judged": judged(measured),
        "agreement": agreement(measured),
        "response_time": response_time(total.computed),
        "served": _share(total.hits, total.hits + total.searches, "searches"),
        "satisfaction": satisfaction(rows),
    }


def _too_few(count: int, least: int, what: str) -> dict[str, Any]:
    return {"count": count, "needed": least, "note": f"not enough yet: {count} of {least} {what}"}


def _rounded(found: Interval, places: int = 4) -> dict[str, float]:
    return {"value": round(found.value, places), "low": round(found.low, places), "high": round(found.high, places)}


def _share(hits: int, count: int, what: str) -> dict[str, Any]:
    if count < LEAST:
        return _too_few(count, LEAST, what)
    return {"count": count, "hits": hits, **_rounded(intervals.share(min(hits, count), count))}


def judged(measured: Measured | None) -> dict[str, Any]:
    """Return nDCG and MRR at 10 before and after reranking, means over the same judged queries, and their change."""
    count = measured.judged if measured else 0
    if measured is None or count < LEAST:
        return _too_few(count, LEAST, "judged queries")

    def change(before: float, after: float, sums: Sums) -> dict[str, Any]:
        return {"before": round(before / count, 4), "after": round(after / count, 4)} | _rounded(intervals.mean(sums))

    return {
        "count": count,
        NDCG: change(measured.ndcg_before, measured.ndcg_after, measured.ndcg_change),
        MRR: change(measured.mrr_before, measured.mrr_after, measured.mrr_change),
    }


def agreement(measured: Measured | None) -> dict[str, Any]:
    """Return how alike the vector search's order and the reranker's are. It says nothing of which is better."""
    count = measured.compared if measured else 0
    if measured is None or count < LEAST:
        return _too_few(count, LEAST, "reranked queries")
    return {
        "count": count,
        OVERLAP: _rounded(intervals.mean(measured.overlap)),
        AGREEMENT: _rounded(intervals.mean(measured.agreement)),
    }


def response_time(counts: Counts) -> dict[str, Any]:
    """Return mean, median with its interval, and 95th percentile of response times, in seconds."""
    count = sum(counts.values())
    if count < LEAST:
        return _too_few(count, LEAST, "timed searches")
    found = {
        "count": count,
        "mean_s": sum(middle_of(bucket) * n for bucket, n in counts.items()) / count,
        "p50_s": middle_of(intervals.quantile(counts, 0.5)),
        "p50_low_s": middle_of(intervals.quantile_range(counts, 0.5)[0]),
        "p50_high_s": middle_of(intervals.quantile_range(counts, 0.5)[1]),
        "p95_s": middle_of(intervals.quantile(counts, 0.95)) if count >= LEAST_TAIL else None,
    }
    return {name: value if value is None else _significant(value) for name, value in found.items()}


def _significant(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.3g}")


def gain(response_times: Iterable[float], served: Counts) -> dict[str, Any]:
    """Return how many times as fast the store answers: the median time of searches for what it holds now, over the median
    of what it served. The interval is that of both medians together (Bonferroni).
    """
    searched: Counts = {}
    for seconds in response_times:
        add_counts(searched, {bucket_of(seconds): 1})
    count, served_count = sum(searched.values()), sum(served.values())
    if count < LEAST:
        return _too_few(count, LEAST, "queries that were timed and have a result now")
    if served_count < LEAST:
        return _too_few(served_count, LEAST, "timed searches that were served")
    fast, slow = middle_of(intervals.quantile(served, 0.5)), middle_of(intervals.quantile(searched, 0.5))
    fast_low, fast_high = map(middle_of, intervals.quantile_range(served, 0.5, BONFERRONI))
    slow_low, slow_high = map(middle_of, intervals.quantile_range(searched, 0.5, BONFERRONI))
    return {
        "count": count,
        "served": served_count,
        "searched_s": _significant(slow),
        "served_s": _significant(fast),
        "value": _significant(slow / fast),
        "low": _significant(slow_low / fast_high),
        "high": _significant(slow_high / fast_low),
    }


def satisfaction(rows: Sequence[Day]) -> dict[str, Any]:
    """Return the share of positive feedback, and by how much it changes a day."""
    total = _sum_of(rows)
    found = _share(total.positive, total.positive + total.negative, "judgments")
    with_feedback = [row for row in rows if row.positive + row.negative]
    if "note" in found or len(with_feedback) < LEAST_DAYS:
        trend = found if "note" in found else _too_few(len(with_feedback), LEAST_DAYS, "days with feedback")
        return found | {"trend": trend}
    slope = intervals.slope((row.day, row.positive, row.negative) for row in rows)
    if slope is None:
        return found | {"trend": {"count": found["count"], "note": "all feedback is alike: there is no trend to see"}}
    direction = "rising" if slope.low > 0 else "falling" if slope.high < 0 else "no trend to be told from chance"
    days = len(with_feedback)
    return found | {"trend": {"count": found["count"], "days": days, "direction": direction, **_rounded(slope, 6)}}


def history(by_collection: Mapping[str, Iterable[Day]], measured: Iterable[Measured]) -> list[dict[str, Any]]:
    """Return a row for each day and collection, oldest first; figures of a day on which there were too few are None."""
    rows: dict[tuple[int, str], dict[str, Any]] = {}

    def row(day: int, collection: str) -> dict[str, Any]:
        counts = {"hits": 0, "searches": 0, "judgments": 0, "timed": 0}
        empty = {"day_at": day * DAY_S, "collection_name": collection, "measured": [], **counts}
        return rows.setdefault((day, collection), empty | dict.fromkeys(("hit_rate", "satisfaction", "p50_s")))

    for days in by_collection.values():
        for one in days:
            count, timed = one.positive + one.negative, one.served if one.collection == ALL else one.computed
            searches = one.lookups if one.collection == ALL else one.hits + one.searches
            row(one.day, one.collection).update(
                hits=one.hits,
                searches=searches,
                hit_rate=_enough(one.hits, searches),
                judgments=count,
                satisfaction=_enough(one.positive, count),
                timed=sum(timed.values()),
                p50_s=response_time(timed).get("p50_s"),
            )
    for of_day in measured:
        if of_day.day is not None:
            figures = {"reranker": of_day.reranker, "judged": judged(of_day), "agreement": agreement(of_day)}
            row(of_day.day, of_day.collection)["measured"].append(figures)
    return [rows[key] for key in sorted(rows)]


def _enough(hits: int, count: int) -> dict[str, float] | None:
    return _rounded(intervals.share(min(hits, count), count)) if count >= LEAST else None


def first_day(now: float, days: int) -> float:
    """Return when the first of the last `days` days began (Unix seconds, UTC), today included."""
    return (day_of(now) - days + 1) * DAY_S
