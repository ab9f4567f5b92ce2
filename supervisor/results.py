"""Owns what the result store holds: admission, eviction, expiry and the figures. The store itself is ipc/store.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..ipc.counters import CounterFold
from ..ipc.query import normalise, query_hash
from ..ipc.records import ComputedResult
from ..ipc.store import EntryInfo, ResultStore
from .popularity import Popularity


@dataclass(frozen=True, slots=True)
class CachePolicy:
    ttl_s: float = 24 * 3600.0
    max_entries: int = 1000


class ResultKeeper:
    """The one writer of the result store. Evicts the least popular entry when `max_entries` is reached."""

    def __init__(self, store: ResultStore, fold: CounterFold, popularity: Popularity, policy: CachePolicy) -> None:
        self.store = store
        self._fold, self._popularity, self._policy = fold, popularity, policy
        self._lookups = self._hits = 0
        self._hits_of: dict[str, int] = {}  # query hash -> hits served from shared memory

    def put(self, result: ComputedResult, now: float, ttl_s: float | None = None) -> None:
        """Publish `result`. Raises ResultStoreError where the store cannot take it; what it held stays served."""
        key = query_hash(result.query_text, result.collection, result.scope)
        held = {entry.key_hash: entry for entry in self.store.entries()} if self._is_full() else {}
        if held and key not in held:
            self._evict_one(held, now)
        self.store.put(result, expires_at=now + (self._policy.ttl_s if ttl_s is None else ttl_s))

    def _is_full(self) -> bool:
        return len(self.store) >= self._policy.max_entries

    def _evict_one(self, held: dict[str, EntryInfo], now: float) -> None:
        """An expired entry goes first, then the one whose query is the least popular."""
        victim = min(
            held.values(),
            key=lambda entry: (entry.expires_at > now, self._popularity.score(entry.key_hash, now), entry.computed_at),
        )
        self.store.remove(victim.query_text, victim.collection, victim.scope)

    def invalidate(self, collection: str | None, pattern: str | None) -> int:
        """Drop the entries of `collection` (None: all) whose normalised query contains `pattern`; return how many."""
        if pattern is None:
            names = {collection} if collection is not None else {entry.collection for entry in self.store.entries()}
            return sum(self.store.invalidate_collection(name) for name in names if name is not None)
        wanted = normalise(pattern)
        doomed = [
            entry
            for entry in self.store.entries()
            if (collection is None or entry.collection == collection) and wanted in normalise(entry.query_text)
        ]
        return sum(self.store.remove(entry.query_text, entry.collection, entry.scope) for entry in doomed)

    def holds(self, query_text: str, collection: str, scope: str, now: float) -> bool:
        return self.store.get(query_text, collection, scope, now) is not None

    def collect_counts(self, now: float) -> int:
        """Take over what the readers counted since the last call; return how many lookups that were."""
        totals = self._fold.fold()
        fresh = totals.lookups - self._lookups
        self._lookups, self._hits = totals.lookups, totals.hits
        if totals.per_slot:
            by_slot = {entry.slot: entry for entry in self.store.entries()}
            for slot, hits in totals.per_slot.items():
                if (entry := by_slot.get(slot)) is not None:  # else: replaced since; counted in the totals alone
                    self._hits_of[entry.key_hash] = self._hits_of.get(entry.key_hash, 0) + hits
                    self._popularity.add_hits(entry.key_hash, hits, now)
        return fresh

    def hits_of(self, key_hash: str) -> int:
        return self._hits_of.get(key_hash, 0)

    def stats(self, now: float) -> dict[str, Any]:
        """Return the keys of `PrecomputedSearchCache.get_cache_stats`."""
        entries = list(self.store.entries())
        expired = sum(entry.expires_at <= now for entry in entries)
        return {
            "total_cached_queries": len(entries),
            "valid_entries": len(entries) - expired,
            "expired_entries": expired,
            "total_tracked_queries": len(self._popularity),
            "cache_hit_rate": self._hits / self._lookups if self._lookups else 0.0,
            "cache_lookups": self._lookups,
            "cache_hits": self._hits,
            "total_access_count": self._popularity.total_accesses,
            "cache_size_mb": self.store.size_bytes / 2**20,
        }
