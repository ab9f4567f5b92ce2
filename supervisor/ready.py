"""Owns the order of tasks that could run: the best one in O(log n), whatever is busy, paused or backing off. Pure.

    tasks ─▶ lanes: one heap for each (class, collection) ─▶ heads: one heap for each class ─▶ the best of the classes
             a lane is open, or shut while its collection is busy or paused; a shut lane's head is not seen

Entries are not removed where a task changes: `is_current` says which still stand, and the others are dropped when they
come up, or when a lane is mostly of such.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import IntEnum
from heapq import heapify, heappop, heappush, heapreplace

Order = tuple[int, float, str]
"""(-priority, created_at, task id): the smallest runs first."""

SPARE = 64  # entries that do not stand, before a lane is cleared of them


class Kind(IntEnum):
    """What a task needs before it may run."""

    FREE = 0  # nothing: neither budget nor store, and it shares its collection
    FORCED = 1  # the store
    PLAIN = 2  # the store and CPU budget


Place = tuple[Kind, str]
"""A lane: class and collection."""


class Ready:
    """`is_current(order, place)` says whether a task still waits there; `is_open(place)` whether the lane may be seen."""

    def __init__(self, is_current: Callable[[Order, Place], bool], is_open: Callable[[Place], bool]) -> None:
        self._is_current, self._is_open = is_current, is_open
        self._lanes: dict[Place, list[Order]] = {}
        self._clear_at: dict[Place, int] = {}  # length at which a lane is next looked through
        self._heads: dict[Kind, list[tuple[Order, str]]] = {kind: [] for kind in Kind}

    def add(self, order: Order, place: Place) -> None:
        lane = self._lanes.setdefault(place, [])
        heappush(lane, order)
        if len(lane) > self._clear_at.get(place, SPARE):
            lane[:] = {one for one in lane if self._is_current(one, place)}
            heapify(lane)
            self._clear_at[place] = 2 * len(lane) + SPARE
        if lane and lane[0] == order and self._is_open(place):
            self._see(order, place)

    def _see(self, order: Order, place: Place) -> None:
        heads = self._heads[place[0]]
        heappush(heads, (order, place[1]))
        if len(heads) > 2 * len(self._lanes) + SPARE:  # seen again and again while nothing of it was run
            seen = [(head, one) for _, one in set(heads) if (head := self._head((place[0], one))) is not None]
            heads[:] = {(head, one) for head, one in seen if self._is_open((place[0], one))}
            heapify(heads)

    def show(self, place: Place) -> None:
        """Let a lane's best be seen: call it whenever a lane opens, or the task that was its best has left it."""
        head = self._head(place)
        if head is not None and self._is_open(place):
            self._see(head, place)

    def take(self, order: Order, place: Place) -> None:
        """Drop a task that runs now. One that is not the best is dropped when it comes up, as any that changed."""
        lane, heads = self._lanes[place], self._heads[place[0]]
        if lane[0] is not order:
            return
        heappop(lane)
        if heads and heads[0][0] is order:
            if lane:
                heapreplace(heads, (lane[0], place[1]))
            else:
                heappop(heads)

    def best(self, kinds: Iterable[Kind]) -> Order | None:
        """Return the first task of the open lanes of `kinds`, and leave it there; None where there is none."""
        found: Order | None = None
        for kind in kinds:
            if self._heads[kind] and (top := self._best(kind)) is not None and (found is None or top < found):
                found = top
        return found

    def _best(self, kind: Kind) -> Order | None:
        heads = self._heads[kind]
        while heads:
            order, collection = heads[0]
            place = kind, collection
            if not self._is_open(place):
                heappop(heads)  # `show` brings it back
                continue
            head = self._head(place)
            if head == order:
                return order
            if head is None:
                heappop(heads)
            else:
                heapreplace(heads, (head, collection))
        return None

    def _head(self, place: Place) -> Order | None:
        lane = self._lanes.get(place)
        while lane:
            if self._is_current(lane[0], place):
                return lane[0]
            heappop(lane)
        if lane is not None:
            del self._lanes[place]
            self._clear_at.pop(place, None)
        return None
