from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morgan.background.workers.excerpts import excerpts
from morgan.background.workers.fusion import fit_weights, fused, z_rows

RNG = np.random.default_rng(3)


def of_chance(queries: int, texts: int = 30) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Queries whose one relevant text the second view tells and the first does not."""
    columns, relevant = [], []
    for _ in range(queries):
        views, hits = RNG.normal(size=(2, texts)), np.zeros(texts, dtype=bool)
        hits[int(RNG.integers(texts))] = True
        views[1] += 2 * hits
        columns.append(views)
        relevant.append(hits)
    return columns, relevant


def test_a_view_that_tells_what_is_relevant_gets_the_weight() -> None:
    weights = fit_weights(*of_chance(300), begin=(0.7, 0.7))
    assert weights[1] > 5 * weights[0]
    assert min(weights) >= 0


def test_with_few_queries_or_none_that_teach_weights_stay_where_they_began() -> None:
    columns, relevant = of_chance(3)
    assert fit_weights(columns, relevant, (0.7, 0.7)) == pytest.approx((0.7, 0.7), abs=0.15)
    nothing = [np.zeros_like(one) for one in relevant]
    assert fit_weights(columns, nothing, (1.0, 0.5)) == (1.0, 0.5)
    assert fit_weights([], [], (1.0, 0.5)) == (1.0, 0.5)


def test_a_view_in_which_all_are_equal_says_nothing() -> None:
    assert z_rows(np.array([[2.0, 2.0, 2.0], [1.0, 2.0, 3.0]]))[0].tolist() == [0, 0, 0]
    assert fused(np.array([[5.0, 5.0], [1.0, 2.0]]), (9.0, 1.0)).tolist() == [-1.0, 1.0]
    assert fused(np.zeros((2, 0)), (1.0, 1.0)).shape == (0,)


TEXT = "Zinc in the gut. Rain fell all day. Uptake of zinc is slow. Iron rusts.\nNobody knows why."


def test_an_excerpt_has_the_first_sentence_and_what_the_query_is_about_in_the_order_of_the_text() -> None:
    (found,) = excerpts("why is the uptake slow", [TEXT], 12)
    assert found == "Zinc in the gut. Uptake of zinc is slow. Nobody knows why."
    (shorter,) = excerpts("why is the uptake slow", [TEXT], 11)
    assert shorter == "Zinc in the gut. Uptake of zinc is slow. Nobody knows"
    assert excerpts("x", ["short text"], 12) == ["short text"]
    assert excerpts("x", [], 12) == []
    assert excerpts("x", ["one two three four"], 2) == ["one two"]


def test_a_word_that_every_text_has_chooses_no_sentence() -> None:
    common = "All cells divide. Cells are small. Cells are many. The kinase is rare here."
    (first, *_) = excerpts("cells with kinase", [common, "Cells. " * 9, "Cells divide. " * 9], 8)
    assert first == "All cells divide. The kinase is rare here."


@given(st.text(), st.lists(st.text(), max_size=4), st.integers(1, 30))
def test_an_excerpt_is_never_longer_than_asked_for_and_made_of_the_texts_own_words(
    query: str, texts: list[str], count: int
) -> None:
    for text, found in zip(texts, excerpts(query, texts, count), strict=True):
        assert len(found.split()) <= count
        assert set(found.split()) <= set(text.split())
