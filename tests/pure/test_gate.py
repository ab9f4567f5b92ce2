from __future__ import annotations

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import RR, nDCG

from morgan.background.workers.gate import Column, Measured, Tolerance, judge
from morgan.background.workers.quality import ndcg, reciprocal_rank

TOLERANCE = Tolerance(ndcg_tolerance=0.01, recall_tolerance=0.01, queries=100, min_judged=50)

shares = st.floats(0, 1)


def full(value: float, count: int = 100) -> Column:
    return np.full(count, value)


def side(recall: float = 1.0, quality: float | None = None, ms: float = 2.0, judged: int = 100) -> Measured:
    scores = full(quality, judged) if quality is not None else np.zeros(0)
    return Measured(full(recall), scores, scores, full(ms))


def test_an_index_that_is_the_same_passes_and_the_reason_says_so() -> None:
    verdict = judge(side(quality=0.7), side(quality=0.7), TOLERANCE)
    assert verdict.is_passed
    assert verdict.reason == "no worse than before beyond the tolerances"


@given(shares, shares, shares, shares, st.floats(0.1, 100), st.floats(0.1, 100))
def test_what_passes_is_within_every_tolerance(r: float, s: float, m: float, n: float, old: float, new: float) -> None:
    verdict = judge(side(r, m, old), side(s, n, new), TOLERANCE)
    is_within = n >= m - 0.01 - 1e-9 and s >= r - 0.01 - 1e-9 and (new <= old * 1.2 or new <= old + 1.0)
    assert verdict.is_passed == is_within
    assert verdict.figures["ndcg_low"] == pytest.approx(n - m)


@pytest.mark.parametrize(("fall", "is_passed"), [(0.01, True), (0.011, False)])
def test_a_fall_by_exactly_the_tolerance_passes(fall: float, is_passed: bool) -> None:
    assert judge(side(quality=0.7), side(quality=0.7 - fall), TOLERANCE).is_passed is is_passed
    assert judge(side(1.0), side(1.0 - fall), TOLERANCE).is_passed is is_passed


def test_a_fall_of_quality_is_told_with_its_interval_and_the_tolerance() -> None:
    rng = np.random.default_rng(0)
    before = rng.uniform(0.3, 0.9, 231)
    after = before - rng.normal(0.04, 0.05, 231)
    verdict = judge(
        Measured(full(1.0, 231), before, before), Measured(full(1.0, 231), after, after), Tolerance(min_judged=200)
    )
    mean, low, high = (-verdict.figures[f"ndcg_{part}"] for part in ("mean", "high", "low"))
    assert not verdict.is_passed
    assert verdict.reason.startswith(
        f"nDCG@10 fell by {mean:.3f} (95 % {low:.3f} to {high:.3f}) on 231 judged queries; tolerated 0.02"
    )
    assert 0 < low < mean < high
    assert "MRR@10 fell by" in verdict.reason


def test_what_may_be_worse_is_refused_and_what_surely_is_not_passes() -> None:
    rng = np.random.default_rng(1)
    before, noise = rng.uniform(0.2, 0.8, 400), rng.normal(0, 0.2, 400)
    noise -= noise.mean()
    recall = full(1.0, 400)

    def verdict(gain: float) -> bool:
        return judge(
            Measured(recall, before, before), Measured(recall, before + noise + gain, before), TOLERANCE
        ).is_passed

    assert not verdict(0.0)  # as good on average, but the interval reaches below -0.01
    assert verdict(0.02)


def test_a_change_that_is_a_gain_on_average_and_may_be_a_fall_is_not_called_a_fall() -> None:
    before = full(0.5, 60)
    after = before + np.tile([0.6, -0.5, 0.0], 20)
    verdict = judge(Measured(full(1.0, 60), before, before), Measured(full(1.0, 60), after, before), TOLERANCE)
    assert not verdict.is_passed
    assert "nDCG@10 may have fallen: its change is +0.033 (95 % -" in verdict.reason


def test_with_few_judged_queries_the_mean_decides_and_the_reason_says_so() -> None:
    before = full(0.5, 20)
    after = before + np.tile([0.4, -0.4], 10)
    few = Measured(full(1.0), before, before), Measured(full(1.0), after, before)
    verdict = judge(*few, TOLERANCE)
    assert verdict.is_passed
    assert "20 judged queries are fewer than 50: the mean of nDCG@10 decided" in verdict.reason
    assert not judge(*few, Tolerance(min_judged=20)).is_passed
    assert not judge(few[0], Measured(full(1.0), before - 0.03, before), TOLERANCE).is_passed


