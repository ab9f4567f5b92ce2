"""`cache.wrap`, `put` and `get_many`, on the inline lane: the real core, the real result store, no model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from qdrant_client import QdrantClient

from morgan.background import PrecomputedSearchCache
from morgan.background.ipc import messages
from morgan.background.ipc.client import expect
from morgan.background.ipc.errors import InvalidArgument
from morgan.background.ipc.result import CachedResult

ROWS = [{"id": 7, "content": "Zinc is taken up in the gut.", "source": "a.md", "score": 0.5, "metadata": {"page": 3}}]


@pytest.fixture
def cache() -> Iterator[PrecomputedSearchCache]:
    found = PrecomputedSearchCache(vector_db_client=QdrantClient(":memory:"))
    yield found
    found.close()


class Search:
    """A search function that counts its calls and answers with plain values."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, query: str, collection_name: str, limit: int = 10, user: str = "") -> list[dict[str, Any]]:
        self.calls.append((query, collection_name, limit, user))
        return [{"id": n, "text": f"{query} {n}", "nested": {"scores": [0.5, 1]}} for n in range(limit)]


def test_a_wrapped_search_is_called_once_for_the_same_question(cache: PrecomputedSearchCache) -> None:
    search = Search()
    ask = cache.wrap(search)
    first = ask("zinc  uptake", "docs", limit=2)
    assert ask("Zinc uptake", "docs", 2) == [{**row, "text": f"zinc  uptake {n}"} for n, row in enumerate(first)]
    assert len(search.calls) == 1
    assert ask("zinc uptake", "docs", 3) != first
    assert ask("zinc uptake", "notes", 2) != []
    assert len(search.calls) == 3


def test_what_a_caller_does_to_a_result_is_not_seen_by_the_next(cache: PrecomputedSearchCache) -> None:
    ask = cache.wrap(Search())
    ask("zinc", "docs", 1)
    ask("zinc", "docs", 1)[0]["nested"]["scores"].append("mine")
    assert ask("zinc", "docs", 1)[0]["nested"]["scores"] == [0.5, 1]


def test_searches_are_counted_with_their_response_times_whether_they_hit_or_miss(cache: PrecomputedSearchCache) -> None:
    ask = cache.wrap(Search())
    for _ in range(3):
        ask("zinc", "docs", 1)
    (popular,) = cache.get_popular_queries("docs", min_frequency=3)
    assert (popular.query_text, popular.access_count) == ("zinc", 3)
    assert popular.average_response_time > 0
    stats = cache.get_cache_stats()
    assert (stats["cache_lookups"], stats["cache_hits"]) == (3, 2)


def test_the_gain_is_told_of_searches_as_their_caller_saw_them(cache: PrecomputedSearchCache) -> None:
    def search(query: str, collection: str) -> list[str]:
        return [query] * int(sum(n * n for n in range(10_000)) > 0)  # some hundred times a lookup's time

    ask = cache.wrap(search)
    for number in range(25):
        for _ in range(2):
            assert ask(f"q{number}", "docs") == [f"q{number}"]
    report = expect(messages.Report, cache._lane.request(messages.Quality())).report
    gain = report["response_time"]["gain"]
    assert (gain["count"], gain["served"]) == (25, 25)
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert gain["value"] == pytest.approx(gain["searched_s"] / gain["served_s"], rel=0.02)
    assert report["response_time"]["computed"]["count"] == 25
    (docs,) = report["collections"]
    assert (docs["served"]["hits"], docs["served"]["count"]) == (25, 50)
    assert (report["hit_rate"]["count"], report["hit_rate"]["value"]) == (50, 0.5)


def test_without_a_tenant_nothing_is_kept_and_tenants_see_their_own(cache: PrecomputedSearchCache) -> None:
    search = Search()
    ask = cache.wrap(search, tenant="user")
    for user in ("", "", "anna", "ben", "anna"):
        ask("zinc", "docs", 1, user=user)
    assert [call[3] for call in search.calls] == ["", "", "anna", "ben"]
    assert cache.get_cached_results("zinc", "docs") is None


def test_an_async_search_is_wrapped_as_well(cache: PrecomputedSearchCache) -> None:
    calls = []

    async def search(query: str, k: int = 2) -> list[str]:
        calls.append(query)
        await asyncio.sleep(0)
        return [query] * k

    ask = cache.wrap(search, collection="docs")

    async def twice() -> list[list[str]]:
        return [await ask("zinc"), await ask("zinc")]

    assert asyncio.run(twice()) == [["zinc", "zinc"]] * 2
    assert calls == ["zinc"]


