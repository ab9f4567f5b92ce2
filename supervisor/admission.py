"""Owns which queries' results are kept and which one leaves: decisions only, on keys. The results are in ipc/store.py. Pure.

  a miss was computed ─▶ window (LRU, 5 %) ─overflow─▶ main part ─▶ out: the query least likely to be asked again soon
  precomputed ───────────────────────────────────────▶ main part

An expired entry leaves before all others. Bookkeeping an operation: O(log n); each eviction also values anew the
REFRESH entries of the main part that were valued the longest ago, and those of more than an hour ago. Meanwhile values
move only by ageing; the bench shows what that costs: nothing. So no operation takes long, but for the first after an
hour without evictions: it values all, 10 ms for 1,000.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from .demand import Demand
from .popularity import Evidence

WINDOW_SHARE = 0.05
HORIZON = 3  # accesses, for each entry, within which a query must come back to have been worth keeping
RECENT = 5  # accesses, for each entry, that samples are drawn from
REFRESH = 32  # entries of the main part valued anew with each eviction,
RANKED_S = 3600.0  # and all that were valued longer ago, in seconds: a sixth of the shortest half-life
MOST_SAMPLES = 16  # a call: hits arrive in batches, and a thousand of one query teach no more than a few


class Estimator(Protocol):
    """Values a query by what is known of it. A higher value stays; the unit is the estimator's own."""

    def value(self, evidence: Evidence) -> float: ...


class Counts(Protocol):
    """What is known of the use of queries: popularity.py's, or that with aliases counted for their entries (aliases.py)."""

    @property
    def total_accesses(self) -> int: ...

    def evidence(self, key: str, now: float) -> Evidence: ...

    def last_at(self, key: str) -> float: ...


class _Valued(NamedTuple):
    value: float
    at: float


class Policy:
    """Which keys are in. Every key it names to leave is already out of it; the caller removes the entry.

    Counts come from `popularity`, to be told of an access before this is. A Demand as `estimator` learns as it goes.
    """

    def __init__(
        self,
        capacity: int,
        popularity: Counts,
        estimator: Estimator | None = None,
        *,
        window_share: float = WINDOW_SHARE,
        refresh: int = REFRESH,
        seed: int = 0,
    ) -> None:
        """Raises ValueError for a capacity below 1. `refresh` 0 values all at every eviction: exact, and O(n)."""
        if capacity < 1:
            raise ValueError(f"a cache of {capacity} entries can hold nothing: give it at least 1")
        self._capacity, self._popularity = capacity, popularity
        self._estimator = Demand(HORIZON * capacity) if estimator is None else estimator
        self._window_size = max(int(capacity * window_share), 1)
        self._refresh = capacity if refresh == 0 else refresh
        self._chance = random.Random(seed)
        self._window: OrderedDict[str, None] = OrderedDict()  # oldest use first
        self._main: list[str] = []
        self._place: dict[str, int] = {}  # of each key in `_main`
        self._recent: deque[str] = deque(maxlen=RECENT * capacity)
        self._seen = popularity.total_accesses
        self._values: OrderedDict[str, _Valued] = OrderedDict()  # of each key in `_main`, the longest ago first
        self._ranking: list[tuple[float, str]] = []  # heap of (value, key); may hold values that are not current
        self._expires_at: dict[str, float] = {}
        self._expiries: list[tuple[float, str]] = []  # heap; may name keys that left or expire later by now

    def __len__(self) -> int:
        return len(self._window) + len(self._main)

    def __contains__(self, key: object) -> bool:
        return key in self._window or key in self._place

    @property
    def weights(self) -> list[float]:
        """What was learned, for a Demand of the next run to start from; empty of another estimator."""
        return list(self._estimator.weights) if isinstance(self._estimator, Demand) else []

    def restore(self, entries: Iterable[tuple[str, float]]) -> None:
        """Take (key, expires_at) of what the store already holds. The window is for what comes now: all go to main."""
        for key, expires_at in entries:
            if key not in self:
                self._enter_main(key)
                self._values[key] = _Valued(0.0, -math.inf)  # with the first eviction: more is known of it by then
                self._values.move_to_end(key, last=False)
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
            self.remove(gone)
        while len(self._window) > self._window_size:
            entering = self._window.popitem(last=False)[0]
            self._enter_main(entering)
            self._set_value(entering, now)
        if len(self) > self._capacity:
            gone = self._least(now)
            self.remove(gone)
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
            self.remove(gone)
        self._enter_main(key)
        self._set_value(key, now)
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
            self._values.pop(key, None)
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

    def leaves_next(self, now: float) -> str | None:
        """Return the key that holds and leaves for the next new one; None while there is room, or an expired one leaves."""
        if len(self) < self._capacity or self._expired(now, "") is not None:
            return None
        return self._least(now) if self._main else next(iter(self._window), None)

    def worth(self, keys: Iterable[str], now: float) -> set[str]:
        """Return those of `keys` that `is_worth` says of: with one look at what would leave for all of them."""
        if len(self) < self._capacity or self._expired(now, "") is not None:
            return set(keys)
        least = self._value(self._least(now), now) if self._main else math.inf
        return {key for key in keys if key in self or self._value(key, now) > least}

    # --- which one leaves ---------------------------------------------------------------------------------------------

    def _value(self, key: str, now: float) -> float:
        return self._estimator.value(self._popularity.evidence(key, now))

    def _enter_main(self, key: str) -> None:
        self._place[key] = len(self._main)
        self._main.append(key)

    def _set_value(self, key: str, now: float) -> None:
        value = self._value(key, now)
        self._values[key] = _Valued(value, now)
        self._values.move_to_end(key)
        heapq.heappush(self._ranking, (value, key))

    def _least(self, now: float) -> str:
        """Return the key of main with the lowest value; main is not empty. Values REFRESH keys anew, and those it meets."""
        for _ in range(min(self._refresh, len(self._main))):
            self._set_value(next(iter(self._values)), now)
        while not 0 <= now - self._values[oldest := next(iter(self._values))].at <= RANKED_S:
            self._set_value(oldest, now)
        if len(self._ranking) > 4 * len(self._main) + 64:  # mostly of values that are not current
            self._ranking = [(valued.value, key) for key, valued in self._values.items()]
            heapq.heapify(self._ranking)
        while True:
            value, key = self._ranking[0]
            held = self._values.get(key)
            if held is None or held.value != value:  # it left, or was valued anew since
                heapq.heappop(self._ranking)
            elif held.at == now or self._value(key, now) <= value:
                return key
            else:
                heapq.heappop(self._ranking)
                self._set_value(key, now)

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
