"""Owns which queries are worth their CPU seconds: the expected hits of a result, its cost, and what there is to spend. Pure.

  asks expected, result held until, cost ─▶ hits gained ─▶ by hits per share of what there is ─▶ until it is spent

How many asks are expected is forecast.py's to say, what the machine can spare the governor's log's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..ipc.records import DecisionRow

DEFAULT_COST_S = 0.5  # of a query, until one was measured: 50 candidates by late interaction take about that
LEAST_COST_S = 0.001  # a clock of 1 ms may have seen nothing; and no query is free
SPARE_S = 3 * 3600.0  # what the machine could spare is the mean of so long
LEAST_LOG_S = 300.0  # a shorter log says nothing of an hour


@dataclass(frozen=True, slots=True)
class Candidate:
    """A query that could be computed."""

    text: str
    collection: str
    asks: float  # expected within the horizon
    covered: float = 0.0  # share of the horizon in which a result that holds is there anyhow, 0..1
    cost_s: float | None = None  # CPU seconds; None or not above 0: not measured
    lost: float = 0.0  # asks expected of the result that leaves the store for it


@dataclass(frozen=True, slots=True)
class Choice:
    text: str
    collection: str
    gain: float  # hits expected within the horizon that there would not be without
    cost_s: float


def gain(asks: float, covered: float, refill: float = 1.0) -> float:
    """Return the hits that a result is expected to bring while no other is there.

    `refill` is the share of misses whose own result comes to be stored. After such a miss there are hits anyhow: there
    precomputing saves the first ask, whose chance is 1 - exp(-asks); of the others it saves every one.
    """
    open_asks = max(asks, 0.0) * min(max(1 - covered, 0.0), 1.0)
    return refill * -math.expm1(-open_asks) + (1 - refill) * open_asks


def net_gain(one: Candidate, refill: float = 1.0) -> float:
    """Return the gain of a candidate's result, less that of the one that leaves for it."""
    return gain(one.asks, one.covered, refill) - gain(one.lost, 0.0, refill)


def costs(candidates: Sequence[Candidate]) -> list[float]:
    """Return what each is taken to cost: as measured, else the mean of its collection, of all, or DEFAULT_COST_S."""
    measured: dict[str, list[float]] = {}
    for one in candidates:
        if _is_measured(one.cost_s):
            measured.setdefault(one.collection, []).append(one.cost_s or 0.0)
    of_all = _mean([cost for found in measured.values() for cost in found], DEFAULT_COST_S)
    means = {name: _mean(found, of_all) for name, found in measured.items()}
    taken = (
        (one.cost_s or 0.0) if _is_measured(one.cost_s) else means.get(one.collection, of_all) for one in candidates
    )
    return [max(cost, LEAST_COST_S) for cost in taken]


def _is_measured(cost_s: float | None) -> bool:
    return cost_s is not None and 0 < cost_s < math.inf


def _mean(found: Sequence[float], otherwise: float) -> float:
    return math.fsum(found) / len(found) if found else otherwise


def plan(
    candidates: Iterable[Candidate],
    budget_s: float | None,
    most: Mapping[str, int],
    *,
    refill: float = 1.0,
) -> list[Choice]:
    """Return what to compute, best first, for at most `budget_s` CPU seconds (None: not bounded) in all collections.

    `most` bounds the number of queries of each collection; one that it does not name gets none. What limits a plan has a
    price: a query's worth is its gain over the sum of the shares that it takes of the seconds and of its collection's
    number (the greedy rule of Dantzig 1957 where one limit counts, of Toyoda 1975 for several). One that does not fit
    any more is left out, and those behind it are looked at; where the best query by itself is worth more than all that
    was taken, it is taken alone. So a plan bounded by seconds has at least half of the best possible gain.
    """
    held = [one for one in candidates if most.get(one.collection, 0) > 0]
    found = [
        Choice(one.text, one.collection, net_gain(one, refill), cost_s)
        for one, cost_s in zip(held, costs(held), strict=True)
    ]
    found = [one for one in found if one.gain > 0 and (budget_s is None or one.cost_s <= budget_s)]

    def worth(one: Choice) -> tuple[float, float, str, str]:
        seconds = one.cost_s / budget_s if budget_s else 0.0
        return -one.gain / (seconds + 1 / most[one.collection]), -one.gain, one.text, one.collection

    left_s = math.inf if budget_s is None else budget_s
    left = dict(most)
    taken: list[Choice] = []
    for one in sorted(found, key=worth):
        if one.cost_s <= left_s and left[one.collection] > 0:
            taken.append(one)
            left_s -= one.cost_s
            left[one.collection] -= 1
    best = max(found, key=lambda one: (one.gain, one.text, one.collection), default=None)
    return [best] if best is not None and best.gain > math.fsum(one.gain for one in taken) else taken


def spare_s(log: Iterable[DecisionRow], cpus: float) -> float | None:
    """Return the CPU seconds an hour that the governor left for background work; None where the log is too short.

    `log` is of the last hours; `cpus` are what shares of the machine are of.
    """
    seconds = spared = 0.0
    for row in log:
        seconds += row.seconds
        spared += row.seconds * row.budget.mean
    return 3600 * cpus * spared / seconds if seconds >= LEAST_LOG_S else None
