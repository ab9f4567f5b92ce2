"""What the result store holds: who leaves when it is full, and what counts as an access. On a real store file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morgan.background.ipc.counters import CounterFold
from morgan.background.ipc.errors import ResultStoreError
from morgan.background.ipc.query import query_hash
from morgan.background.ipc.reader import ResultReader
from morgan.background.ipc.records import ComputedResult
from morgan.background.ipc.store import ResultStore
from morgan.background.supervisor.affected import Change
from morgan.background.supervisor.popularity import Popularity
from morgan.background.supervisor.results import CachePolicy, ResultKeeper

NOW = 1_000_000.0
CAPACITY = 4


def new_keeper(folder: Path, popularity: Popularity) -> ResultKeeper:
    (folder / "readers").mkdir(exist_ok=True)
    store = ResultStore(folder / "results", capacity=CAPACITY + 1)
    policy = CachePolicy(max_entries=CAPACITY)
    return ResultKeeper(store, CounterFold(folder / "readers"), popularity, policy)


@pytest.fixture
def popularity() -> Popularity:
    return Popularity()


@pytest.fixture
def keeper(tmp_path: Path, popularity: Popularity) -> Iterator[ResultKeeper]:
    found = new_keeper(tmp_path, popularity)
    yield found
    found.store.close()


def computed(text: str, *, collection: str = "docs", scope: str = "", is_ours: bool = True) -> ComputedResult:
    return ComputedResult(
        query_text=text,
        collection=collection,
        ids=(1,),
        scores=bytes(4),
        contents=("text",),
        sources=("",),
        metadata=({},),
        computed_at=NOW,
        scope=scope,
        candidates=(1,) if is_ours else (),
    )


def held(keeper: ResultKeeper) -> set[str]:
    return {entry.query_text for entry in keeper.store.entries()}


def fill(keeper: ResultKeeper, popularity: Popularity) -> None:
    """With queries that were asked 2, 3, 4 and 5 times."""
    for n in range(CAPACITY):
        popularity.add(f"asked {n + 2}", "docs", "", n + 2, NOW)
        keeper.put(computed(f"asked {n + 2}"), NOW, is_asked_for=False)
    assert len(held(keeper)) == CAPACITY


def test_of_what_nobody_waits_for_a_full_store_takes_only_what_is_worth_more(
    keeper: ResultKeeper, popularity: Popularity
) -> None:
    fill(keeper, popularity)
    popularity.add("asked once", "docs", "", 1, NOW)
    popularity.add("asked often", "docs", "", 20, NOW)
    assert not keeper.is_worth("asked once", "docs", NOW)
    assert keeper.put(computed("asked once"), NOW, is_asked_for=False)
    assert held(keeper) == {"asked 2", "asked 3", "asked 4", "asked 5"}
    assert keeper.is_worth("asked often", "docs", NOW)
    assert keeper.put(computed("asked often"), NOW, is_asked_for=False)
    assert held(keeper) == {"asked often", "asked 3", "asked 4", "asked 5"}
    assert keeper.take_void() == {query_hash("asked 2", "docs")}


def test_what_somebody_asked_for_is_taken_in_always(keeper: ResultKeeper, popularity: Popularity) -> None:
    fill(keeper, popularity)
    assert keeper.put(computed("new"), NOW)
    assert "new" in held(keeper)
    assert len(held(keeper)) == CAPACITY


def test_a_result_that_the_store_refuses_costs_no_other(keeper: ResultKeeper, popularity: Popularity) -> None:
    fill(keeper, popularity)
    before = held(keeper)
    with pytest.raises(ResultStoreError, match="too large"):
        keeper.put(ComputedResult(**{**as_fields(computed("huge")), "contents": ("x" * 300_000_000,)}), NOW)
    assert held(keeper) == before
    assert query_hash("huge", "docs") not in keeper.admission


def as_fields(result: ComputedResult) -> dict[str, object]:
    return {name: getattr(result, name) for name in result.__struct_fields__}


def test_hits_keep_an_entry_and_count_once_under_its_scope_and_the_query_alone(
    keeper: ResultKeeper, popularity: Popularity, tmp_path: Path
) -> None:
    keeper.put(computed("plain"), NOW, ttl_s=1e12)
    keeper.put(computed("mine", scope="tenant", is_ours=False), NOW, ttl_s=1e12)
    reader = ResultReader(tmp_path / "results", counters_dir=tmp_path / "readers")
    for _ in range(3):
        assert reader.get("plain", "docs") is not None
        assert reader.get("mine", "docs", "tenant") is not None
        assert reader.get("unknown", "docs") is None
    assert keeper.collect_counts(NOW) == 9
    reader.close()
    counts = {(one.query_text, one.scope): one.access_count for one in popularity.records(NOW)}
    assert counts == {("plain", ""): 3, ("mine", "tenant"): 3, ("mine", ""): 3}
    assert popularity.total_accesses == 6
    assert {one.query_text: one.access_count for one in popularity.popular(NOW)} == {"plain": 3, "mine": 3}
    assert keeper.stats(NOW)["total_tracked_queries"] == 2


steps = st.lists(
    st.tuples(
        st.sampled_from(["ask", "precompute", "drop", "drop all", "change", "restart", "search"]),
        st.integers(0, 9),
        st.sampled_from(["docs", "code"]),
        st.sampled_from([0.0, 30.0, 3 * 3600.0]),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=60)
@given(steps=steps)
def test_admission_knows_the_entries_of_the_store_and_no_others(steps: list[tuple[str, int, str, float]]) -> None:
    popularity, now = Popularity(), NOW
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keeper = new_keeper(folder, popularity)
        for what, n, collection, gap_s in steps:
            now += gap_s
            text = f"q{n}"
            match what:
                case "ask" | "precompute":
                    keeper.put(computed(text, collection=collection), now, 3600.0, is_asked_for=what == "ask")
                case "drop":
                    keeper.invalidate(None, text)
                case "drop all":
                    keeper.invalidate(collection, None)
                case "change":
                    keeper.change(Change(0, frozenset([collection]), None, None, "cosine", is_soft=False), now)
                case "search":
                    popularity.add(text, collection, "", n, now)
                case "restart":
                    keeper.store.close()
                    keeper = new_keeper(folder, popularity)
            keys = {entry.key_hash for entry in keeper.store.entries()}
            assert len(keys) == len(keeper.admission) <= CAPACITY
            assert all(key in keeper.admission for key in keys)
        keeper.store.close()
