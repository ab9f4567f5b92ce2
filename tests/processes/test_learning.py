"""A learned reranker in the real service: found by the worker and the owner, left again by one command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from morgan.background.ipc import calls
from morgan.background.ipc.settings import ModelSettings
from morgan.background.workers.shelf import Learned, Shelf
from tests.components.tiny_models import tiny_cross_encoder
from tests.processes.daemons import Daemon

pytestmark = pytest.mark.timeout(400)

NAME = ModelSettings().name
QUERY = "a question of the learned reranker"
LEARNED = Learned(
    version="v1",
    embedder=NAME,
    instead_of=f"late interaction ({NAME})",
    weights=(0.0, 0.0, 0.0, 1.0),
    has_model=True,
    max_words=40,
    learned_at=1.0,
    queries=100,
    held_out=25,
    before=0.5,
    after=0.6,
    low=0.05,
    high=0.15,
)


def parsed(daemon: Daemon, *arguments: str) -> Any:
    return json.loads(daemon.cli(*arguments, "--json"))


def test_what_was_learned_reranks_in_every_process_until_it_is_undone(daemon: Daemon, docs: str) -> None:
    lacking = parsed(daemon, "learn", docs, "--force")
    assert lacking["status"] == "skipped"
    assert "0 queries have a relevant document, 50 are needed" in lacking["result"]["reason"]
    assert lacking["result"]["reranker"] == LEARNED.instead_of
    assert "nothing to go back to" in daemon.cli("learn", docs, "--undo", code=1)

    shelf = Shelf(Path(daemon.state) / "rerankers", docs)
    made = shelf.begin("here")
    tiny_cross_encoder(made / "model")
    shelf.adopt(made, LEARNED)
    search = calls.SearchText(collection=docs, text=QUERY, limit=5, is_reranked=True)
    learned = daemon.client.call(search)  # by the owner
    assert parsed(daemon, "learn", docs, "--force")["result"]["reranker"] == "learned v1"  # what a worker uses

    assert parsed(daemon, "learn", docs, "--undo")["result"]["reranker"] == LEARNED.instead_of
    configured = daemon.client.call(search)
    assert isinstance(learned, calls.Computed)
    assert isinstance(configured, calls.Computed)
    assert learned.result is not None
    assert configured.result is not None
    assert learned.result.rerank_scores != configured.result.rerank_scores
