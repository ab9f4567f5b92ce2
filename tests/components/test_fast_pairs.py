"""The fast path of a cross-encoder: the same scores as `predict`, judged before they are used, and the reference otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from morgan.background.ipc.settings import ModelSettings, RerankSettings
from morgan.background.workers import pair_adoption
from morgan.background.workers.export import NotExportable, pair_recipe_of
from morgan.background.workers.graphs import Verdict
from morgan.background.workers.handover import make_embedder
from morgan.background.workers.pair_adoption import LARGEST_DIFFERENCE, compared_pairs
from morgan.background.workers.reranker import CrossEncoderReranker, make_reranker
from morgan.background.workers.scoring import Question
from tests.components.test_models import TEXTS, tiny_bert

QUESTIONS = [
    Question(
        "zinc", [*TEXTS, "a sentence of many words about zinc " * 120], np.zeros(len(TEXTS) + 1, dtype=np.float32)
    ),
    Question("naïve 東京 🙂", TEXTS, np.zeros(len(TEXTS), dtype=np.float32)),
]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., CrossEncoderReranker]:
    def made(seed: int = 0, labels: int = 1) -> CrossEncoderReranker:
        name = tiny_bert(tmp_path / f"model {seed}", labels=labels, seed=seed)
        return CrossEncoderReranker(name, graph_folder=str(tmp_path / "graphs"))

    return made


def test_an_adopted_graph_gives_the_scores_of_predict(make: Callable[..., CrossEncoderReranker]) -> None:
    reranker = make()
    before = reranker.score_many(QUESTIONS)  # nobody waits for a graph
    assert reranker.is_open
    verdict = reranker.adopt()
    assert verdict is not None
    assert verdict.is_adopted, verdict.reason
    assert verdict.largest_difference <= LARGEST_DIFFERENCE
    assert verdict.texts == len(compared_pairs()) >= 64
    assert "the same scores" in verdict.words
    paces: list[int] = []
    after = reranker.score_many(QUESTIONS, pace=lambda: paces.append(1))
    assert reranker.choose() is not None
    assert paces
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(after, before, strict=True))
    later = CrossEncoderReranker(reranker.name, graph_folder=reranker._folder)
    later.load()
    assert later._reference is None  # it needs no torch
    assert np.allclose(later.score(*QUESTIONS[0]), before[0], atol=1e-6)


def test_scores_that_are_not_the_references_are_refused_with_the_figure_and_not_tried_again(
    make: Callable[..., CrossEncoderReranker], monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker, other = make(), make(seed=7).reference()
    real = pair_adoption.export_pairs
    monkeypatch.setattr(pair_adoption, "export_pairs", lambda _model, *rest: real(other, *rest))
    assert reranker.is_open
    verdict = reranker.adopt()
    assert verdict is not None
    assert not verdict.is_adopted
    assert "its scores are not the reference's" in verdict.reason
    assert verdict.largest_difference > LARGEST_DIFFERENCE or "0e+00" not in verdict.reason
    assert not reranker.is_open
    assert reranker.choose() is None


def test_what_cannot_be_reproduced_is_named(make: Callable[..., CrossEncoderReranker]) -> None:
    import torch

    model = make().reference()
    model.activation_fn = torch.nn.Tanh()
    with pytest.raises(NotExportable, match="makes its scores by Tanh"):
        pair_recipe_of(model)
    model.activation_fn = torch.nn.Identity()
    assert pair_recipe_of(model).activation == "Identity"


def test_the_graphs_of_an_embedder_and_of_a_cross_encoder_stand_side_by_side(
    make: Callable[..., CrossEncoderReranker], tmp_path: Path
) -> None:
    reranker = make()
    assert reranker.is_open
    reranker.adopt()
    embedder_graph = tmp_path / "graphs" / "0123456789abcdef.json"
    refused = Verdict(model=reranker.name, revision="", precision="fp32", is_adopted=False)
    embedder_graph.write_bytes(msgspec.json.encode(refused))
    again = make(seed=1)
    assert again.is_open
    again.adopt()
    assert embedder_graph.exists()
    assert len(list((tmp_path / "graphs").glob("*-pairs.onnx"))) == 2  # two models, both at hand


@pytest.mark.parametrize(
    ("settings", "folder"),
    [({}, "/graphs"), ({"loader": "reference"}, ""), ({"device": "cuda"}, ""), ({"graph_folder": ""}, "")],
)
def test_a_graph_is_wanted_where_the_embedders_is(settings: dict[str, str], folder: str) -> None:
    embedder = make_embedder(ModelSettings(**{"graph_folder": "/graphs"} | settings))  # type: ignore[arg-type]
    found = make_reranker(RerankSettings(cross_encoder="any"), embedder)
    assert isinstance(found, CrossEncoderReranker)
    assert found._folder == folder
