"""The bytes of the result store: what is packed comes back, what was altered is found out."""

from __future__ import annotations

import math
import uuid
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morgan.background.ipc import layout
from morgan.background.ipc.errors import ResultStoreError
from morgan.background.ipc.query import key_bytes
from morgan.background.ipc.records import ComputedResult, PointId
from morgan.background.ipc.result import LazyResult, ReadyResult

versions = st.integers(0, layout.VERSION_MASK)
blocks = st.integers(0, layout.MAX_BLOCKS)
offsets = st.integers(0, layout.OFFSET_MASK).map(lambda number: number * layout.BLOCK)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
u64s = st.integers(0, 2**64 - 1)
uuids = st.uuids().map(str)
float32 = st.floats(width=32, allow_nan=False)


def packed(values: list[float]) -> bytes:
    return np.array(values, dtype="<f4").tobytes()


@st.composite
def results(draw: st.DrawFn) -> ComputedResult:
    rows = draw(st.integers(0, 5))

    def ids(count: st.SearchStrategy[int]) -> tuple[PointId, ...]:
        number = draw(count)
        kinds: list[st.SearchStrategy[PointId]] = [
            u64s,
            uuids,
            texts,
            st.one_of(u64s, uuids),
            st.integers(-(2**63), -1),
        ]
        one = draw(st.sampled_from(kinds))
        return tuple(draw(st.lists(one, min_size=number, max_size=number)))

    def column(of: st.SearchStrategy[Any]) -> tuple[Any, ...]:
        return tuple(draw(st.lists(of, min_size=rows, max_size=rows)))

    return ComputedResult(
        query_text=draw(texts),
        collection=draw(texts),
        scope=draw(texts),
        ids=ids(st.just(rows)),
        scores=packed(draw(st.lists(float32, min_size=rows, max_size=rows))),
        rerank_scores=packed(draw(st.one_of(st.just([]), st.lists(float32, min_size=rows, max_size=rows)))),
        contents=column(texts),
        sources=column(texts),
        metadata=column(st.dictionaries(texts, st.one_of(st.integers(-5, 5), texts, st.none()), max_size=2)),
        computed_at=draw(st.floats(0, 2e9)),
        embedding=packed(draw(st.lists(float32, max_size=9))),
        quality=draw(st.none() | st.floats(0, 1)),
        quality_basis=draw(texts),
        language=draw(texts),
        cost_s=draw(st.floats(0, 10)),
        candidates=ids(st.integers(0, 6)),
        cutoff=draw(st.none() | st.floats(-1, 1)),
    )


def example(**changes: Any) -> ComputedResult:
    fields: dict[str, Any] = {
        "query_text": "What is it?",
        "collection": "docs",
        "ids": (1, 2),
        "scores": packed([0.5, 0.25]),
        "contents": ("one", "two"),
        "sources": ("a", "b"),
        "metadata": ({"n": 1}, {}),
        "computed_at": 7.0,
    }
    return ComputedResult(**fields | changes)


def record(result: ComputedResult, soft_at: float = 10.0, expires_at: float = 20.0) -> bytes:
    return layout.pack_record(result, soft_at, expires_at, pair=3, generation=5)


def read(raw: bytes) -> LazyResult:
    body = layout.opened(raw)
    assert body is not None
    return LazyResult(body, layout.first_of(body))


@given(versions, blocks, offsets)
def test_a_pointer_gives_back_what_it_was_made_of(version: int, length: int, offset: int) -> None:
    word = layout.pack_pointer(version, length, offset)
    assert 0 <= word < 2**64
    assert layout.unpack_pointer(word) == (version, length, offset)


@given(versions, blocks, offsets)
def test_a_removed_entrys_pointer_is_another_one_and_points_to_nothing(version: int, length: int, offset: int) -> None:
    word = layout.pack_pointer(version, length, offset)
    gone = layout.emptied(word)
    assert gone != word
    assert layout.unpack_pointer(gone) == ((version + 1) & layout.VERSION_MASK, 0, 0)


@given(st.integers(1, 2_000_000))
def test_the_index_is_at_most_a_quarter_full_and_nothing_overlaps(capacity: int) -> None:
    slots = layout.slots_for(capacity)
    assert slots & (slots - 1) == 0
    assert slots >= 4 * 2 * capacity  # as many aliases as entries
    last_generation = layout.generation_word(layout.GENERATION_PAIRS - 1)
    assert layout.W_EPOCH < layout.W_GENERATIONS <= last_generation < layout.index_word(0)
    assert layout.index_word(slots - 1) + 2 == layout.use_word(slots, 0)
    start = layout.arena_start(slots)
    assert 8 * (layout.use_word(slots, slots - 1) + 2) <= start
    assert start % layout.BLOCK == 0


