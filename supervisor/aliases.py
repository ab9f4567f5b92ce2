"""Owns which queries are answered by another's rows: when a result agrees with an entry's, and what aliases add to its worth.

A miss computes the truth anyway: its result is held against that of the nearest entry of its collection and scope. Where
they agree it becomes an alias of that entry, and a hit from then on. Decisions on keys and ids; the bytes are in ipc/store.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from ..ipc.records import ComputedResult, PointId
from ..ipc.result import CachedResult
from .popularity import Evidence, Popularity


def overlap(ids: Sequence[PointId], others: Sequence[PointId]) -> float:
    """Return the share of rows that two results have in common, 0 to 1, whatever their order; 0 where one is empty."""
    if not ids or not others:
        return 0.0
    return len(set(ids) & set(others)) / max(len(ids), len(others))


def as_alias(result: ComputedResult, entry: CachedResult, least: float) -> ComputedResult | None:
    """Return what is kept of `result` as an alias of `entry`; None where they do not agree.

    `least` 1.0 wants the same rows in the same order: then it is `result` itself and nothing is lost. Below that the
    overlap has to reach it, and the rows are the entry's, their scores included. 0: nothing is an alias.
    """
    if not least or overlap(result.ids, entry.ids) < least:
        return None
    if result.ids == entry.ids:
        return result
    if least >= 1.0:
        return None
    return msgspec.structs.replace(
        result,
        ids=entry.ids,
        scores=entry.scores.tobytes(),
        rerank_scores=entry.rerank_scores.tobytes(),
        contents=entry.contents,
        sources=entry.sources,
        metadata=entry.metadata,
    )


class Aliases:
    """Which key is an alias of which entry's. What is known of an entry's use includes its aliases': they go with it."""

    def __init__(self, popularity: Popularity) -> None:
        self._popularity = popularity
        self._entry: OrderedDict[str, str] = OrderedDict()  # alias -> entry; the one used the longest ago first
        self._aliases: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._entry)

    def __contains__(self, key: object) -> bool:
        """Say whether `key` is an alias."""
        return key in self._entry

    def add(self, alias: str, entry: str) -> None:
        self.remove(alias)
        self._entry[alias] = entry
        self._aliases.setdefault(entry, set()).add(alias)

    def remove(self, alias: str) -> None:
        """Forget an alias. One that is none is fine."""
        entry = self._entry.pop(alias, None)
        if entry is not None:
            self._aliases[entry].discard(alias)
            if not self._aliases[entry]:
                del self._aliases[entry]

    def touch(self, alias: str) -> None:
        self._entry.move_to_end(alias)

    def oldest(self) -> str:
        """Return the alias used the longest ago. Raises StopIteration where there is none."""
        return next(iter(self._entry))

    def entry_of(self, key: str) -> str:
        """Return the entry that answers a key: its own, unless it is an alias."""
        return self._entry.get(key, key)

    def of(self, entry: str) -> list[str]:
        return list(self._aliases.get(entry, ()))

    # --- what an entry is worth: Counts of admission.py -------------------------------------------------------------------

    @property
    def total_accesses(self) -> int:
        return self._popularity.total_accesses

    def evidence(self, key: str, now: float) -> Evidence:
        """Return what speaks for a query or one of its aliases being asked again."""
        own = self._popularity.evidence(key, now)
        if key not in self._aliases:
            return own
        all_of_them = [own, *(self._popularity.evidence(alias, now) for alias in self._aliases[key])]
        counts = zip(*(one.decayed for one in all_of_them), strict=True)
        return Evidence(min(one.age_s for one in all_of_them), tuple(map(sum, counts)))

    def last_at(self, key: str) -> float:
        return max(map(self._popularity.last_at, (key, *self._aliases.get(key, ()))))
