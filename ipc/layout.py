"""Owns every offset of the result store's file. Nothing else knows where anything lies.

    0      header, 512 words: magic, version, slots, arena start, arena end, superseded, writer pid, epoch, spare
           from word 64: 192 pairs of (collection hash, generation)
    4096   index, 16 bytes a slot: key64 | pointer = version:24 length:12 offset:28, the last two in blocks of 256 bytes
    ...    use, 16 bytes a slot: hits | Unix time of the last one; what the writer knows from the readers' counters
    ...    arena: records, each from a block's start

    record xxh3-64 of the body | body, zeroes up to the end of its last block included
    body   fixed fields | key | ids | scores | rerank scores | embedding | candidates | rows' texts | the query's texts
    alias  the same without the rows' texts | the record that has these texts, and its checksum

The rule for changing any of it: change LAYOUT_VERSION with it. A file of another version is rebuilt, never read.
"""

from __future__ import annotations

import math
import struct
import uuid
from typing import NamedTuple

import msgspec
import xxhash

from .query import key64, key_bytes
from .records import ComputedResult, PointId

MAGIC = int.from_bytes(b"MGRESULT", "little")
LAYOUT_VERSION = 3

# header words
W_MAGIC, W_VERSION, W_SLOTS, W_ARENA_START, W_ARENA_END, W_SUPERSEDED, W_WRITER, W_EPOCH = range(8)
SOON, SUPERSEDED = 2, 1  # values of W_SUPERSEDED: look whether another file is at the path; there is
W_GENERATIONS = 64
GENERATION_PAIRS = 192
HEADER_BYTES = 4096

BLOCK = 256
MAX_BLOCKS = (1 << 12) - 1  # of one record: 1 MiB less a block
MAX_OFFSET = BLOCK * ((1 << 28) - 1)  # of a record: 64 GiB
OFFSET_MASK = (1 << 28) - 1
VERSION_SHIFT = 40
VERSION_MASK = (1 << 24) - 1
"""24 bits: a reader's kept pointer can equal a later one only after 16 million updates of its entry between two reads."""

FIRST = struct.Struct("<QdQIIIIIIII")
"""What most reads need, see First. 56 bytes: with the checksum before it a cache line."""

REST = struct.Struct("<dddddIIII")
"""See Head. 56 bytes."""

SHARED = struct.Struct("<QQ")
"""The end of an alias: where the record lies whose rows' texts are its own too (a pointer of version 0); its checksum."""

ALIAS = 1 << 31
"""Added to `pair` in an alias: who reads it as one finds no pair of that number, so a record of its own costs nothing more."""

CHECKSUM_BYTES = 8
FIXED = FIRST.size + REST.size  # 112: what follows begins at a multiple of 8

IDS_U64, IDS_UUID, IDS_MIXED = range(3)
ID_BYTES = {IDS_U64: 8, IDS_UUID: 16, IDS_MIXED: 0}


class Rows(msgspec.Struct, frozen=True, array_like=True):
    """What is decoded when a row's text is touched."""

    contents: tuple[str, ...]
    sources: tuple[str, ...]
    metadata: tuple[dict[str, object], ...]


class About(msgspec.Struct, frozen=True, array_like=True):
    """What is decoded when the query's own text or the mixed ids are touched."""

    query_text: str
    collection: str
    scope: str
    quality_basis: str
    language: str
    mixed_ids: tuple[PointId, ...] = ()
    mixed_candidates: tuple[PointId, ...] = ()


rows_decoder = msgspec.msgpack.Decoder(Rows)
about_decoder = msgspec.msgpack.Decoder(About)
_encode = msgspec.msgpack.encode


class First(NamedTuple):
    """The fields of FIRST. Lengths and places are in bytes, places from the body's start."""

    key64: int
    expires_at: float  # Unix time from which it is a miss
    generation: int
    pair: int  # of the generation table; ALIAS more in an alias
    length: int  # of the body without its padding; of an alias, of the body it stands for
    key_length: int
    rows: int
    id_kind: int
    ids: int  # where they begin; the scores follow
    texts: int  # where Rows begins
    about: int  # where About begins


Fields = tuple[int, float, int, int, int, int, int, int, int, int, int]
"""First as a plain tuple: to make the named one costs 0.3 us."""


class Head(NamedTuple):
    """The fields that few reads want. Times are Unix seconds, sizes numbers of items."""

    computed_at: float
    soft_at: float  # from then on it is served and refreshed
    quality: float  # nan: unknown
    cost_s: float
    cutoff: float  # similarity that a new document must reach to matter; -inf: any may
    reranked: int  # rerank scores
    embedding_size: int  # floats
    candidates: int
    candidate_kind: int


