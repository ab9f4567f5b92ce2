"""Owns the replay of a request stream through cache policies: ours, the peers of libcachesim, LRU and Belady of our own.

A request is an integer name; every entry has size 1. A policy says hit or miss; the first quarter of a stream warms up.
"""

from __future__ import annotations

import heapq
import importlib.util
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from morgan.background.supervisor.admission import Policy
from morgan.background.supervisor.popularity import CAPACITY, PER_ENTRY, Evidence, Popularity

LIBRARY = "libcachesim"
BELADY = "Belady"
LRU = "LRU"
WARM_UP = 0.25  # of the requests: not counted
DAY_S = 86400.0
HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests in order, at rising times in seconds."""

    name: str
    names: Sequence[int]
    times_s: Sequence[float]

    def first(self, count: int) -> Stream:
        return Stream(self.name, self.names[:count], self.times_s[:count])

    def at_rate(self, one_per_s: float) -> Stream:
        """Return the same requests, one every so many seconds."""
        return Stream(self.name, self.names, [i * one_per_s for i in range(len(self.names))])


class Cache(Protocol):
    def request(self, name: int, now: float) -> bool:
        """Return whether it was a hit; a miss is admitted."""
        ...


Maker = Callable[[int, Stream], Cache]  # capacity, the stream it will see (for Belady)


def hit_percent(make: Maker, capacity: int, stream: Stream) -> float:
    """Replay `stream`; return the share of hits after the warm-up, in percent."""
    cache = make(capacity, stream)
    warm = int(len(stream.names) * WARM_UP)
    hits = 0
    for i, (name, now) in enumerate(zip(stream.names, stream.times_s, strict=True)):
        if cache.request(name, now) and i >= warm:
            hits += 1
    return 100 * hits / (len(stream.names) - warm)


# --- ours ---------------------------------------------------------------------------------------------------------------


class SumOfCounts:
    """W-mix's value: the sum of the decayed counts at 6, 72 and 720 hours."""

    def value(self, evidence: Evidence) -> float:
        return sum(evidence.decayed)


@dataclass(frozen=True, slots=True)
class Ours:
    """The service's own classes as it runs them: a miss is tracked and admitted, a hit is counted and touches."""

    is_learned: bool = True
    window_share: float | None = None
    refresh: int | None = None
    queries: int | None = None  # remembered by the counts; None: as the service does
    queries_an_entry: int | None = None  # the same, by the capacity

    def __call__(self, capacity: int, stream: Stream) -> Cache:
        queries = max(PER_ENTRY * capacity, CAPACITY) if self.queries is None else self.queries
        if self.queries_an_entry is not None:
            queries = self.queries_an_entry * capacity
        popularity = Popularity(queries)
        given: dict[str, Any] = {}
        if self.window_share is not None:
            given["window_share"] = self.window_share
        if self.refresh is not None:
            given["refresh"] = self.refresh
        policy = Policy(capacity, popularity, None if self.is_learned else SumOfCounts(), **given)
        return _OurCache(popularity, policy)


class _OurCache:
    def __init__(self, popularity: Popularity, policy: Policy) -> None:
        self._popularity, self._policy = popularity, policy

    def request(self, name: int, now: float) -> bool:
        key = self._popularity.track(str(name), "replayed", "", 0.0, now)
        if key in self._policy:
            self._policy.touch(key, 1, now)
            return True
        self._policy.admit(key, now)
        return False


# --- peers --------------------------------------------------------------------------------------------------------------

# name in the table -> class of the library, its settings
PEERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    LRU: ("LRU", {}),
    "LFU": ("LFU", {}),
    "SIEVE": ("Sieve", {}),
    "S3-FIFO": ("S3FIFO", {}),
    "W-TinyLFU 1 %": ("WTinyLFU", {"window_size": 0.01}),
    "W-TinyLFU 20 %": ("WTinyLFU", {"window_size": 0.2}),
    "ARC": ("ARC", {}),
}


def absent() -> str | None:
    """Return None if the peers can be replayed, else what to install."""
    if importlib.util.find_spec(LIBRARY) is not None:
        return None
    return f"{LIBRARY} is not installed: pip install {LIBRARY} (or the extra 'bench')"


def library_version() -> str:
    import libcachesim

    return str(libcachesim.__version__)


def peer(name: str) -> Maker:
    """Return the policy `name` of PEERS. Raises ImportError without the library: ask `absent` first."""
    import libcachesim

    class_name, settings = PEERS[name]
    of_library = getattr(libcachesim, class_name)

    def make(capacity: int, _: Stream) -> Cache:
        return _LibraryCache(of_library(capacity, **settings), libcachesim.Request())

    return make


class _LibraryCache:
    def __init__(self, cache: Any, request: Any) -> None:
        self._cache, self._request = cache, request
        request.obj_size = 1

    def request(self, name: int, now: float) -> bool:
        self._request.obj_id = name
        return bool(self._cache.get(self._request))


class OwnLru:
    """Least recently used, ours: the floor that needs no library, and the check of the library's."""

    def __init__(self, capacity: int, stream: Stream) -> None:
        self._capacity = capacity
        self._held: OrderedDict[int, None] = OrderedDict()

    def request(self, name: int, now: float) -> bool:
        if name in self._held:
            self._held.move_to_end(name)
            return True
        self._held[name] = None
        if len(self._held) > self._capacity:
            self._held.popitem(last=False)
        return False


