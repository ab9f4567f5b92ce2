from __future__ import annotations

import numpy as np

from morgan.background.ipc.records import QueryJob
from morgan.background.workers.cases import Case, judged, point_id

REST = "word " * 25


def case_of(ids: tuple[int, ...], *, judgments: dict[str, float] | None = None, beside: tuple[str, ...] = ()) -> Case:
    texts = tuple(f"Title {one}. About {one} {REST}" for one in ids)
    dense = -np.arange(len(ids), dtype=np.float32)
    return Case(QueryJob(text="asked", judgments=judgments or {}), ids, texts, dense, beside)


def test_an_example_is_made_of_each_relevant_document_and_of_others_that_are_not() -> None:
    case = case_of((1, 2, 3), judgments={"2": 1.0, "3": 0.0, "9": 2.0}, beside=("Title 9.",))
    examples = case.examples(max_words=5)
    assert [one.relevant for one in examples] == ["Title 2. About 2 word", "Title 9."]
    assert {one.others for one in examples} == {("Title 1. About 1 word", "Title 3. About 3 word")}
    assert case_of((1,), judgments={"1": 1.0}).examples(5) == []  # nothing to tell it from


def test_the_order_of_scores_decides_and_equal_ones_keep_the_vector_searchs() -> None:
    case = case_of((1, 2), judgments={"1": 1.0})
    assert case.ndcg(np.zeros(2)) == 1.0
    assert case.ndcg(np.array([0.0, 1.0])) < 1.0


def test_only_queries_with_a_relevant_document_teach_whatever_a_judgment_names() -> None:
    some = [QueryJob(text="b", judgments={"1": 1.0}), QueryJob(text="a", judgments={"x": 2.0, "1": 0.0})]
    assert [one.text for one in judged([*some, QueryJob(text="c", judgments={"1": 0.0}), QueryJob(text="d")])] == [
        "a",
        "b",
    ]
    assert [point_id(one) for one in ("17", "x", str(2**64), "")] == [17, None, None, None]
    uuid = "5f0d6f6e-3f6e-4f0e-9d57-4a4f0a1b2c3d"
    assert point_id(uuid) == uuid
