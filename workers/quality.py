"""Owns how good a ranking is: nDCG, MRR, recall from judgments, and whether a difference is more than chance. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..ipc.records import Measure, PointId

PERSISTENCE = 0.9  # of rank-biased overlap: the first ten ranks have 86 % of the weight (Webber et al. 2010, table 1)


def is_judged(judgments: Mapping[str, float]) -> bool:
    """Say whether there is a relevant document: without one every ranking scores 0, which measures nothing."""
    return any(grade > 0 for grade in judgments.values())


def ndcg(ranked: Sequence[PointId], judgments: Mapping[str, float], k: int = 10) -> float:
    """Return nDCG@k, 0..1, with linear gain (Jarvelin and Kekalainen 2002, as trec_eval computes it).

    `judgments` maps ids as text to grades; an id without one has grade 0. 0 where no grade is above 0.
    """
    gains = [max(judgments.get(str(point_id), 0.0), 0.0) for point_id in ranked[:k]]
    ideal = sorted((grade for grade in judgments.values() if grade > 0), reverse=True)[:k]
    best = _discounted(ideal)
    return _discounted(gains) / best if best else 0.0


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains))


def reciprocal_rank(ranked: Sequence[PointId], judgments: Mapping[str, float], k: int = 10) -> float:
    """Return 1 / rank of the first relevant document among the first k, 0 without one."""
    for rank, point_id in enumerate(ranked[:k], start=1):
        if judgments.get(str(point_id), 0.0) > 0:
            return 1.0 / rank
    return 0.0


def recall(found: Sequence[PointId], wanted: Sequence[PointId]) -> float:
    """Return the share of `wanted` that is in `found`; 1 where nothing is wanted."""
    return len(set(found) & set(wanted)) / len(set(wanted)) if wanted else 1.0


def overlap(one: Sequence[PointId], other: Sequence[PointId], k: int = 10) -> float:
    """Return the share of the first k that two orders of the same documents have in common; 1 where there are none."""
    depth = min(k, len(one), len(other))
    return len(set(one[:depth]) & set(other[:depth])) / depth if depth else 1.0


def rank_agreement(one: Sequence[PointId], other: Sequence[PointId], p: float = PERSISTENCE) -> float:
    """Return the rank-biased overlap of two orders, 0..1: 1 for the same one (Webber, Moffat and Zobel 2010).

    Of the first k, where the shorter ends, and extrapolated: beyond, they are taken to agree as they do at k. 1 where
    there are none.
    """
    depth = min(len(one), len(other))
    seen_once: set[PointId] = set()
    common, total, agreement = 0, 0.0, 1.0
    for rank in range(depth):
        for point_id in (one[rank], other[rank]):
            common += point_id in seen_once
            seen_once.add(point_id)
        agreement = common / (rank + 1)
        total += (1 - p) * p**rank * agreement
    return total + p**depth * agreement


def measured(
    query: str, reranker: str, before: Sequence[PointId], after: Sequence[PointId], judgments: Mapping[str, float]
) -> Measure:
    """Return what is known of a query's two orders, the best of `before` and of `after`."""
    is_known = is_judged(judgments)
    return Measure(
        query_text=query,
        reranker=reranker,
        overlap=overlap(before, after),
        agreement=rank_agreement(before, after),
        ndcg=(ndcg(before, judgments), ndcg(after, judgments)) if is_known else None,
        mrr=(reciprocal_rank(before, judgments), reciprocal_rank(after, judgments)) if is_known else None,
    )


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean difference and its 95 % interval."""

    mean: float
    low: float
    high: float


def paired_bootstrap(
    before: Sequence[float], after: Sequence[float], *, seed: int = 0, rounds: int = 2000
) -> Difference:
    """Return after - before per query, with a percentile interval over `rounds` resamples of the queries (Efron 1979).

    Raises ValueError unless both have the same length, at least 1.
    """
    if len(before) != len(after) or not before:
        raise ValueError(f"paired scores need one pair a query, not {len(before)} and {len(after)}")
    differences = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, len(differences), size=(rounds, len(differences)))
    means = differences[picks].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Difference(float(differences.mean()), float(low), float(high))