# --- the index --------------------------------------------------------------------------------------------------------


def slots_for(capacity: int) -> int:
    """Return the number of index slots: a power of two, at most a quarter full, which leaves room for removed keys.

    That is with as many aliases as entries.
    """
    return 1 << max(8 * capacity - 1, 63).bit_length()


def index_word(slot: int) -> int:
    """Return the word number of a slot's key; its pointer is the next word."""
    return HEADER_BYTES // 8 + 2 * slot


def use_word(slots: int, slot: int) -> int:
    """Return the word number of a slot's hits; the time of the last one is the next word."""
    return HEADER_BYTES // 8 + 2 * slots + 2 * slot


def arena_start(slots: int) -> int:
    return (HEADER_BYTES + 32 * slots + BLOCK - 1) // BLOCK * BLOCK


def pack_pointer(version: int, blocks: int, offset: int) -> int:
    return (version & VERSION_MASK) << VERSION_SHIFT | blocks << 28 | offset // BLOCK


def unpack_pointer(word: int) -> tuple[int, int, int]:
    """Return version, length in blocks and byte offset."""
    return word >> VERSION_SHIFT, word >> 28 & MAX_BLOCKS, (word & OFFSET_MASK) * BLOCK


def emptied(pointer: int) -> int:
    """Return what a removed entry's pointer becomes: the next version, of nothing. No kept copy of it stays valid."""
    return pack_pointer((pointer >> VERSION_SHIFT) + 1, 0, 0)


def place_of(pointer: int) -> int:
    """Return where a record lies, whatever its version: a pointer of version 0."""
    return pointer & ((1 << VERSION_SHIFT) - 1)


def blocks_of(length: int) -> int:
    return (length + BLOCK - 1) // BLOCK


def collection_hash(name: str) -> int:
    """Return the word that stands for a collection in the generation table, never 0."""
    return xxhash.xxh3_64_intdigest(name.encode()) or 1


def generation_word(pair: int) -> int:
    return W_GENERATIONS + 2 * pair + 1


# --- records ----------------------------------------------------------------------------------------------------------


def pack_ids(ids: tuple[PointId, ...]) -> tuple[int, bytes]:
    """Return the kind of the ids and their bytes: none where they are neither all u64 nor all canonical UUIDs.

    Such ids go with the texts.
    """
    try:
        if all(isinstance(one, int) for one in ids):
            return IDS_U64, struct.pack(f"<{len(ids)}Q", *ids)
        if all(isinstance(one, str) for one in ids):
            uuids = [uuid.UUID(str(one)) for one in ids]
            if all(str(one) == text for one, text in zip(uuids, ids, strict=True)):
                return IDS_UUID, b"".join(one.bytes for one in uuids)
    except (ValueError, struct.error):
        pass
    return IDS_MIXED, b""


U64S = tuple(struct.Struct(f"<{count}Q") for count in range(65))


def unpack_ids(kind: int, raw: bytes, start: int, count: int) -> tuple[PointId, ...]:
    if kind == IDS_U64:
        if count < len(U64S):
            return U64S[count].unpack_from(raw, start)
        return struct.unpack_from(f"<{count}Q", raw, start)
    return tuple(str(uuid.UUID(bytes=raw[i : i + 16])) for i in range(start, start + 16 * count, 16))


def pack_record(result: ComputedResult, soft_at: float, expires_at: float, pair: int, generation: int) -> bytes:
    """Return the bytes of a record, checksum included. Raises OverflowError for a record of 4 GiB or more."""
    key = key_bytes(result.query_text, result.collection, result.scope)
    id_kind, ids = pack_ids(result.ids)
    candidate_kind, candidates = pack_ids(result.candidates)
    rows = _encode(Rows(result.contents, result.sources, result.metadata))
    about = _encode(
        About(
            result.query_text,
            result.collection,
            result.scope,
            result.quality_basis,
            result.language,
            result.ids if id_kind == IDS_MIXED else (),
            result.candidates if candidate_kind == IDS_MIXED else (),
        )
    )
    numbers = b"".join((ids, result.scores, result.rerank_scores, result.embedding, candidates))
    head = Head(
        computed_at=result.computed_at,
        soft_at=min(soft_at, expires_at),
        quality=math.nan if result.quality is None else result.quality,
        cost_s=result.cost_s,
        cutoff=-math.inf if result.cutoff is None else result.cutoff,
        reranked=len(result.rerank_scores) // 4,
        embedding_size=len(result.embedding) // 4,
        candidates=len(result.candidates),
        candidate_kind=candidate_kind,
    )
    ids_at = FIXED + len(key) + -len(key) % 8
    texts_at = ids_at + len(numbers)
    first = First(
        key64=key64(key),
        expires_at=expires_at,
        generation=generation,
        pair=pair,
        length=texts_at + len(rows) + len(about),
        key_length=len(key),
        rows=len(result.ids),
        id_kind=id_kind,
        ids=ids_at,
        texts=texts_at,
        about=texts_at + len(rows),
    )
    padded_key = key + bytes(ids_at - FIXED - len(key))
    return sealed(b"".join((FIRST.pack(*first), REST.pack(*head), padded_key, numbers, rows, about)))