@settings(max_examples=100)
@given(results(), results())
def test_an_alias_stands_for_the_record_it_was_made_of(result: ComputedResult, other: ComputedResult) -> None:
    changes = {"contents": result.contents, "sources": result.sources, "metadata": result.metadata}
    own = record(result)
    shared = record(msgspec.structs.replace(other, ids=result.ids, scores=b"", rerank_scores=b"", **changes))
    alias = layout.pack_alias(own, place=77, shared=shared)
    assert alias is not None
    body, whole, its = layout.opened(alias), layout.opened(own), layout.opened(shared)
    assert body is not None
    assert whole is not None
    assert its is not None
    first = layout.first_of(body)
    assert (layout.is_alias(first), layout.is_alias(layout.first_of(whole))) == (True, False)
    assert layout.shared_of(body, first) == (77, int.from_bytes(shared[:8], "little"))
    padding = bytes(len(whole) - layout.first_of(whole).length)
    joined = layout.joined(body, first, its)
    assert joined is not None
    assert layout.FIRST.pack(*first._replace(pair=3)) + joined[layout.FIRST.size :] + padding == whole
    moved = layout.moved_alias(body, 78, bytes(8) + its)
    assert layout.opened(layout.with_soft_at(body, 10.0)) == body
    moved_body = layout.opened(moved)
    assert moved_body is not None
    assert layout.shared_of(moved_body, first) == (78, 0)
    assert layout.pack_alias(own, 77, alias) is None
    assert layout.pack_alias(alias, 77, shared) is None
    assert layout.pack_alias(own, 77, shared[:-1]) is None
    others = record(msgspec.structs.replace(other, contents=(*other.contents, "more")))
    assert layout.pack_alias(own, 77, others) is None


def test_an_alias_is_not_joined_with_texts_of_another_size() -> None:
    shared = record(example(query_text="other"))
    alias = layout.pack_alias(record(example()), 0, shared)
    assert alias is not None
    body, other = layout.opened(alias), layout.opened(record(example(contents=("one", "three"))))
    assert body is not None
    assert other is not None
    assert layout.joined(body, layout.first_of(body), other) is None


@settings(max_examples=200)
@given(results(), st.floats(0, 2e9), st.floats(0, 2e9))
def test_a_record_gives_back_every_part_of_the_result(
    result: ComputedResult, soft_at: float, expires_at: float
) -> None:
    raw = record(result, soft_at, expires_at)
    assert len(raw) % layout.BLOCK == 0
    for found in (read(raw), ReadyResult(read(raw))):
        assert found.ids == result.ids
        assert len(found) == len(result.ids)
        for name in ("scores", "rerank_scores", "embedding"):
            assert getattr(found, name).tobytes() == getattr(result, name)
        for name in ("contents", "sources", "metadata", "candidates", "query_text", "collection", "scope", "quality"):
            assert getattr(found, name) == getattr(result, name), name
        for name in ("quality_basis", "language", "cost_s", "cutoff", "computed_at"):
            assert getattr(found, name) == getattr(result, name), name
        assert found.fresh_metadata() == result.metadata
        assert (found.soft_at, found.expires_at) == (min(soft_at, expires_at), expires_at)
        assert [hit.id for hit in found.hits()] == list(result.ids)
    first = layout.first_of(raw[layout.CHECKSUM_BYTES :])
    assert (first.pair, first.generation) == (3, 5)
    expected = key_bytes(result.query_text, result.collection, result.scope)
    assert layout.key_of(raw[layout.CHECKSUM_BYTES :], first) == expected


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        ((0, 2**64 - 1), layout.IDS_U64),
        ((), layout.IDS_U64),
        ((str(uuid.UUID(int=1)), str(uuid.UUID(int=2**127))), layout.IDS_UUID),
        ((1, str(uuid.UUID(int=1))), layout.IDS_MIXED),
        ((-1, 2), layout.IDS_MIXED),
        (("no uuid",), layout.IDS_MIXED),
        (("00000000000000000000000000000001",), layout.IDS_MIXED),  # a UUID, but not its canonical text
        ((str(uuid.UUID(int=0xABC)).upper(),), layout.IDS_MIXED),
    ],
)
def test_ids_are_packed_only_where_they_come_back_as_they_were(ids: tuple[PointId, ...], kind: int) -> None:
    assert layout.pack_ids(ids)[0] == kind
    rows = len(ids)
    of_rows = {"contents": ("",) * rows, "sources": ("",) * rows, "metadata": ({},) * rows, "scores": bytes(4 * rows)}
    assert read(record(example(ids=ids, candidates=ids, **of_rows))).ids == ids


