"""What `bench reindex` makes of its measurements."""

from __future__ import annotations

import pytest

from bench.cases.reindex import ratios, short_texts, slope


def test_a_ratio_is_of_the_same_round() -> None:
    rates = {("encode", 2): [10.0, 20.0], ("fast", 2): [20.0, 30.0]}
    assert ratios(rates, "fast", 2) == [2.0, 1.5]


def test_the_exponent_of_a_growth() -> None:
    sizes = [10, 20, 40]
    assert slope(sizes, [3.0 * n for n in sizes]) == pytest.approx(1.0)
    assert slope(sizes, [n**2 for n in sizes]) == pytest.approx(2.0)


def test_short_texts_are_always_the_same_and_each_is_another() -> None:
    texts = short_texts(300, ["zinc in the gut", "of mice"])
    assert texts == short_texts(300, ["zinc in the gut", "of mice"])
    assert len(set(texts)) == 300
    assert all(7 <= len(text.split()) <= 13 for text in texts)  # its number and 6 to 12 words