_digest = xxhash.xxh3_64_intdigest


def sealed(body: bytes) -> bytes:
    """Return a body as a record: of whole blocks, its checksum first."""
    body += bytes(-(len(body) + CHECKSUM_BYTES) % BLOCK)
    return _digest(body).to_bytes(CHECKSUM_BYTES, "little") + body


def opened(record: bytes) -> bytes | None:
    """Return the body of a record; None if it is not whole. A body that passes was made by `sealed`.

    The checksum covers key, expiry and generation as well: it is what makes a torn copy a miss on processors that
    reorder stores (ARM64).
    """
    body = record[CHECKSUM_BYTES:]
    is_whole = len(body) >= FIXED and _digest(body) == int.from_bytes(record[:CHECKSUM_BYTES], "little")
    return body if is_whole else None


def with_soft_at(body: bytes, soft_at: float) -> bytes:
    """Return a record like the one of `body` that is to be refreshed from `soft_at` on."""
    head = head_of(body)._replace(soft_at=soft_at)
    return sealed(body[: FIRST.size] + REST.pack(*head) + body[FIXED : _length(first_of(body))])


def first_of(body: bytes) -> First:
    return First._make(FIRST.unpack_from(body))


def head_of(body: bytes) -> Head:
    return Head._make(REST.unpack_from(body, FIRST.size))


def key_of(body: bytes, first: First) -> bytes:
    return body[FIXED : FIXED + first.key_length]


# --- aliases: records that share another's rows' texts ----------------------------------------------------------------


def pack_alias(record: bytes, place: int, shared: bytes) -> bytes | None:
    """Return `record` as an alias that shares the rows' texts of the record `shared`, which lies at `place`.

    None where the texts differ, or one of the two is not whole or is an alias itself.
    """
    body, other = opened(record), opened(shared)
    if body is None or other is None or not has_rows_of(body, other):
        return None
    first = first_of(body)
    fields = FIRST.pack(*first._replace(pair=first.pair | ALIAS))
    texts = body[first.about : first.length]
    return sealed(fields + body[FIRST.size : first.texts] + texts + SHARED.pack(place, _checksum(shared)))


def has_rows_of(body: bytes, other: bytes) -> bool:
    """Say whether two bodies, neither of an alias, have the same rows' texts."""
    first, its = first_of(body), first_of(other)
    if (first.pair | its.pair) & ALIAS:
        return False
    return body[first.texts : first.about] == other[its.texts : its.about]


def moved_alias(body: bytes, place: int, shared: bytes) -> bytes:
    """Return an alias like the one of `body` for texts that are in the record `shared` at `place` now."""
    end = _length(first_of(body)) - SHARED.size
    return sealed(body[:end] + SHARED.pack(place, _checksum(shared)))


def is_alias(first: First) -> bool:
    return bool(first.pair & ALIAS)


def shared_of(body: bytes, fields: Fields) -> tuple[int, int]:
    """Return where the record lies whose texts an alias shares, and its checksum. Raises struct.error where it is forged."""
    place, checksum = SHARED.unpack_from(body, fields[9] + fields[4] - fields[10])
    return place, checksum


def joined(body: bytes, fields: Fields, other: bytes) -> bytes | None:
    """Return the whole body that an alias stands for, with the texts of `other`; None where these do not fit: forged.

    Its `pair` still has ALIAS in it; everything else is as it would be in a record of its own.
    """
    _, _, _, _, length, _, _, _, _, texts, about = fields
    start, end = FIRST.unpack_from(other)[9:11]
    if end - start != about - texts:
        return None
    return body[:texts] + other[start:end] + body[texts : texts + length - about]


def as_stored(first: First) -> First:
    """Return an alias's fields as they are of its own bytes, without the rows' texts."""
    return first._replace(about=first.texts, length=first.texts + first.length - first.about)


def _length(first: First) -> int:
    """Return the length of a body as it is stored, without its padding."""
    return as_stored(first).length + SHARED.size if is_alias(first) else first.length


def _checksum(record: bytes) -> int:
    return int.from_bytes(record[:CHECKSUM_BYTES], "little")
