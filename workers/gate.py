"""Owns whether a rebuilt index may take the place of the one in use. Pure: what it judges is measured by measuring.py.

Each side's index is compared with exact search over the same side, and rankings with judgments; never one side's hits
with the other's: that they differ says nothing of which are better.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..ipc.settings import GateSettings
from .quality import paired_bootstrap

Tolerance = GateSettings
"""What may be worse, and by how much: section [gate] of the configuration."""

Column = npt.NDArray[np.float64]

ROUNDING = 1e-9  # of a tolerance: a fall by exactly as much is tolerated, whatever the sums rounded


def _empty() -> Column:
    return np.zeros(0)


@dataclass(frozen=True, slots=True)
class Measured:
    """One side, a row a query. Row i of both sides is of the same query. An empty column was not measured."""

    recall: Column = field(default_factory=_empty)  # @10 of the index against exact search, shape (Q,)
    ndcg: Column = field(default_factory=_empty)  # @10, shape (J,): of the judged queries
    reciprocal_rank: Column = field(default_factory=_empty)  # @10, shape (J,)
    latency_ms: Column = field(default_factory=_empty)  # of one search of the index, shape (Q,)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the new index may be swapped in, why in words, and the figures by name; None where not measured.

    `is_shallow`: its searches find too little of what exact search does.
    """

    is_passed: bool
    reason: str
    figures: dict[str, Any]
    is_shallow: bool = False


def judge(before: Measured, after: Measured, tolerance: Tolerance, *, is_new_model: bool = False) -> Verdict:
    """Return whether `after` is no worse than `before` beyond `tolerance`.

    - nDCG@10: the lower end of the paired 95 % interval of the difference must not be below -ndcg_tolerance: an index
      is refused where it may be worse, not only where it surely is. With fewer than `min_judged` queries no interval is
      that narrow; then the mean must not be below it, and the reason says so.
    - MRR@10: noisier, so that it refuses only what is worse for certain: where the whole interval is below -ndcg_tolerance.
    - recall@10 of the index against exact search over the same vectors: its mean must not fall by more.
    - latency at p50 and p95: must not exceed both the ratio and the floor.
    - no judged query: recall and latency decide alone, and the reason says that quality was not measured. Another model
      (`is_new_model`) is refused then if `require_judgments` is set.
    - no query at all: refused, for nothing was measured.

    Raises ValueError where the sides have different numbers of rows.
    """
    for name in ("recall", "ndcg", "reciprocal_rank", "latency_ms"):
        if len(getattr(before, name)) != len(getattr(after, name)):
            raise ValueError(f"{name} must have a row for each query on both sides")
    figures = _figures(before, after)
    if not len(before.recall):
        return Verdict(False, "nothing was measured: there is no query, and no text to make one of", figures)
    of_recall = list(_of_recall(figures, tolerance))
    refusals = [*_of_judgments(figures, tolerance), *of_recall, *_of_latency(figures, tolerance)]
    notes = list(_notes(figures, tolerance, is_new_model=is_new_model))
    if is_new_model and tolerance.require_judgments and not figures["judged_queries"]:
        refusals.append("another model is swapped in only with judged queries (gate.require_judgments)")
    words = "; ".join([*(refusals or ["no worse than before beyond the tolerances"]), *notes])
    return Verdict(not refusals, words, figures, is_shallow=bool(of_recall))


def _figures(before: Measured, after: Measured) -> dict[str, Any]:
    found: dict[str, Any] = {"queries": len(before.recall), "judged_queries": len(before.ndcg)}
    for name, old, new in (
        ("recall", before.recall, after.recall),
        ("ndcg", before.ndcg, after.ndcg),
        ("mrr", before.reciprocal_rank, after.reciprocal_rank),
    ):
        found |= {f"{name}_before": _mean(old), f"{name}_after": _mean(new)}
    for name, old, new in (("ndcg", before.ndcg, after.ndcg), ("mrr", before.reciprocal_rank, after.reciprocal_rank)):
        change = paired_bootstrap(old.tolist(), new.tolist()) if len(old) else None
        found |= {f"{name}_{part}": change and getattr(change, part) for part in ("mean", "low", "high")}
    for share in (50, 95):
        found |= {
            f"p{share}_ms_{side}": float(np.percentile(one.latency_ms, share)) if len(one.latency_ms) else None
            for side, one in (("before", before), ("after", after))
        }
    return found


def _mean(column: Column) -> float | None:
    return float(np.mean(column)) if len(column) else None


def _of_judgments(figures: dict[str, Any], tolerance: Tolerance) -> Iterator[str]:
    judged, allowed = figures["judged_queries"], tolerance.ndcg_tolerance
    if not judged:
        return
    is_few = judged < tolerance.min_judged
    if figures["ndcg_mean" if is_few else "ndcg_low"] < -allowed - ROUNDING:
        yield _fell("nDCG@10", "ndcg", figures, tolerance)
    if not is_few and figures["mrr_high"] < -allowed - ROUNDING:
        yield _fell("MRR@10", "mrr", figures, tolerance)


def _fell(name: str, key: str, figures: dict[str, Any], tolerance: Tolerance) -> str:
    mean, low, high = (figures[f"{key}_{part}"] for part in ("mean", "low", "high"))
    queries = f"on {figures['judged_queries']} judged queries; tolerated {tolerance.ndcg_tolerance:g}"
    if mean < 0:
        # a fall by 0.02 to 0.06 is a difference of -0.06 to -0.02
        return f"{name} fell by {-mean:.3f} (95 % {-high:.3f} to {-low:.3f}) {queries}"
    return f"{name} may have fallen: its change is {mean:+.3f} (95 % {low:+.3f} to {high:+.3f}) {queries}"


def _of_recall(figures: dict[str, Any], tolerance: Tolerance) -> Iterator[str]:
    before, after = figures["recall_before"], figures["recall_after"]
    if after < before - tolerance.recall_tolerance - ROUNDING:
        yield (
            f"recall@10 of the index against exact search fell from {before:.3f} to {after:.3f} on"
            f" {figures['queries']} queries; tolerated {tolerance.recall_tolerance:g}"
        )


def _of_latency(figures: dict[str, Any], tolerance: Tolerance) -> Iterator[str]:
    for share in ("p50", "p95"):
        before, after = figures[f"{share}_ms_before"], figures[f"{share}_ms_after"]
        if before is None:
            return
        if after > before * tolerance.latency_ratio and after > before + tolerance.latency_floor_ms:
            yield (
                f"{share} of a search rose from {before:.2f} to {after:.2f} ms; tolerated {tolerance.latency_ratio:g}"
                f" times as long, or {tolerance.latency_floor_ms:g} ms more"
            )


def _notes(figures: dict[str, Any], tolerance: Tolerance, *, is_new_model: bool) -> Iterator[str]:
    judged, queries = figures["judged_queries"], figures["queries"]
    if not judged:
        of = "the new model" if is_new_model else "the new vectors"
        yield f"quality of {of} was not measured: no judgments"
    elif judged < tolerance.min_judged:
        yield (
            f"{judged} judged queries are fewer than {tolerance.min_judged}: the mean of nDCG@10 decided, without regard"
            " to chance"
        )
    if queries < tolerance.queries:
        yield f"measured on {queries} queries: there are no {tolerance.queries}"
    if figures["p50_ms_before"] is None:
        yield "latency was not compared"
