"""Owns every offset of the result store's file. Nothing else knows where anything lies.

    0      header, 512 words: magic, version, slots, arena start, arena end, superseded, writer pid, spare
           from word 64: 192 pairs of (collection hash, generation)
    4096   index, 16 bytes a slot: key64 | pointer = version:16 length:12 offset:36, the last two in blocks of 256 bytes
    ...    arena: records, each from a block's start

    record xxh3-64 of all that follows | fixed fields | ids | scores | rerank scores | embedding | key | texts

The rule for changing any of it: change LAYOUT_VERSION with it. A file of another version is rebuilt, never read.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass

import msgspec
import xxhash

from .query import key64, key_bytes
from .records import ComputedResult, PointId

MAGIC = int.from_bytes(b"MGRESULT", "little")
LAYOUT_VERSION = 1

# header words
W_MAGIC, W_VERSION, W_SLOTS, W_ARENA_START, W_ARENA_END, W_SUPERSEDED, W_WRITER = range(7)
W_GENERATIONS = 64
GENERATION_PAIRS = 192
HEADER_BYTES = 4096

BLOCK = 256
MAX_BLOCKS = (1 << 12) - 1  # of one record: 1 MiB less a block

RECORD = struct.Struct("<QQddddQIIIIIIII")
"""checksum, key64, computed_at, expires_at, quality, cost_s, generation, then u32: generation pair, total length, k,
key length, embedding length (floats), id kind, number of rerank scores, texts length. 88 bytes, a multiple of 8."""

IDS_U64, IDS_UUID, IDS_MIXED = range(3)


class Texts(msgspec.Struct, frozen=True, array_like=True):
    """The part of a record that is decoded only when touched."""

    query_text: str
    collection: str
    scope: str
    contents: tuple[str, ...]
    sources: tuple[str, ...]
    metadata: tuple[dict[str, object], ...]
    quality_basis: str
    language: str
    mixed_ids: tuple[PointId, ...] = ()


texts_decoder = msgspec.msgpack.Decoder(Texts)
_encode = msgspec.msgpack.encode


def slots_for(capacity: int) -> int:
    """Return the number of index slots: a power of two, at most a quarter full, which leaves room for removed keys."""
    return 1 << max(4 * capacity - 1, 63).bit_length()


def index_word(slot: int) -> int:
    """Return the word number of a slot's key; its pointer is the next word."""
    return HEADER_BYTES // 8 + 2 * slot


def arena_start(slots: int) -> int:
    return (HEADER_BYTES + 16 * slots + BLOCK - 1) // BLOCK * BLOCK


def pack_pointer(version: int, blocks: int, offset: int) -> int:
    return (version & 0xFFFF) << 48 | blocks << 36 | offset // BLOCK


def unpack_pointer(word: int) -> tuple[int, int, int]:
    """Return version, length in blocks and byte offset."""
    return word >> 48, word >> 36 & MAX_BLOCKS, (word & (1 << 36) - 1) * BLOCK


def blocks_of(length: int) -> int:
    return (length + BLOCK - 1) // BLOCK


def collection_hash(name: str) -> int:
    """Return the word that stands for a collection in the generation table, never 0."""
    return xxhash.xxh3_64_intdigest(name.encode()) or 1


def pack_ids(ids: tuple[PointId, ...]) -> tuple[int, bytes]:
    if all(isinstance(one, int) for one in ids):
        return IDS_U64, struct.pack(f"<{len(ids)}Q", *ids)
    if all(isinstance(one, str) for one in ids):
        return IDS_UUID, b"".join(uuid.UUID(str(one)).bytes for one in ids)
    return IDS_MIXED, b""


def unpack_ids(kind: int, raw: bytes) -> tuple[PointId, ...]:
    if kind == IDS_U64:
        return struct.unpack(f"<{len(raw) // 8}Q", raw)
    return tuple(str(uuid.UUID(bytes=raw[i : i + 16])) for i in range(0, len(raw), 16))


def pack_record(result: ComputedResult, expires_at: float, pair: int, generation: int) -> bytes:
    """Return the bytes of a record, checksum included."""
    key = key_bytes(result.query_text, result.collection, result.scope)
    kind, ids = pack_ids(result.ids)
    texts = _encode(
        Texts(
            result.query_text,
            result.collection,
            result.scope,
            result.contents,
            result.sources,
            result.metadata,
            result.quality_basis,
            result.language,
            result.ids if kind == IDS_MIXED else (),
        )
    )
    tail = b"".join((ids, result.scores, result.rerank_scores, result.embedding, key, texts))
    fixed = RECORD.pack(
        0,
        key64(key),
        result.computed_at,
        expires_at,
        float("nan") if result.quality is None else result.quality,
        result.cost_s,
        generation,
        pair,
        RECORD.size + len(tail),
        len(result.ids),
        len(key),
        len(result.embedding) // 4,
        kind,
        len(result.rerank_scores) // 4,
        len(texts),
    )
    body = fixed[8:] + tail
    return xxhash.xxh3_64_intdigest(body).to_bytes(8, "little") + body


@dataclass(frozen=True, slots=True)
class Head:
    """The fixed fields of a record, and where its parts lie in it."""

    computed_at: float
    expires_at: float
    quality: float
    generation: int
    pair: int
    length: int
    k: int
    id_kind: int
    reranked: int
    embedding_size: int
    ids_end: int
    scores_end: int
    rerank_end: int
    embedding_end: int
    key_end: int


def read_head(raw: bytes, key: bytes | None) -> Head | None:
    """Return the fields of the record in the private copy `raw`; None if it is not whole, or not `key`'s (if given).

    The checksum covers everything behind it, key, expiry and generation included: it is what makes a torn copy a miss
    on processors that reorder stores (ARM64).
    """
    if len(raw) < RECORD.size:
        return None
    fields = RECORD.unpack_from(raw)
    (
        checksum,
        _,
        computed_at,
        expires_at,
        quality,
        _,
        generation,
        pair,
        length,
        k,
        key_length,
        size,
        kind,
        reranked,
        n,
    ) = fields
    if not RECORD.size <= length <= len(raw) or xxhash.xxh3_64_intdigest(memoryview(raw)[8:length]) != checksum:
        return None
    ids_end = RECORD.size + {IDS_U64: 8, IDS_UUID: 16}.get(kind, 0) * k
    scores_end = ids_end + 4 * k
    rerank_end = scores_end + 4 * reranked
    embedding_end = rerank_end + 4 * size
    key_end = embedding_end + key_length
    if key_end + n != length or (key is not None and raw[embedding_end:key_end] != key):
        return None
    return Head(
        computed_at=computed_at,
        expires_at=expires_at,
        quality=quality,
        generation=generation,
        pair=pair,
        length=length,
        k=k,
        id_kind=kind,
        reranked=reranked,
        embedding_size=size,
        ids_end=ids_end,
        scores_end=scores_end,
        rerank_end=rerank_end,
        embedding_end=embedding_end,
        key_end=key_end,
    )
