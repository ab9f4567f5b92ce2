"""Owns a cross-encoder's graph at work: pairs in, scores out. Loaded and run as an embedder's graph is (fast.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..ipc.settings import ModelSettings
from .batches import SubBatches
from .fast import FastEmbedder
from .graphs import Graph, Verdict, key_of
from .task import Floats


class FastPairs(FastEmbedder):
    """Gives the scores of the reference's `predict`, as its verdict says. Loads at the first use."""

    def scores(self, pairs: Sequence[tuple[str, str]]) -> Floats:
        """Return float32 of shape (len(pairs),)."""
        logits, _ = self._hidden(pairs)
        found: Floats = logits[:, 0].astype(np.float32)
        if self._recipe.activation == "Sigmoid":
            found = np.float32(0.5) + np.float32(0.5) * np.tanh(
                found / 2
            )  # 1 / (1 + exp(-x)), which overflows below -88
        return found


def fast_pairs(name: str, graph: Graph, verdict: Verdict) -> FastPairs:
    """Return the graph of an adopted verdict."""
    return FastPairs(ModelSettings(name=name), graph, verdict, SubBatches(1))


def pair_graph_of(name: str, folder: str) -> Graph | None:
    """Return where the graph of a cross-encoder is kept; None where the model is not on disk. Raises ModelUnavailable.

    Beside those of embedders, under a key of its own kind: one folder may be loaded as either.
    """
    key = key_of(ModelSettings(name=name))
    return None if key is None else Graph(Path(folder), f"{key}-pairs")
