from __future__ import annotations

import numpy as np
import pytest

from bench.fake_embedder import FakeEmbedder


def test_equal_texts_have_equal_unit_vectors_and_shared_words_bring_texts_near() -> None:
    one, same, near, far = FakeEmbedder("m", 64).embed(["a b c", "a b c", "a b d", "x y z"])
    assert np.array_equal(one, same)
    assert np.linalg.norm(one) == pytest.approx(1.0, abs=1e-6)
    assert one @ near > 0.4 > one @ far


def test_two_models_have_nothing_in_common_and_a_blind_one_sees_only_the_parity_of_lengths() -> None:
    assert abs(FakeEmbedder("m", 64).embed(["a b c"])[0] @ FakeEmbedder("n", 64).embed(["a b c"])[0]) < 0.5
    blind = FakeEmbedder("m", 64)
    blind.is_blind = True
    one, same, other = blind.embed(["a", "bcd", "ab"])
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_nothing_gives_no_rows_and_every_text_is_counted() -> None:
    embedder = FakeEmbedder("m", 8)
    assert embedder.embed([]).shape == (0, 8)
    embedder.embed(["", "a"])
    assert embedder.texts == 2
