"""How a collection's index is looked at and configured: the embedded engine, through its owner, and qdrant-client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient

from morgan.background.ipc import calls
from morgan.background.ipc.errors import InvalidArgument
from morgan.background.ipc.messages import Failure
from morgan.background.ipc.records import IndexSettings, Point
from morgan.background.ipc.settings import WorkerSettings
from morgan.background.workers.edge import EdgeStore
from morgan.background.workers.filters import MOST_FIELDS, Filters
from morgan.background.workers.lending import build_index
from morgan.background.workers.owner import OwnerService
from morgan.background.workers.qdrant import QdrantStore

SIZE, COUNT = 64, 60_000  # 15 MB of vectors: the engine builds a graph above 10
VECTORS = np.random.default_rng(5).normal(size=(COUNT, SIZE)).astype("<f4")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EdgeStore]:
    store = EdgeStore(tmp_path)
    store.create("docs", SIZE)
    yield store
    store.close()


def fill(store: EdgeStore, name: str, count: int) -> None:
    for start in range(0, count, 1000):
        rows = range(start, min(start + 1000, count))
        store.upsert(name, [Point(id=n, payload={"n": n % 5}, vector=VECTORS[n].tobytes()) for n in rows])


def test_a_payload_index_is_made_and_seen_and_a_filter_finds_the_same(store: EdgeStore) -> None:
    fill(store, "docs", 100)
    before = store.search("docs", VECTORS[:3], query_filter={"n": 2})
    assert store.configure_index("docs", IndexSettings(), {"n": "integer"}) == ["payload index of 'n' (integer) made"]
    assert store.index_info("docs").payload == {"n": "integer"}
    assert store.search("docs", VECTORS[:3], query_filter={"n": 2}) == before
    store.create("next", SIZE, like="docs")
    assert store.index_info("next").payload == {"n": "integer"}


@pytest.mark.parametrize("payload", [{"n": "geo"}, {"": "keyword"}])
def test_an_index_of_no_field_or_of_a_kind_that_no_filter_uses_is_refused(
    store: EdgeStore, payload: dict[str, str]
) -> None:
    with pytest.raises(InvalidArgument, match="one of keyword, integer, float, bool"):
        store.configure_index("docs", IndexSettings(), payload)
    assert store.index_info("docs").payload == {}


def test_settings_are_kept_over_a_restart_and_by_the_next_version_and_only_what_is_named_changes(
    tmp_path: Path,
) -> None:
    store = EdgeStore(tmp_path)
    store.create("docs", SIZE)
    done = store.configure_index("docs", IndexSettings(m=8, ef=64), {})
    assert done[0] == "searches look at 64 candidates from now on"
    assert "the next version of the collection gets the other graph" in done[1]
    store.configure_index("docs", IndexSettings(ef=128), {})
    store.close()
    again = EdgeStore(tmp_path)
    again.create("next", SIZE, like="docs")
    assert again.index_info("docs").settings == again.index_info("next").settings == IndexSettings(m=8, ef=128)
    again.close()


def test_a_deeper_search_of_a_graph_finds_more_and_the_kept_depth_is_the_default(store: EdgeStore) -> None:
    store.configure_index("docs", IndexSettings(m=4, ef_construct=16), {})
    store.create("poor", SIZE, like="docs")
    fill(store, "poor", COUNT)
    assert store.index_info("poor").indexed_vectors == 0
    build_index(store.lend("poor"))
    assert store.index_info("poor").indexed_vectors > 0
    queries = VECTORS[:50] + 0.5

    def found(**how: int) -> float:
        exact = store.search("poor", queries, exact=True)
        near = store.search("poor", queries, **how)  # type: ignore[arg-type]
        return float(
            np.mean([len({h.id for h in a} & {h.id for h in b}) / 10 for a, b in zip(near, exact, strict=True)])
        )

    shallow, deep = found(ef=16), found(ef=512)
    assert shallow < deep
    store.configure_index("poor", IndexSettings(ef=512), {})
    assert found() == deep


def test_the_local_mode_of_the_client_says_that_it_ignores_what_is_set() -> None:
    store = QdrantStore(QdrantClient(":memory:"))
    store.create("docs", 4)
    assert store.configure_index("docs", IndexSettings(m=8), {"n": "integer"}) == [
        "nothing: the local mode of qdrant-client has no index and ignores what is set"
    ]
    found = store.index_info("docs")
    assert (found.settings, found.indexed_vectors, found.payload) == (IndexSettings(), 0, {})
    assert store.search("docs", np.ones((1, 4), dtype=np.float32), ef=64) == [[]]


class FakeEmbedder:
    """Not asked for anything here."""

    name, revision, size = "fake", "0", SIZE


def test_the_owner_counts_what_searches_filter_by_under_each_name_and_configures_an_index(store: EdgeStore) -> None:
    embedder = FakeEmbedder()
    service = OwnerService(store, embedder, embedder, WorkerSettings(), print, print)  # type: ignore[arg-type]
    fill(store, "docs", 20)
    store.set_alias("live", "docs")
    for name, wanted in (("docs", {"n": 1}), ("live", {"n": 2, "k": "x"}), ("docs", None)):
        ask = calls.SearchVectors(collection=name, vectors=VECTORS[0].tobytes(), count=1, query_filter=wanted)
        assert isinstance(service.answer(ask), calls.HitLists)
    described = service.answer(calls.DescribeIndex(collection="live"))
    assert isinstance(described, calls.IndexDescription)
    assert described.index.filters == {"n": 2, "k": 1}
    made = service.answer(calls.ConfigureIndex(collection="live", payload={"n": "integer"}))
    assert isinstance(made, calls.IndexDescription)
    assert made.index.payload == {"n": "integer"}
    assert made.done == ("payload index of 'n' (integer) made",)
    assert isinstance(service.answer(calls.DescribeIndex(collection="none")), Failure)


def test_fields_are_counted_up_to_a_bound_and_those_that_are_known_go_on() -> None:
    filters = Filters()
    filters.note("docs", {"first": 1})
    filters.note("docs", {str(number): 1 for number in range(MOST_FIELDS)})
    filters.note("docs", {"first": 1})
    found = filters.of(["docs"])
    assert len(found) == MOST_FIELDS
    assert next(iter(found.items())) == ("first", 2)
    assert filters.of(["other"]) == {}
