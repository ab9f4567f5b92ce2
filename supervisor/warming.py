"""Owns what warm and rerank tasks are given to compute, what they may use of an hour, and when each collection is next.

  popularity ─▶ forecast ─▶ candidates, of all collections where there is little to spend ─▶ plan ─▶ the task's part of it
                                   └─ what is lacking ─▶ cadence: how soon again, and why

The plan is planning.py's, the interval cadence.py's. A task that is forced or was told its queries is not planned.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from ..ipc.entry import EntryInfo
from ..ipc.records import QueryRecord, TaskRecord, TaskType
from . import cadence, planning
from .cadence import Cadence, Looked
from .forecast import Day, Features, Forecast, features
from .planning import Candidate, Choice
from .popularity import Asked, Popularity
from .results import ResultKeeper

PLANNED = (TaskType.WARM, TaskType.RERANK)
HOUR_S = 3600.0
CONSIDERED = (
    4  # candidates for each query that a task may compute: that a full store would not keep some of them is seen late
)
FORESEEN = 1000  # queries of a collection that are forecast, the most popular of those that lack a result: 20 us each
KEPT_SPENT = 1000  # tasks whose use is remembered; of an hour


@dataclass(frozen=True, slots=True)
class Plan:
    """What a task computes: `queries` in this order, then of its `stale` ones those that are not among them."""

    queries: Sequence[QueryRecord]
    stale: Sequence[str]
    cadence: Cadence | None = None  # of its collection from now on; None: as before
    why_none: str = ""  # why there are no queries although some lack a result


def is_of_own_accord(record: TaskRecord) -> bool:
    """Say whether a schedule or the service itself made a task. One that somebody handed in gets all its queries."""
    return record.schedule_id is not None or record.priority < 0


@dataclass(frozen=True, slots=True)
class _Foreseen:
    """A query that may be computed, with what is expected of it."""

    asked: Asked
    known: Features
    rate: float  # asks an hour
    covered: float
    lost: float  # asks an hour of the entry that leaves for it


class Warming:
    """Times are Unix seconds. `rivals` are the collections that are warmed by a schedule: they share what there is."""

    def __init__(self, popularity: Popularity, keeper: ResultKeeper, forecast: Forecast | None = None) -> None:
        self._popularity, self._keeper = popularity, keeper
        self.forecast = Forecast() if forecast is None else forecast
        self._looked: dict[str, Looked] = {}
        self._spent: deque[tuple[float, float]] = deque(maxlen=KEPT_SPENT)  # (when, CPU seconds) of tasks that ended
        self._running: dict[str, float] = {}  # task -> CPU seconds planned
        self._refilled = 0
        self._misses_before: int | None = None

    # --- what there is to spend ---------------------------------------------------------------------------------------

    def refilled(self, count: int) -> None:
        """Note results of misses that came to the store by themselves."""
        self._refilled += count

    def refill(self) -> float:
        """Return the share of misses whose result comes to the store by itself; 1 while nothing is known.

        Counted from the first call on: readers' counts are of before a restart as well, what came to the store is not.
        """
        if self._misses_before is None:
            self._misses_before, self._refilled = self._keeper.misses, 0
        return min((self._refilled + 1) / (max(self._keeper.misses - self._misses_before, 0) + 1), 1.0)

    def ended(self, record: TaskRecord, cpu_s: float, now: float) -> None:
        """Note what a task used."""
        if record.task_type in PLANNED:
            self._running.pop(record.task_id, None)
            if cpu_s > 0:
                self._spent.append((now, cpu_s))

    def spent_s(self, now: float) -> float:
        """Return the CPU seconds that warm and rerank tasks used in the last hour, and that the running ones will."""
        while self._spent and not 0 <= now - self._spent[0][0] < HOUR_S:
            self._spent.popleft()
        return math.fsum(cpu_s for _, cpu_s in self._spent) + math.fsum(self._running.values())

    # --- the plan -----------------------------------------------------------------------------------------------------

    @staticmethod
    def plans(record: TaskRecord) -> bool:
        return record.task_type in PLANNED and not record.is_forced and "queries" not in record.params

    def plan(
        self,
        record: TaskRecord,
        now: float,
        *,
        limit: int,
        least: int,
        spare_s: float | None,
        every_s: Mapping[str, float],
        stale: Sequence[str],
    ) -> Plan:
        """Return what a task computes: at most `limit` queries that were asked `least` times, and what is affordable of
        the `stale`. `spare_s`: CPU seconds an hour that the governor left, which bound what nobody handed in; `every_s`: by
        collection that is warmed by a schedule, how often.
        """
        self.forecast.settle(now, self._popularity.last_at)
        name = record.collection
        horizon_s = every_s.get(name, HOUR_S)
        is_new_only = record.task_type is TaskType.WARM and not record.params.get("force_refresh")
        held = {entry.key_hash: entry for entry in self._keeper.store.entries()}
        foreseen = self._foreseen(name, now, horizon_s, held, least, is_new_only=is_new_only)
        self.forecast.watch([(one.asked.key, one.known) for one in foreseen], now)
        own = self._worth(foreseen, limit, now)
        candidates = [_candidate(one, horizon_s) for one in own]
        full_s = math.fsum(planning.costs(candidates)[:limit])
        is_bounded = spare_s is not None and is_of_own_accord(record)
        self._running.pop(record.task_id, None)  # of an attempt before
        budget_s = max((spare_s or 0.0) - self.spent_s(now), 0.0) if is_bounded else None
        most = {name: limit}
        if budget_s is not None and full_s * max(len(every_s), 1) > budget_s:
            # there is not enough for all: what another collection could have of it counts as well
            for rival, often_s in every_s.items():
                if rival != name:
                    found = self._foreseen(rival, now, often_s, held, least)
                    candidates += [_candidate(one, often_s) for one in _best(found, CONSIDERED * limit)]
                    most[rival] = limit
        refill = self.refill()
        chosen = [one for one in planning.plan(candidates, budget_s, most, refill=refill) if one.collection == name]
        cost_s = math.fsum(one.cost_s for one in chosen)
        key_of = {one.asked.text: one.asked.key for one in own}
        queries = [query for one in chosen if (query := self._popularity.get(key_of[one.text], now)) is not None]
        why_none = "" if queries or not own else _why_none(len(own), budget_s)
        if record.params.get("dry_run"):
            return Plan(queries, stale, why_none=why_none)
        self._running[record.task_id] = cost_s
        if not is_new_only:
            return Plan(queries, (), why_none=why_none)
        left_s = None if budget_s is None else budget_s - cost_s
        looked = _looked(own, chosen, limit, full_s, refill, now)
        self._looked[name], found_cadence = cadence.step(horizon_s, self._looked.get(name), looked, spare_s)
        taken = {one.text for one in chosen}
        others = [text for text in stale if text not in taken]
        return Plan(queries, _affordable(others, left_s, held.values(), name), found_cadence, why_none)

    def _foreseen(
        self,
        name: str,
        now: float,
        horizon_s: float,
        held: Mapping[str, EntryInfo],
        least: int,
        *,
        is_new_only: bool = True,
    ) -> list[_Foreseen]:
        """Return the queries of a collection that lack a result for a part of the horizon, or (not `is_new_only`) all."""
        covered = {key: _covered(entry, now, horizon_s) for key, entry in held.items()} if is_new_only else {}
        throughout = {key for key, share in covered.items() if share >= 1}
        lacking = list(self._popularity.asked(now, least, name, FORESEEN, throughout))
        usual = self._popularity.usual_day(name)
        middle = now + horizon_s / 2
        lost = self._rate_of_leaving(usual, middle, now)
        found = []
        for one in lacking:
            known = features(one.evidence, usual, middle)
            lost_to_it = 0.0 if one.key in held else lost
            found.append(_Foreseen(one, known, self.forecast.rate(known), covered.get(one.key, 0.0), lost_to_it))
        return found

    def _rate_of_leaving(self, usual: Day, at: float, now: float) -> float:
        """Return the asks an hour of the entry that leaves a full store for the next one; 0 while there is room."""
        key = self._keeper.leaves_next(now)
        if key is None:
            return 0.0
        return self.forecast.rate(features(self._popularity.evidence(key, now), usual, at))

    def _worth(self, found: Sequence[_Foreseen], limit: int, now: float) -> list[_Foreseen]:
        """Return the best of them whose result a full store would keep."""
        best = _best(found, CONSIDERED * limit)
        worth = self._keeper.worth((one.asked.key for one in best), now)
        return [one for one in best if one.asked.key in worth]


def _looked(
    own: Sequence[_Foreseen], chosen: Sequence[Choice], limit: int, full_s: float, refill: float, now: float
) -> Looked:
    """Return what the collection lacks in hits an hour, and what of that the plan leaves."""
    taken = {one.text for one in chosen}
    gains = [(one.asked.text in taken, max(planning.net_gain(_candidate(one, HOUR_S), refill), 0.0)) for one in own]
    left = [gain for is_taken, gain in gains if not is_taken]
    lacking = math.fsum(gain for _, gain in gains)
    return Looked(now, lacking, math.fsum(left), math.fsum(heapq.nlargest(limit, left)), full_s)


def _why_none(lacking: int, budget_s: float | None) -> str:
    lack = f"{lacking} popular {'query lacks' if lacking == 1 else 'queries lack'} a result"
    if budget_s is None:
        return f"{lack}, and none is expected to be asked before its result expires"
    return f"{lack}, and {budget_s:.1f} CPU seconds are left of what the governor can spare in an hour: later ones get the rest"


def _affordable(stale: Sequence[str], left_s: float | None, held: Iterable[EntryInfo], name: str) -> list[str]:
    """Return the first of the stale queries that there are seconds left for."""
    if left_s is None:
        return list(stale)
    cost_of = {entry.query_text: entry.cost_s for entry in held if entry.collection == name}
    costs = planning.costs([Candidate(text, name, 0.0, cost_s=cost_of.get(text)) for text in stale])
    return [text for text, total_s in zip(stale, accumulate(costs), strict=True) if total_s <= left_s]


def _candidate(one: _Foreseen, horizon_s: float) -> Candidate:
    asked = one.asked
    hours = horizon_s / HOUR_S
    return Candidate(asked.text, asked.collection, one.rate * hours, one.covered, asked.cost_s, one.lost * hours)


def _best(found: Sequence[_Foreseen], count: int) -> list[_Foreseen]:
    return heapq.nlargest(count, found, key=lambda one: one.rate * (1 - one.covered))


def _covered(entry: EntryInfo, now: float, horizon_s: float) -> float:
    """Return the share of the horizon that a result is there for; one to be computed again counts as none."""
    if entry.soft_at <= now:
        return 0.0
    return min(max((entry.expires_at - now) / horizon_s, 0.0), 1.0)