def test_mrr_refuses_only_what_is_worse_for_certain() -> None:
    recall, quality = full(1.0), full(0.5)
    doubtful, certain = np.tile([0.0, 0.9], 50), full(0.3)
    assert judge(Measured(recall, quality, full(0.5)), Measured(recall, quality, doubtful), TOLERANCE).is_passed
    verdict = judge(Measured(recall, quality, full(0.5)), Measured(recall, quality, certain), TOLERANCE)
    assert not verdict.is_passed
    assert verdict.reason.startswith("MRR@10 fell by 0.200")


def test_a_fall_of_recall_and_a_slower_search_are_told_together() -> None:
    verdict = judge(side(0.99, ms=2.0), side(0.90, ms=4.0), TOLERANCE)
    assert not verdict.is_passed
    assert "recall@10 of the index against exact search fell from 0.990 to 0.900 on 100 queries" in verdict.reason
    assert "p50 of a search rose from 2.00 to 4.00 ms" in verdict.reason
    assert "p95 of a search rose" in verdict.reason


@pytest.mark.parametrize(("before", "after", "is_passed"), [(0.1, 1.0, True), (10, 11.5, True), (10, 12.5, False)])
def test_a_slower_search_is_refused_only_beyond_both_ratio_and_floor(
    before: float, after: float, is_passed: bool
) -> None:
    assert judge(side(ms=before), side(ms=after), TOLERANCE).is_passed is is_passed


def test_a_few_slow_searches_are_seen_at_p95() -> None:
    slow = full(2.0)
    slow[:8] = 50.0
    verdict = judge(side(), Measured(full(1.0), latency_ms=slow), TOLERANCE)
    assert not verdict.is_passed
    assert "p50" not in verdict.reason


@pytest.mark.parametrize(("is_new", "words"), [(True, "the new model"), (False, "the new vectors")])
def test_without_judgments_recall_and_latency_decide_and_the_reason_says_that_quality_was_not_measured(
    is_new: bool, words: str
) -> None:
    verdict = judge(side(), side(), TOLERANCE, is_new_model=is_new)
    assert verdict.is_passed
    assert f"quality of {words} was not measured: no judgments" in verdict.reason
    assert verdict.figures["ndcg_before"] is None is verdict.figures["ndcg_low"]
    assert not judge(side(1.0), side(0.9), TOLERANCE, is_new_model=is_new).is_passed


def test_another_model_is_refused_without_judgments_where_they_are_required() -> None:
    strict = Tolerance(require_judgments=True)
    verdict = judge(side(), side(), strict, is_new_model=True)
    assert not verdict.is_passed
    assert "gate.require_judgments" in verdict.reason
    assert judge(side(), side(), strict).is_passed
    assert judge(side(quality=0.5), side(quality=0.5), strict, is_new_model=True).is_passed


def test_nothing_measured_is_refused() -> None:
    verdict = judge(Measured(), Measured(), TOLERANCE)
    assert not verdict.is_passed
    assert verdict.reason.startswith("nothing was measured")


def test_fewer_queries_than_asked_for_and_latency_that_was_not_compared_are_told() -> None:
    some = Measured(full(1.0, 30))
    verdict = judge(some, some, TOLERANCE)
    assert verdict.is_passed
    assert "measured on 30 queries: there are no 100" in verdict.reason
    assert "latency was not compared" in verdict.reason


@pytest.mark.parametrize("name", ["recall", "ndcg", "reciprocal_rank", "latency_ms"])
def test_sides_with_different_queries_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        judge(Measured(), Measured(**{name: full(1.0, 2)}), TOLERANCE)


def test_the_means_it_decides_by_are_those_of_ir_measures() -> None:
    rng = np.random.default_rng(3)
    qrels, runs = [], {"before": [], "after": []}
    columns: dict[str, tuple[list[float], list[float]]] = {"before": ([], []), "after": ([], [])}
    for query in range(40):
        grades = {str(one): float(rng.integers(0, 3)) for one in rng.choice(30, 6, replace=False)} | {"29": 1.0}
        qrels += [ir_measures.Qrel(str(query), document, int(grade)) for document, grade in grades.items()]
        for name, scores in columns.items():
            ranked = rng.permutation(30)[:10].tolist()
            runs[name] += [ir_measures.ScoredDoc(str(query), str(one), -float(rank)) for rank, one in enumerate(ranked)]
            scores[0].append(ndcg(ranked, grades))
            scores[1].append(reciprocal_rank(ranked, grades))
    sides = [Measured(full(1.0, 40), np.array(n), np.array(r)) for n, r in columns.values()]
    figures = judge(*sides, TOLERANCE).figures
    for name, run in runs.items():
        wanted = ir_measures.calc_aggregate([nDCG @ 10, RR @ 10], qrels, run)
        assert figures[f"ndcg_{name}"] == pytest.approx(wanted[nDCG @ 10], abs=1e-4)
        assert figures[f"mrr_{name}"] == pytest.approx(wanted[RR @ 10], abs=1e-4)
