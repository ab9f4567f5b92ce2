"""Owns which queries' results are kept and which one leaves: decisions only, on keys. The results are in ipc/store.py. Pure.

  a miss was computed ─▶ window (LRU, 5 %) ─overflow─▶ main part ─▶ out: the query least likely to be asked again soon
  precomputed ───────────────────────────────────────▶ main part

An expired entry leaves before all others. Bookkeeping an operation: O(log n), and every REFRESH-th share of evictions ranks
the main part anew, O(n). Between two rankings values move only by ageing; the bench shows what that costs: nothing.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Protocol

from .demand import Demand
from .popularity import Evidence, Popularity

WINDOW_SHARE = 0.05
HORIZON = 3  # accesses, for each entry, within which a query must come back to have been worth keeping
RECENT = 5  # accesses, for each entry, that samples are drawn from
REFRESH = 32  # the main part is ranked anew after a 1/REFRESH of it was evicted,
RANKED_S = 3600.0  # or when the ranking is so old: a sixth of the shortest half-life
MOST_SAMPLES = 16  # a call: hits arrive in batches, and a thousand of one query teach no more than a few


class Estimator(Protocol):
    """Values a query by what is known of it. A higher value stays; the unit is the estimator's own."""

    def value(self, evidence: Evidence) -> float: ...


