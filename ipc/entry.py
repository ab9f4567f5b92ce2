"""Owns what the result store's writer knows of an entry, from the result it is made of or from its record's bytes."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import msgspec

from . import layout
from .errors import ResultStoreError
from .layout import BLOCK, about_decoder, first_of, head_of, key_of
from .query import key64, key_bytes, query_hash
from .records import ComputedResult
from .result import LazyResult


@dataclass(frozen=True, slots=True)
class EntryInfo:
    """What the writer knows of an entry."""

    query_text: str
    collection: str
    scope: str
    key_hash: str  # the query's 32-character hash
    computed_at: float
    soft_at: float
    expires_at: float
    cost_s: float  # CPU seconds it took to compute
    is_ours: bool  # computed by the service, which knows its candidates; else the application put it there
    size_bytes: int
    slot: int
    pointer: int
    alias_of: str = ""  # the key hash of the entry whose rows' texts it shares; "" for one with a record of its own


def may_share(alias: EntryInfo, entry: EntryInfo) -> bool:
    return (alias.collection, alias.scope) == (entry.collection, entry.scope)


def info_of_result(result: ComputedResult, soft_at: float | None, expires_at: float, blocks: int) -> EntryInfo:
    """Return what is known of a result before it has a place."""
    return EntryInfo(
        query_text=result.query_text,
        collection=result.collection,
        scope=result.scope,
        key_hash=query_hash(result.query_text, result.collection, result.scope),
        computed_at=result.computed_at,
        soft_at=expires_at if soft_at is None else soft_at,
        expires_at=expires_at,
        cost_s=result.cost_s,
        is_ours=bool(result.candidates),
        size_bytes=blocks * BLOCK,
        slot=-1,
        pointer=0,
    )


def info_of_record(body: bytes, slot: int, pointer: int) -> EntryInfo | None:
    """Return what a record says of itself; None if it is forged: its key is not that of its texts, or a part is not there.

    The rows' texts are not decoded: only readers touch them.
    """
    first, head = first_of(body), head_of(body)
    own = layout.as_stored(first) if layout.is_alias(first) else first
    result = LazyResult(body, own)
    try:
        about = about_decoder.decode(memoryview(body)[own.about : own.length])
        is_whole = len(result.ids) == first.rows and len(result.candidates) == head.candidates
        if layout.is_alias(first):
            layout.shared_of(body, first)
    except (msgspec.MsgspecError, ResultStoreError, struct.error):
        return None
    if not is_whole:
        return None
    key = key_bytes(about.query_text, about.collection, about.scope)
    if key != key_of(body, first) or key64(key) != first.key64:
        return None
    return EntryInfo(
        query_text=about.query_text,
        collection=about.collection,
        scope=about.scope,
        key_hash=query_hash(about.query_text, about.collection, about.scope),
        computed_at=head.computed_at,
        soft_at=head.soft_at,
        expires_at=first.expires_at,
        cost_s=head.cost_s,
        is_ours=head.candidates > 0,
        size_bytes=layout.unpack_pointer(pointer)[1] * BLOCK,
        slot=slot,
        pointer=pointer,
    )
