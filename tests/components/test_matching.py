"""Cross-encoders that compare the tokens of both texts: what they begin with, how they are kept, and that they learn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from morgan.background.workers.matching import KEY, SCALE, MatchingCrossEncoder, encoded, matched
from morgan.background.workers.reranker import CrossEncoderReranker, max_sims
from morgan.background.workers.trainable import CrossEncoderModel
from morgan.background.workers.training import Example, Plan, Training

from .tiny_models import tiny_cross_encoder, tiny_encoder

CLS, SEP, PAD = 1, 2, 0
SPECIAL = torch.tensor([PAD, CLS, SEP])
TEXTS = ["ab cd", "zz", "cd " * 60, ""]


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    return str(tiny_encoder(tmp_path / "encoder"))


def test_it_is_the_mean_of_the_best_cosine_of_each_query_token_and_nothing_else_counts() -> None:
    draw = np.random.default_rng(0)
    hidden = draw.normal(size=(2, 8, 4)).astype(np.float32)
    ids = torch.tensor([[CLS, 7, 8, SEP, 9, 10, 11, SEP], [CLS, 7, SEP, 9, 10, SEP, PAD, PAD]])
    found = matched(torch.from_numpy(hidden), ids, SEP, SPECIAL).numpy()
    unit = hidden / np.linalg.norm(hidden, axis=2, keepdims=True)
    wanted = [max_sims(unit[0, 1:3], [unit[0, 4:7]])[0], max_sims(unit[1, 1:2], [unit[1, 3:5]])[0]]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_two_separators_between_the_texts_and_texts_without_a_token_are_no_tokens() -> None:
    hidden = torch.ones((3, 7, 4))
    ids = torch.tensor(
        [[CLS, 7, SEP, SEP, 9, SEP, PAD], [CLS, SEP, 9, SEP, PAD, PAD, PAD], [CLS, 7, SEP, SEP, PAD, PAD, PAD]]
    )
    np.testing.assert_allclose(matched(hidden, ids, SEP, SPECIAL).numpy(), [1.0, 0.0, -1.0], atol=1e-6)


def test_an_embedding_model_begins_with_the_matching_and_a_cross_encoder_with_what_it_knows(
    encoder: str, tmp_path: Path
) -> None:
    begun = CrossEncoderModel(encoder)
    with torch.inference_mode():
        found = begun.scores("ab", TEXTS, 32)
        inputs = encoded(begun._tokenizer, [("ab", text) for text in TEXTS], 32)
        made = begun._inner(**inputs, output_hidden_states=True)
        special = torch.tensor(begun._tokenizer.all_special_ids)
        matching = matched(made.hidden_states[-1], inputs["input_ids"], begun._tokenizer.sep_token_id, special)
    assert torch.allclose(found, made.logits[:, 0] + SCALE * matching, atol=1e-5)
    known = CrossEncoderModel(str(tiny_cross_encoder(tmp_path / "cross")))
    assert known.heads() == []
    assert not hasattr(known._inner.config, KEY)


def test_what_is_written_scores_as_what_was_trained_and_can_be_trained_on(encoder: str, tmp_path: Path) -> None:
    # what is relevant is what does not match, so that it cannot be known before
    examples = [Example(one, "zz", (f"{one} {one}", f"{one} x", f"y {one}")) for one in ("ab", "cd", "ef", "gh")]
    plan = Plan(epochs=8, queries=2, others=2, learning_rate=3e-3, frozen_layers=0, max_tokens=32)
    training = Training(CrossEncoderModel(encoder), examples, plan)
    losses = [at.loss for at in training.run()]
    assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:4]), losses
    training.model.write(tmp_path / "made", 32)
    with torch.inference_mode():
        wanted = training.model.scores("ab", TEXTS, 32).numpy()
    reranker = CrossEncoderReranker(str(tmp_path / "made"))
    assert isinstance(reranker.reference(), MatchingCrossEncoder)
    np.testing.assert_allclose(reranker.score("ab", TEXTS, np.zeros(4, np.float32)), wanted, atol=1e-5)
    assert reranker.score("ab", [], np.empty(0, np.float32)).shape == (0,)
    with torch.inference_mode():
        again = CrossEncoderModel(str(tmp_path / "made")).scores("ab", TEXTS, 32).numpy()
    np.testing.assert_allclose(again, wanted, atol=1e-5)


def test_its_graph_gives_its_scores(encoder: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    CrossEncoderModel(encoder).write(tmp_path / "made", 64)
    assert json.loads((tmp_path / "made" / "config.json").read_text())[KEY] == SCALE
    reranker = CrossEncoderReranker(str(tmp_path / "made"), graph_folder=str(tmp_path / "graphs"))
    wanted = reranker.score("ab cd", TEXTS, np.zeros(4, np.float32))
    assert reranker.is_open
    verdict = reranker.adopt()
    assert verdict is not None
    assert verdict.is_adopted, verdict.reason
    assert reranker.choose() is not None
    np.testing.assert_allclose(reranker.score("ab cd", TEXTS, np.zeros(4, np.float32)), wanted, atol=1e-4)
