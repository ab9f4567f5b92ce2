from __future__ import annotations

import numpy as np
import pytest

from morgan.background.workers.reranker import max_sim, max_sims


def test_all_documents_at_once_score_as_each_by_the_definition() -> None:
    random = np.random.default_rng(7)
    query = random.standard_normal((5, 8)).astype(np.float32)
    documents = [random.standard_normal((length, 8)).astype(np.float32) for length in (3, 0, 1, 7, 0)]
    wanted = [
        sum(max(float(q @ d) for d in tokens) for q in query) / len(query) if len(tokens) else 0.0
        for tokens in documents
    ]
    assert max_sims(query, documents) == pytest.approx(wanted, abs=1e-5)
    assert [max_sim(query, tokens) for tokens in documents] == pytest.approx(wanted, abs=1e-5)


def test_without_tokens_nothing_is_similar() -> None:
    nothing, something = np.zeros((0, 8), np.float32), np.ones((2, 8), np.float32)
    assert max_sims(nothing, [something, something]).tolist() == [0.0, 0.0]
    assert max_sims(something, [nothing]).tolist() == [0.0]
    assert max_sims(something, []).tolist() == []
