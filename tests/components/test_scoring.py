"""Scores of several queries at once, and what becomes of a reranker that fails."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from morgan.background.ipc.errors import ModelUnavailable
from morgan.background.ipc.settings import RerankSettings
from morgan.background.workers import reranker as rerankers
from morgan.background.workers.models import SentenceTransformerEmbedder
from morgan.background.workers.reranker import CrossEncoderReranker, LivePairs, as_reranker, make_reranker
from morgan.background.workers.scoring import Question, checked, score_each
from morgan.background.workers.task import Interrupted, Reranker
from tests.components.test_models import TEXTS, tiny_bert

QUERIES = ["zinc", "uptake of copper in the gut of mice", "gold", ""]


def no_pace() -> None: ...


def questions(texts: Sequence[str] = TEXTS) -> list[Question]:
    """Return a question for each query: the last with no candidates, the first with some that others have as well."""
    counts = [len(texts), 3, 4, 0]
    dense = np.linspace(0.9, 0.1, len(texts), dtype=np.float32)
    return [Question(q, texts[:n], dense[:n]) for q, n in zip(QUERIES, counts, strict=True)]


def scores_of_each(reranker: Reranker) -> list[Any]:
    found = score_each(reranker, questions(), no_pace)
    assert [one.problem for one in found] == [""] * 4
    return [one.scores for one in found]


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_bert(tmp_path_factory.mktemp("cross-encoder"), labels=1)


def test_pairs_of_several_queries_are_scored_as_plain_predict_scores_them(cross_encoder: str) -> None:
    from sentence_transformers import CrossEncoder

    plain = CrossEncoder(cross_encoder, device="cpu", local_files_only=True)
    for reranker in (CrossEncoderReranker(cross_encoder), as_reranker(plain)):
        for question, scores in zip(questions(), scores_of_each(reranker), strict=True):
            wanted = plain.predict([(question.query, text) for text in question.texts])
            assert scores.shape == (len(question.texts),)
            assert np.allclose(scores, wanted, atol=1e-5)


def test_late_interaction_of_several_queries_is_that_of_each(embedder: SentenceTransformerEmbedder) -> None:
    together, alone = make_reranker(RerankSettings(), embedder), make_reranker(RerankSettings(), embedder)
    for question, scores in zip(questions(), scores_of_each(together), strict=True):
        assert np.allclose(scores, alone.score(*question), atol=1e-2)  # kept token vectors are float16


def test_few_documents_at_once_are_scored_as_many_are(
    embedder: SentenceTransformerEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = scores_of_each(make_reranker(RerankSettings(), embedder))
    monkeypatch.setattr(rerankers, "TEXTS_AT_ONCE", 1)
    few = scores_of_each(make_reranker(RerankSettings(), embedder))
    assert all(np.allclose(a, b, atol=1e-2) for a, b in zip(many, few, strict=True))


def test_a_predict_of_the_application_gets_pairs_of_several_queries_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def predict(pairs: list[tuple[str, str]]) -> list[float]:
        calls.append(len(pairs))
        return [float(len(text)) for _, text in pairs]

    live = as_reranker(SimpleNamespace(predict=predict))
    assert isinstance(live, LivePairs)
    scores = scores_of_each(live)
    assert calls == [13]
    assert scores[0].tolist() == [len(text) for text in TEXTS]
    monkeypatch.setattr(rerankers, "PREDICT_PAIRS", 5)
    assert [one.tolist() for one in scores_of_each(live)] == [one.tolist() for one in scores]
    assert calls[1:] == [5, 5, 3]


# --- bad input ----------------------------------------------------------------------------------------------------------


def too_much_memory(*_: Any) -> Any:
    import torch

    return torch.empty(1 << 62, dtype=torch.uint8)


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise error

    return fail


BAD: list[tuple[Callable[..., Any], str]] = [
    (failing(ConnectionError("it is down")), "ConnectionError: it is down"),
    (failing(MemoryError()), "does not fit into memory"),
    (too_much_memory, "does not fit into memory.*fewer candidates"),
    (lambda *_: [0.5, float("nan"), 0.1], "NaN or infinity for 1 of 3"),
    (lambda *_: [float("inf"), float("-inf"), 0.1], "NaN or infinity for 2 of 3"),
    (lambda *_: [1e300, 0.2, 0.1], "NaN or infinity for 1 of 3"),
    (lambda *_: [(0, float("nan")), (1, 0.5)], "NaN or infinity"),
    (lambda *_: [0.1, 0.2], "2 scores for 3 documents"),
    (lambda *_: [0.1] * 4, "4 scores for 3 documents"),
    (lambda *_: np.zeros((3, 2)), "a pair is"),
    (lambda *_: [], "scored no document"),
    (lambda *_: None, "a score for each document"),
    (lambda *_: "good", "a score for each document"),
    (lambda *_: [None, 0.1, 0.2], "no index"),
]


@pytest.mark.parametrize("method", ["rerank", "predict"])
@pytest.mark.parametrize(("answer", "words"), BAD)
def test_a_reranker_that_fails_or_answers_nonsense_gives_no_scores_and_a_reason(
    method: str, answer: Callable[..., Any], words: str
) -> None:
    asked = [Question("zinc", TEXTS[:3], np.zeros(3, dtype=np.float32))]
    (found,) = score_each(as_reranker(SimpleNamespace(**{method: answer})), asked, no_pace)
    assert found.scores is None
    assert re.search(words, found.problem)


def test_a_query_that_fails_among_others_fails_alone() -> None:
    def predict(pairs: list[tuple[str, str]]) -> list[float]:
        if any(query == "gold" for query, _ in pairs):
            raise ValueError("no gold")
        return [1.0] * len(pairs)

    found = score_each(as_reranker(SimpleNamespace(predict=predict)), questions(), no_pace)
    assert [one.problem for one in found] == ["", "", "ValueError: no gold", ""]


def test_scores_that_are_none_are_refused() -> None:
    assert checked([], 0).problem == ""
    assert "shape (2,) for 3" in checked([0.1, 0.2], 3).problem
    assert "shape (3, 1)" in checked(np.zeros((3, 1)), 3).problem
    assert "has to give a score" in checked(["a", "b", "c"], 3).problem


def test_a_model_that_cannot_be_loaded_is_a_reason_and_is_not_tried_again_at_once(
    tmp_path: Path,
) -> None:
    folder = Path(tiny_bert(tmp_path, labels=1))
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    reranker = CrossEncoderReranker(str(folder))
    for one in score_each(reranker, questions(), no_pace):
        assert one.scores is None
        assert "could not be loaded" in one.problem
    weights.write_bytes(whole)
    with pytest.raises(ModelUnavailable, match="could not be loaded"):
        reranker.load()
    reranker._again_at = 0.0
    assert all(one.problem == "" for one in score_each(reranker, questions(), no_pace))


def test_a_stop_that_comes_while_it_waits_for_budget_is_no_failure(cross_encoder: str) -> None:
    def stop() -> None:
        raise Interrupted

    live = as_reranker(SimpleNamespace(rerank=lambda _, texts: [1.0] * len(texts)))
    for reranker in (CrossEncoderReranker(cross_encoder), live):
        for asked in (questions(), questions()[:1]):
            with pytest.raises(Interrupted):
                score_each(reranker, asked, stop)
