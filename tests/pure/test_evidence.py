"""What the figures of quality say: with their counts and intervals, and nothing where there is too little."""

from __future__ import annotations

import numpy as np
import pytest

from morgan.background.cli import render
from morgan.background.ipc.durations import bucket_of
from morgan.background.ipc.records import Measure
from morgan.background.supervisor import evidence
from morgan.background.supervisor.journal import Journal
from morgan.background.supervisor.quality import DAY_S, Day, QualityLog, day_of, joined
from morgan.background.supervisor.quality_tables import Measured
from morgan.background.workers.quality import paired_bootstrap

TODAY = 20_000
NOW = TODAY * DAY_S + 3600.0


def report(*days: Day, latest: list[Measured] | None = None, times: list[float] | None = None) -> dict[str, object]:
    return evidence.report(joined(days), latest or [], times or [], since=0.0, now=NOW)


def measured(before: list[float], after: list[float], reranker: str = "r") -> Journal:
    journal = Journal(None)
    rows = [
        Measure(query_text=f"q{n}", reranker=reranker, overlap=0.5, agreement=0.25, ndcg=(b, a), mrr=(b / 2, a / 2))
        for n, (b, a) in enumerate(zip(before, after, strict=True))
    ]
    journal.quality.add_measures("docs", rows, NOW)
    return journal


def test_a_change_is_that_of_the_same_queries_with_the_interval_of_a_paired_test() -> None:
    rng = np.random.default_rng(3)
    before = rng.uniform(0, 0.8, 40).tolist()
    after = [min(one + max(float(rng.normal(0.05, 0.1)), 0.0), 1.0) for one in before]
    journal = measured(before, after)
    (latest,) = journal.quality.measured(0.0)
    found = evidence.judged(latest)
    ndcg, mrr = found["nDCG@10"], found["MRR@10"]
    assert (found["count"], latest.compared) == (40, 40)
    assert (ndcg["before"], ndcg["after"]) == pytest.approx((np.mean(before), np.mean(after)), abs=1e-4)
    resampled = paired_bootstrap(before, after)
    assert (ndcg["value"], ndcg["low"], ndcg["high"]) == pytest.approx(
        (resampled.mean, resampled.low, resampled.high), abs=0.004
    )
    assert mrr["value"] == pytest.approx(ndcg["value"] / 2, abs=1e-4)
    alike = evidence.agreement(latest)
    assert (alike["overlap@10"]["value"], alike["rank-biased overlap"]["low"]) == (0.5, 0.25)
    journal.close()


def test_what_another_reranker_was_measured_on_is_not_averaged_with_it() -> None:
    journal = measured([0.5] * 30, [0.6] * 30, "old")
    newer = [Measure(query_text=f"q{n}", reranker="new", overlap=1.0, agreement=1.0) for n in range(10)]
    journal.quality.add_measures("docs", newer, NOW + DAY_S)
    (latest,) = journal.quality.measured(0.0)
    assert (latest.reranker, latest.judged, latest.compared) == ("new", 0, 10)
    assert evidence.judged(latest)["note"] == "not enough yet: 0 of 20 judged queries"
    assert evidence.agreement(latest)["note"] == "not enough yet: 10 of 20 reranked queries"
    journal.close()


def test_a_day_keeps_what_it_was_when_its_queries_are_measured_again() -> None:
    journal = measured([0.5] * 20, [0.6] * 20)
    journal.quality.sum_up(NOW)
    again = [
        Measure(query_text=f"q{n}", reranker="r", overlap=1.0, agreement=1.0, ndcg=(0.5, 0.7), mrr=(0, 0))
        for n in range(15)
    ]
    for _ in range(3):  # every hour: each query counts once a day
        journal.quality.add_measures("docs", again, NOW + DAY_S)
        journal.quality.sum_up(NOW + DAY_S)
    days = journal.quality.measured_days(TODAY)
    assert [(one.day, one.judged, round(one.ndcg_after, 6)) for one in days] == [
        (TODAY, 20, 12.0),
        (TODAY + 1, 15, 10.5),
    ]
    (latest,) = journal.quality.measured(0.0)
    assert (latest.judged, round(latest.ndcg_after, 6)) == (20, 15 * 0.7 + 5 * 0.6)
    journal.close()


def test_counts_of_a_day_add_up_over_restarts_and_clocks_that_are_set_back() -> None:
    journal, log = Journal(None), QualityLog()
    for now in (NOW, NOW - DAY_S, NOW):
        log.looked_up(10, 4, {"docs": 4}, {7: 3}, now)
        log.searched("docs", 0.25, now)
        log.fed_back("docs", 1.0, now)
        log.fed_back("docs", 0.0, now)
        journal.quality.add_days(log.take())
    assert log.rows() == []
    rows = journal.quality.days(0)
    assert [(row.day, row.collection) for row in rows] == [
        (TODAY - 1, ""),
        (TODAY - 1, "docs"),
        (TODAY, ""),
        (TODAY, "docs"),
    ]
    assert rows[2] == Day(TODAY, "", lookups=20, hits=8, served={7: 6})
    assert rows[3] == Day(TODAY, "docs", hits=8, computed={bucket_of(0.25): 2}, searches=2, positive=2, negative=2)
    journal.close()


