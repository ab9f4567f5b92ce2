"""The contract of workers/vectors.py, kept by both engines alike; and what is QdrantStore's own.

The embedded engine alone: test_edge.py. Its behaviour when killed: faults/test_owner_store_crashes.py.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from morgan.background.ipc.errors import CollectionNotFound, InvalidArgument, StoreUnavailable, VectorSizeMismatch
from morgan.background.ipc.records import CollectionInfo, IndexSettings, Point, PointId
from morgan.background.ipc.settings import Secret, StoreSettings
from morgan.background.workers.edge import EdgeStore
from morgan.background.workers.fingerprint import fingerprint, stamp
from morgan.background.workers.names import DISTANCES
from morgan.background.workers.qdrant import QdrantStore
from morgan.background.workers.qdrant_clients import connect, is_rebuildable, settings_of
from morgan.background.workers.vectors import MADE_BY_KEY, STAMP_KEY, Rewrite, Tunable, Vectors, VectorStore

SIZE = 16
RNG = np.random.default_rng(7)
VECTORS: Vectors = RNG.normal(size=(300, SIZE)).astype("<f4")
QUERIES: Vectors = RNG.normal(size=(5, SIZE)).astype("<f4")


@pytest.fixture(params=["embedded", "client"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VectorStore]:
    found: VectorStore = EdgeStore(tmp_path) if request.param == "embedded" else QdrantStore(QdrantClient(":memory:"))
    yield found
    found.close()


def points(count: int = 6, start: int = 1) -> list[Point]:
    return [
        Point(id=start + n, payload={"text": f"text {n}", "n": n, "even": n % 2 == 0}, vector=VECTORS[n].tobytes())
        for n in range(count)
    ]


def ids(found: list[Point]) -> list[PointId]:
    return sorted((point.id for point in found), key=str)


def filled(store: VectorStore, name: str = "c", count: int = 6, **options: Any) -> CollectionInfo:
    store.create(name, SIZE, **options)
    store.upsert(name, points(count))
    return store.info(name)


# --- collections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("vector_name", ["", "dense"])
def test_a_new_collection_is_empty_and_described_as_it_was_made(
    store: VectorStore, distance: str, vector_name: str
) -> None:
    made = store.create("c", SIZE, distance=distance, vector_name=vector_name)
    assert (made.name, made.points, made.vector_size) == ("c", 0, SIZE)
    assert (made.distance, made.vector_name, made.aliases) == (distance, vector_name, ())
    store.upsert("c", points(3))
    assert store.info("c").points == 3
    assert [one.name for one in store.collections()] == ["c"]


def test_a_name_is_given_once_to_a_collection_or_an_alias(store: VectorStore) -> None:
    filled(store)
    store.set_alias("a", "c")
    for name in ("c", "a"):
        with pytest.raises(InvalidArgument, match=f"'{name}' exists already"):
            store.create(name, SIZE)
    store.create("d", SIZE)
    with pytest.raises(InvalidArgument, match="'d' exists already"):
        store.set_alias("d", "c")
    assert (store.info("c").points, store.info("d").points) == (6, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"distance": "hamming"}, "'hamming': one of cosine, dot, euclid, manhattan"),
        ({"vector_size": 0}, "vector size above 0"),
        ({"name": ""}, "needs a name"),
    ],
)
def test_what_cannot_be_created_says_why_and_leaves_nothing(
    store: VectorStore, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidArgument, match=words):
        store.create(
            options.get("name", "c"), options.get("vector_size", SIZE), distance=options.get("distance", "dot")
        )
    assert store.collections() == []


def test_an_alias_means_its_collection_in_every_call(store: VectorStore) -> None:
    filled(store)
    store.set_alias("a", "c")
    assert store.info("a") == store.info("c")
    assert store.info("a").aliases == ("a",)
    store.upsert("a", points(1, start=50))
    assert ids(store.fetch("a", [50])) == [50]
    assert len(store.scroll("a")[0]) == 7
    assert store.search("a", VECTORS[:1], limit=1)[0][0].id in (1, 50)
    store.delete("a", [50])
    text = "text 0"
    assert store.rewrite("a", [Rewrite(1, VECTORS[9], "text", fingerprint(text), {"fp": "x"})]) == 1
    assert store.info("c").points == 6
    store.set_alias("b", "a")  # of an alias: points at the collection itself
    assert store.info("c").aliases == ("a", "b")


def test_an_alias_is_swapped_from_one_collection_to_another(store: VectorStore) -> None:
    filled(store, "old", 3)
    filled(store, "new", 5)
    store.set_alias("live", "old")
    store.set_alias("live", "new")
    assert (store.info("live").name, store.info("live").points) == ("new", 5)
    assert (store.info("old").aliases, store.info("new").aliases) == ((), ("live",))
    store.set_alias("live", "new")  # once more changes nothing
    assert store.info("new").aliases == ("live",)


def test_a_dropped_collection_is_gone_with_its_aliases_and_its_name_is_free(store: VectorStore) -> None:
    filled(store)
    store.set_alias("a", "c")
    with pytest.raises(InvalidArgument, match="'a' is an alias"):
        store.drop("a")
    assert store.info("c").points == 6
    store.drop("c")
    assert store.collections() == []
    for name in ("c", "a"):
        with pytest.raises(CollectionNotFound):
            store.info(name)
    assert store.create("c", 4).points == 0


def test_every_call_names_the_collections_that_exist(store: VectorStore) -> None:
    with pytest.raises(CollectionNotFound, match="'none'; there are: none yet"):
        store.info("none")
    filled(store)
    store.set_alias("a", "c")
    rewrite = Rewrite(1, VECTORS[0], "text", "x", {})
    for call in (
        lambda: store.info("none"),
        lambda: store.drop("none"),
        lambda: store.set_alias("x", "none"),
        lambda: store.scroll("none"),
        lambda: store.fetch("none", [1]),
        lambda: store.search("none", QUERIES),
        lambda: store.upsert("none", points()),
        lambda: store.delete("none", [1]),
        lambda: store.rewrite("none", [rewrite]),
    ):
        with pytest.raises(CollectionNotFound, match="'none'; there are: a, c"):
            call()


# --- points -----------------------------------------------------------------------------------------------------------

NUMBERS: list[PointId] = [0, 3, 5, 2**32, 2**64 - 1]
UUIDS: list[PointId] = sorted(str(uuid.UUID(int=int(n), version=4)) for n in RNG.integers(0, 2**62, 5))


@pytest.mark.parametrize("wanted", [NUMBERS, UUIDS], ids=["numbers", "uuids"])
@pytest.mark.parametrize("limit", [1, 2, 5, 100])
def test_pages_hold_every_point_once_in_the_order_of_their_ids(
    store: VectorStore, wanted: list[PointId], limit: int
) -> None:
    store.create("c", SIZE)
    order = RNG.permutation(len(wanted))
    store.upsert("c", [Point(id=wanted[n], payload={"n": int(n)}, vector=VECTORS[n].tobytes()) for n in order])
    seen, after = list[PointId](), None
    while True:
        page, after = store.scroll("c", after=after, limit=limit)
        assert 0 < len(page) <= limit
        assert all(point.vector is None for point in page)
        assert [point.payload["n"] for point in page] == [wanted.index(point.id) for point in page]
        seen += [point.id for point in page]
        if after is None:
            break
        assert after == wanted[len(seen)]
    assert seen == wanted


def test_points_that_no_reindex_has_seen_are_found_with_an_index_of_stamps_and_without(store: VectorStore) -> None:
    store.create("c", SIZE)
    mark = {STAMP_KEY: stamp("fp", "model", "rev")}
    marked = [Point(id=one.id, payload=one.payload | mark, vector=one.vector) for one in points(6)]
    store.upsert("c", [*marked, *points(3, start=10)])
    for _ in range(2):
        first, after = store.scroll("c", only_unstamped=True, limit=2)
        rest, end = store.scroll("c", only_unstamped=True, after=after)
        assert (ids(first), after, ids(rest), end) == ([10, 11], 12, [12], None)
        cast(Tunable, store).configure_index("c", IndexSettings(), {MADE_BY_KEY: "keyword"})
    store.upsert("c", [points(1)[0]])  # written anew by an application: without its stamp
    assert ids(store.scroll("c", only_unstamped=True)[0]) == [1, 10, 11, 12]
    store.delete("c", [10])
    store.upsert("c", [Point(id=11, payload={"text": "b"} | mark, vector=marked[0].vector)])
    assert ids(store.scroll("c", only_unstamped=True)[0]) == [1, 12]


def test_a_page_of_an_empty_collection_is_empty(store: VectorStore) -> None:
    store.create("c", SIZE)
    assert store.scroll("c") == ([], None)
    assert store.search("c", QUERIES) == [[]] * len(QUERIES)


def test_a_point_comes_back_as_it_was_written(store: VectorStore) -> None:
    store.create("c", SIZE, distance="dot")
    payload = {"text": "é\n", "n": 1, "f": 0.5, "b": True, "none": None, "list": [1, "a"], "deep": {"a": {"b": []}}}
    store.upsert("c", [Point(id=1, payload=payload, vector=VECTORS[0].tobytes()), *points(2, start=10)])
    (found,) = store.fetch("c", [1, 999], with_vectors=True)
    assert found == Point(id=1, payload=payload, vector=VECTORS[0].tobytes())
    assert store.fetch("c", [1]) == [Point(id=1, payload=payload)]
    assert store.scroll("c", limit=1, with_vectors=True)[0] == [found]
    assert store.fetch("c", []) == []


def test_an_upsert_replaces_the_whole_point(store: VectorStore) -> None:
    filled(store, distance="dot")
    store.upsert("c", [Point(id=1, payload={"new": 1}, vector=VECTORS[50].tobytes())])
    (found,) = store.fetch("c", [1], with_vectors=True)
    assert found == Point(id=1, payload={"new": 1}, vector=VECTORS[50].tobytes())
    assert store.info("c").points == 6
    store.upsert("c", [])
    assert store.info("c").points == 6


@pytest.mark.parametrize("name", ["", "dense"])
@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (Point(id=99, vector=VECTORS[0][:-1].tobytes()), VectorSizeMismatch, r"'c' has vectors of 16.*\(1, 15\)"),
        (Point(id=99, vector=b""), VectorSizeMismatch, "16 dimensions"),
        (Point(id=99), InvalidArgument, "point 99 has no vector"),
        (Point(id="no uuid", vector=VECTORS[0].tobytes()), InvalidArgument, "a whole number or a UUID, not 'no uuid'"),
        (Point(id=-1, vector=VECTORS[0].tobytes()), InvalidArgument, "from 0 to"),
        (Point(id=99, vector=np.full(SIZE, np.nan, "<f4").tobytes()), InvalidArgument, "finite"),
    ],
)
def test_a_batch_with_one_bad_point_is_not_written_at_all(
    store: VectorStore, name: str, bad: Point, error: type[Exception], words: str
) -> None:
    filled(store, count=2, vector_name=name)
    before = store.scroll("c", with_vectors=True)
    with pytest.raises(error, match=words):
        store.upsert("c", [*points(3), bad, *points(1, start=50)])
    assert store.scroll("c", with_vectors=True) == before


def test_deleted_points_are_gone_and_unknown_ones_are_passed_over(store: VectorStore) -> None:
    filled(store)
    store.delete("c", [1, 3, 999])
    store.delete("c", [])
    assert ids(store.scroll("c")[0]) == [2, 4, 5, 6]
    assert store.fetch("c", [1]) == []
    assert 1 not in {hit.id for hit in store.search("c", VECTORS[:1])[0]}


# --- search -----------------------------------------------------------------------------------------------------------


def brute_force(distance: str, query: Vectors) -> tuple[list[int], Vectors]:
    """Return the ids of all points, nearest first, and their scores in that order."""
    q, v = query.astype(np.float64), VECTORS.astype(np.float64)
    match distance:
        case "cosine":
            scores = v @ q / np.linalg.norm(v, axis=1) / np.linalg.norm(q)
        case "dot":
            scores = v @ q
        case "euclid":
            scores = -np.linalg.norm(v - q, axis=1)
        case _:
            scores = -np.abs(v - q).sum(axis=1)
    order = np.argsort(-scores)
    return [int(n) + 1 for n in order], np.abs(scores[order]) if distance in ("euclid", "manhattan") else scores[order]


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("vector_name", ["", "dense"])
def test_exact_neighbours_are_those_of_brute_force(store: VectorStore, distance: str, vector_name: str) -> None:
    filled(store, count=300, distance=distance, vector_name=vector_name)
    for query, hits in zip(QUERIES, store.search("c", QUERIES, limit=20, exact=True), strict=True):
        order, scores = brute_force(distance, query)
        assert [hit.id for hit in hits] == order[:20]
        assert [hit.score for hit in hits] == pytest.approx(scores[:20].tolist(), abs=1e-4)
        assert [hit.payload["n"] for hit in hits] == [n - 1 for n in order[:20]]
    assert store.search("c", QUERIES[:0]) == []


def test_a_search_of_another_size_is_refused(store: VectorStore) -> None:
    filled(store)
    with pytest.raises(VectorSizeMismatch, match=r"'c' has vectors of 16 dimensions, these have shape \(5, 3\)"):
        store.search("c", QUERIES[:, :3])


@pytest.mark.parametrize(
    ("query_filter", "wanted"),
    [
        (None, {1, 2, 3, 4, 5, 6}),
        ({}, {1, 2, 3, 4, 5, 6}),
        ({"n": 2}, {3}),
        ({"n": [2, 5, 77]}, {3, 6}),
        ({"n": (2,)}, {3}),
        ({"text": "text 4"}, {5}),
        ({"text": ["text 4", "text 0"]}, {1, 5}),
        ({"even": True}, {1, 3, 5}),
        ({"even": False}, {2, 4, 6}),
        ({"even": [True, False]}, {1, 2, 3, 4, 5, 6}),
        ({"n": True}, set()),  # not the number 1
        ({"n": [0, "text 4"]}, {1}),
        ({"n": [0, 1, 2], "even": True}, {1, 3}),
        ({"n": 0, "even": False}, set()),
        ({"none": 1}, set()),
        ({"deep.kind": "a"}, {7}),
        ({"list": "b"}, {7}),
    ],
)
def test_a_filter_keeps_what_has_the_value_or_one_of_several(
    store: VectorStore, query_filter: dict[str, Any] | None, wanted: set[int]
) -> None:
    filled(store)
    if query_filter and {"deep.kind", "list"} & query_filter.keys():
        payload = {"deep": {"kind": "a"}, "list": ["a", "b"]}
        store.upsert("c", [Point(id=7, payload=payload, vector=VECTORS[7].tobytes())])
    for hits in store.search("c", QUERIES, query_filter=query_filter):
        assert {hit.id for hit in hits} == wanted


@pytest.mark.parametrize("value", [1.5, None, {"gt": 1}, [], [1.5], [None], 2**70])
def test_a_filter_the_engines_cannot_match_is_refused_with_what_they_can(store: VectorStore, value: Any) -> None:
    filled(store)
    with pytest.raises(InvalidArgument, match="a text, a whole number, true or false: 'n': "):
        store.search("c", QUERIES, query_filter={"n": value})
    with pytest.raises(InvalidArgument, match="maps a field"):
        store.search("c", QUERIES, query_filter={"": 1})


# --- rewrite ----------------------------------------------------------------------------------------------------------


def rewrite_of(number: int, text: str, vector: Vectors) -> Rewrite:
    mark = fingerprint(text)
    return Rewrite(number, vector, "text", mark, stamp(mark, "model", "1"))


@pytest.mark.parametrize("vector_name", ["", "dense"])
def test_only_points_whose_text_is_unchanged_are_rewritten(store: VectorStore, vector_name: str) -> None:
    filled(store, distance="dot", vector_name=vector_name)
    store.upsert("c", [Point(id=7, payload={"text": 7}, vector=VECTORS[6].tobytes())])
    store.upsert("c", [Point(id=8, payload={}, vector=VECTORS[7].tobytes())])
    before = {point.id: point for point in store.scroll("c", with_vectors=True)[0]}
    fresh = [rewrite_of(1, "text 0", VECTORS[100]), rewrite_of(2, "text 1", VECTORS[101])]
    stale = [rewrite_of(3, "of yesterday", VECTORS[102]), rewrite_of(999, "text 0", VECTORS[103])]
    untexted = [rewrite_of(7, "7", VECTORS[104]), rewrite_of(8, "", VECTORS[105])]
    assert store.rewrite("c", [*stale, *fresh, *untexted]) == 2
    after = {point.id: point for point in store.scroll("c", with_vectors=True)[0]}
    for number, one in enumerate(fresh):
        held = before[one.id]
        assert after[one.id].vector == VECTORS[100 + number].tobytes()
        assert after[one.id].payload == held.payload | {STAMP_KEY: dict(one.stamp)}
    assert {key: point for key, point in after.items() if key not in (1, 2)} == {
        key: point for key, point in before.items() if key not in (1, 2)
    }
    assert store.rewrite("c", stale) == store.rewrite("c", []) == 0


def test_a_rewrite_with_one_vector_of_another_size_changes_nothing(store: VectorStore) -> None:
    filled(store)
    before = store.scroll("c", with_vectors=True)
    with pytest.raises(VectorSizeMismatch):
        store.rewrite("c", [rewrite_of(1, "text 0", VECTORS[100]), rewrite_of(2, "text 1", VECTORS[101][:3])])
    assert store.scroll("c", with_vectors=True) == before


# --- the client alone -------------------------------------------------------------------------------------------------


def test_the_other_vectors_of_a_point_stay_when_one_is_rewritten() -> None:
    client = QdrantClient(":memory:")
    params = models.VectorParams(size=SIZE, distance=models.Distance.DOT)
    client.create_collection("c", vectors_config={"dense": params, "title": params})
    both = {"dense": VECTORS[0].tolist(), "title": VECTORS[1].tolist()}
    client.upsert("c", [models.PointStruct(id=1, vector=both, payload={"text": "a", "n": 1})])
    store = QdrantStore(client)
    assert store.info("c").vector_name == "dense"
    assert store.rewrite("c", [rewrite_of(1, "a", VECTORS[2])]) == 1
    (record,) = client.retrieve("c", [1], with_vectors=True)
    assert record.vector == {"dense": VECTORS[2].tolist(), "title": VECTORS[1].tolist()}
    assert record.payload is not None
    assert (record.payload["text"], record.payload["n"]) == ("a", 1)


def test_a_collection_without_dense_vectors_is_refused_by_name() -> None:
    client = QdrantClient(":memory:")
    client.create_collection("sparse", vectors_config={}, sparse_vectors_config={"s": models.SparseVectorParams()})
    with pytest.raises(InvalidArgument, match="'sparse' has no dense vectors"):
        QdrantStore(client).info("sparse")


def test_a_client_that_was_handed_in_stays_open() -> None:
    client = QdrantClient(":memory:")
    filled(QdrantStore(client))
    QdrantStore(client).close()
    assert client.count("c").count == 6


def test_a_server_that_does_not_answer_is_unavailable_and_its_key_is_not_told() -> None:
    store = connect(StoreSettings(url="https://127.0.0.1:1", api_key=Secret("hush"), timeout_s=1.0))
    for call in (store.collections, lambda: store.info("c"), lambda: store.upsert("c", points())):
        with pytest.raises(StoreUnavailable, match=r"Qdrant at https://127.0.0.1:1 does not answer") as caught:
            call()
        assert "hush" not in str(caught.value)
        assert caught.value.is_transient
    store.close()


def test_only_a_client_of_a_server_can_be_made_again_elsewhere(tmp_path: Path) -> None:
    for local in (QdrantClient(":memory:"), QdrantClient(path=str(tmp_path / "q"))):
        assert not is_rebuildable(local)
        local.close()
    assert not is_rebuildable(object())


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ({"url": "http://127.0.0.1:6333"}, "http://127.0.0.1:6333"),
        ({"url": "http://127.0.0.1", "port": 7000}, "http://127.0.0.1:7000"),
        ({"url": "http://127.0.0.1:6333", "prefix": "vectors"}, "http://127.0.0.1:6333/vectors"),
        ({"host": "127.0.0.1"}, "http://127.0.0.1:6333"),
        ({"host": "127.0.0.1", "port": 7000, "https": True}, "https://127.0.0.1:7000"),
        ({"host": "127.0.0.1", "prefix": "vectors"}, "http://127.0.0.1:6333/vectors"),
    ],
)
def test_a_client_made_again_talks_to_the_same_server(options: dict[str, Any], url: str) -> None:
    client = QdrantClient(**options, timeout=7, check_compatibility=False)
    assert is_rebuildable(client)
    found = settings_of(client)
    assert found.timeout_s == 7.0
    again = connect(msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=StoreSettings))  # in a worker
    assert isinstance(again._client, QdrantClient)
    assert again._client._client.rest_uri == client._client.rest_uri == url  # type: ignore[attr-defined]
    again.close()
    client.close()


def test_the_key_of_a_client_is_kept_and_never_shown() -> None:
    client = QdrantClient(url="https://127.0.0.1:6333", api_key="hush", check_compatibility=False)
    found = settings_of(client)
    assert found.api_key.reveal() == "hush"
    assert "hush" not in repr(found)
    client.close()
