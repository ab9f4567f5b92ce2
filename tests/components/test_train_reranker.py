"""The training benchmark from end to end on the corpus that ships with the package, with models that know nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import xxhash

from bench.train_reranker import DEFAULT, DENSE, LEARNED, ORACLE, QUICK_PLAN, claims_of, main, run, split
from morgan.background.workers.reranker import CrossEncoderReranker

from .tiny_models import tiny_cross_encoder


class FakeWordEmbedder:
    """A vector for each word, from its hash; a text's is their mean."""

    name, revision, size = "fake-words", "0", 32

    def embed(self, texts: Sequence[str], *, pace: Callable[[], None] | None = None) -> Any:
        rows = np.array([tokens.mean(axis=0) for tokens in self.token_vectors(texts)], dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def token_vectors(self, texts: Sequence[str], *, pace: Callable[[], None] | None = None) -> list[Any]:
        return [np.stack([self._vector(word) for word in text.lower().split()[:80]]) for text in texts]

    def _vector(self, word: str) -> Any:
        found = np.random.default_rng(xxhash.xxh3_64_intdigest(word.encode())).normal(size=self.size)
        return (found / np.linalg.norm(found)).astype(np.float32)


def test_it_trains_reports_and_goes_on_from_what_it_left(tmp_path: Path, capsys: Any) -> None:
    train, test = claims_of(None, is_quick=True)
    base = tiny_cross_encoder(tmp_path / "tiny")
    embedder: Any = FakeWordEmbedder()
    plan = msgspec.structs.replace(QUICK_PLAN, max_words=20, max_tokens=64)

    def again() -> Any:
        return run(train, test, tmp_path / "out", plan, embedder, str(base), 1, is_quick=True).figures

    first = again()
    scores = first["ndcg_at_10"]["50"]
    assert scores[ORACLE] >= max(scores[DENSE], scores[DEFAULT], scores[LEARNED])
    assert scores[DENSE] > 0
    assert first["training"]["steps"] > 2
    assert first["training"]["last_loss"] is not None
    assert CrossEncoderReranker(str(tmp_path / "out" / "model")).score("a", ["b"], np.zeros(1, np.float32)).shape == (
        1,
    )
    capsys.readouterr()
    assert again() == first
    assert "trained before" in capsys.readouterr().err


def test_no_claim_is_in_two_parts() -> None:
    train, test = claims_of(None, is_quick=True)
    fit, choose = split(train.claims, 5)
    texts = [claim["text"] for claim in (*fit, *choose, *test.claims)]
    assert len(texts) == len(set(texts)) == 30
    assert len(choose) == 4


def test_it_says_what_it_needs(tmp_path: Path, capsys: Any) -> None:
    assert main(["--out", str(tmp_path / "out"), "--data", str(tmp_path)]) == 2
    assert "corpus.jsonl" in capsys.readouterr().err
