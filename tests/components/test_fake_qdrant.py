"""The fake Qdrant server: that it does as Qdrant does where it matters to us, and that its faults strike as they are asked for.

What a server does is asked of the fake, of qdrant-client's local mode, whose makers wrote down what their server does, and of a
real server where QDRANT_URL names one.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from qdrant_client import QdrantClient, models

from bench.fake_qdrant.running import FakeQdrant, running
from morgan.background.ipc.errors import InvalidArgument
from morgan.background.workers.qdrant import QdrantStore

from .qdrant_servers import MISSING, QDRANT_URL, SIZE, client_at, client_of_server, held, point, refused


@pytest.fixture(params=["fake", "local mode", *(["server"] if QDRANT_URL else [])])
def qdrant(request: pytest.FixtureRequest) -> Iterator[QdrantClient]:
    """One that a collection of any name may be made in; what is left of it goes at the end."""
    if request.param == "fake":
        found: QdrantClient = request.getfixturevalue("client")
        request.getfixturevalue("fake").clear()
    elif request.param == "local mode":
        found = QdrantClient(":memory:")
    else:
        found = client_of_server()
    yield found
    if request.param != "fake":
        found.close()


@pytest.fixture
def name(qdrant: QdrantClient) -> Iterator[str]:
    """A collection of three points, 1 to 3, with texts "one" to "three"."""
    made = f"fake_test_{uuid.uuid4().hex[:12]}"
    qdrant.create_collection(made, models.VectorParams(size=SIZE, distance=models.Distance.DOT))
    qdrant.upsert(made, [point(1, "one"), point(2, "two"), point(3, "three")], wait=True)
    yield made
    qdrant.delete_collection(made)


def has_text(text: str) -> models.Filter:
    return models.Filter(must=[models.FieldCondition(key="text", match=models.MatchValue(value=text))])


# --- it does as Qdrant does -------------------------------------------------------------------------------------------


def test_an_update_under_a_condition_leaves_the_points_that_do_not_meet_it(qdrant: QdrantClient, name: str) -> None:
    fresh = [point(1, "new", 5.0), point(2, "new", 5.0), point(9, "new", 5.0)]
    qdrant.upsert(name, fresh, wait=True, update_filter=has_text("one"))
    # a point that is not there meets every condition, and is inserted
    assert held(qdrant, name) == {1: ("new", 5.0), 2: ("two", 1.0), 3: ("three", 1.0), 9: ("new", 5.0)}


def test_update_only_inserts_nothing_and_insert_only_updates_nothing(qdrant: QdrantClient, name: str) -> None:
    fresh = [point(1, "new", 5.0), point(9, "new", 5.0)]
    qdrant.upsert(name, fresh, wait=True, update_mode=models.UpdateMode.UPDATE_ONLY, update_filter=has_text("one"))
    assert held(qdrant, name) == {1: ("new", 5.0), 2: ("two", 1.0), 3: ("three", 1.0)}
    fresh = [point(2, "newer", 6.0), point(9, "newer", 6.0)]
    qdrant.upsert(name, fresh, wait=True, update_mode=models.UpdateMode.INSERT_ONLY)
    assert held(qdrant, name) == {1: ("new", 5.0), 2: ("two", 1.0), 3: ("three", 1.0), 9: ("newer", 6.0)}


def test_a_point_that_was_deleted_is_inserted_by_insert_only(qdrant: QdrantClient, name: str) -> None:
    qdrant.delete(name, models.PointIdsList(points=[1]), wait=True)
    qdrant.upsert(name, [point(1, "back")], wait=True, update_mode=models.UpdateMode.INSERT_ONLY)
    assert held(qdrant, name)[1] == ("back", 1.0)


def test_vectors_of_a_point_that_is_missing_are_refused_and_those_of_the_others_updated(
    qdrant: QdrantClient, name: str
) -> None:
    vectors = [models.PointVectors(id=number, vector=[7.0, 0, 0, 0]) for number in (1, 99, 2)]
    status = refused(lambda: qdrant.update_vectors(name, vectors, wait=True, update_filter=has_text("one")))
    assert status in (404, None)
    assert held(qdrant, name) == {1: ("one", 7.0), 2: ("two", 1.0), 3: ("three", 1.0)}


def test_a_payload_is_set_where_a_filter_matches(qdrant: QdrantClient, name: str) -> None:
    ids = models.HasIdCondition(has_id=[1, 99])
    text = models.FieldCondition(key="text", match=models.MatchValue(value="one"))
    operations = [
        models.SetPayloadOperation(
            set_payload=models.SetPayload(payload={"a": {"b": 1}}, filter=models.Filter(must=[ids, text]))
        )
    ]
    qdrant.batch_update_points(name, operations, wait=True)
    inner = models.FieldCondition(key="a.b", match=models.MatchValue(value=1))
    found, _ = qdrant.scroll(name, scroll_filter=models.Filter(must=[inner]))
    assert [one.id for one in found] == [1]


def test_a_delete_by_filter_takes_ids_and_conditions(qdrant: QdrantClient, name: str) -> None:
    wanted = models.Filter(must=[models.HasIdCondition(has_id=[1, 2, 99]), *(has_text("two").must or [])])  # type: ignore
    qdrant.delete(name, models.FilterSelector(filter=wanted), wait=True)
    qdrant.delete(name, models.PointIdsList(points=[99]), wait=True)  # one that is not there is no mistake
    assert set(held(qdrant, name)) == {1, 3}


def test_a_vector_of_another_size_is_refused(qdrant: QdrantClient, name: str) -> None:
    bad = models.PointStruct(id=4, vector=[1.0], payload={"text": "four"})
    assert refused(lambda: qdrant.upsert(name, [bad], wait=True)) in (400, None)
    assert 4 not in held(qdrant, name)


def test_pages_are_in_order_of_ids_and_name_the_next_one(qdrant: QdrantClient, name: str) -> None:
    first, after = qdrant.scroll(name, limit=2)
    last, end = qdrant.scroll(name, limit=2, offset=after)
    assert [one.id for one in [*first, *last]] == [1, 2, 3]
    assert (after, end) == (3, None)


def test_a_point_without_a_vector_is_kept_and_not_found(qdrant: QdrantClient, name: str) -> None:
    qdrant.upsert(name, [models.PointStruct(id=8, vector={}, payload={"text": "bare"})], wait=True)
    (record,) = qdrant.retrieve(name, [8, 99], with_vectors=True)
    assert not record.vector
    found = qdrant.query_points(name, [1.0, 0, 0, 0], limit=10, query_filter=models.Filter(must_not=[ids_of(1)]))
    assert {one.id for one in found.points} == {2, 3}


def ids_of(*numbers: int) -> models.HasIdCondition:
    return models.HasIdCondition(has_id=list(numbers))


def test_an_alias_is_a_name_of_its_collection_for_all_but_its_end(qdrant: QdrantClient, name: str) -> None:
    alias = f"{name}_alias"
    qdrant.update_collection_aliases([create(alias, name)])
    assert qdrant.collection_exists(alias)
    assert qdrant.get_collection(alias).points_count == 3
    qdrant.upsert(alias, [point(4, "four")], wait=True)
    assert len(held(qdrant, alias)) == 4
    assert not qdrant.delete_collection(alias)
    assert qdrant.collection_exists(name)
    params = models.VectorParams(size=1, distance=models.Distance.DOT)
    assert refused(lambda: qdrant.create_collection(alias, params)) in (400, None)
    assert refused(lambda: qdrant.create_collection(name, params)) in (409, None)
    qdrant.update_collection_aliases([forget(alias), forget(f"{name}_never_there")])
    assert not qdrant.collection_exists(alias)


def create(alias: str, name: str) -> models.CreateAliasOperation:
    return models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=name, alias_name=alias))


def forget(alias: str) -> models.DeleteAliasOperation:
    return models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))


def test_aliases_go_with_their_collection_and_a_new_target_is_taken_at_once(qdrant: QdrantClient, name: str) -> None:
    other, alias = f"{name}_other", f"{name}_alias"
    qdrant.create_collection(other, models.VectorParams(size=SIZE, distance=models.Distance.DOT))
    qdrant.update_collection_aliases([create(alias, name)])
    qdrant.update_collection_aliases([create(alias, other)])
    assert {one.alias_name: one.collection_name for one in qdrant.get_aliases().aliases}[alias] == other
    qdrant.delete_collection(other)
    assert not qdrant.collection_exists(alias)
    assert alias not in {one.alias_name for one in qdrant.get_aliases().aliases}


def test_of_a_refused_change_of_aliases_what_came_before_stays(qdrant: QdrantClient, name: str) -> None:
    if not qdrant.init_options.get("url"):
        return  # local mode takes all of it back; the server's source does not
    first = f"{name}_a"
    assert refused(lambda: qdrant.update_collection_aliases([create(first, name), create(f"{name}_b", MISSING)])) == 404
    assert qdrant.collection_exists(first)
    qdrant.update_collection_aliases([forget(first)])
    assert refused(lambda: qdrant.update_collection_aliases([create(name, name)])) == 409


def test_a_collection_that_is_not_there_is_refused_and_not_made(qdrant: QdrantClient) -> None:
    for call in (
        lambda: qdrant.get_collection(MISSING),
        lambda: qdrant.upsert(MISSING, [point(1, "one")]),
        lambda: qdrant.scroll(MISSING),
        lambda: qdrant.delete(MISSING, models.PointIdsList(points=[1])),
    ):
        assert refused(call) in (404, None)
    assert not qdrant.collection_exists(MISSING)
    assert not qdrant.delete_collection(MISSING)


def test_named_and_sparse_vectors_come_back_as_they_were(qdrant: QdrantClient, name: str) -> None:
    made = f"{name}_named"
    qdrant.create_collection(
        made,
        {"dense": models.VectorParams(size=2, distance=models.Distance.COSINE)},
        sparse_vectors_config={"words": models.SparseVectorParams()},
    )
    vectors: Any = {"dense": [3.0, 4.0], "words": models.SparseVector(indices=[1, 7], values=[0.5, 0.25])}
    qdrant.upsert(made, [models.PointStruct(id=str(uuid.UUID(int=1)), vector=vectors)], wait=True)
    ((record,), _) = qdrant.scroll(made, with_vectors=True)
    assert record.id == str(uuid.UUID(int=1))
    assert isinstance(record.vector, dict)
    assert record.vector["dense"] == pytest.approx([0.6, 0.8])  # as cosine keeps them
    assert record.vector["words"] == vectors["words"]
    qdrant.delete_collection(made)


def test_strict_mode_refuses_to_change_by_a_field_without_an_index_but_for_the_condition_of_an_update(
    qdrant: QdrantClient, name: str
) -> None:
    if not qdrant.init_options.get("url"):
        return  # local mode has none
    made = f"{name}_strict"
    strict = models.StrictModeConfig(enabled=True, unindexed_filtering_update=False, unindexed_filtering_retrieve=False)
    params = models.VectorParams(size=SIZE, distance=models.Distance.DOT)
    qdrant.create_collection(made, params, strict_mode_config=strict)
    qdrant.upsert(made, [point(1, "one"), point(2, "two")], wait=True)
    setting = models.SetPayload(payload={"a": 1}, filter=has_text("one"))
    for call in (
        lambda: qdrant.delete(made, models.FilterSelector(filter=has_text("one"))),
        lambda: qdrant.batch_update_points(made, [models.SetPayloadOperation(set_payload=setting)]),
        lambda: qdrant.scroll(made, scroll_filter=models.Filter(must=[ids_of(1), has_text("one")])),
    ):
        assert refused(call) == 400
    qdrant.upsert(made, [point(1, "new"), point(2, "new")], wait=True, update_filter=has_text("one"))
    qdrant.update_vectors(
        made, [models.PointVectors(id=2, vector=[3.0, 0, 0, 0])], wait=True, update_filter=has_text("two")
    )
    assert held(qdrant, made) == {1: ("new", 1.0), 2: ("two", 3.0)}
    qdrant.create_payload_index(made, "text", models.PayloadSchemaType.KEYWORD, wait=True)
    qdrant.delete(made, models.FilterSelector(filter=has_text("two")), wait=True)
    assert set(held(qdrant, made)) == {1}
    qdrant.delete_collection(made)


# --- what local mode cannot show ------------------------------------------------------------------------------------


def test_configuration_and_payload_indexes_are_shown_as_they_were_set(client: QdrantClient) -> None:
    client.create_collection(
        "configured",
        models.VectorParams(size=2, distance=models.Distance.EUCLID),
        hnsw_config=models.HnswConfigDiff(m=8),
        shard_number=2,
    )
    client.create_payload_index("configured", "kind", models.PayloadSchemaType.KEYWORD)
    client.create_payload_index("configured", "n", models.IntegerIndexParams(type="integer", lookup=True, range=False))  # type: ignore
    client.update_collection("configured", hnsw_config=models.HnswConfigDiff(ef_construct=200))
    info = client.get_collection("configured")
    graph = info.config.hnsw_config
    assert (graph.m, graph.ef_construct, info.config.params.shard_number) == (8, 200, 2)
    assert {field: one.data_type.value for field, one in info.payload_schema.items()} == {
        "kind": "keyword",
        "n": "integer",
    }
    assert info.payload_schema["n"].params.range is False  # type: ignore
    client.delete_collection("configured")


def test_what_it_does_not_know_is_refused_and_not_passed_over(client: QdrantClient, fake: FakeQdrant) -> None:
    client.create_collection("small", models.VectorParams(size=2, distance=models.Distance.DOT))
    nested = models.Filter(must=[models.NestedCondition(nested=models.Nested(key="a", filter=models.Filter()))])
    assert refused(lambda: client.scroll("small", scroll_filter=nested)) == 501
    assert refused(client.create_full_snapshot) in (404, 501)
    ordered = models.OrderBy(key="n")
    assert refused(lambda: client.scroll("small", order_by=ordered)) == 501
    answer = httpx.put(f"{fake.url}/collections/small/points", content=b'{"points": 5}')
    assert answer.status_code == 400
    client.delete_collection("small")


def test_what_was_written_survives_a_killed_server_and_is_told_to_none_without_the_key(tmp_path: Path) -> None:
    with running("--folder", str(tmp_path), "--api-key", "right", "--version", "1.16.3") as server:
        first = client_at(server.url, api_key="right")
        first.create_collection("kept", models.VectorParams(size=SIZE, distance=models.Distance.DOT))
        first.upsert("kept", [point(1, "one")], wait=True)
        first.update_collection_aliases([create("name", "kept")])
        server.kill()
        server.start()
        second = client_at(server.url, api_key="right")
        assert held(second, "name") == {1: ("one", 1.0)}
        assert second.info().version == "1.16.3"
        for headers in ({}, {"api-key": "wrong"}):
            assert httpx.get(f"{server.url}/collections", headers=headers).status_code == 401
        with pytest.raises(InvalidArgument, match="refused the API key"):
            QdrantStore(client_at(server.url, api_key="wrong")).collections()


def test_no_search_sees_half_a_change_of_aliases(client: QdrantClient, fake: FakeQdrant) -> None:
    fake.clear()
    for version in ("a", "b"):
        client.create_collection(f"v_{version}", models.VectorParams(size=SIZE, distance=models.Distance.DOT))
        client.upsert(f"v_{version}", [point(1, version)], wait=True)
    client.update_collection_aliases([create("v", "v_a")])
    seen: list[str] = []
    stop = threading.Event()

    def read() -> None:
        mine = client_at(fake.plain_url)
        while not stop.is_set():
            seen.append(held(mine, "v")[1][0])

    reader = threading.Thread(target=read)
    reader.start()
    while len(seen) < 40:
        for version in ("b", "a"):
            client.update_collection_aliases([forget("v"), create("v", f"v_{version}")])
    stop.set()
    reader.join()
    assert set(seen) == {"a", "b"}
