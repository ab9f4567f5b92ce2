"""The tune task on the embedded engine, with a real graph and a real owner's count of filters; vectors are synthetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient

from morgan.background.ipc.errors import CollectionNotFound, VectorSizeMismatch
from morgan.background.ipc.records import IndexSettings, Point, QueryJob, TaskType
from morgan.background.ipc.settings import GateSettings, TuningSettings, WorkerSettings
from morgan.background.workers.edge import EdgeStore
from morgan.background.workers.lending import build_index
from morgan.background.workers.qdrant import QdrantStore
from morgan.background.workers.task import Job, Outcome, Step, Tools, Verdict, drive
from morgan.background.workers.trials import configurations, tried
from morgan.background.workers.tuning import DEPTHS, tune, values_at
from morgan.background.workers.vectors import Vectors

SIZE, COUNT = 64, 45_000  # 11 MB of vectors: the engine builds a graph above 10
RNG = np.random.default_rng(7)
VECTORS = RNG.normal(size=(COUNT, SIZE)).astype("<f4")


class FakeHashEmbedder:
    """Vectors from a hash of the text: near nothing in particular, which is hard for a graph."""

    name, revision, size = "fake-hash", "0", SIZE

    def embed(self, texts: Sequence[str], *, pace: Callable[[], None] | None = None) -> Vectors:
        rows = [np.random.default_rng(list(text.encode())).normal(size=SIZE) for text in texts]
        return np.array(rows, dtype=np.float32)


def fill(store: Any, name: str, count: int, like: str = "") -> None:
    store.create(name, SIZE, like=like)
    for start in range(0, count, 1000):
        store.upsert(
            name,
            [
                Point(
                    id=n,
                    payload={"text": f"text {n}. More.", "author": f"a{n % 7}", "meta": {"years": [n % 3]}, "x": 0.5},
                    vector=VECTORS[n].tobytes(),
                )
                for n in range(start, min(start + 1000, count))
            ],
        )


def tools_of(store: Any, **tuning: Any) -> Tools:
    settings = WorkerSettings(gate=GateSettings(queries=40), tuning=TuningSettings(**tuning))
    embedder: Any = FakeHashEmbedder()
    return Tools(store, embedder, embedder, settings, clock=lambda: 0.0, pace=lambda: None)


def run(tools: Tools, collection: str = "docs", **params: Any) -> tuple[dict[str, Any], list[Step]]:
    steps: list[Step] = []

    def note(step: Step) -> Verdict:
        steps.append(step)
        return Verdict.GO_ON

    job = Job("t", TaskType.TUNE, collection, params, queries=(QueryJob(text="asked"),))
    ended = drive(tune(job, tools), note)
    assert isinstance(ended, Outcome)
    return ended.result | {"is_skipped": ended.is_skipped}, steps


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EdgeStore]:
    store = EdgeStore(tmp_path)
    yield store
    store.close()


@pytest.fixture(scope="module")
def poor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeStore]:
    """A collection with a graph of few edges, of which a shallow search finds little."""
    store = EdgeStore(tmp_path_factory.mktemp("poor"))
    store.create("pattern", SIZE)
    store.configure_index("pattern", IndexSettings(m=8, ef_construct=32), {})
    fill(store, "docs", COUNT, like="pattern")
    build_index(store.lend("docs"))
    yield store
    store.close()


def test_a_deeper_search_is_proposed_from_what_was_measured_and_nothing_is_changed_unasked(poor: EdgeStore) -> None:
    before = poor.index_info("docs")
    found, steps = run(tools_of(poor, recall_goal=0.5))
    assert [row["ef"] for row in found["depths"]] == list(DEPTHS)
    recalls = [row["recall"] for row in found["depths"][1:]]
    assert recalls[0] < 0.5 < recalls[-1]
    assert found["queries"] == 40
    assert found["proposals"][0].startswith("search with ef ")
    assert found["applied"] == []
    assert poor.index_info("docs") == before
    assert [(t["m"], t["ef_construct"], t["is_int8"]) for t in found["trials"]] == [
        (8, 32, False),
        (16, 64, False),
        (8, 32, True),
    ]
    assert found["trials"][0]["recall"] < found["trials"][1]["recall"]
    assert found["trials_on"] == 10_000
    assert {step.progress.note for step in steps} == {
        "measuring recall and latency",
        "reading a sample of the vectors",
        "trying other graphs on a sample",
    }


def test_another_graph_is_proposed_where_no_depth_reaches_the_goal_and_applied_to_the_next_version(
    poor: EdgeStore,
) -> None:
    found, _ = run(tools_of(poor, recall_goal=1.0), apply=True)
    assert found["proposals"][0].startswith("no depth of search reaches recall@10 1")
    assert "the next version of the collection gets the other graph" in found["applied"][0]
    assert poor.index_info("docs").settings == IndexSettings(m=16, ef_construct=64)


def test_fields_that_filters_use_are_measured_indexed_and_measured_again(store: EdgeStore) -> None:
    fill(store, "docs", 300)
    tools = replace(tools_of(store), filters=lambda name: {"author": 5, "gone": 9, "x": 2})
    found, _ = run(tools, fields=["meta.years"])
    assert {(one["field"], one["kind"], one["uses"]) for one in found["filters"]} == {
        ("author", "keyword", 5),
        ("meta.years", "integer", 0),
    }
    assert store.index_info("docs").payload == {}
    assert found["indexed_vectors"] == 0
    assert found["trials"] == []
    done, _ = run(tools, fields=["meta.years"], apply=True)
    assert store.index_info("docs").payload == {"author": "keyword", "meta.years": "integer"}
    assert all(one["p50_ms_after"] > 0 for one in done["filters"])
    again, _ = run(tools, fields=["meta.years"], apply=True)
    assert again["proposals"] == again["applied"] == []


def test_the_configuration_may_apply_and_a_parameter_goes_before_it(store: EdgeStore) -> None:
    fill(store, "docs", 30)
    run(tools_of(store, apply=True), fields=["author"], apply=False)
    assert store.index_info("docs").payload == {}
    run(tools_of(store, apply=True), fields=["author"])
    assert store.index_info("docs").payload == {"author": "keyword"}


def test_what_the_local_mode_of_the_client_ignores_is_said() -> None:
    store = QdrantStore(QdrantClient(":memory:"))
    fill(store, "docs", 30)
    found, _ = run(tools_of(store), fields=["author"], apply=True)
    assert found["applied"] == ["nothing: the local mode of qdrant-client has no index and ignores what is set"]


def test_an_empty_collection_is_skipped_and_a_missing_one_or_another_size_is_an_error(store: EdgeStore) -> None:
    store.create("docs", SIZE)
    found, _ = run(tools_of(store))
    assert (found["is_skipped"], found["reason"]) == (True, "empty")
    with pytest.raises(CollectionNotFound):
        run(tools_of(store), "none")
    store.create("other", 3)
    store.upsert("other", [Point(id=1, vector=np.ones(3, dtype="<f4").tobytes())])
    with pytest.raises(VectorSizeMismatch):
        run(tools_of(store), "other")


def test_a_collection_without_texts_is_measured_with_the_queries_there_are(store: EdgeStore) -> None:
    store.create("docs", SIZE)
    store.upsert("docs", [Point(id=n, vector=VECTORS[n].tobytes()) for n in range(20)])
    found, _ = run(tools_of(store))
    assert found["queries"] == 1
    assert found["depths"][0]["recall"] == 1.0


@pytest.mark.parametrize("distance", ["cosine", "dot", "euclid", "manhattan"])
def test_a_trial_of_few_vectors_finds_nearly_all_with_every_distance(distance: str) -> None:
    made = configurations(IndexSettings(m=12))
    assert made == [(12, 100, False), (24, 200, False), (12, 100, True)]
    found = list(tried(VECTORS[:500], VECTORS[500:510], distance, made, lambda: None))
    assert [(one.m, one.ef_construct, one.is_int8) for one in found] == made
    assert all(one.recall > 0.8 for one in found)


@pytest.mark.parametrize(("path", "values"), [("a", [1]), ("b.c", ["x", "y"]), ("b.d", []), ("a.c", []), ("e", [None])])
def test_the_values_at_a_path_are_those_that_a_filter_would_look_at(path: str, values: list[Any]) -> None:
    assert list(values_at({"a": 1, "b": {"c": ["x", "y"]}, "e": None}, path)) == values
