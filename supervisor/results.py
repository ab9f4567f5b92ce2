"""Owns what the result store holds: admission, eviction, expiry, what a change of documents drops, and the figures.

The store itself is ipc/store.py; which results a change can alter is affected.py, which one leaves is admission.py.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..ipc.counters import CounterFold
from ..ipc.entry import EntryInfo
from ..ipc.query import normalise, query_hash
from ..ipc.records import ComputedResult
from ..ipc.result import CachedResult
from ..ipc.store import ResultStore
from .admission import Policy
from .affected import Change, Dependencies, Floats, can_alter
from .aliases import Aliases, as_alias
from .demand import Demand
from .popularity import Popularity
from .similar import Served, Similar

EMPTY_TTL_S = 60.0  # of a result without rows: what is missing today may be there in a minute
KEPT_CHANGES = 512  # remembered, to be held against results that were computed before them and come after
KEPT_POINTS = 20_000  # of all of them together: 30 MB of vectors of 384


@dataclass(frozen=True, slots=True)
class CachePolicy:
    ttl_s: float = 24 * 3600.0  # from then on an entry is a miss
    soft_ttl_s: float = 12 * 3600.0  # from then on it is served, and computed again when there is CPU to spare
    max_entries: int = 1000
    alias_overlap: float = 1.0  # of the rows with the nearest entry's, from which a query is its alias; 0: never
    similar_errors: float = (
        0.0  # of the requests for a similar query's result, how many may be wrong; 0: none is served
    )


class Near(NamedTuple):
    """The entry whose query is nearest to another."""

    entry: EntryInfo
    held: CachedResult
    cosine: float


class ResultKeeper:
    """The one writer of the result store. When `max_entries` is reached, what is least likely asked again leaves.

    The store has room for one entry more: what comes is in before another leaves. `admission` is told of every entry
    that enters or leaves the store, and of nothing else. Aliases are beside it, as many as entries: their hits count for
    their entry, they leave with it, and where there are too many the one used the longest ago leaves.
    """

    def __init__(
        self,
        store: ResultStore,
        fold: CounterFold,
        popularity: Popularity,
        policy: CachePolicy,
        demand: Demand | None = None,
    ) -> None:
        """`demand` is what was learned so far of what is asked again; None: nothing."""
        self.store = store
        self._fold, self._popularity, self._policy = fold, popularity, policy
        self.aliases = Aliases(popularity)
        self.similar = Similar(policy.similar_errors)
        self.admission = Policy(policy.max_entries, self.aliases, demand)
        self._lookups = self._hits = self._dropped = self._alias_hits = 0
        self._names: dict[str, tuple[str, str, str]] = {}  # of every entry, by key hash: text, collection, scope
        self._dependencies: dict[str, Dependencies] = {}  # collection -> of its entries, by key hash
        self._changes: deque[Change] = deque()
        self._forgotten_seq = 0  # the last change that is not in `_changes` any more
        self._void: set[str] = set()
        self.on_counts: Callable[[int, int, Mapping[str, int], Mapping[int, int], float], None] | None = None
        for entry in store.entries():
            self._note(entry)
        self.admission.restore((entry.key_hash, entry.expires_at) for entry in store.entries() if not entry.alias_of)

    @property
    def policy(self) -> CachePolicy:
        return self._policy

    @policy.setter
    def policy(self, policy: CachePolicy) -> None:
        self._policy = policy
        self.similar.ledger.rate = policy.similar_errors

    def _note(self, entry: EntryInfo) -> None:
        """Remember an entry of the store, and what it depends on."""
        self._names[entry.key_hash] = (entry.query_text, entry.collection, entry.scope)
        if entry.alias_of:
            self.aliases.add(entry.key_hash, entry.alias_of)
        held = self.store.get(entry.query_text, entry.collection, entry.scope)
        if held is not None:
            of_collection = self._dependencies.setdefault(entry.collection, Dependencies())
            group = entry.scope if entry.is_ours and not entry.alias_of else None
            of_collection.put(entry.key_hash, held.embedding, held.cutoff, held.candidates, group)

    # --- in -----------------------------------------------------------------------------------------------------------

    def put(self, result: ComputedResult, now: float, ttl_s: float | None = None, *, is_asked_for: bool = True) -> bool:
        """Publish `result`; False where a change of documents since it was computed can alter it.

        Somebody waits for a result that `is_asked_for`, or will ask again: it is always taken in. Another one that is
        worth no more than the least of a full store is left out. Raises ResultStoreError where the store cannot take
        it; what it held stays served.
        """
        later = self._changes_since(result)
        if later is None or any(not change.is_soft for change in later):
            return False
        key = query_hash(result.query_text, result.collection, result.scope)
        ttl_s = self.policy.ttl_s if ttl_s is None else ttl_s
        if not result.ids:
            ttl_s = min(ttl_s, EMPTY_TTL_S)
        soft_at = now if later else now + min(self.policy.soft_ttl_s, ttl_s)
        was_there = self.store.info(result.query_text, result.collection, result.scope) is not None
        self.similar.computed(key, result.ids)
        near = None  # an application's own results are compared with none: what its vector is, is not known
        if result.candidates:
            near = self._nearest(np.frombuffer(result.embedding, dtype="<f4"), result.collection, result.scope, key)
        if near is not None and is_asked_for and not was_there:
            self.similar.audit(result.collection, near.cosine, result.ids, near.held.ids)
        if near is not None and self._put_alias(result, key, near, now + ttl_s, soft_at):
            self._void |= {key} if was_there else set()
            if is_asked_for:
                self.admission.touch(self.aliases.entry_of(key), 1, now)
            return True
        if not is_asked_for and not self.admission.is_worth(key, now):
            if key in self.aliases:
                self._remove(key)  # it is not what it was, and not worth a record of its own
            return True
        self._void |= {key} if was_there else set()
        self.store.put(result, expires_at=now + ttl_s, soft_at=soft_at)
        self.aliases.remove(key)
        for alias in self.aliases.of(key):
            if self.store.info(*self._names[alias]) is None:  # its rows were not these
                self._remove(alias)
        self._depend(result, key, group=result.scope if result.candidates else None)
        admit = self.admission.admit if is_asked_for else self.admission.admit_precomputed
        if (gone := admit(key, now, now + ttl_s)) is not None:
            self._remove(gone)
        return True

    def _changes_since(self, result: ComputedResult) -> list[Change] | None:
        """Return the changes since `result` was computed that can alter it; None: that is not known any more."""
        if not result.as_of:
            return []
        if result.as_of < self._forgotten_seq:
            return None
        return [change for change in self._changes if change.seq > result.as_of and can_alter(change, result)]

    def _depend(self, result: ComputedResult, key: str, group: str | None) -> None:
        self._names[key] = (result.query_text, result.collection, result.scope)
        of_collection = self._dependencies.setdefault(result.collection, Dependencies())
        embedding = np.frombuffer(result.embedding, dtype="<f4")
        of_collection.put(key, embedding, result.cutoff, result.candidates, group)

    def _nearest(self, embedding: Floats, collection: str, scope: str, key: str) -> Near | None:
        """Return the entry, no alias, of the collection and scope whose query is nearest; another than that of `key`."""
        of_collection = self._dependencies.get(collection)
        found = None if of_collection is None else of_collection.nearest(embedding, scope, other_than=key)
        if found is None or self._names[found[0]][1:] != (collection, scope):
            return None
        entry, held = self.store.info(*self._names[found[0]]), self.store.get(*self._names[found[0]])
        return None if entry is None or held is None else Near(entry, held, found[1])

    def _put_alias(self, result: ComputedResult, key: str, near: Near, expires_at: float, soft_at: float) -> bool:
        """Keep `result` as an alias of the entry nearest to its query, if its rows agree with that one's."""
        kept = None if self.aliases.of(key) else as_alias(result, near.held, self.policy.alias_overlap)
        if kept is None:
            return False
        if key not in self.aliases and len(self.aliases) >= self.policy.max_entries:
            self._remove(self.aliases.oldest())
        if not self.store.put_alias(kept, near.entry, expires_at=expires_at, soft_at=soft_at):
            return False
        self.admission.remove(key)  # of one that had a record of its own
        self.aliases.add(key, near.entry.key_hash)
        self._depend(result, key, group=None)
        return True

    def find_similar(self, text: str, collection: str, embedding: Floats, now: float) -> EntryInfo | None:
        """Return the entry to serve to a query that has none of its own, None where that may not be: it is then searched.

        What is returned is noted as served, and its truth is wanted. Queries of a filter or tenant are never served so.
        """
        key = query_hash(text, collection)
        near = self._nearest(embedding, collection, "", key)
        cosine = -1.0 if near is None else near.cosine
        if not self.similar.may_serve(collection, cosine) or near is None:
            return None
        if not near.held.ids or not now < min(near.entry.soft_at, near.entry.expires_at):
            return None
        self.similar.serve(key, Served(text, collection, cosine, near.held.ids))
        return near.entry

    def is_worth(self, text: str, collection: str, now: float) -> bool:
        """Say whether a result nobody waits for would be kept, so that none is computed in vain."""
        return self.admission.is_worth(query_hash(text, collection, ""), now)

    def leaves_next(self, now: float) -> str | None:
        """Return the hash of the entry whose hits the next new one costs; None where it costs none."""
        return self.admission.leaves_next(now)

    def worth(self, keys: Iterable[str], now: float) -> set[str]:
        """Return the query hashes of which `is_worth` is so."""
        return self.admission.worth(keys, now)

    # --- out ----------------------------------------------------------------------------------------------------------

    def _remove(self, key: str) -> None:
        """Remove an entry and its aliases. One that left with its entry is fine."""
        if key not in self._names:
            return
        for alias in self.aliases.of(key):
            self._remove(alias)
        text, collection, scope = self._names.pop(key)
        self.aliases.remove(key)
        self.store.remove(text, collection, scope)
        if (of_collection := self._dependencies.get(collection)) is not None:
            of_collection.remove(key)
        self.admission.remove(key)
        self._void.add(key)

    def invalidate(self, collection: str | None, pattern: str | None) -> int:
        """Drop the entries of `collection` (None: all) whose normalised query contains `pattern`; return how many."""
        if pattern is None:
            names = {collection} if collection is not None else {entry.collection for entry in self.store.entries()}
            return sum(self._invalidate_whole(name) for name in names if name is not None)
        wanted = normalise(pattern)
        doomed = [
            entry
            for entry in self.store.entries()
            if (collection is None or entry.collection == collection) and wanted in normalise(entry.query_text)
        ]
        for entry in doomed:
            self._remove(entry.key_hash)
        return len(doomed)

    def _invalidate_whole(self, collection: str) -> int:
        keys = [key for key, (_, name, _) in self._names.items() if name == collection]
        for key in keys:
            del self._names[key]
            self._void.add(key)
            self.admission.remove(key)
            self.aliases.remove(key)
        self._dependencies.pop(collection, None)
        self.similar.forget(collection)
        return self.store.invalidate_collection(collection)

    def change(self, change: Change, now: float) -> int:
        """Take a change of documents: drop the results it can alter, or (soft) have them computed again. Return how many.

        A soft change of a filtered result drops it: the filter is the application's, it cannot be computed again here.
        """
        self._remember(change)
        by_key = {entry.key_hash: entry for entry in self.store.entries() if entry.collection in change.names}
        count = 0
        for name in change.names & self._dependencies.keys():
            if change.words is None and not change.is_soft:
                count += self._invalidate_whole(name)
                continue
            for key in self._dependencies[name].affected(change):
                entry = by_key.get(key)
                if entry is None:
                    continue
                count += 1
                if not change.is_soft or entry.scope:
                    self._remove(entry.key_hash)
                elif entry.soft_at > now:
                    self.store.make_stale(entry.query_text, entry.collection, entry.scope, now)
        return count

    def _remember(self, change: Change) -> None:
        if not change.seq:
            return  # of a task: none of that collection's runs beside it
        self._changes.append(change)
        points = sum(one.points for one in self._changes)
        while len(self._changes) > KEPT_CHANGES or points > KEPT_POINTS:
            oldest = self._changes.popleft()
            points -= oldest.points
            self._forgotten_seq = oldest.seq

    def make_all_stale(self, collection: str, now: float) -> None:
        """Have every result of a collection computed again: what altered them is not known one by one."""
        for entry in self.store.entries():
            if entry.collection == collection and entry.soft_at > now:
                self.store.make_stale(entry.query_text, entry.collection, entry.scope, now)

    def drop_ours(self, collection: str) -> None:
        """Remove what the service computed of a collection; what the application put there is its own."""
        for entry in self.store.entries():
            if entry.collection == collection and entry.is_ours:
                self._remove(entry.key_hash)

    def take_void(self) -> set[str]:
        """Return the hashes of the results that were removed or replaced since the last call."""
        void, self._void = self._void, set()
        return void

    def forget(self, keys: set[str]) -> None:
        """Remove the entries with these hashes: they came back from a snapshot, and were void before it did."""
        for entry in self.store.entries():
            if entry.key_hash in keys:
                self._remove(entry.key_hash)

    # --- looking ------------------------------------------------------------------------------------------------------

    def holds(self, query_text: str, collection: str, scope: str, now: float) -> bool:
        """Say whether a query has a result that is neither expired nor to be computed again."""
        held = self.store.get(query_text, collection, scope, now)
        return held is not None and held.soft_at > now

    def stale(self, now: float) -> dict[str, list[EntryInfo]]:
        """Return by collection the entries that are served and to be computed again, the most popular first."""
        found: dict[str, list[EntryInfo]] = {}
        for entry in self.store.entries():
            if entry.soft_at <= now < entry.expires_at and entry.is_ours and not entry.scope:
                found.setdefault(entry.collection, []).append(entry)
        for entries in found.values():
            entries.sort(key=lambda entry: -self._popularity.score(entry.key_hash, now))
        return found

    def valid(self, collection: str, now: float) -> list[EntryInfo]:
        """Return the service's own entries of a collection that hold, those of a filter or tenant left out."""
        return [
            entry
            for entry in self.store.entries()
            if entry.collection == collection and entry.is_ours and not entry.scope and entry.soft_at > now
        ]

    def collect_counts(self, now: float) -> int:
        """Take over what the readers counted since the last call; return how many lookups that were."""
        totals = self._fold.fold(self.store.epoch)
        fresh, fresh_hits = totals.lookups - self._lookups, totals.hits - self._hits
        by_collection: Counter[str] = Counter()
        self._lookups, self._hits, self._dropped = totals.lookups, totals.hits, totals.dropped
        if totals.per_slot:
            by_slot = {entry.slot: entry for entry in self.store.entries()}
            for slot, hits in totals.per_slot.items():
                if (entry := by_slot.get(slot)) is not None:  # else: replaced since; counted in the totals alone
                    self.store.count_use(slot, hits, now)
                    self.used(entry, hits, now)
                    by_collection[entry.collection] += hits
        if self.on_counts is not None:
            self.on_counts(fresh, fresh_hits, by_collection, totals.timed, now)
        return fresh

    def used(self, entry: EntryInfo, hits: int, now: float) -> None:
        is_twin = bool(entry.scope) and not entry.is_ours
        self._popularity.add(entry.query_text, entry.collection, entry.scope, hits, now, is_twin=is_twin)
        if is_twin:  # an application's own search: asked of the collection, whatever else it was asked with
            self._popularity.add(entry.query_text, entry.collection, "", hits, now)
        if entry.alias_of:
            self.aliases.touch(entry.key_hash)
            self._alias_hits += hits
        self.admission.touch(self.aliases.entry_of(entry.key_hash), hits, now)

    @property
    def misses(self) -> int:
        """How many lookups found nothing, as far as they were collected."""
        return self._lookups - self._hits

    def response_times(self) -> Iterator[float]:
        """Yield how long each query that has a result took when it was searched for, on average, as far as it is known."""
        for key, (text, collection, _) in self._names.items():
            # the search of an application's own is tracked without what else it was asked with
            for one in (key, query_hash(text, collection)):
                if (response_s := self._popularity.response_s(one)) is not None:
                    yield response_s
                    break

    def stats(self, now: float) -> dict[str, Any]:
        """Return the keys of `PrecomputedSearchCache.get_cache_stats`."""
        entries = list(self.store.entries())
        expired = sum(entry.expires_at <= now for entry in entries)
        return {
            "total_cached_queries": len(entries),
            "aliases": len(self.aliases),
            "alias_hits": self._alias_hits,
            "valid_entries": len(entries) - expired,
            "expired_entries": expired,
            "stale_entries": sum(entry.soft_at <= now < entry.expires_at for entry in entries),
            "total_tracked_queries": self._popularity.listed_count,
            "cache_hit_rate": self._hits / self._lookups if self._lookups else 0.0,
            "cache_lookups": self._lookups,
            "cache_hits": self._hits,
            "dropped_reports": self._dropped,
            "total_access_count": self._popularity.total_accesses,
            "cache_size_mb": self.store.size_bytes / 2**20,
            "similar": self.similar.report(),
        }