class Policy:
    """Which keys are in. Every key it names to leave is already out of it; the caller removes the entry.

    Counts come from `popularity`, to be told of an access before this is. A Demand as `estimator` learns as it goes.
    """

    def __init__(
        self,
        capacity: int,
        popularity: Popularity,
        estimator: Estimator | None = None,
        *,
        window_share: float = WINDOW_SHARE,
        refresh: int = REFRESH,
        seed: int = 0,
    ) -> None:
        """Raises ValueError for a capacity below 1. `refresh` 0 ranks at every eviction: exact, and O(n)."""
        if capacity < 1:
            raise ValueError(f"a cache of {capacity} entries can hold nothing: give it at least 1")
        self._capacity, self._popularity = capacity, popularity
        self._estimator = Demand(HORIZON * capacity) if estimator is None else estimator
        self._window_size = max(int(capacity * window_share), 1)
        self._evictions_a_ranking = 1 if refresh == 0 else max(capacity // refresh, 1)
        self._chance = random.Random(seed)
        self._window: OrderedDict[str, None] = OrderedDict()  # oldest use first
        self._main: list[str] = []
        self._place: dict[str, int] = {}  # of each key in `_main`
        self._recent: deque[str] = deque(maxlen=RECENT * capacity)
        self._seen = popularity.total_accesses
        self._ranking: list[tuple[float, str, float]] = []  # heap of (value, key, when it was last asked)
        self._ranked_at = -math.inf
        self._left_of_ranking = 0
        self._expires_at: dict[str, float] = {}
        self._expiries: list[tuple[float, str]] = []  # heap; may name keys that left or expire later by now

    def __len__(self) -> int:
        return len(self._window) + len(self._main)

    def __contains__(self, key: object) -> bool:
        return key in self._window or key in self._place

    def restore(self, entries: Iterable[tuple[str, float]]) -> None:
        """Take (key, expires_at) of what the store already holds. The window is for what comes now: all go to main."""
        for key, expires_at in entries:
            if key not in self:
                self._enter_main(key, None)
            self._set_expiry(key, expires_at)

    def admit(self, key: str, now: float, expires_at: float = math.inf) -> str | None:
        """Take in what a miss computed, always. Return the key that has to leave, never `key` itself; None: there is room."""
        self._learn(key, 1, now)
        self._set_expiry(key, expires_at)
        if key in self._place:
            return None
        self._window[key] = None
        self._window.move_to_end(key)
        gone = self._expired(now, key) if len(self) > self._capacity else None
        if gone is not None:
            self._leave(gone)
        while len(self._window) > self._window_size:
            self._enter_main(self._window.popitem(last=False)[0], now)
        if len(self) > self._capacity:
            gone = self._least(now)
            self._leave(gone)
        return gone

    def admit_precomputed(self, key: str, now: float, expires_at: float = math.inf) -> str | None:
        """Take in what nobody waits for. Return the key that has to leave: `key` itself if it is worth no more than that."""
        if not self.is_worth(key, now):
            return key
        is_new = key not in self
        self._set_expiry(key, expires_at)
        if not is_new:
            return None
        gone: str | None = None
        if len(self) >= self._capacity:
            gone = self._expired(now, key) or self._least(now)
            self._leave(gone)
        self._enter_main(key, now)
        return gone

    def touch(self, key: str, count: int, now: float) -> None:
        """Note `count` hits of `key`. Those of a key that is not in teach, and change nothing else."""
        self._learn(key, count, now)
        if key in self._window:
            self._window.move_to_end(key)

    def remove(self, key: str) -> None:
        """Forget a key that left the store for another reason. One that is not in is fine."""
        self._expires_at.pop(key, None)
        if key in self._window:
            del self._window[key]
        elif (place := self._place.pop(key, None)) is not None:
            last = self._main.pop()
            if last != key:
                self._main[place] = last
                self._place[last] = place

    def victim(self, now: float) -> str | None:
        """Return the key that would leave next, None if there is none: an expired one, the least of main, the oldest new."""
        if (gone := self._expired(now, "")) is not None:
            return gone
        return self._least(now) if self._main else next(iter(self._window), None)

    def is_worth(self, key: str, now: float) -> bool:
        """Say whether `admit_precomputed(key)` would keep it, so that nothing is computed in vain."""
        if key in self or len(self) < self._capacity or self._expired(now, key) is not None:
            return True
        return bool(self._main) and self._value(key, now) > self._value(self._least(now), now)

    # --- which one leaves ---------------------------------------------------------------------------------------------

    def _value(self, key: str, now: float) -> float:
        return self._estimator.value(self._popularity.evidence(key, now))

    def _enter_main(self, key: str, now: float | None) -> None:
        """Append to main; with `now`, to the ranking too (else the next ranking finds it)."""
        self._place[key] = len(self._main)
        self._main.append(key)
        if now is None:
            self._ranked_at = -math.inf
        else:
            heapq.heappush(self._ranking, (self._value(key, now), key, self._popularity.last_at(key)))

    def _leave(self, key: str) -> None:
        self._left_of_ranking -= 1
        self.remove(key)

    def _least(self, now: float) -> str:
        """Return the key of main with the lowest value as of the ranking; main is not empty."""
        if self._left_of_ranking <= 0 or not 0 <= now - self._ranked_at <= RANKED_S:
            self._rank(now)
        while self._ranking:
            _, key, asked_at = self._ranking[0]
            if key not in self._place:
                heapq.heappop(self._ranking)
            elif (last_at := self._popularity.last_at(key)) != asked_at:
                heapq.heapreplace(self._ranking, (self._value(key, now), key, last_at))
            else:
                return key
        self._rank(now)
        return self._ranking[0][1]

    def _rank(self, now: float) -> None:
        self._ranking = [(self._value(key, now), key, self._popularity.last_at(key)) for key in self._main]
        heapq.heapify(self._ranking)
        self._ranked_at, self._left_of_ranking = now, self._evictions_a_ranking

    def _set_expiry(self, key: str, expires_at: float) -> None:
        if self._expires_at.get(key) == expires_at:
            return
        self._expires_at[key] = expires_at
        if expires_at < math.inf:
            heapq.heappush(self._expiries, (expires_at, key))
            if len(self._expiries) > 2 * len(self._expires_at) + 64:  # mostly of keys renewed since
                self._expiries = [(at, name) for name, at in self._expires_at.items() if at < math.inf]
                heapq.heapify(self._expiries)

    def _expired(self, now: float, spared: str) -> str | None:
        """Return an expired key other than `spared`, the longest expired first."""
        aside: tuple[float, str] | None = None
        found = None
        while found is None and self._expiries and self._expiries[0][0] <= now:
            at, key = self._expiries[0]
            if self._expires_at.get(key) == at and key != spared:
                found = key
            else:
                top = heapq.heappop(self._expiries)
                aside = top if self._expires_at.get(key) == at else aside
        if aside is not None:
            heapq.heappush(self._expiries, aside)
        return found

    # --- what the stream teaches --------------------------------------------------------------------------------------

    def _learn(self, key: str, count: int, now: float) -> None:
        self._recent.append(key)
        if not isinstance(self._estimator, Demand):
            return
        accesses = self._popularity.total_accesses
        fresh, self._seen = accesses - self._seen, accesses
        self._estimator.settle(accesses, self._popularity.last_at)
        for _ in range(min(max(fresh, 0), MOST_SAMPLES)):
            # half of what is kept, whose fate is decided here, and half of what is asked, kept or not
            source = self._main if self._main and self._chance.random() < 0.5 else self._recent
            drawn = source[self._chance.randrange(len(source))]
            self._estimator.sample(drawn, self._popularity.evidence(drawn, now), now, accesses)
