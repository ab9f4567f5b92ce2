from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from morgan.background.ipc.errors import InvalidArgument, ModelUnavailable
from morgan.background.ipc.settings import ModelSettings, RerankSettings
from morgan.background.workers import reranker as rerankers
from morgan.background.workers.models import SentenceTransformerEmbedder, resolve
from morgan.background.workers.reranker import CrossEncoderReranker, as_reranker, make_reranker

TEXTS = [
    "zinc",
    "",
    "a much longer sentence about the absorption of zinc in the gut",
    "iron",
    "copper and iron",
    "gold",
]
DENSE = np.array([0.3, 0.2, 0.1], dtype=np.float32)


def tiny_bert(folder: Path, *, labels: int = 0, seed: int = 0) -> str:
    """Save a BERT of one small layer, with MiniLM's vocabulary; with `labels` a cross-encoder. Return its folder."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

    torch.manual_seed(seed)
    config = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=labels or 2
    )
    (BertForSequenceClassification(config) if labels else BertModel(config)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve("all-MiniLM-L6-v2")).save_pretrained(folder)
    return str(folder)


def tiny_embedder(folder: Path, *, pooling: str = "mean", seed: int = 0) -> SentenceTransformerEmbedder:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    bert = Transformer(tiny_bert(folder / "bert", seed=seed))
    model = SentenceTransformer(modules=[bert, Pooling(32, pooling_mode=pooling)], device="cpu")
    model.save(str(folder / "model"))
    return SentenceTransformerEmbedder(ModelSettings(name=str(folder / "model")))


def test_each_text_gets_its_own_vector_whatever_its_place_in_a_batch(embedder: SentenceTransformerEmbedder) -> None:
    paces: list[int] = []
    found = embedder.embed(TEXTS, pace=lambda: paces.append(1))
    alone = np.concatenate([embedder.embed([text]) for text in TEXTS])
    assert found.dtype == np.float32
    assert np.allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    assert ((found * alone).sum(axis=1) > 0.99999).all()
    assert 1 <= len(paces) <= 6  # after each sub-batch, of one text or several
    assert embedder.embed([]).shape == (0, 384)


def test_token_vectors_are_those_of_the_words_alone(embedder: SentenceTransformerEmbedder) -> None:
    found = embedder.token_vectors(["zinc copper", "", "gold"])
    assert [len(rows) for rows in found] == [2, 0, 1]
    assert np.allclose(np.linalg.norm(found[0], axis=1), 1.0, atol=1e-5)


def test_a_model_leaves_torch_and_stderr_as_they_were(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        tiny = tiny_embedder(tmp_path)
        capfd.readouterr()
        tiny.embed(["zinc"])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert capfd.readouterr() == ("", "")


def test_a_revision_names_weights_and_pooling_not_the_folder(tmp_path: Path) -> None:
    first = tiny_embedder(tmp_path / "first").revision
    assert first == tiny_embedder(tmp_path / "again").revision
    assert first != tiny_embedder(tmp_path / "trained on", seed=1).revision
    assert first != tiny_embedder(tmp_path / "cls", pooling="cls").revision


def test_a_model_that_cannot_be_loaded_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="correct"):
        resolve("/no/such/folder")
    with pytest.raises(ModelUnavailable, match="folder or a hub model"):
        _ = SentenceTransformerEmbedder(ModelSettings(name=str(tmp_path))).size
    with pytest.raises(ModelUnavailable, match="could not be loaded"):
        _ = SentenceTransformerEmbedder(ModelSettings(device="no-such-device")).size


def test_a_cross_encoder_scores_each_pair_in_the_order_given(
    tmp_path: Path, embedder: SentenceTransformerEmbedder
) -> None:
    found = make_reranker(RerankSettings(cross_encoder=tiny_bert(tmp_path, labels=1)), embedder)
    dense = np.zeros(len(TEXTS), dtype=np.float32)
    scores = found.score("zinc", TEXTS, dense)
    alone = [found.score("zinc", [text], dense[:1])[0] for text in TEXTS]
    assert np.allclose(scores, alone, atol=1e-5)
    assert len(set(alone)) == len(TEXTS)


def test_a_classifier_of_several_labels_is_refused_as_a_reranker(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="3 scores a pair"):
        CrossEncoderReranker(tiny_bert(tmp_path, labels=3)).score("zinc", ["a"], DENSE[:1])


def test_late_interaction_lifts_what_the_words_match_and_keeps_few_tokens(
    embedder: SentenceTransformerEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rerankers, "TOKEN_CACHE_BYTES", 2 * 384 * 5)  # of five tokens
    found = make_reranker(RerankSettings(), embedder)
    texts = ["the price of gold", "cars and roads", "zinc uptake"]
    first = found.score("uptake of zinc", texts, DENSE)
    assert first.argmax() == 2
    assert found._bytes <= 2 * 384 * 5  # type: ignore[attr-defined]
    assert np.allclose(first, found.score("uptake of zinc", texts, DENSE), atol=1e-2)  # the kept ones are float16
    assert found.score("zinc", [], DENSE[:0]).shape == (0,)


ANSWERS: list[Any] = [
    [0.1, 0.9, 0.5],
    np.array([0.1, 0.9, 0.5]),
    "a generator",
    [(1, 0.9), (2, 0.5), (0, 0.1)],
    [{"corpus_id": 1, "score": 0.9}, {"corpus_id": 2, "score": 0.5}],
    {"results": [{"index": 1, "relevance_score": 0.9}, {"index": 2, "relevance_score": 0.5}]},
    SimpleNamespace(results=[SimpleNamespace(index=2, score=0.5), SimpleNamespace(index=1, score=0.9)]),
]


@pytest.mark.parametrize("method", ["rerank", "rank", "predict"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_live_object_may_answer_in_any_usual_shape(method: str, answer: Any) -> None:
    given = (score for score in (0.1, 0.9, 0.5)) if isinstance(answer, str) else answer
    live = as_reranker(SimpleNamespace(**{method: lambda *_: given}))
    assert np.argsort(-live.score("q", ["a", "b", "c"], DENSE)).tolist() == [1, 2, 0]


@pytest.mark.parametrize("answer", [None, "good", [0.1, 0.2], [(7, 0.5)], [("text", 0.5)], [{"text": 1}], [], {}])
def test_a_live_object_that_answers_nonsense_is_named(answer: Any) -> None:
    with pytest.raises(InvalidArgument, match="reranking service"):
        as_reranker(SimpleNamespace(rerank=lambda *_: answer)).score("q", ["a", "b", "c"], DENSE)


def test_an_object_that_cannot_rerank_is_refused_and_a_reranker_is_taken_as_it_is(
    embedder: SentenceTransformerEmbedder,
) -> None:
    with pytest.raises(InvalidArgument, match="predict"):
        as_reranker(object())
    ours = make_reranker(RerankSettings(), embedder)
    assert as_reranker(ours) is ours
