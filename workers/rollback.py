"""Owns the way back: the version kept at the last swap is served again. And the end of versions whose time is over."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..ipc.errors import InvalidArgument, StoreUnavailable
from ..ipc.records import CollectionInfo, Point
from .retries import until_answered
from .vectors import STAMP_KEY, VectorStore
from .versions import base_of, expired, free_kept_alias, kept_versions, own_name

log = logging.getLogger(__name__)

PAGE = 256  # points compared in one call
NAMED = 3  # ids named in a refusal


@dataclass(frozen=True, slots=True)
class RolledBack:
    served: CollectionInfo
    kept: CollectionInfo
    kept_as: str


def roll_back(store: VectorStore, name: str, *, is_forced: bool, until_at: float) -> RolledBack:
    """Serve the kept version of a collection again; the one served now is kept until `until_at` (Unix seconds).

    Raises InvalidArgument where none is kept, and, unless forced, where documents differ: what was written since the swap
    is in the newer version alone. Raises StoreUnavailable where it is not known whether it was done.
    """
    now = store.info(name)
    base = base_of(name, now)
    every = store.collections()
    held = next((kept for kept in kept_versions(every) if kept.base == base and kept.collection != now.name), None)
    if held is None:
        kept = ", ".join(sorted({kept.base for kept in kept_versions(every)})) or "none"
        raise InvalidArgument(f"no earlier version of {name!r} is kept; there is one of: {kept}")
    before = store.info(held.collection)
    if not is_forced and (changed := differing(store, now.name, before.name)):
        named = ", ".join(repr(one) for one in changed[:NAMED])
        raise InvalidArgument(
            f"{len(changed)} documents of {name!r} were written or deleted since the swap ({named}"
            f"{', ...' if len(changed) > NAMED else ''}): the version before it does not have these changes. Roll back with"
            f" --force to do without them; {now.name!r}, which has them, is kept all the same"
        )
    kept_as = free_kept_alias(base, until_at, every)
    rename_to = own_name(base, every)
    try:
        store.swap(now.name, before.name, kept_as=kept_as, rename_to=rename_to)
        return until_answered(lambda: _ended(store, name, base, kept_as))
    except StoreUnavailable as error:
        raise StoreUnavailable(
            f"whether {name!r} was rolled back is not known ({error}). Once the store answers, see which version is"
            f" served (`morgan-background collections`) before you try again: if it is {before.name!r}, it was"
        ) from error


def _ended(store: VectorStore, name: str, base: str, kept_as: str) -> RolledBack:
    for stale in kept_versions(store.collections()):
        if stale.base == base and stale.alias != kept_as:
            store.drop_alias(stale.alias)
    return RolledBack(store.info(name), store.info(kept_as), kept_as)


def differing(store: VectorStore, one: str, other: str) -> list[Any]:
    """Return the ids of the points that only one of two collections has, or whose payloads differ but for our stamp."""
    return [*_missing(store, one, other, are_compared=True), *_missing(store, other, one, are_compared=False)]


def _missing(store: VectorStore, one: str, other: str, *, are_compared: bool) -> list[Any]:
    found: list[Any] = []
    after = None
    while True:
        points, after = store.scroll(one, after=after, limit=PAGE)
        held = {point.id: point for point in store.fetch(other, [point.id for point in points])}
        found += [
            point.id
            for point in points
            if point.id not in held or (are_compared and own_payload(point) != own_payload(held[point.id]))
        ]
        if after is None:
            return found


def own_payload(point: Point) -> Mapping[str, Any]:
    """Return a point's payload without our stamp."""
    return {key: value for key, value in point.payload.items() if key != STAMP_KEY}


def drop_expired(store: VectorStore, now: float, dropped: Callable[[str], None] = lambda _: None) -> None:
    """Drop the versions whose retention has passed."""
    for name in expired(store.collections(), now):
        log.info("%s was kept for a roll-back until now: dropped", name)
        store.drop(name)
        dropped(name)
