"""Owns which payload fields searches filter by, as counts since the owner was started."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

MOST_FIELDS = 1000  # counted, of all collections together: the names come from applications


class Filters:
    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def note(self, collection: str, query_filter: Mapping[str, Any] | None) -> None:
        """Count a search of a collection, under the name it was asked by."""
        for field in query_filter or {}:
            if (collection, field) in self._counts or len(self._counts) < MOST_FIELDS:
                self._counts[collection, field] += 1

    def of(self, names: Iterable[str]) -> dict[str, int]:
        """Return the fields of searches under any of these names, most used first."""
        found: Counter[str] = Counter()
        wanted = set(names)
        for (collection, field), count in self._counts.items():
            if collection in wanted:
                found[field] += count
        return dict(found.most_common())
