"""Aliases in the result keeper, on a real store: which query is one, whose rows it has, and when it goes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morgan.background.ipc.counters import CounterFold
from morgan.background.ipc.query import query_hash
from morgan.background.ipc.reader import ResultReader
from morgan.background.ipc.records import ComputedResult
from morgan.background.ipc.result import CachedResult
from morgan.background.ipc.store import ResultStore
from morgan.background.supervisor.affected import Change, id_words
from morgan.background.supervisor.aliases import Aliases, as_alias, overlap
from morgan.background.supervisor.freshness import Freshness
from morgan.background.supervisor.popularity import Popularity
from morgan.background.supervisor.results import CachePolicy, ResultKeeper

NOW = 4e9  # readers have their own clock: nothing expires before that
CAPACITY = 4
DEGREES = np.pi / 180


def new_keeper(folder: Path, popularity: Popularity, alias_overlap: float = 1.0) -> ResultKeeper:
    (folder / "readers").mkdir(exist_ok=True)
    store = ResultStore(folder / "results", capacity=CAPACITY + 1)
    policy = CachePolicy(max_entries=CAPACITY, alias_overlap=alias_overlap)
    return ResultKeeper(store, CounterFold(folder / "readers"), popularity, policy)


@pytest.fixture
def popularity() -> Popularity:
    return Popularity()


@pytest.fixture
def keeper(tmp_path: Path, popularity: Popularity) -> Iterator[ResultKeeper]:
    found = new_keeper(tmp_path, popularity)
    yield found
    found.store.close()


def computed(text: str, degrees: float, ids: tuple[int, ...] = (1, 2), **more: Any) -> ComputedResult:
    """Return a result of a query whose vector points at `degrees`: documents within 30 degrees of it would alter it."""
    fields: dict[str, Any] = {
        "query_text": text,
        "collection": "docs",
        "ids": ids,
        "scores": np.full(len(ids), degrees, "<f4").tobytes(),
        "contents": tuple(f"text {one}" for one in ids),
        "sources": ("",) * len(ids),
        "metadata": ({},) * len(ids),
        "computed_at": NOW,
        "embedding": at(degrees).tobytes(),
        "candidates": (*ids, 99),
        "cutoff": float(np.cos(30 * DEGREES)),
    }
    return ComputedResult(**fields | more)


def at(degrees: float) -> Any:
    return np.array([np.cos(degrees * DEGREES), np.sin(degrees * DEGREES)], dtype="<f4")


def aliases(keeper: ResultKeeper) -> dict[str, str]:
    names = {entry.key_hash: entry.query_text for entry in keeper.store.entries()}
    return {entry.query_text: names[entry.alias_of] for entry in keeper.store.entries() if entry.alias_of}


def held(keeper: ResultKeeper) -> set[str]:
    return {entry.query_text for entry in keeper.store.entries()}


def test_a_query_whose_result_agrees_with_the_nearest_entrys_is_its_alias(keeper: ResultKeeper, tmp_path: Path) -> None:
    keeper.put(computed("first", 0), NOW)
    keeper.put(computed("far", 90, ids=(5, 6)), NOW)
    keeper.put(computed("near", 5), NOW)
    assert aliases(keeper) == {"near": "first"}
    found = ResultReader(tmp_path / "results").get("near", "docs")
    assert found is not None
    assert (found.query_text, found.ids, found.scores.tolist()) == ("near", (1, 2), [5.0, 5.0])
    keeper.put(computed("other order", 4, ids=(2, 1)), NOW)
    keeper.put(computed("other rows", 3, ids=(1, 3)), NOW)
    keeper.put(computed("nearer to far", 60), NOW)  # agrees with another than the nearest
    keeper.put(computed("no rows", 1, ids=()), NOW)
    keeper.put(computed("no vector", 1, embedding=b""), NOW)
    keeper.put(computed("other model", 1, embedding=bytes(12)), NOW)
    assert aliases(keeper) == {"near": "first"}


def test_results_of_another_scope_or_collection_are_never_compared(keeper: ResultKeeper) -> None:
    keeper.put(computed("mine", 0, scope="a tenant"), NOW)
    keeper.put(computed("yours", 0, scope="another"), NOW)
    keeper.put(computed("anybody's", 0), NOW)
    keeper.put(computed("elsewhere", 0, collection="code"), NOW)
    assert aliases(keeper) == {}
    keeper.put(computed("mine too", 1, scope="a tenant"), NOW)
    assert aliases(keeper) == {"mine too": "mine"}


def test_an_alias_takes_no_entrys_place_and_its_hits_keep_its_entry(
    keeper: ResultKeeper, popularity: Popularity, tmp_path: Path
) -> None:
    for n in range(CAPACITY):
        popularity.add(f"asked {n + 2}", "docs", "", n + 2, NOW)
        keeper.put(computed(f"asked {n + 2}", 40 * n, ids=(n, 50)), NOW, is_asked_for=False)
    assert keeper.put(computed("alias of the least", 1, ids=(0, 50)), NOW, is_asked_for=False)
    assert aliases(keeper) == {"alias of the least": "asked 2"}
    assert len(keeper.admission) == CAPACITY
    reader = ResultReader(tmp_path / "results", counters_dir=tmp_path / "readers")
    for _ in range(10):
        assert reader.get("alias of the least", "docs") is not None
    assert keeper.collect_counts(NOW) == 10
    assert keeper.stats(NOW)["alias_hits"] == 10
    reader.close()
    popularity.add("wanted", "docs", "", 20, NOW)
    keeper.put(computed("wanted", 200, ids=(7,)), NOW, is_asked_for=False)
    assert held(keeper) == {"asked 2", "alias of the least", "asked 4", "asked 5", "wanted"}


def test_an_alias_that_has_other_rows_now_and_is_not_worth_a_record_is_gone(
    keeper: ResultKeeper, popularity: Popularity
) -> None:
    for n in range(CAPACITY):
        popularity.add(f"entry {n}", "docs", "", 5, NOW)
        keeper.put(computed(f"entry {n}", 40 * n, ids=(n, 50)), NOW, is_asked_for=False)
    keeper.put(computed("alias", 1, ids=(0, 50)), NOW, is_asked_for=False)
    assert aliases(keeper) == {"alias": "entry 0"}
    keeper.put(computed("alias", 1, ids=(0, 51)), NOW, is_asked_for=False)
    assert held(keeper) == {f"entry {n}" for n in range(CAPACITY)}
    assert keeper.take_void() == {query_hash("alias", "docs")}


def test_an_entry_that_leaves_takes_its_aliases_along(keeper: ResultKeeper, popularity: Popularity) -> None:
    for n in range(CAPACITY):
        keeper.put(computed(f"entry {n}", 40 * n, ids=(n, 50)), NOW, is_asked_for=False)
    keeper.put(computed("alias", 1, ids=(0, 50)), NOW, is_asked_for=False)
    assert keeper.take_void() == set()
    for n in range(1, CAPACITY):
        popularity.add(f"entry {n}", "docs", "", 5, NOW)
    popularity.add("wanted", "docs", "", 20, NOW)
    keeper.put(computed("wanted", 200, ids=(7,)), NOW, is_asked_for=False)
    assert held(keeper) == {"entry 1", "entry 2", "entry 3", "wanted"}
    assert keeper.take_void() == {query_hash("entry 0", "docs"), query_hash("alias", "docs")}


def test_the_alias_used_the_longest_ago_makes_room_for_another(keeper: ResultKeeper) -> None:
    keeper.put(computed("entry", 0), NOW)
    for n in range(CAPACITY + 1):
        keeper.put(computed(f"alias {n}", n), NOW)
    assert set(aliases(keeper)) == {f"alias {n}" for n in range(1, CAPACITY + 1)}


def test_a_change_of_documents_drops_an_alias_by_its_own_cut_off(keeper: ResultKeeper) -> None:
    keeper.put(computed("entry", 0), NOW)
    keeper.put(computed("alias", 20), NOW)

    def written(degrees: float) -> Change:
        return Change(0, frozenset(["docs"]), id_words([1000]), at(degrees)[None], "cosine", is_soft=False)

    assert keeper.change(written(90), NOW) == 0
    assert keeper.change(written(45), NOW) == 1  # 45 degrees from the one, 25 from the other
    assert held(keeper) == {"entry"}
    keeper.put(computed("alias", 20), NOW)
    assert keeper.change(written(-25), NOW) == 1
    assert held(keeper) == set()  # the entry is gone, and the alias has no rows without it


def test_an_entry_computed_again_keeps_the_aliases_that_have_its_rows(keeper: ResultKeeper) -> None:
    keeper.put(computed("entry", 0), NOW)
    keeper.put(computed("alias", 5), NOW)
    keeper.put(computed("entry", 0), NOW + 1)
    assert aliases(keeper) == {"alias": "entry"}
    keeper.take_void()
    keeper.put(computed("entry", 0, ids=(3, 4)), NOW + 2)
    assert held(keeper) == {"entry"}
    assert keeper.take_void() == {query_hash("entry", "docs"), query_hash("alias", "docs")}
    keeper.put(computed("alias", 5), NOW + 3)
    assert aliases(keeper) == {}
    keeper.put(computed("alias", 5, ids=(3, 4)), NOW + 4)  # it had a record of its own meanwhile
    assert aliases(keeper) == {"alias": "entry"}
    assert query_hash("alias", "docs") not in keeper.admission
    keeper.put(computed("alias", 5, ids=(3, 5)), NOW + 5)
    assert aliases(keeper) == {}
    assert query_hash("alias", "docs") in keeper.admission


def test_with_less_overlap_wanted_the_rows_are_the_entrys(tmp_path: Path, popularity: Popularity) -> None:
    keeper = new_keeper(tmp_path, popularity, alias_overlap=0.5)
    keeper.put(computed("entry", 0, ids=(1, 2)), NOW)
    keeper.put(computed("half", 5, ids=(2, 3)), NOW)
    keeper.put(computed("none", 5, ids=(4, 5)), NOW)
    assert aliases(keeper) == {"half": "entry"}
    found = keeper.store.get("half", "docs")
    assert found is not None
    assert (found.ids, found.contents, found.scores.tolist()) == ((1, 2), ("text 1", "text 2"), [0.0, 0.0])
    keeper.store.close()


def test_without_an_overlap_there_are_no_aliases(tmp_path: Path, popularity: Popularity) -> None:
    keeper = new_keeper(tmp_path, popularity, alias_overlap=0.0)
    keeper.put(computed("entry", 0), NOW)
    keeper.put(computed("same", 0), NOW)
    assert aliases(keeper) == {}
    keeper.store.close()


@pytest.mark.parametrize(
    ("ids", "others", "share"), [((), (), 0.0), ((1,), (), 0.0), ((1, 2), (2, 1), 1.0), ((1, 2), (2, 3, 4, 5), 0.25)]
)
def test_the_overlap_is_of_the_longer_result(ids: tuple[int, ...], others: tuple[int, ...], share: float) -> None:
    assert overlap(ids, others) == overlap(others, ids) == share


def test_as_alias_declines_an_empty_result(keeper: ResultKeeper) -> None:
    keeper.put(computed("empty", 0, ids=()), NOW)
    found = keeper.store.get("empty", "docs")
    assert isinstance(found, CachedResult)
    assert as_alias(computed("other", 0, ids=()), found, 1.0) is None


def test_what_is_known_of_an_entrys_use_includes_its_aliases(popularity: Popularity) -> None:
    book = Aliases(popularity)
    popularity.add("entry", "docs", "", 2, NOW)
    popularity.add("alias", "docs", "", 3, NOW + 60)
    entry, alias = query_hash("entry", "docs"), query_hash("alias", "docs")
    alone = book.evidence(entry, NOW + 100)
    book.add(alias, entry)
    together = book.evidence(entry, NOW + 100)
    assert (alone.age_s, together.age_s) == (100.0, 40.0)
    assert sum(together.decayed) == pytest.approx(
        popularity.score(entry, NOW + 100) + popularity.score(alias, NOW + 100)
    )
    assert book.last_at(entry) == book.last_at(alias) == NOW + 60
    book.remove(alias)
    assert book.evidence(entry, NOW + 100) == alone
    assert book.last_at(entry) == NOW


steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["ask", "ask", "ask", "precompute", "drop", "drop all", "written", "deleted", "soft", "restart"]
        ),
        st.integers(0, 11),
        st.integers(0, 2),
        st.sampled_from([0.0, 30.0, 3 * 3600.0]),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=60)
@given(steps=steps)
def test_what_is_served_is_the_last_result_of_the_query_and_admission_knows_the_entries(
    steps: list[tuple[str, int, int, float]],
) -> None:
    """Twelve queries, 7 degrees apart, in two scopes; their rows are one of three sets."""
    popularity, now = Popularity(), NOW
    last: dict[tuple[str, str], ComputedResult] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keeper = new_keeper(folder, popularity)
        reader = ResultReader(folder / "results")
        for what, n, rows, gap_s in steps:
            now += gap_s
            text, scope = f"q{n}", "tenant" if n % 4 == 3 else ""
            match what:
                case "ask" | "precompute":
                    result = computed(text, 7 * n, ids=(10 * rows, 10 * rows + 1), scope=scope, computed_at=now)
                    keeper.put(result, now, 4 * 3600.0, is_asked_for=what == "ask")
                    last[text, scope] = result
                case "drop":
                    keeper.invalidate(None, text)
                case "drop all":
                    keeper.invalidate("docs", None)
                case "written" | "soft":
                    vectors, is_soft = at(7 * n)[None], what == "soft"
                    change = Change(0, frozenset(["docs"]), id_words([1000]), vectors, "cosine", is_soft=is_soft)
                    keeper.change(change, now)
                    if not is_soft:
                        last = {key: one for key, one in last.items() if abs(int(key[0][1:]) - n) * 7 > 30}
                case "deleted":
                    keeper.change(
                        Change(0, frozenset(["docs"]), id_words([10 * rows]), None, "cosine", is_soft=False), now
                    )
                    last = {key: one for key, one in last.items() if one.ids[0] != 10 * rows}
                case "restart":
                    keeper.store.close()
                    keeper = new_keeper(folder, popularity)
                    assert keeper.store.rebuilt_because is None
            entries = list(keeper.store.entries())
            by_key = {entry.key_hash: entry for entry in entries}
            whole = {entry.key_hash for entry in entries if not entry.alias_of}
            assert len(whole) == len(keeper.admission) <= CAPACITY
            assert all(key in keeper.admission for key in whole)
            assert len(keeper.aliases) == len(entries) - len(whole) <= CAPACITY
            for entry in entries:
                found = reader.get_at(entry.query_text, "docs", entry.scope, now)
                if entry.expires_at > now:
                    assert found is not None
                    result = last[entry.query_text, entry.scope]
                    assert (found.ids, found.contents, found.scores.tobytes()) == (
                        result.ids,
                        result.contents,
                        result.scores,
                    )
                if entry.alias_of:
                    assert keeper.aliases.entry_of(entry.key_hash) == entry.alias_of
                    assert by_key[entry.alias_of].scope == entry.scope
        keeper.store.close()


# --- similar queries ---------------------------------------------------------------------------------------------------


def test_every_miss_is_an_audit_of_its_nearest_entry(keeper: ResultKeeper) -> None:
    ten = tuple(range(10))
    keeper.put(computed("first", 0, ids=ten), NOW)
    keeper.put(computed("right", 5, ids=(*range(8), 20, 21)), NOW)
    keeper.put(computed("wrong", 3, ids=(*range(7), 30, 31, 32)), NOW)
    keeper.put(computed("wrong", 3, ids=ten), NOW)  # not a miss: it was there
    keeper.put(computed("nobody asked", 3, ids=ten), NOW, is_asked_for=False)
    keeper.put(computed("another's", 1, ids=ten, candidates=()), NOW)
    report = keeper.stats(NOW)["similar"]
    assert (report["audits"], report["audit_errors"], report["served"], report["rate"]) == (2, 1, 0, 0.0)


def test_a_similar_query_is_served_only_with_evidence_and_its_truth_is_wanted(
    tmp_path: Path, popularity: Popularity
) -> None:
    keeper = new_keeper(tmp_path, popularity)
    keeper.policy = CachePolicy(max_entries=CAPACITY, similar_errors=0.1)
    fresh = Freshness(keeper, popularity, ())
    keeper.put(computed("entry", 0), NOW)
    keeper.put(computed("tenant's", 90, scope="tenant"), NOW)
    vector = at(2).astype("<f4")
    for _ in range(500):
        assert keeper.find_similar("similar", "docs", vector, NOW) is None
    for n in range(400):
        keeper.similar.audit("docs", 0.9995, (n,), (n,))
    assert keeper.find_similar("far", "docs", at(60), NOW) is None
    assert keeper.find_similar("near the tenant's", "docs", at(90), NOW) is None
    assert keeper.find_similar("similar", "code", vector, NOW) is None
    assert keeper.find_similar("similar", "docs", vector, NOW + 1e6) is None  # the entry is past its age
    found = keeper.find_similar("similar", "docs", vector, NOW)
    assert found is not None
    assert found.query_text == "entry"
    assert (fresh.wanted(NOW), fresh.stale_queries("docs", NOW)) == (["docs"], ["similar"])
    keeper.put(computed("similar", 2, ids=(5, 6)), NOW, is_asked_for=False)
    assert (fresh.wanted(NOW), fresh.stale_queries("docs", NOW)) == ([], [])
    report = keeper.stats(NOW)["similar"]
    assert [report[key] for key in ("served", "pending", "errors", "requests")] == [1, 0, 1, 505]
    keeper.invalidate("docs", None)
    assert keeper.find_similar("similar", "docs", vector, NOW) is None
    keeper.store.close()


def test_a_vector_without_a_direction_is_near_to_nothing(keeper: ResultKeeper) -> None:
    keeper.put(computed("entry", 0), NOW)
    for n, bad in enumerate((np.nan, np.inf, 0.0)):
        keeper.put(computed(f"bad {n}", 0, embedding=np.full(2, bad, "<f4").tobytes()), NOW)
    keeper.put(computed("alias", 1), NOW)
    assert aliases(keeper) == {"alias": "entry"}
