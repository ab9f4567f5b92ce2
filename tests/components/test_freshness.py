"""A change of documents drops every cached result it can alter: held against brute force, on a real store file."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morgan.background.ipc.commands import PointsChanged
from morgan.background.ipc.counters import CounterFold
from morgan.background.ipc.records import ComputedResult, TaskRecord, TaskStatus, TaskType
from morgan.background.ipc.store import ResultStore
from morgan.background.supervisor.affected import Change, Dependencies, can_alter, similarities
from morgan.background.supervisor.freshness import Freshness
from morgan.background.supervisor.popularity import Popularity
from morgan.background.supervisor.results import EMPTY_TTL_S, KEPT_CHANGES, CachePolicy, ResultKeeper

NOW = 1_000_000.0
DIMENSIONS = 3
ROWS, DEPTH = 2, 3
DISTANCES = ("cosine", "dot", "euclid", "manhattan")

coordinate = st.integers(-4, 4).map(float)
vector = st.tuples(*[coordinate] * DIMENSIONS).filter(any).map(lambda v: np.array(v, dtype=np.float32))
step = st.one_of(st.tuples(st.integers(0, 11), vector), st.tuples(st.integers(0, 11), st.none()))


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[ResultKeeper]:
    found = new_keeper(tmp_path)
    yield found
    found.store.close()


def new_keeper(folder: Path, capacity: int = 50) -> ResultKeeper:
    store = ResultStore(folder / "results", capacity=capacity)
    return ResultKeeper(store, CounterFold(folder / "readers"), Popularity(), CachePolicy(max_entries=capacity))


def search(query: np.ndarray, documents: dict[int, np.ndarray], distance: str) -> list[tuple[int, float]]:
    """Return the nearest DEPTH documents, exactly: id and similarity (higher is nearer)."""
    if not documents:
        return []
    ids = list(documents)
    scores = similarities(query[None, :], np.stack([documents[i] for i in ids]), distance)[0]
    scores = np.round(scores, 5)  # equal ones differ in the last bit by the number of documents
    order = sorted(range(len(ids)), key=lambda i: (-scores[i], ids[i]))
    return [(ids[i], float(scores[i])) for i in order[:DEPTH]]


def computed(text: str, query: np.ndarray, found: list[tuple[int, float]], **more: object) -> ComputedResult:
    rows = found[:ROWS]
    fields = {
        "query_text": text,
        "collection": "docs",
        "ids": tuple(i for i, _ in rows),
        "scores": np.array([s for _, s in rows], "<f4").tobytes(),
        "contents": tuple(f"text {i}" for i, _ in rows),
        "sources": ("",) * len(rows),
        "metadata": ({},) * len(rows),
        "computed_at": NOW,
        "embedding": query.tobytes(),
        "candidates": tuple(i for i, _ in found),
        "cutoff": found[-1][1] if len(found) == DEPTH else None,
    }
    return ComputedResult(**(fields | more))  # type: ignore[arg-type]


def change(ids: list[int], vectors: list[np.ndarray] | None = None, **more: object) -> PointsChanged:
    raw = b"".join(v.tobytes() for v in vectors or [])
    fields = {
        "seq": 0,
        "names": ("docs", "alias"),
        "ids": tuple(ids),
        "vectors": raw,
        "vector_count": len(vectors or []),
    }
    return PointsChanged(**(fields | more))  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(DISTANCES),
    st.lists(vector, min_size=1, max_size=5),
    st.dictionaries(st.integers(0, 11), vector, max_size=8),
    st.lists(step, max_size=12),
)
def test_no_result_in_the_cache_is_older_than_its_documents_with_exact_search(
    distance: str,
    queries: list[np.ndarray],
    documents: dict[int, np.ndarray],
    steps: list[tuple[int, np.ndarray | None]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        keeper = new_keeper(Path(folder))
        for n, query in enumerate(queries):
            keeper.put(computed(f"q{n}", query, search(query, documents, distance)), NOW)
        for point_id, written in steps:
            if written is None:
                documents.pop(point_id, None)
                event = change([point_id], distance=distance)
            else:
                documents[point_id] = written
                event = change([point_id], [written], distance=distance)
            keeper.change(Change.of(event), NOW)
            for n, query in enumerate(queries):
                held = keeper.store.get(f"q{n}", "docs", "", NOW)
                now = search(query, documents, distance)
                if held is not None:
                    assert held.candidates == tuple(i for i, _ in now)
                else:
                    keeper.put(computed(f"q{n}", query, now), NOW)
        keeper.store.close()


def test_few_new_documents_leave_nearly_all_results_in_the_cache() -> None:
    # 2,000 documents here; the figure for 50,000 is `bench store`'s
    chance = np.random.default_rng(7)
    documents = chance.standard_normal((2000, 32)).astype(np.float32)
    dependencies = Dependencies()
    queries = chance.standard_normal((200, 32)).astype(np.float32)
    scores = similarities(queries, documents, "cosine")
    for n, row in enumerate(scores):
        nearest = np.argsort(-row)[:10]
        dependencies.put(str(n), queries[n], float(row[nearest[-1]]), nearest.tolist())
    fresh = chance.standard_normal((4, 32)).astype(np.float32)
    wanted = {
        str(n) for n in np.flatnonzero(similarities(queries, fresh, "cosine").max(axis=1) >= np.sort(scores)[:, -10])
    }
    found = set(dependencies.affected(Change.of(change([1_000_001 + n for n in range(4)], list(fresh)))))
    assert found == wanted
    assert 0 < len(found) < 20


def test_a_result_that_a_later_change_can_alter_is_not_published(keeper: ResultKeeper) -> None:
    query = np.array([1, 0, 0], dtype=np.float32)
    documents = {n: np.array([1, n, 1], dtype=np.float32) for n in range(5)}
    before = computed("q", query, search(query, documents, "cosine"), as_of=10)
    keeper.change(Change.of(change([9], [np.array([0, 0, -1], dtype=np.float32)], seq=11)), NOW)  # far away
    assert keeper.put(before, NOW)
    keeper.change(Change.of(change([8], [query], seq=12)), NOW)
    assert keeper.store.get("q", "docs", "", NOW) is None
    assert not keeper.put(before, NOW)
    assert keeper.put(computed("q", query, search(query, documents | {8: query}, "cosine"), as_of=12), NOW)
    for seq in range(13, 14 + KEPT_CHANGES):
        keeper.change(Change.of(change([9], [np.array([0, 0, -1], dtype=np.float32)], seq=seq)), NOW)
    assert not keeper.put(before, NOW)  # what came since is not remembered any more


def test_what_a_reindex_changed_is_served_until_it_is_computed_again(keeper: ResultKeeper) -> None:
    query = np.array([1, 0, 0], dtype=np.float32)
    documents = {n: np.array([1, n, 1], dtype=np.float32) for n in range(5)}
    keeper.put(computed("popular", query, search(query, documents, "cosine")), NOW)
    keeper.put(computed("filtered", query, search(query, documents, "cosine"), scope="s"), NOW)
    keeper.change(Change.of(change([0], [query], is_soft=True)), NOW)
    assert keeper.store.get("popular", "docs", "", NOW) is not None
    assert not keeper.holds("popular", "docs", "", NOW)
    assert [entry.query_text for entry in keeper.stale(NOW)["docs"]] == ["popular"]
    assert keeper.store.get("filtered", "docs", "s", NOW) is None
    keeper.put(computed("popular", query, search(query, documents, "cosine")), NOW)
    assert keeper.stale(NOW) == {}


def test_a_change_of_anything_drops_every_result_of_the_collection_under_all_its_names(keeper: ResultKeeper) -> None:
    query = np.array([1, 0, 0], dtype=np.float32)
    for name in ("docs", "alias", "other"):
        keeper.put(computed("q", query, [(1, 0.5)], collection=name), NOW)
    assert keeper.change(Change.of(change([], is_whole=True)), NOW) == 2
    assert [entry.collection for entry in keeper.store.entries()] == ["other"]


def test_a_result_without_rows_is_kept_for_a_short_time_and_until_the_next_write(keeper: ResultKeeper) -> None:
    query = np.array([1, 0, 0], dtype=np.float32)
    keeper.put(computed("q", query, []), NOW)
    held = keeper.store.get("q", "docs", "", NOW)
    assert held is not None
    assert (len(held), held.expires_at) == (0, NOW + EMPTY_TTL_S)
    keeper.change(Change.of(change([1], [-query])), NOW)
    assert keeper.store.get("q", "docs", "", NOW) is None


def test_what_a_store_depends_on_is_known_again_after_a_restart(tmp_path: Path) -> None:
    query = np.array([1, 0, 0], dtype=np.float32)
    documents = {n: np.array([1, n, 1], dtype=np.float32) for n in range(5)}
    first = new_keeper(tmp_path)
    first.put(computed("q", query, search(query, documents, "cosine")), NOW)
    first.store.close()
    again = new_keeper(tmp_path)
    again.change(Change.of(change([9], [np.array([0, 0, -1], dtype=np.float32)])), NOW)
    assert len(again.store) == 1
    again.change(Change.of(change([0])), NOW)
    assert len(again.store) == 0
    again.store.close()


def test_a_result_is_altered_by_its_own_collections_changes_alone() -> None:
    query = np.array([1, 0, 0], dtype=np.float32)
    of_docs = computed("q", query, [(1, 0.9), (2, 0.8), (3, 0.7)])
    assert can_alter(Change.of(change([1])), of_docs)
    assert not can_alter(Change.of(change([1], names=("elsewhere",))), of_docs)
    other_size = np.ones(5, dtype=np.float32)
    assert can_alter(Change.of(change([7], [other_size])), of_docs)  # another model's: nothing can be said


def test_rows_of_dependencies_are_used_again_and_other_models_depend_on_anything() -> None:
    dependencies = Dependencies()
    for turn, n in itertools.product(range(3), range(40)):
        dependencies.put(f"{turn} {n}", np.ones(3, dtype=np.float32), 2.0, [n])
        if turn:
            dependencies.remove(f"{turn - 1} {n}")
    assert len(dependencies) == 40
    assert dependencies.affected(Change.of(change([7]))) == ["2 7"]
    dependencies.put("odd", np.ones(4, dtype=np.float32), 2.0, [99])
    assert dependencies.affected(Change.of(change([1000]))) == ["odd"]


def test_after_a_start_and_after_a_reindex_results_are_checked_and_computed_again(keeper: ResultKeeper) -> None:
    query = np.array([1, 0, 0], dtype=np.float32)
    keeper.put(computed("q", query, [(1, 0.9), (2, 0.8), (3, 0.7)]), NOW)
    freshness = Freshness(keeper, Popularity(), ("docs", "notes", "web"))
    warm = TaskRecord(task_id="w", task_type=TaskType.WARM, collection="docs", status=TaskStatus.COMPLETED)
    assert freshness.wanted(NOW) == ["docs"]
    assert [job.text for job in freshness.to_check(warm, NOW)] == ["q"]
    assert not freshness.completed(warm, NOW)
    assert freshness.wanted(NOW) == []
    assert freshness.to_check(warm, NOW) == ()
    freshness.points_changed(change([1], [query], is_soft=True), NOW)
    reindex = TaskRecord(task_id="r", task_type=TaskType.REINDEX, collection="docs", result={"documents_embedded": 1})
    assert freshness.completed(reindex, NOW)
    assert freshness.wanted(NOW) == ["docs"]
    assert freshness.stale_queries("docs", NOW) == ["q"]


def test_what_an_application_put_into_a_collection_that_is_not_ours_stays(keeper: ResultKeeper) -> None:
    query = np.array([1, 0, 0], dtype=np.float32)
    keeper.put(computed("theirs", query, [(1, 0.9)], candidates=(), cutoff=None), NOW)
    keeper.put(computed("ours", query, [(1, 0.9), (2, 0.8), (3, 0.7)]), NOW)
    freshness = Freshness(keeper, Popularity(), ("docs",))
    freshness.is_gone("docs")
    assert [entry.query_text for entry in keeper.store.entries()] == ["theirs"]
    freshness.check_all()
    assert freshness.wanted(NOW + 13 * 3600) == []


def test_the_collections_that_are_written_or_searched_the_most_are_the_active_ones(keeper: ResultKeeper) -> None:
    popularity = Popularity()
    freshness = Freshness(keeper, popularity, ("docs", "notes", "web"))
    assert freshness.active(NOW) == frozenset()
    freshness.points_changed(change([1, 2, 3, 4], names=("notes",)), NOW)
    popularity.track("q", "docs", "", 0.0, NOW)
    popularity.track("q", "elsewhere", "", 0.0, NOW)
    assert freshness.active(NOW) == {"notes", "docs"}
    for _ in range(20):
        popularity.track("q", "web", "", 0.0, NOW)
    assert freshness.active(NOW) == {"web", "notes"}
