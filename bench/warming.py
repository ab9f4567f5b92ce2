"""Owns the replay of a request stream with a budget for precomputing: the service's own planner, orders beside it, the future.

  each hour: flush at 02:00 ─▶ plan, within CPU seconds and a number of queries ─▶ computed ─▶ the hour's requests
  a request: held ─▶ hit; else a miss, whose result is kept (the application computed it)

Requests are the integer names of policies.py. Every query has a cost in CPU seconds, the same each time.
"""

from __future__ import annotations

import heapq
import math
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from morgan.background.ipc.counters import CounterFold
from morgan.background.ipc.query import query_hash
from morgan.background.ipc.records import ComputedResult, TaskRecord, TaskType
from morgan.background.ipc.store import ResultStore
from morgan.background.supervisor.admission import Policy
from morgan.background.supervisor.popularity import CAPACITY, PER_ENTRY, Popularity
from morgan.background.supervisor.results import CachePolicy, ResultKeeper
from morgan.background.supervisor.warming import CONSIDERED, Warming

from .policies import HOUR_S, WARM_UP, Stream

FLUSH_HOUR = 2  # as the daily tasks of the service
COLLECTION = "replayed"
REFRESH = (
    4  # entries valued anew at an eviction; the service does 32, which changes no hit rate (bench hitrate) but the time
)
UNBOUNDED = 10**6  # queries
MOST_AN_HOUR = 200  # queries that a plan names where it is bounded by CPU seconds: many more than fit


@dataclass(frozen=True, slots=True)
class Terms:
    """What a replay may use. `budget_s`: CPU seconds an hour (None: not bounded); `most`: queries an hour."""

    capacity: int
    budget_s: float | None = None
    most: int = UNBOUNDED
    is_flushed: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """After the warm-up: requests and hits, and CPU seconds of what was precomputed and of what misses computed."""

    requests: int
    hits: int
    precomputed: int
    precomputed_s: float
    missed_s: float

    @property
    def hit_percent(self) -> float:
        return 100 * self.hits / self.requests

    @property
    def hits_a_cpu_s(self) -> float:
        return self.hits / (self.precomputed_s + self.missed_s)


class Kept(Protocol):
    """A store of results, told of every request."""

    def request(self, name: int, now: float) -> bool:
        """Return whether it was a hit; a miss is admitted."""
        ...

    def compute(self, name: int, now: float) -> bool:
        """Take in what nobody waits for; False where it would not be kept, and so is not computed."""
        ...

    def holds(self, name: int) -> bool: ...

    def flush(self) -> None: ...


class Planner(Protocol):
    def plan(self, hour: int, now: float) -> Iterable[int]:
        """Yield queries, best first; those that are held, or do not fit what is left, are passed over."""
        ...

    def asked(self, name: int, now: float) -> None: ...

    def spent(self, cpu_s: float, now: float) -> None: ...


MakePlanner = Callable[["Replay"], Planner]


def costs_of(stream: Stream, seed: int) -> list[float]:
    """Return CPU seconds by query name: log-normal, median 0.4 s, two thirds within a factor of 1.8."""
    return (0.4 * np.exp(np.random.default_rng(seed).normal(0, 0.6, max(stream.names) + 1))).tolist()


