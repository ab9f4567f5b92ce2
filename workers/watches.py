"""Owns which points of a watched collection were touched since when, and whose writes are held or slowed. Pure.

A shadow of a collection is built from it while applications go on writing: what they touch meanwhile is copied again. The
owner sees every write, so that it can name them; what it knows dies with it, and `since` says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..ipc.records import PointId

MAX_HOLD_S = 2.0  # a writer's call waits for an answer up to a minute: it feels this as one slow write
MAX_SLOW_S = 10.0  # whoever asked for it may be dead
MAX_DELAY_S = 0.05  # of one write that is slowed: as long as a hold may be


@dataclass(slots=True)
class _Watch:
    token: int
    touched: dict[PointId, int] = field(default_factory=dict)  # id -> number of its last change, in that order
    whole_at: int = 0  # the last change that may have altered any point


@dataclass(slots=True)
class _Slowed:
    until: float  # monotonic seconds
    points_per_s: float
    free_at: float = 0.0  # when the next write is due


@dataclass(frozen=True, slots=True)
class Touched:
    """Points that were touched, the first one first. `seq`: all changes up to this one are among them."""

    ids: tuple[PointId, ...]
    seq: int
    is_whole: bool = False  # any point may have been
    left: int = 0  # further ones, after `seq`


class Watches:
    """`first_token` must differ from that of every earlier owner: what one knew the next one does not."""

    def __init__(self, first_token: int) -> None:
        self._token = first_token
        self._watches: dict[str, _Watch] = {}
        self._held: dict[str, float] = {}  # collection -> until (monotonic seconds)
        self._slowed: dict[str, _Slowed] = {}

    def begin(self, collection: str) -> int:
        """Watch a collection (by its own name) from now on; an earlier watch of it is over."""
        self._token += 1
        self._watches[collection] = _Watch(self._token)
        return self._token

    def end(self, collection: str) -> None:
        self._watches.pop(collection, None)
        self._held.pop(collection, None)
        self._slowed.pop(collection, None)

    def note(self, collection: str, ids: Iterable[PointId] | None, seq: int) -> None:
        """Take note of the change `seq` of some points, or (None) of any."""
        watch = self._watches.get(collection)
        if watch is None:
            return
        if ids is None:
            watch.whole_at = seq
            return
        for one in ids:
            watch.touched.pop(one, None)  # to the end: in the order of the numbers
            watch.touched[one] = seq

    def collection_of(self, token: int) -> str | None:
        return next((name for name, watch in self._watches.items() if watch.token == token), None)

    def since(self, token: int, seq: int, now_seq: int, limit: int) -> Touched | None:
        """Return up to `limit` points touched after `seq`; None where the watch is not known (any more).

        `now_seq`: of the last change there was.
        """
        name = self.collection_of(token)
        if name is None:
            return None
        watch = self._watches[name]
        if watch.whole_at > seq:
            return Touched((), now_seq, is_whole=True)
        for old in [one for one, at in _until(watch.touched, seq)]:
            del watch.touched[old]  # the asker has copied them: it says up to where it has
        ids: list[PointId] = []
        last = now_seq
        for one, at in watch.touched.items():
            if len(ids) >= limit and at != last:
                return Touched(tuple(ids), last, left=len(watch.touched) - len(ids))
            ids.append(one)
            last = at
        return Touched(tuple(ids), now_seq)

    # --- holding ------------------------------------------------------------------------------------------------------

    def hold(self, token: int, until: float) -> bool:
        """Hold writes of the watched collection until then (monotonic seconds); False where the watch is not known."""
        name = self.collection_of(token)
        if name is not None:
            self._held[name] = until
        return name is not None

    def release(self, token: int) -> None:
        if (name := self.collection_of(token)) is not None:
            self._held.pop(name, None)

    def held(self, now: float) -> frozenset[str]:
        """Return the collections whose writes are held now. One whose time is over is held no more."""
        if self._held:
            self._held = {name: until for name, until in self._held.items() if until > now}
        return frozenset(self._held)

    def next_release(self) -> float | None:
        return min(self._held.values(), default=None)

    # --- slowing ------------------------------------------------------------------------------------------------------

    def slow(self, token: int, until: float, points_per_s: float) -> bool:
        """Let so many points a second be written until then, and no more; False where the watch is not known.

        0 points a second: no limit (any more).
        """
        name = self.collection_of(token)
        if name is None:
            return False
        if points_per_s <= 0:
            self._slowed.pop(name, None)
        elif (slowed := self._slowed.get(name)) is not None:
            slowed.until, slowed.points_per_s = until, points_per_s
        else:
            self._slowed[name] = _Slowed(until, points_per_s)
        return True

    def slowed(self, now: float) -> frozenset[str]:
        """Return the collections whose writes are slowed now."""
        if self._slowed:
            self._slowed = {name: one for name, one in self._slowed.items() if one.until > now}
        return frozenset(self._slowed)

    def due_at(self, collection: str, points: int, now: float) -> float:
        """Return when a write of so many points, that arrived now, is to be carried out: MAX_DELAY_S later at most.

        Writes take turns: one is due when the points of those before it have had their time.
        """
        slowed = self._slowed.get(collection)
        if slowed is None or slowed.until <= now:
            return now
        at = min(max(slowed.free_at, now), now + MAX_DELAY_S)
        slowed.free_at = at + points / slowed.points_per_s
        return at


def _until(touched: dict[PointId, int], seq: int) -> Iterable[tuple[PointId, int]]:
    for one, at in touched.items():
        if at > seq:
            return
        yield one, at
