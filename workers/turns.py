"""Owns the writes that wait: those of one collection in the order in which they came, and none for another collection's."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Set
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """At most `limit` of them, all together."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: dict[str, deque[tuple[float, T]]] = {}  # collection -> when it is due, and what
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def is_full(self) -> bool:
        return self._count >= self._limit

    def is_behind(self, collection: str) -> bool:
        """Say whether a write to a collection has others before it."""
        return collection in self._waiting

    def add(self, collection: str, due_at: float, write: T) -> None:
        """Let a write wait until then (monotonic seconds), and until those before it are done."""
        self._waiting.setdefault(collection, deque()).append((due_at, write))
        self._count += 1

    def ready(self, now: float, held: Set[str], slowed: Set[str]) -> Iterator[T]:
        """Take out the writes to collections that are not held: all, and where they are slowed those that are due.

        Where it is full, also those that are first in turn and not due yet: to be slowed is no reason to be refused.
        """
        for collection in [one for one in self._waiting if one not in held]:
            waiting = self._waiting[collection]
            while waiting and (collection not in slowed or waiting[0][0] <= now or self.is_full):
                _, write = waiting.popleft()
                self._count -= 1
                if not waiting:
                    del self._waiting[collection]
                yield write

    def next_due_at(self, held: Set[str]) -> float | None:
        """Return when the next write is due, of those to collections that are not held; None where there is none."""
        return min((waiting[0][0] for name, waiting in self._waiting.items() if name not in held), default=None)
