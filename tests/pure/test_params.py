"""Which parameters a task takes, and which queries it is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morgan.background.ipc.errors import InvalidArgument
from morgan.background.ipc.query import query_hash
from morgan.background.ipc.records import QueryJob, QueryRecord, TaskType
from morgan.background.supervisor.params import (
    ACCEPTED,
    ALL_QUERIES,
    GATE_QUERIES,
    check_params,
    jobs_for,
    params_of_schedule,
)

GOOD: Mapping[str, list[Any]] = {
    "force_rebuild": [True, False],
    "force_refresh": [True, False],
    "max_queries": [1, 50],
    "queries": [[], ["a", "b"], ("a",)],
    "scope": ["popular", "all"],
    "dry_run": [True, False],
    "token": ["", "a" * 64],
    "hold_s": [1, 0.25, 3600],
    "distance": ["cosine", "dot", "euclid", "manhattan"],
    "without_gate": [True, False],
    "allow_mixed": [True, False],
    "only_new": [True, False],
    "apply": [True, False],
    "undo": [True, False],
    "fields": [[], ["author", "meta.year"]],
}
BAD: Mapping[str, list[Any]] = {
    "force_rebuild": [1, None, "true"],
    "force_refresh": [0, "no"],
    "max_queries": [0, -1, True, 2.0, "3", None],
    "queries": ["a", [""], [" "], [1], None, {"a": 1}],
    "scope": ["some", None, [], 1],
    "dry_run": [1, "no"],
    "token": ["a" * 65, 1, None],
    "distance": ["", "Cosine", None, 1],
    "without_gate": [1, "no"],
    "allow_mixed": [0, None],
    "only_new": [0, "yes"],
    "apply": [1, "yes"],
    "undo": [1, "yes"],
    "fields": ["author", [""], None],
    "hold_s": [0, -1, True, "1", 3601, float("nan"), float("inf"), None],
}


@pytest.mark.parametrize("task_type", list(TaskType))
def test_every_parameter_is_taken_in_its_form_and_refused_in_any_other(task_type: TaskType) -> None:
    for key in ACCEPTED[task_type]:
        for value in GOOD[key]:
            assert check_params(task_type, {key: value}) == {key: value}
            assert params_of_schedule(task_type, {key: value, "origin": "me"}) == {key: value}
        for value in BAD[key]:
            with pytest.raises(InvalidArgument, match=rf"'{key}' of a {task_type.value} task must be .*, not "):
                check_params(task_type, {key: value})
            assert params_of_schedule(task_type, {key: value}) == {}


def test_a_parameter_of_another_task_is_refused_with_those_it_takes() -> None:
    with pytest.raises(InvalidArgument, match="a reindex task has no parameter 'scope': it takes force_rebuild"):
        check_params(TaskType.REINDEX, {"scope": "all"})
    assert params_of_schedule(TaskType.REINDEX, {"scope": "all"}) == {}


def record(text: str, popularity: float = 1.0) -> QueryRecord:
    return QueryRecord(
        query_hash=query_hash(text, "docs"),
        query_text=text,
        collection="docs",
        access_count=3,
        popularity=popularity,
        total_response_s=0.0,
        timed_count=0,
        first_accessed_at=0.0,
        last_accessed_at=0.0,
    )


def judged(*texts: str) -> dict[str, tuple[str, Mapping[str, float]]]:
    return {query_hash(text, "docs"): (text, {text: 1.0}) for text in texts}


class Popular:
    """Lists queries, and remembers what it was asked for."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.asked = texts, list[tuple[int, int]]()

    def __call__(self, limit: int, min_frequency: int) -> list[QueryRecord]:
        self.asked.append((limit, min_frequency))
        return [record(text, float(10 - n)) for n, text in enumerate(self.texts)][:limit]


def jobs(
    task_type: TaskType,
    params: Mapping[str, Any],
    popular: Popular,
    judgments: Mapping[str, tuple[str, Mapping[str, float]]] | None = None,
    cached: tuple[str, ...] = (),
    worthless: tuple[str, ...] = (),
    stale: tuple[str, ...] = (),
) -> tuple[QueryJob, ...]:
    return jobs_for(
        task_type,
        "docs",
        params,
        popular,
        judgments or {},
        max_queries=50,
        min_frequency=3,
        is_cached=cached.__contains__,
        is_worth=lambda text: text not in worthless,
        stale=stale,
    )