def test_an_error_of_the_search_is_the_callers_and_is_not_kept(cache: PrecomputedSearchCache) -> None:
    def search(query: str, collection: str) -> list[str]:
        raise LookupError(query)

    ask = cache.wrap(search)
    for _ in range(2):
        with pytest.raises(LookupError):
            ask("zinc", "docs")


def test_what_cannot_be_kept_as_it_is_passes_through_with_one_warning(
    cache: PrecomputedSearchCache, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def search(query: str, collection: str, key: Any = None) -> Any:
        calls.append(query)
        return {"row": object()} if key is None else [query]

    ask = cache.wrap(search)
    with caplog.at_level(logging.WARNING):
        ask("zinc", "docs"), ask("zinc", "docs")
    assert len(calls) == 2
    assert len([record for record in caplog.records if "are not kept" in record.message]) == 1
    ask("zinc", "docs", key=object()), ask("zinc", "docs", key=object())  # an argument that has no name
    assert len(calls) == 4


def test_an_empty_result_is_kept_for_a_short_time(cache: PrecomputedSearchCache) -> None:
    calls = []

    def search(query: str, collection: str) -> list[str]:
        calls.append(query)
        return []

    ask = cache.wrap(search)
    assert [ask("zinc", "docs"), ask("zinc", "docs")] == [[], []]
    assert len(calls) == 1
    (entry,) = cache._lane._core.keeper.store.entries()  # type: ignore[attr-defined]
    assert entry.expires_at - entry.computed_at == pytest.approx(60, abs=5)


def test_with_decode_the_services_own_results_answer(cache: PrecomputedSearchCache) -> None:
    def titles(held: CachedResult) -> list[str]:
        return list(held.contents)

    def search(query: str, collection: str) -> list[str]:
        return ["searched"]

    ask = cache.wrap(search, decode=titles)
    assert ask("zinc", "docs") == ["searched"]
    cache.put("zinc", "docs", ROWS)
    assert ask("zinc", "docs") == ["Zinc is taken up in the gut."]


def test_rows_that_an_application_puts_come_back_as_results(cache: PrecomputedSearchCache) -> None:
    cache.put("zinc", "docs", ROWS)
    found, missing = cache.get_many(["ZINC ", "iron"], "docs")
    assert missing is None
    assert found is not None
    assert dict(found.results[0]) == {
        "content": ROWS[0]["content"],
        "source": "a.md",
        "score": 0.5,
        "metadata": {"page": 3},
    }
    assert found.results[0].content == ROWS[0]["content"]
    cache.put("zinc", "docs", ROWS, tenant="anna")
    cache.invalidate_cache("docs")
    assert cache.get_many(["zinc"], "docs") == [None]


def test_a_reported_change_drops_what_it_can_alter(cache: PrecomputedSearchCache) -> None:
    client = QdrantClient(":memory:")
    other = PrecomputedSearchCache(vector_db_client=client)
    from qdrant_client import models

    client.create_collection("docs", vectors_config=models.VectorParams(size=2, distance=models.Distance.COSINE))
    other.put("zinc", "docs", ROWS)
    other.put("iron", "notes", ROWS)
    client.upsert("docs", [models.PointStruct(id=1, vector=[1.0, 0.0], payload={"text": "new"})])
    other.report_change("docs", [1])
    assert other.get_cached_results("zinc", "docs") is None
    assert other.get_cached_results("iron", "notes") is not None
    other.put("zinc", "docs", ROWS)
    other.report_change("docs")
    assert other.get_cached_results("zinc", "docs") is None
    other.close()


@pytest.mark.parametrize(
    ("search", "options", "words"),
    [
        (lambda query: [], {}, "collection"),
        (lambda query, collection: [], {"tenant": "user"}, "'user'"),
        (lambda: ["zinc"], {"collection": "docs"}, "query"),
    ],
)
def test_a_function_that_cannot_be_understood_is_refused_when_it_is_wrapped(
    cache: PrecomputedSearchCache, search: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidArgument, match=words):
        cache.wrap(search, **options)


@pytest.mark.parametrize(
    "rows", [[{"content": "no id"}], [{"id": 1, "rerank_score": 0.5}, {"id": 2}]], ids=["no id", "half reranked"]
)
def test_rows_that_make_no_result_are_refused(cache: PrecomputedSearchCache, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(InvalidArgument):
        cache.put("zinc", "docs", rows)