class OwnBelady:
    """Knows the future: keeps what is requested soonest. May decline a newcomer (bypass): no policy can do better."""

    def __init__(self, capacity: int, stream: Stream) -> None:
        self._capacity = capacity
        self._next = next_uses(stream.names)
        self._at = 0
        self._held: dict[int, float] = {}  # name -> index of its next request
        self._farthest: list[tuple[float, int]] = []  # heap of (-next, name); may be out of date

    def request(self, name: int, now: float) -> bool:
        coming = self._next[self._at]
        self._at += 1
        was_held = name in self._held
        self._held[name] = coming
        heapq.heappush(self._farthest, (-coming, name))
        while len(self._held) > self._capacity:
            negative, farthest = heapq.heappop(self._farthest)
            if self._held.get(farthest) == -negative:
                del self._held[farthest]
        return was_held


def next_uses(names: Sequence[int]) -> list[float]:
    """Return for each request the index of the next one of the same name; infinity for the last."""
    found = [math.inf] * len(names)
    seen: dict[int, int] = {}
    for i in range(len(names) - 1, -1, -1):
        found[i] = seen.get(names[i], math.inf)
        seen[names[i]] = i
    return found


# --- synthetic streams --------------------------------------------------------------------------------------------------


def synthetic(
    name: str, seed: int, requests: int, one_per_s: float, *, exponent: float, drift: float, bursts: float
) -> Stream:
    """Return a seeded stream of Zipf popularity over 20,000 queries.

    `drift` is the share of the 20,000 that is replaced by new queries each day. `bursts` is the share of requests that
    belong to a burst: a new query asked 5 to 200 times (Pareto, tail 1.2) within hours, then never again.
    """
    pool = 20_000
    chance = np.random.default_rng(seed)
    weight = 1 / np.arange(1, pool + 1) ** exponent
    upto = np.cumsum(weight / weight.sum())
    span_s = requests * one_per_s
    in_bursts = int(requests * bursts)
    steady = requests - in_bursts
    times = [np.sort(chance.uniform(0, span_s, steady))]
    rank = np.minimum(np.searchsorted(upto, chance.random(steady)), pool - 1)
    query_of_rank, fresh = np.arange(pool), pool
    day = (times[0] // DAY_S).astype(int)
    names = []
    for number in range(int(span_s // DAY_S) + 1):
        if number:
            replaced = chance.random(pool) < drift
            count = int(replaced.sum())
            query_of_rank[replaced] = np.arange(fresh, fresh + count)
            fresh += count
        names.append(query_of_rank[rank[day == number]])
    while in_bursts > 0:
        size = min(min(int(3 * (1 + chance.pareto(1.2))), 198) + 2, in_bursts)
        in_bursts -= size
        mean_age_s = chance.uniform(900, 3 * 3600)
        times.append(chance.uniform(0, span_s) + chance.exponential(mean_age_s, size))
        names.append(np.full(size, fresh))
        fresh += 1
    all_times, all_names = np.concatenate(times), np.concatenate(names)
    order = np.argsort(all_times, kind="stable")
    return Stream(name, all_names[order].tolist(), all_times[order].tolist())


def diurnal(
    name: str,
    seed: int,
    requests: int,
    one_per_s: float,
    *,
    queries: int,
    exponent: float,
    with_hour: float,
    drift: float,
) -> Stream:
    """Return a seeded stream whose rate and whose queries follow the hours of the day.

    Its rate is 1 + 0.8 cos around 14:00. Popularity is Zipf over `queries`; a share `with_hour` of them is asked around
    an hour of its own (exp(2 cos), a seventh of the mean to three times it), and a share `drift` is replaced each day.
    """
    chance = np.random.default_rng(seed)
    drawn = np.sort(chance.uniform(0, requests * one_per_s, 2 * requests))
    rate = 1 + 0.8 * np.cos(2 * np.pi * (drawn / HOUR_S - 14) / 24)
    times = drawn[chance.random(len(drawn)) < rate / 2][:requests]
    hour_of = (times // HOUR_S).astype(int)
    weight = 1 / np.arange(1, queries + 1) ** exponent
    own_hour = np.where(chance.random(queries) < with_hour, chance.uniform(0, 24, queries), np.nan)
    ids, fresh = np.arange(queries), queries
    names = np.empty(len(times), dtype=int)
    for hour in range(int(hour_of[-1]) + 1):
        if hour and hour % 24 == 0:
            replaced = chance.random(queries) < drift
            ids[replaced] = np.arange(fresh, fresh := fresh + int(replaced.sum()))
        # 2.28: the mean of exp(2 cos), the modified Bessel function I0(2)
        swing = np.exp(2 * np.cos(2 * np.pi * (hour % 24 + 0.5 - own_hour) / 24)) / 2.28
        upto = np.cumsum(weight * np.where(np.isnan(swing), 1.0, swing))
        within = slice(*np.searchsorted(hour_of, (hour, hour + 1)))
        drawn_now = chance.random(within.stop - within.start) * upto[-1]
        names[within] = ids[np.minimum(np.searchsorted(upto, drawn_now), queries - 1)]
    return Stream(name, names.tolist(), times.tolist())
