"""Remote mode over real HTTP: QdrantStore and the tasks on it, against a server whose calls are struck by faults.

The server is the fake of bench/fake_qdrant; where QDRANT_URL names a real one, the same runs once more against that, with the
faults in front of it (README, "With your own Qdrant"). After each fault: every live point has the vector of its current text,
nothing deleted is back, nothing written is lost, and no reader saw an empty or half-built collection.

Another version beside the one in use: test_remote_rebuild.py; roll-back, adopt-alias, retention: test_remote_versions.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from qdrant_client import models

from bench.fake_qdrant.faults import Fault, Kind
from bench.fake_qdrant.running import running
from morgan.background.ipc.errors import CollectionNotFound, InvalidArgument, StoreUnavailable
from morgan.background.ipc.records import IndexSettings, Point, PointId
from morgan.background.workers.fingerprint import fingerprint
from morgan.background.workers.qdrant import QdrantStore
from morgan.background.workers.vectors import COPIED_KEY, STAMP_KEY, Only, Rewrite

from .qdrant_servers import client_at
from .remote_calls import (
    AT_ONCE,
    BATCH,
    IN_TURN,
    KINDS,
    QUERY,
    READS,
    UPSERT,
    VECTORS,
    fault,
)
from .remote_site import NEW, STRICT, TEXTS, Site

MakeSite = Callable[..., Site]


def rewrite_of(number: PointId, text: str, vector: Any = None) -> Rewrite:
    made = NEW.embed([text])[0] if vector is None else vector
    return Rewrite(number, made, "text", fingerprint(text), {"fp": fingerprint(text), "model": "new", "rev": "fake"})


def vector_of(site: Site, number: PointId) -> Any:
    (point,) = site.direct.fetch(site.name, [number], with_vectors=True)
    return np.frombuffer(point.vector or b"", "<f4")


# --- the store --------------------------------------------------------------------------------------------------------


def test_collections_and_aliases_are_made_described_and_dropped(site: Site) -> None:
    store, real = site.store, f"{site.name}__v1"
    made = store.create(real, 5, distance="dot", vector_name="dense")
    assert (made.name, made.points, made.vector_size, made.distance, made.vector_name) == (real, 0, 5, "dot", "dense")
    store.set_alias(site.name, real)
    assert store.info(site.name).aliases == (site.name,)
    for taken in (real, site.name):
        with pytest.raises(InvalidArgument, match="exists already"):
            store.create(taken, 5)
    with pytest.raises(InvalidArgument, match="is an alias"):
        store.drop(site.name)
    store.drop(real)
    with pytest.raises(CollectionNotFound):
        store.info(site.name)
    assert store.collections() == []


def test_pages_points_and_searches_are_those_of_what_was_written(site: Site) -> None:
    site.fill(NEW)
    extra = {"n": 7, "even": True, "kind": "a"}
    site.store.upsert(site.name, [Point(100, {"text": "alone", **extra}, NEW.embed(["alone"])[0].tobytes())])
    pages, after = [], None
    while True:
        page, after = site.store.scroll(site.name, after=after, limit=5)
        pages.append([point.id for point in page])
        if after is None:
            break
    assert sorted(one for page in pages for one in page) == [*range(12), 100]
    assert [len(page) for page in pages] == [5, 5, 3]
    assert {point.id for point in site.store.fetch(site.name, [3, 100, 999])} == {3, 100}
    queries = NEW.embed([TEXTS[3], "alone"])
    for exact in (False, True):
        first, second = site.store.search(site.name, queries, limit=2, exact=exact, ef=32)
        assert (first[0].id, second[0].id, len(first)) == (3, 100, 2)
        assert first[0].score == pytest.approx(1.0, abs=1e-5)
    for wanted, found in (
        ({"kind": "a"}, {100}),
        ({"n": 7, "even": True}, {100}),
        ({"even": False}, set()),
        ({"kind": ["a", "b"]}, {100}),
        ({"text": [TEXTS[1], TEXTS[2]]}, {1, 2}),
    ):
        (hits,) = site.store.search(site.name, queries[:1], query_filter=wanted)
        assert {hit.id for hit in hits} == found
    site.store.delete(site.name, [100, 999])
    assert site.store.info(site.name).points == 12


def test_a_version_like_another_has_its_indexes_graph_and_vectors(site: Site) -> None:
    first, second = f"{site.name}__v1", f"{site.name}__v2"
    params = {"dense": models.VectorParams(size=16, distance=models.Distance.COSINE)}
    sparse = {"words": models.SparseVectorParams()}
    site.application.create_collection(first, params, sparse_vectors_config=sparse)
    done = site.store.configure_index(first, IndexSettings(m=8, ef_construct=50, ef=64), {"kind": "keyword"})
    assert len(done) == 3
    vectors = {"dense": [1.0] * 16, "words": models.SparseVector(indices=[3], values=[0.5])}
    site.application.upsert(first, [models.PointStruct(id=1, vector=vectors, payload={"text": "one"})], wait=True)
    site.store.create(second, 24, distance="cosine", vector_name="dense", like=first)
    made = site.store.index_info(second)
    assert (made.settings.m, made.settings.ef_construct, made.payload) == (8, 50, {"kind": "keyword"})
    assert site.store.transfer(first, second, [rewrite_of(1, "one")]) == 1
    (copy,) = site.application.retrieve(second, [1], with_vectors=True)
    assert copy.vector["words"] == vectors["words"]
    assert np.array(copy.vector["dense"]) @ NEW.embed(["one"])[0] == pytest.approx(1.0, abs=1e-5)


def test_a_rewrite_changes_what_has_its_text_and_nothing_else(site: Site) -> None:
    site.fill(NEW)
    site.write({2: "changed since"})
    rewrites = [rewrite_of(1, TEXTS[1], NEW.embed(["other"])[0]), rewrite_of(2, TEXTS[2]), rewrite_of(99, "gone")]
    assert site.store.rewrite(site.name, rewrites) == 1
    assert vector_of(site, 1) @ NEW.embed(["other"])[0] == pytest.approx(1.0, abs=1e-5)
    assert vector_of(site, 2) @ NEW.embed(["changed since"])[0] == pytest.approx(1.0, abs=1e-5)
    assert site.direct.fetch(site.name, [99]) == []


@pytest.mark.parametrize("call", [VECTORS, BATCH], ids=["before the vectors", "before the stamps"])
def test_what_an_application_writes_in_the_middle_of_a_rewrite_wins(site: Site, call: tuple[str, str]) -> None:
    site.fill(NEW)
    during(site, call, partial(site.write, {1: "written meanwhile"}), [1, 2])
    site.check()
    (point,) = site.direct.fetch(site.name, [1])
    assert point.payload[STAMP_KEY]["fp"] == fingerprint("written meanwhile")


def test_a_point_deleted_in_the_middle_of_a_rewrite_does_not_fail_the_others(site: Site) -> None:
    site.fill(NEW)
    during(site, VECTORS, partial(site.delete, 1), [1, 2])
    site.check()


def during(site: Site, call: tuple[str, str], do: Callable[[], None], ids: list[int]) -> None:
    """Rewrite some points, in a thread, and do something while one of its calls is held on its way."""
    site.fake.strike(fault(Kind.LATE, call))
    errors: list[BaseException] = []

    def work() -> None:
        try:
            site.store.rewrite(site.name, [rewrite_of(number, TEXTS[number]) for number in ids])
        except Exception as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    rewriting = threading.Thread(target=work)
    rewriting.start()
    while not site.fake.struck() and rewriting.is_alive():
        rewriting.join(0.005)
    do()
    site.fake.release()
    rewriting.join()
    if errors:
        raise errors[0]


def test_a_transfer_copies_what_is_there_and_a_conditional_one_writes_over_copies_alone(site: Site) -> None:
    site.fill(NEW)
    target = f"{site.name}__v2"
    site.direct.create(target, NEW.size)

    def copy(number: int, text: str) -> Rewrite:
        one = rewrite_of(number, text)
        return Rewrite(one.id, one.vector, "text", one.text_fingerprint, dict(one.stamp) | {COPIED_KEY: target})

    assert site.store.transfer(site.name, target, [copy(1, TEXTS[1]), copy(2, "not its text"), copy(99, "gone")]) == 1
    site.direct.upsert(target, site.points({3: "an application's"}, target))
    fresh = [copy(number, TEXTS[number]) for number in (1, 3, 4)]
    site.store.transfer_if(site.name, target, fresh, [], mark=target, only=Only.NEW)
    held = {point.id: point.payload for point in site.direct.scroll(target)[0]}
    assert {number: payload["text"] for number, payload in held.items()} == {
        1: TEXTS[1],
        3: "an application's",
        4: TEXTS[4],
    }
    site.write({1: "late", 3: "late", 5: "late"})
    late = [copy(number, "late") for number in (1, 3, 5)]
    site.store.transfer_if(site.name, target, late, [], mark=target, only=Only.MARKED)
    site.store.delete_if(target, [3, 4, 99], mark=target)
    held = {point.id: point.payload for point in site.direct.scroll(target)[0]}
    assert {number: payload["text"] for number, payload in held.items()} == {1: "late", 3: "an application's"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_does_not_answer_is_said_to_be_away(make_site: MakeSite, kind: Kind) -> None:
    site = make_site(kind).fill(NEW)
    points = site.points({1: "new"})
    for call, ask in (
        (QUERY, partial(site.store.search, site.name, NEW.embed(["a"]))),
        (UPSERT, partial(site.store.upsert, site.name, points)),
    ):
        site.fake.strike(fault(kind, call))
        with pytest.raises(StoreUnavailable, match=r"Qdrant at http"):
            ask()
    site.fake.release()
    assert (site.direct.fetch(site.name, [1])[0].payload["text"] == "new") == (kind not in (Kind.STATUS, Kind.CUT))


@pytest.mark.parametrize("status", [500, 502, 504])
def test_an_error_of_the_server_is_said_to_be_one(site: Site, status: int) -> None:
    site.fake.strike(Fault(Kind.STATUS, status=status))
    with pytest.raises(StoreUnavailable, match=str(status)):
        site.store.collections()


def test_a_server_that_is_too_old_for_conditional_writes_is_refused_before_any() -> None:
    with running("--version", "1.16.3") as old:
        client = client_at(old.url)
        store = QdrantStore(client, where=old.url)
        store.create("c", NEW.size)
        store.upsert("c", [Point(1, {"text": "zinc"}, NEW.embed(["zinc"])[0].tobytes())])
        for write in (
            partial(store.rewrite, "c", [rewrite_of(1, "zinc")]),
            partial(store.transfer_if, "c", "c", [], [1], mark="c"),
            partial(store.delete_if, "c", [1], mark="c"),
        ):
            with pytest.raises(InvalidArgument, match=r"is 1\.16: a re-index needs 1\.17"):
                write()
        assert store.fetch("c", [1])[0].payload == {"text": "zinc"}
        client.close()


@pytest.mark.parametrize("status", [429, 408])
def test_a_server_that_is_too_busy_is_waited_for(site: Site, status: int) -> None:
    site.fake.strike(Fault(Kind.STATUS, status=status))
    with pytest.raises(StoreUnavailable, match=str(status)):
        site.store.collections()


# --- re-index in place ------------------------------------------------------------------------------------------------

STALE = {1: "stale one", 4: "stale four", 8: "stale eight", 200: "a new one, stale"}


def stale(site: Site) -> Site:
    """A collection of the configured model in which some texts are newer than their vectors."""
    site.fill(NEW)
    held = {point.id: point for point in site.direct.scroll(site.name, limit=100, with_vectors=True)[0]}
    points = [
        Point(number, held.get(number, held[1]).payload | {"text": text}, held[1].vector)
        for number, text in STALE.items()
    ]
    site.direct.upsert(site.name, points)
    site.texts |= STALE
    return site


@pytest.mark.parametrize("kind", IN_TURN)
def test_a_reindex_in_place_whose_every_kind_of_call_fails_once_is_done_in_the_end(
    make_site: MakeSite, kind: Kind
) -> None:
    site = stale(make_site(kind))
    site.between = site.fake.release
    calls = [*(READS if kind in AT_ONCE else ()), VECTORS, BATCH]
    site.fake.strike(*(fault(kind, call) for call in calls), fault(kind, VECTORS, skip=1), fault(kind, BATCH, skip=1))
    result = site.run()
    assert result["documents_processed"] == 13
    assert len(site.failures) >= len(site.fake.struck()) >= len(calls) - 1
    site.check()


@pytest.mark.parametrize("call", [VECTORS, BATCH], ids=["vectors", "stamps"])
def test_a_write_in_place_that_comes_late_does_not_undo_the_applications(
    make_site: MakeSite, call: tuple[str, str]
) -> None:
    site = stale(make_site(Kind.LATE))
    site.fake.strike(fault(Kind.LATE, call))

    def go_on() -> None:
        site.write({1: "written meanwhile"})
        site.fake.release()

    site.between = go_on
    site.run()
    assert site.failures
    site.check()


def test_a_reindex_in_place_is_done_under_strict_mode(site: Site) -> None:
    site.strict = STRICT
    stale(site).run()
    site.check()


def test_vectors_of_the_model_are_adopted_through_failing_calls(site: Site) -> None:
    site.fill(NEW)
    bare = [
        Point(p.id, {"text": p.payload["text"]}, p.vector)
        for p in site.direct.scroll(site.name, limit=100, with_vectors=True)[0]
    ]
    site.direct.upsert(site.name, bare)
    site.fake.strike(fault(Kind.CUT, BATCH, skip=1), fault(Kind.LOST, BATCH, skip=1))
    result = site.run()
    assert len(site.failures) >= 2
    assert (result["documents_embedded"], result["documents_processed"]) == (0, 12)
    site.check()
