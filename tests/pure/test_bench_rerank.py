"""What `bench rerank` makes of its measurements."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.cases.rerank import (
    FULL,
    PLAIN,
    QUICK,
    _settings,
    largest_difference,
    part_of,
    questions_of,
    times_plain,
)
from bench.daemon import to_toml
from bench.pairs import Scored
from bench.scifact import shipped
from morgan.background.supervisor.config import load


def scored(cpu_s: float, *scores: float) -> Scored:
    return Scored(2 * cpu_s, cpu_s, [np.array(scores)])


def test_a_ratio_is_of_cpu_time_in_the_same_round() -> None:
    rounds = {PLAIN: [scored(4.0, 0.1), scored(9.0, 0.1)], "ours": [scored(2.0, 0.1), scored(3.0, 0.1)]}
    assert times_plain(rounds, "ours") == 2.5
    assert times_plain(rounds, PLAIN) == 1.0


def test_the_largest_difference_is_of_the_same_pair() -> None:
    rounds = {PLAIN: [scored(1.0, 0.1, 0.9)], "ours": [scored(1.0, 0.1, 0.7)]}
    assert largest_difference(rounds) == pytest.approx(0.2)


def test_candidates_are_what_shares_words_with_the_claim() -> None:
    texts = ["zinc in the gut", "iron in the blood", "gold", "zinc uptake in mice"]
    ((claim, found),) = questions_of(["zinc uptake"], texts, 2)
    assert (claim, found) == ("zinc uptake", ["zinc uptake in mice", "zinc in the gut"])


def test_the_part_of_a_corpus_has_what_its_claims_are_judged_on() -> None:
    corpus = shipped(QUICK.documents)
    part = part_of(corpus, QUICK)
    assert len(part) == QUICK.documents
    wanted = {name for claim in corpus.claims[: QUICK.searches + QUICK.task_queries] for name in claim["judgments"]}
    assert wanted <= {str(one["id"]) for one in part}
    assert part == part_of(corpus, QUICK)


def test_its_settings_are_ones_the_service_takes(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(to_toml(_settings("/a/model", FULL)))
    rerank = load(path, {}).worker_settings().rerank
    assert (rerank.cross_encoder, rerank.candidates) == ("/a/model", 50)
