"""Owns how the versions of a collection are named. Pure.

    docs ──alias──▶ docs__v2                                    what applications search and write
    docs__building ──alias──▶ docs__v3                          a shadow that is not served yet
    docs__adopting ──alias──▶ docs__v1                          a whole copy of a collection named docs, which is deleted now
    docs__kept_until_20261206T031158Z ──alias──▶ docs__v1       what `roll-back docs` goes back to, and until when

All of it is kept as aliases in the vector store itself: a swap moves them in one atomic request, so that no other record
can disagree with the store after a crash.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from ..ipc.records import CollectionInfo

_KEPT = re.compile(r"(?P<base>.+)__kept_until_(?P<until>\d{8}T\d{6}Z)")
_VERSION = re.compile(r"(?P<base>.+)__v(?P<number>\d+)")
_TIME = "%Y%m%dT%H%M%SZ"


def kept_alias(base: str, until_at: float) -> str:
    """Return the alias of a version that is kept until `until_at` (Unix seconds)."""
    return f"{base}__kept_until_{datetime.fromtimestamp(until_at, UTC).strftime(_TIME)}"


def free_kept_alias(base: str, until_at: float, collections: Iterable[CollectionInfo]) -> str:
    """Return the first such alias from `until_at` on that no version has: one without its alias would be nobody's to drop."""
    taken = {alias for info in collections for alias in info.aliases}
    while (alias := kept_alias(base, until_at)) in taken:
        until_at += 1.0
    return alias


def building_alias(base: str) -> str:
    return f"{base}__building"


def adopting_alias(base: str) -> str:
    return f"{base}__adopting"


def is_ours(alias: str) -> bool:
    """Say whether an alias is one of the three above: no application searches through it."""
    return _KEPT.fullmatch(alias) is not None or alias.endswith(("__building", "__adopting"))


def serving_aliases(info: CollectionInfo) -> tuple[str, ...]:
    """Return the aliases of a collection that applications use."""
    return tuple(alias for alias in info.aliases if not is_ours(alias))


def base_of(name: str, info: CollectionInfo) -> str:
    """Return what the versions of a collection are named after: the alias `name`, else its first one, else its own name."""
    aliases = serving_aliases(info)
    if name in aliases:
        return name
    if aliases:
        return aliases[0]
    versioned = _VERSION.fullmatch(info.name)
    return versioned["base"] if versioned else info.name


def next_version(base: str, collections: Iterable[CollectionInfo]) -> str:
    """Return the name of the next version: above every one that there is. A collection named `base` is to be the first."""
    taken = [name for info in collections for name in (info.name, *info.aliases)]
    return f"{base}__v{max((_number(base, name) for name in taken), default=0) + 1}"


def _number(base: str, name: str) -> int:
    versioned = _VERSION.fullmatch(name)
    return int(versioned["number"]) if versioned and versioned["base"] == base else int(name == base)


def own_name(base: str, collections: Iterable[CollectionInfo]) -> str:
    """Return what a collection that is named `base` is renamed at its swap, for `base` to be an alias."""
    every = list(collections)
    taken = {name for info in every for name in (info.name, *info.aliases)}
    return next_version(base, every) if f"{base}__v1" in taken else f"{base}__v1"


@dataclass(frozen=True, slots=True)
class Kept:
    """A version that is no longer served. `until_at`: Unix seconds."""

    base: str
    alias: str
    collection: str
    until_at: float


def kept_versions(collections: Iterable[CollectionInfo]) -> list[Kept]:
    """Return what is kept for a roll-back, the one kept longest first."""
    found = []
    for info in collections:
        for alias in info.aliases:
            if (match := _KEPT.fullmatch(alias)) is not None:
                until_at = datetime.strptime(match["until"], _TIME).replace(tzinfo=UTC).timestamp()
                found.append(Kept(match["base"], alias, info.name, until_at))
    return sorted(found, key=lambda kept: -kept.until_at)


def expired(collections: Iterable[CollectionInfo], now: float) -> list[str]:
    """Return the collections whose retention has passed and that nobody searches."""
    every = list(collections)
    searched = {info.name for info in every if serving_aliases(info)}
    latest: dict[str, float] = {}
    for kept in kept_versions(every):
        latest[kept.collection] = max(kept.until_at, latest.get(kept.collection, 0.0))
    return [name for name, until_at in latest.items() if until_at <= now and name not in searched]


def versions_of(name: str, info: CollectionInfo, collections: Iterable[CollectionInfo]) -> list[str]:
    """Return what goes when `name` is dropped: `info` itself, or for an alias that a swap made all of its versions.

    Another alias is returned as it is, for the store to refuse it.
    """
    if name == info.name or not _number(name, info.name):
        return [name]
    every = list(collections)
    ours = {building_alias(name)} | {kept.alias for kept in kept_versions(every) if kept.base == name}
    return [info.name, *(one.name for one in every if one.name != info.name and ours & set(one.aliases))]