@dataclass(slots=True)
class Replay:
    """One stream, its costs, the terms and the store: what a planner may look at (the future too: only Foresight does)."""

    stream: Stream
    cost_s: Sequence[float]
    terms: Terms
    kept: Kept

    def run(self, make: MakePlanner | None) -> Outcome:
        """Replay the stream; `make` None precomputes nothing."""
        planner = None if make is None else make(self)
        names, times = self.stream.names, self.stream.times_s
        warm = int(len(names) * WARM_UP)
        hour, hits, computed, computed_s, missed_s = -1, 0, 0, 0.0, 0.0
        for i, (name, now) in enumerate(zip(names, times, strict=True)):
            while hour < int(now // HOUR_S):
                hour += 1
                if self.terms.is_flushed and hour % 24 == FLUSH_HOUR:
                    self.kept.flush()
                count, cpu_s = (0, 0.0) if planner is None else self._precompute(planner, hour)
                computed, computed_s = (computed + count, computed_s + cpu_s) if i >= warm else (0, 0.0)
            was_hit = self.kept.request(name, now)
            if planner is not None:
                planner.asked(name, now)
            if i >= warm:
                hits += was_hit
                missed_s += 0.0 if was_hit else self.cost_s[name]
        return Outcome(len(names) - warm, hits, computed, computed_s, missed_s)

    def _precompute(self, planner: Planner, hour: int) -> tuple[int, float]:
        """Carry out an hour's plan; return how many queries and CPU seconds that was."""
        now = hour * HOUR_S
        left_s, count, cpu_s = self.terms.budget_s or math.inf, 0, 0.0
        for name in planner.plan(hour, now):
            if count >= self.terms.most:
                break
            cost_s = self.cost_s[name]
            if cost_s > left_s - cpu_s or self.kept.holds(name) or not self.kept.compute(name, now):
                continue
            count, cpu_s = count + 1, cpu_s + cost_s
        planner.spent(cpu_s, now)
        return count, cpu_s


# --- the stores ---------------------------------------------------------------------------------------------------------


class LruStore:
    """Least recently used."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held: OrderedDict[int, None] = OrderedDict()

    def request(self, name: int, now: float) -> bool:
        was_held = name in self._held
        self._enter(name)
        return was_held

    def compute(self, name: int, now: float) -> bool:
        self._enter(name)
        return True

    def _enter(self, name: int) -> None:
        self._held[name] = None
        self._held.move_to_end(name)
        if len(self._held) > self._capacity:
            self._held.popitem(last=False)

    def holds(self, name: int) -> bool:
        return name in self._held

    def flush(self) -> None:
        self._held.clear()


class OurStore:
    """The service's own counts, admission and result store, in `folder`."""

    def __init__(self, capacity: int, cost_s: Sequence[float], folder: Path) -> None:
        self.popularity = Popularity(max(PER_ENTRY * capacity, CAPACITY))
        self._store = ResultStore(folder / "results", capacity=capacity + 1)
        policy = CachePolicy(ttl_s=1e9, soft_ttl_s=1e9, max_entries=capacity)
        self.keeper = ResultKeeper(self._store, CounterFold(folder / "readers"), self.popularity, policy)
        self.keeper.admission = Policy(capacity, self.keeper.aliases, refresh=REFRESH)
        self._cost_s = cost_s
        self._held: set[str] = set()
        self._keys: dict[int, str] = {}

    def request(self, name: int, now: float) -> bool:
        key = self.popularity.track(str(name), COLLECTION, "", 0.0, now)
        if key in self._held:
            self.keeper.admission.touch(key, 1, now)
            return True
        self._put(name, now, is_asked_for=True)
        return False

    def compute(self, name: int, now: float) -> bool:
        self._put(name, now, is_asked_for=False)
        return self._key(name) in self._held

    def _put(self, name: int, now: float, *, is_asked_for: bool) -> None:
        key, text = self._key(name), str(name)
        none = ("",)
        result = ComputedResult(
            query_text=text,
            collection=COLLECTION,
            ids=(1,),
            scores=b"\0\0\0\0",
            contents=none,
            sources=none,
            metadata=({},),
            computed_at=now,
            cost_s=self._cost_s[name],
        )
        self.keeper.put(result, now, is_asked_for=is_asked_for)
        if key in self.keeper.admission:
            self._held.add(key)
        self.popularity.note_cost(key, self._cost_s[name])
        self._held -= self.keeper.take_void()

    def _key(self, name: int) -> str:
        if (key := self._keys.get(name)) is None:
            key = self._keys[name] = query_hash(str(name), COLLECTION)
        return key

    def holds(self, name: int) -> bool:
        return self._key(name) in self._held

    def flush(self) -> None:
        self.keeper.invalidate(COLLECTION, None)
        self.keeper.take_void()
        self._held.clear()

    def close(self) -> None:
        self._store.close()


# --- the planners -------------------------------------------------------------------------------------------------------


class _Order:
    """Precomputes what is not held, in an order of its own."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay

    def asked(self, name: int, now: float) -> None:
        pass

    def spent(self, cpu_s: float, now: float) -> None:
        pass

    def _lacking(self, names: Iterable[int]) -> list[int]:
        return [name for name in names if not self._replay.kept.holds(name)]

    def _most(self) -> int:
        """How many to name: what a full store would not keep of them is passed over."""
        return CONSIDERED * min(self._replay.terms.most, MOST_AN_HOUR)


class ByCount(_Order):
    """Those asked most often so far."""

    def __init__(self, replay: Replay) -> None:
        super().__init__(replay)
        self._counts: Counter[int] = Counter()

    def asked(self, name: int, now: float) -> None:
        self._counts[name] += 1

    def plan(self, hour: int, now: float) -> Iterable[int]:
        return heapq.nlargest(self._most(), self._lacking(self._counts), key=self._counts.__getitem__)


class ByRecency(_Order):
    """Those asked last."""

    def __init__(self, replay: Replay) -> None:
        super().__init__(replay)
        self._order: OrderedDict[int, None] = OrderedDict()

    def asked(self, name: int, now: float) -> None:
        self._order[name] = None
        self._order.move_to_end(name)

    def plan(self, hour: int, now: float) -> Iterable[int]:
        return self._lacking(reversed(self._order))[: self._most()]


class ByPopularity(_Order):
    """Those with the highest sum of decayed counts, of OurStore: as the service did before it planned."""

    def plan(self, hour: int, now: float) -> Iterable[int]:
        kept = self._replay.kept
        assert isinstance(kept, OurStore)
        scores = {
            int(one.text): sum(one.evidence.decayed) for one in kept.popularity.asked(now, 1, COLLECTION, UNBOUNDED)
        }
        return heapq.nlargest(self._most(), self._lacking(scores), key=scores.__getitem__)


class Planned(_Order):
    """The service's own: Warming, with OurStore. `least` is how often a query was asked before it is planned."""

    def __init__(self, replay: Replay, least: int = 1) -> None:
        super().__init__(replay)
        assert isinstance(replay.kept, OurStore)
        self._warming = Warming(replay.kept.popularity, replay.kept.keeper)
        self._least = least
        self._task = TaskRecord(task_id="t", task_type=TaskType.WARM, collection=COLLECTION, schedule_id="hourly")

    def plan(self, hour: int, now: float) -> Iterable[int]:
        terms = self._replay.terms
        plan = self._warming.plan(
            self._task,
            now,
            limit=min(terms.most, MOST_AN_HOUR),
            least=self._least,
            spare_s=terms.budget_s,
            every_s={COLLECTION: HOUR_S},
            stale=(),
        )
        return [int(query.query_text) for query in plan.queries]

    def spent(self, cpu_s: float, now: float) -> None:
        self._warming.ended(self._task, cpu_s, now)


class _OfTheFuture(_Order):
    """Looks ahead, but only at queries asked before: a new one is in no plan."""

    def __init__(self, replay: Replay) -> None:
        super().__init__(replay)
        hours = np.asarray(replay.stream.times_s) // HOUR_S
        self._starts = np.searchsorted(hours, np.arange(int(hours[-1]) + 2)).tolist()
        self._known: set[int] = set()

    def asked(self, name: int, now: float) -> None:
        self._known.add(name)

    def _coming(self, hour: int, until: int) -> Sequence[int]:
        """Return what is asked from the beginning of `hour` to that of `until`."""
        last = len(self._starts) - 1
        return self._replay.stream.names[self._starts[min(hour, last)] : self._starts[min(until, last)]]


class NextDay(_OfTheFuture):
    """Knows how often each query is asked in the next 24 hours, but not when: what a perfect forecast of rates would know."""

    def plan(self, hour: int, now: float) -> Iterable[int]:
        counts = Counter(self._coming(hour, hour + 24))
        cost_s = self._replay.cost_s if self._replay.terms.budget_s is not None else Counter()

        def worth(name: int) -> tuple[float, int]:
            return -math.expm1(-counts[name] / 24) / (cost_s[name] or 1.0), name

        return heapq.nlargest(self._most(), self._lacking(counts.keys() & self._known), key=worth)


class Foresight(_OfTheFuture):
    """Knows when each query is asked next.

    What is asked in this hour first, the cheapest of it first, for each brings one hit; then what is asked later today, the
    soonest first.
    """

    def plan(self, hour: int, now: float) -> Iterable[int]:
        until = hour + (FLUSH_HOUR - hour - 1) % 24 + 1  # the hour of the next flush
        cost_s = self._replay.cost_s
        for later in range(hour, until):
            names = set(self._coming(later, later + 1))
            yield from sorted(self._lacking(names & self._known), key=lambda name: (cost_s[name], name))


def replayed(stream: Stream, cost_s: Sequence[float], terms: Terms, make: MakePlanner | None) -> Outcome:
    """Replay with the service's store."""
    with tempfile.TemporaryDirectory(prefix="morgan-warm-") as folder:
        (Path(folder) / "readers").mkdir()
        kept = OurStore(terms.capacity, cost_s, Path(folder))
        try:
            return Replay(stream, cost_s, terms, kept).run(make)
        finally:
            kept.close()


def replayed_lru(stream: Stream, cost_s: Sequence[float], terms: Terms, make: MakePlanner | None) -> Outcome:
    """Replay with an LRU cache."""
    return Replay(stream, cost_s, terms, LruStore(terms.capacity)).run(make)