def test_more_ids_than_are_unpacked_at_a_time_come_back() -> None:
    rows = 3 * len(layout.U64S)
    of_rows = {"contents": ("",) * rows, "sources": ("",) * rows, "metadata": ({},) * rows, "scores": bytes(4 * rows)}
    assert read(record(example(ids=tuple(range(rows)), **of_rows))).ids == tuple(range(rows))


def test_no_flipped_bit_of_a_record_goes_unseen() -> None:
    raw = record(example())
    assert layout.opened(raw) is not None
    for position in range(8 * len(raw)):
        altered = bytearray(raw)
        altered[position // 8] ^= 1 << position % 8
        assert layout.opened(bytes(altered)) is None, position


def test_no_shortened_record_passes() -> None:
    raw = record(example())
    assert all(layout.opened(raw[:length]) is None for length in range(len(raw)))


@given(results(), st.floats(0, 2e9))
def test_a_new_soft_expiry_changes_nothing_else(result: ComputedResult, soft_at: float) -> None:
    raw = record(result, soft_at=0.0, expires_at=2e9)
    changed = layout.with_soft_at(raw[layout.CHECKSUM_BYTES :], soft_at)
    assert read(changed).soft_at == soft_at
    assert changed == record(result, soft_at=soft_at, expires_at=2e9)


def test_text_and_numbers_are_decoded_when_they_are_touched_and_kept() -> None:
    found = read(record(example(quality=0.5)))
    assert vars(found) == {}
    scores = found.scores
    assert set(vars(found)) == {"ids", "scores"}
    assert found.scores is scores
    assert found.contents == ("one", "two")
    assert set(vars(found)) == {"ids", "scores", "contents", "sources", "metadata"}
    assert found.query_text == "What is it?"
    assert found.metadata is found.metadata
    assert found.fresh_metadata() is not found.metadata


def test_what_is_unknown_is_none() -> None:
    found = read(record(example()))
    assert (found.quality, found.cutoff, found.candidates) == (None, None, ())
    assert found.embedding.size == found.rerank_scores.size == 0
    assert not math.isnan(found.cost_s)


@pytest.mark.parametrize("name", ["scores", "rerank_scores", "embedding"])
def test_arrays_cannot_be_written(name: str) -> None:
    found = getattr(read(record(example(**{name: packed([0.5, 0.25])}))), name)
    assert found.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1.0
    with pytest.raises(ValueError, match="WRITEABLE"):
        found.flags.writeable = True
    assert not read(record(example())).embedding.flags.writeable


def forged(**changes: int) -> LazyResult:
    """Return a result whose fixed fields were changed and whose checksum was computed anew."""
    body = record(example(rerank_scores=packed([1, 2])))[layout.CHECKSUM_BYTES :]
    first, head = layout.first_of(body), layout.head_of(body)
    first = first._replace(**{name: value for name, value in changes.items() if name in first._fields})
    head = head._replace(**{name: value for name, value in changes.items() if name in head._fields})
    return read(layout.sealed(layout.FIRST.pack(*first) + layout.REST.pack(*head) + body[layout.FIXED :]))


BIG = 2**32 - 1


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("ids", {"rows": BIG}),
        ("ids", {"ids": BIG}),
        ("ids", {"id_kind": 7}),
        ("ids", {"id_kind": layout.IDS_UUID, "rows": BIG}),
        ("ids", {"id_kind": layout.IDS_MIXED, "about": BIG}),
        ("scores", {"rows": BIG}),
        ("scores", {"ids": BIG}),
        ("rerank_scores", {"reranked": BIG}),
        ("rerank_scores", {"id_kind": 7}),
        ("embedding", {"embedding_size": BIG}),
        ("candidates", {"candidates": BIG}),
        ("candidates", {"candidate_kind": 9, "candidates": BIG}),
        ("contents", {"texts": BIG}),
        ("sources", {"about": 0}),
        ("metadata", {"texts": 0}),
        ("query_text", {"about": BIG}),
        ("language", {"length": 0}),
    ],
)
def test_a_forged_record_says_so_when_the_part_is_touched(part: str, changes: dict[str, int]) -> None:
    with pytest.raises(ResultStoreError, match="forged"):
        getattr(forged(**changes), part)


def test_a_forged_record_with_columns_of_different_lengths_gives_no_hits() -> None:
    with pytest.raises(ResultStoreError, match="forged"):
        forged(rows=1).hits()
