from __future__ import annotations

import ir_measures
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import RR, nDCG

from morgan.background.workers.bm25 import bm25
from morgan.background.workers.quality import (
    is_judged,
    measured,
    ndcg,
    overlap,
    paired_bootstrap,
    rank_agreement,
    recall,
    reciprocal_rank,
)

rankings = st.lists(st.integers(0, 30), unique=True, max_size=20)
grades = st.dictionaries(st.integers(0, 30).map(str), st.integers(0, 3).map(float), min_size=1, max_size=15)
scores = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def trec(measure: object, ranked: list[int], judgments: dict[str, float]) -> float:
    qrels = [ir_measures.Qrel("q", document, int(grade)) for document, grade in judgments.items()]
    run = [ir_measures.ScoredDoc("q", str(one), float(-rank)) for rank, one in enumerate(ranked)]
    return float(ir_measures.calc_aggregate([measure], qrels, run)[measure])


@given(rankings.filter(bool), grades)
def test_ndcg_and_reciprocal_rank_are_those_of_trec_eval(ranked: list[int], judgments: dict[str, float]) -> None:
    assert ndcg(ranked, judgments, 10) == pytest.approx(trec(nDCG @ 10, ranked, judgments), abs=1e-4)
    assert reciprocal_rank(ranked, judgments, 10) == pytest.approx(trec(RR @ 10, ranked, judgments), abs=1e-4)


@given(rankings, grades)
def test_no_ranking_beats_the_ideal_one(ranked: list[int], judgments: dict[str, float]) -> None:
    ideal = sorted(judgments, key=lambda one: -judgments[one])
    assert 0.0 <= ndcg(ranked, judgments) <= ndcg(ideal, judgments) + 1e-12
    assert ndcg(ideal, judgments) == pytest.approx(1.0 if is_judged(judgments) else 0.0)


def test_a_negative_grade_gains_nothing_and_takes_nothing() -> None:
    assert ndcg([1, 2], {"1": -1.0, "2": 1.0}) == ndcg([3, 2], {"2": 1.0})
    assert not is_judged({"1": -1.0, "2": 0.0})


def test_recall_is_the_share_found() -> None:
    assert recall([1, 2, 3], [2, 3, 4, 5]) == 0.5
    assert recall([1], []) == 1.0


@given(scores, st.integers(0, 2**32))
def test_a_bootstrap_says_the_same_for_the_same_seed_and_holds_no_difference_for_none(
    before: list[float], seed: int
) -> None:
    same = paired_bootstrap(before, before, seed=seed, rounds=50)
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)
    after = [score / 2 for score in before]
    found = paired_bootstrap(before, after, seed=seed, rounds=50)
    assert found == paired_bootstrap(before, after, seed=seed, rounds=50)
    assert found.low <= found.high <= 1e-12


def test_a_bootstrap_tells_a_steady_gain_from_a_single_lucky_query() -> None:
    steady = paired_bootstrap([0.5] * 100, [0.6] * 90 + [0.5] * 10)
    lucky = paired_bootstrap([0.5] * 100, [1.0] + [0.5] * 99)
    assert steady.low > 0.0
    assert lucky.low == 0.0 < lucky.mean


@pytest.mark.parametrize(("before", "after"), [([], []), ([0.1], [0.1, 0.2])])
def test_a_bootstrap_refuses_scores_that_are_not_pairs(before: list[float], after: list[float]) -> None:
    with pytest.raises(ValueError, match="one pair a query"):
        paired_bootstrap(before, after)


def test_bm25_prefers_the_rarer_word_and_ignores_case_and_punctuation() -> None:
    found = bm25("Zinc, copper", ["zinc", "COPPER!", "copper", "copper and iron", "iron"])
    assert found.argmax() == 0
    assert found[1] == found[2] > found[3] > found[4] == 0.0


@given(st.text(), st.lists(st.text(), max_size=6))
def test_bm25_scores_any_text_and_never_below_zero(query: str, texts: list[str]) -> None:
    found = bm25(query, texts)
    assert found.shape == (len(texts),)
    assert (found >= 0).all()


def by_definition(one: list[int], other: list[int], p: float) -> float:
    """Return rank-biased overlap as the infinite sum it is: what lies beyond the lists agrees as at their end."""
    shared = [len(set(one[:depth]) & set(other[:depth])) / depth for depth in range(1, len(one) + 1)]
    shared += [shared[-1]] * 600
    return (1 - p) * sum(agreement * p**depth for depth, agreement in enumerate(shared))


@given(rankings.filter(bool), st.randoms(use_true_random=False), st.sampled_from([0.5, 0.9]))
def test_rank_agreement_is_the_sum_it_stands_for(ranked: list[int], random: object, p: float) -> None:
    other = list(ranked)
    random.shuffle(other)  # type: ignore[attr-defined]
    for end in (len(ranked), (len(ranked) + 1) // 2):
        assert rank_agreement(ranked[:end], other[:end], p) == pytest.approx(
            by_definition(ranked[:end], other[:end], p)
        )


def test_rank_agreement_is_one_for_the_same_order_and_weighs_the_top() -> None:
    order = list(range(10))
    assert rank_agreement(order, order) == pytest.approx(1.0)
    assert rank_agreement(order, list(range(10, 20))) == 0.0
    assert rank_agreement(order, [1, 0, *order[2:]]) < rank_agreement(order, [*order[:8], 9, 8])
    assert (overlap(order, order[::-1]), overlap([1, 2], [2, 3]), overlap([], [])) == (1.0, 0.5, 1.0)


def test_a_query_without_judgments_is_measured_by_agreement_alone() -> None:
    found = measured("q", "r", [1, 2, 3], [3, 2, 1], {"9": 0.0})
    assert (found.ndcg, found.mrr, found.overlap) == (None, None, 1.0)
    judged = measured("q", "r", [1, 2, 3], [3, 2, 1], {"3": 1.0})
    assert judged.ndcg == (0.5, 1.0)
    assert judged.mrr == (pytest.approx(1 / 3), 1.0)