def test_names_without_end_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morgan.background.supervisor.quality.MAX_ROWS", 3)
    log = QualityLog()
    for number in range(9):
        log.searched(f"made up {number}", 0.0, NOW)
    assert sorted((row.collection, row.searches) for row in log.rows()) == [
        ("", 6),
        ("made up 0", 1),
        ("made up 1", 1),
        ("made up 2", 1),
    ]


def test_the_journal_forgets_the_oldest_and_keeps_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(None)
    journal.quality.add_days([Day(TODAY - n, "docs", searches=1) for n in (0, 399, 400, 401)])
    one = Measure(query_text="a", reranker="r", overlap=1.0, agreement=1.0)
    journal.quality.add_measures("docs", [one], NOW - 500 * DAY_S)
    journal.prune(NOW)
    assert [TODAY - row.day for row in journal.quality.days(0)] == [400, 399, 0]
    assert journal.quality.measured(0.0) == []
    monkeypatch.setattr("morgan.background.supervisor.quality_tables.KEPT_ROWS", 2)
    monkeypatch.setattr("morgan.background.supervisor.quality_tables.KEPT_MEASURES", 2)
    for number in range(4):
        measure = Measure(query_text=f"q{number}", reranker="r", overlap=1.0, agreement=1.0)
        journal.quality.add_measures("docs", [measure], NOW + number)
    journal.prune(NOW)
    assert [TODAY - row.day for row in journal.quality.days(0)] == [399, 0]
    assert [row.compared for row in journal.quality.measured(0.0)] == [2]
    journal.close()


def test_with_too_little_evidence_no_figure_is_given() -> None:
    found = report(Day(TODAY, "", lookups=19, hits=19), Day(TODAY, "docs", positive=3, searches=1))
    assert found["hit_rate"] == {"count": 19, "needed": 20, "note": "not enough yet: 19 of 20 lookups"}
    (docs,) = found["collections"]  # type: ignore[misc]
    assert docs["satisfaction"]["note"] == docs["satisfaction"]["trend"]["note"] == "not enough yet: 3 of 20 judgments"
    for figure in ("judged", "agreement", "response_time", "served"):
        assert "value" not in docs[figure]
        assert docs[figure]["note"].startswith("not enough yet: ")
    assert report()["collections"] == []
    assert render.quality(report()) == []
    assert render.quality(found) == [
        "hit rate: not enough yet: 19 of 20 lookups",
        "docs: served from the store: not enough yet: 1 of 20 searches",
        "docs: satisfaction: not enough yet: 3 of 20 judgments",
    ]


def test_the_gain_is_of_queries_that_were_timed_before_they_had_a_result() -> None:
    served = Day(TODAY, "", lookups=400, hits=300, served={bucket_of(20e-6): 290, bucket_of(1e-3): 10})
    found = report(served, Day(TODAY, "docs", computed={bucket_of(9.0): 500}), times=[0.2] * 30 + [0.02] * 10)
    gain = found["response_time"]["gain"]  # type: ignore[index]
    assert (gain["count"], gain["served"]) == (40, 300)
    assert gain["searched_s"] == pytest.approx(0.2, rel=0.1)
    assert gain["value"] == pytest.approx(10_000, rel=0.2)
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert found["response_time"]["computed"]["p50_s"] == pytest.approx(9.0, rel=0.1)  # type: ignore[index]
    assert found["hit_rate"]["value"] == 0.75  # type: ignore[index]
    lines = render.quality(found)
    assert "times as fast from the store" in lines[1]
    assert lines[2].startswith("docs: computed searches: median ")
    assert lines[2].endswith(", 500 timed")


@pytest.mark.parametrize(
    ("positives", "direction"),
    [((2, 5, 9), "rising"), ((9, 5, 2), "falling"), ((5, 6, 5), "no trend to be told from chance")],
)
def test_satisfaction_rises_or_falls_only_where_chance_does_not_explain_it(
    positives: tuple[int, ...], direction: str
) -> None:
    days = [Day(TODAY + 10 * n, "docs", positive=count, negative=10 - count) for n, count in enumerate(positives)]
    found = evidence.satisfaction(days)
    assert (found["count"], found["trend"]["direction"]) == (30, direction)
    assert found["trend"]["low"] <= found["trend"]["value"] <= found["trend"]["high"]
    two = evidence.satisfaction([Day(TODAY + n, "docs", positive=20, negative=9) for n in range(2)])
    assert two["trend"]["note"] == "not enough yet: 2 of 3 days with feedback"
    alike = evidence.satisfaction([Day(TODAY + n, "docs", positive=20) for n in range(5)])
    assert alike["trend"]["note"].startswith("all feedback is alike")


def test_the_last_days_begin_at_midnight_and_hold_today() -> None:
    assert evidence.first_day(NOW, 1) == TODAY * DAY_S
    assert day_of(evidence.first_day(NOW, 30)) == TODAY - 29
