"""Owns how recency weighs into the order of results, where a collection is configured to have it. Pure.

    score = (1 - w) * relevance + w * 2^(-age / half-life)

Relevance is the reranker's score, scaled to 0..1 over the candidates. As in Generative Agents (Park et al. 2023, section 4.1),
whose memories are retrieved by such a sum; with a half-life instead of a decay an hour, and no importance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from ..ipc.records import Hit
from ..ipc.settings import RecencySettings

MILLISECONDS_FROM = 1e11  # a number above it counts milliseconds: as seconds it would be in the year 5138
FIGURES_KEY = "_recency"  # of a row's metadata


def time_of(value: Any) -> float | None:
    """Return a payload's time in Unix seconds: a number of seconds or milliseconds, or ISO 8601 (UTC where it says no
    zone); None for anything else.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        seconds = value / 1000 if abs(value) >= MILLISECONDS_FROM else float(value)
        return seconds if math.isfinite(seconds) else None
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return None


def recency_of(value: Any, settings: RecencySettings, now: float) -> float:
    """Return 2^(-age / half-life), 0..1: 1 for what is from now or later, 0 where the time is not known."""
    at = time_of(value)
    return 0.0 if at is None else math.exp2(-max(now - at, 0.0) / settings.half_life_s)


def by_recency(hits: Sequence[Hit], settings: RecencySettings, now: float) -> list[Hit]:
    """Return reranked hits in the order of the sum above; equal ones stay in the reranker's order.

    No score is changed. The payload gets what the order was made of: FIGURES_KEY -> recency, and the sum as order_score.
    Hits that were not reranked are returned as they are.
    """
    scores = [hit.rerank_score for hit in hits if hit.rerank_score is not None]
    if not hits or len(scores) < len(hits):
        return list(hits)
    low, high = min(scores), max(scores)
    figured = []
    for hit, score in zip(hits, scores, strict=True):
        relevance = (score - low) / (high - low) if high > low else 1.0
        recency = recency_of(hit.payload.get(settings.time_field), settings, now)
        total = (1 - settings.weight) * relevance + settings.weight * recency
        figures = {"recency": round(recency, 6), "order_score": round(total, 6)}
        figured.append((total, msgspec.structs.replace(hit, payload=hit.payload | {FIGURES_KEY: figures})))
    figured.sort(key=lambda one: -one[0])
    return [hit for _, hit in figured]