def test_a_rerank_gets_the_popular_queries_in_order_with_their_weight_and_judgments() -> None:
    popular = Popular("a", "b", "c")
    found = jobs(TaskType.RERANK, {"max_queries": 2}, popular, judged("b", "other"))
    assert found == (QueryJob(text="a", weight=10.0), QueryJob(text="b", weight=9.0, judgments={"b": 1.0}))
    jobs(TaskType.RERANK, {"scope": "popular"}, popular)
    jobs(TaskType.RERANK, {"scope": "all"}, popular)
    jobs(TaskType.RERANK, {"scope": "all", "max_queries": 7}, popular)
    assert popular.asked == [(2, 3), (50, 3), (ALL_QUERIES, 1), (7, 1)]


def test_named_queries_are_taken_as_they_are_and_nothing_else_is_asked() -> None:
    popular = Popular("a")
    found = jobs(TaskType.RERANK, {"queries": ["x", "B"], "max_queries": 1}, popular, judged("b"))
    assert found == (QueryJob(text="x"), QueryJob(text="B", judgments={"b": 1.0}))
    assert jobs(TaskType.WARM, {"queries": []}, popular) == ()
    assert popular.asked == []


def test_a_reindex_gets_the_judged_queries_and_then_the_popular_ones() -> None:
    popular = Popular("a")
    found = jobs(TaskType.REINDEX, {"force_rebuild": True}, popular, judged("b", "c"))
    judged_ones = (QueryJob(text="b", judgments={"b": 1.0}), QueryJob(text="c", judgments={"c": 1.0}))
    assert found == (*judged_ones, QueryJob(text="a"))
    assert popular.asked == [(GATE_QUERIES, 1)]


def test_a_warm_task_leaves_out_what_is_cached_unless_told_to_refresh() -> None:
    popular = Popular("a", "b", "c")
    assert [one.text for one in jobs(TaskType.WARM, {}, popular, cached=("b",))] == ["a", "c"]
    assert [one.text for one in jobs(TaskType.WARM, {"queries": ["b", "d"]}, popular, cached=("b",))] == ["d"]
    refreshed = jobs(TaskType.WARM, {"force_refresh": True}, popular, cached=("b",))
    assert [one.text for one in refreshed] == ["a", "b", "c"]
    assert [one.text for one in jobs(TaskType.RERANK, {}, popular, cached=("b",))] == ["a", "b", "c"]


def test_a_popular_query_whose_result_would_not_be_kept_is_left_out_and_a_named_one_is_not() -> None:
    popular = Popular("a", "b", "c")
    for task_type in (TaskType.WARM, TaskType.RERANK):
        assert [one.text for one in jobs(task_type, {}, popular, worthless=("b",))] == ["a", "c"]
        assert [one.text for one in jobs(task_type, {"queries": ["b"]}, popular, worthless=("b",))] == ["b"]


def test_a_warm_task_gets_the_stale_queries_after_the_popular_ones_and_none_twice() -> None:
    popular = Popular("a", "b")
    assert [one.text for one in jobs(TaskType.WARM, {}, popular, stale=("b", "z"))] == ["a", "b", "z"]
    assert [one.text for one in jobs(TaskType.WARM, {"queries": ["x"]}, popular, stale=("z",))] == ["x"]
    assert [one.text for one in jobs(TaskType.RERANK, {}, popular, stale=("z",))] == ["a", "b"]


@settings(deadline=None)
@given(
    metadata=st.dictionaries(
        st.sampled_from([*GOOD, "origin", "note"]), st.one_of(st.booleans(), st.integers(-2, 9), st.text(max_size=3))
    ),
    task_type=st.sampled_from(list(TaskType)),
)
def test_what_a_schedule_hands_its_task_is_always_accepted(metadata: dict[str, Any], task_type: TaskType) -> None:
    found = params_of_schedule(task_type, metadata)
    assert check_params(task_type, found) == found
    assert found.items() <= metadata.items()


def test_a_tune_measures_with_the_queries_of_a_reindex() -> None:
    popular = Popular("a", "b"), Popular("a", "b")
    found = jobs(TaskType.TUNE, {"apply": True}, popular[0], judged("b", "c"))
    assert found == jobs(TaskType.REINDEX, {}, popular[1], judged("b", "c"))
    assert {one.text for one in found} == {"a", "b", "c"}


def test_a_learn_task_gets_the_judged_queries_alone() -> None:
    found = jobs(TaskType.LEARN, {}, Popular("a", "b"), judged("b", "c"))
    assert {one.text for one in found} == {"b", "c"}
    assert all(one.judgments for one in found)
