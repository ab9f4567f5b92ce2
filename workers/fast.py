"""Owns the fast embedder: onnxruntime on an adopted graph, the only import of it beside export.py. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..ipc.settings import ModelSettings
from .batches import SubBatches
from .graphs import Graph, Recipe, Verdict
from .vectors import Vectors


def onnxruntime_without_telemetry() -> Any:
    """Return onnxruntime, imported so that it sends nothing to its makers.

    The import of 1.32 starts a thread that reports over HTTPS; a service must not, and a fork server may have one
    thread only.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    return onnxruntime


class FastEmbedder:
    """An Embedder whose vectors are the reference's, as its verdict says. Loads at the first use, in 0.3 s.

    With one thread onnxruntime starts none of its own: a session made before a fork works in the child, which shares the
    weights. Several threads of ours may run it at once (crew.py).
    """

    def __init__(self, settings: ModelSettings, graph: Graph, verdict: Verdict, batches: SubBatches) -> None:
        """`verdict` is an adopted one."""
        assert verdict.recipe is not None
        self.settings, self.verdict, self.batches = settings, verdict, batches
        self._graph, self._recipe = graph, verdict.recipe

    def load(self) -> None:
        """Load tokenizer and weights now, without computing anything."""
        _ = self._tokenizer, self._session

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        recipe, tokenizer = self._recipe, Tokenizer.from_file(str(self._graph.tokenizer_path))
        tokenizer.enable_truncation(recipe.max_tokens)
        tokenizer.enable_padding(pad_id=recipe.pad_id, pad_token=recipe.pad_token, pad_type_id=recipe.pad_type)
        return tokenizer

    @cached_property
    def _session(self) -> Any:
        ort = onnxruntime_without_telemetry()
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1  # the threads are ours: one waiting for another is time that nobody uses
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors: a warning of each node that it cannot place is no one's business
        options.enable_mem_pattern = False  # kept for each shape of a batch, and there are hundreds
        return ort.InferenceSession(str(self._graph.path), options, providers=["CPUExecutionProvider"])

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def size(self) -> int:
        return self._recipe.size

    @property
    def revision(self) -> str:
        return self.verdict.revision

    def embed(self, texts: Sequence[str], *, pace: Callable[[], None] | None = None) -> Vectors:
        """Return float32 of shape (len(texts), D), L2-normalised."""
        vectors = np.empty((len(texts), self.size), dtype=np.float32)

        def compute(rows: list[int]) -> None:
            hidden, mask = self._hidden([texts[row] for row in rows])
            vectors[rows] = pooled(hidden, mask, self._recipe)

        self.batches.each([len(text) for text in texts], compute, pace)
        return vectors

    def token_vectors(self, texts: Sequence[str], *, pace: Callable[[], None] | None = None) -> list[Vectors]:
        """Return for each text float32 of shape (tokens, D), rows L2-normalised; [CLS] and [SEP] are left out."""
        found: list[Vectors] = [np.empty((0, self._recipe.token_size), dtype=np.float32)] * len(texts)
        for rows in self.batches.rows([len(text) for text in texts], is_paced=pace is not None):
            hidden, mask = self._hidden([texts[row] for row in rows])
            for row, states, count in zip(rows, hidden, mask.sum(axis=1), strict=True):
                found[row] = _normalised(states[1 : int(count) - 1])
            if pace is not None:
                pace()
        return found

    def _hidden(self, texts: Sequence[str | tuple[str, str]]) -> tuple[Vectors, npt.NDArray[np.int64]]:
        """Return the last hidden state, float32 (texts, tokens, D), and the mask of its tokens (texts, tokens)."""
        encoded = self._tokenizer.encode_batch(list(texts))
        columns = {
            "input_ids": [one.ids for one in encoded],
            "attention_mask": [one.attention_mask for one in encoded],
            "token_type_ids": [one.type_ids for one in encoded],
        }
        given = {name: np.array(columns[name], dtype=np.int64) for name in self._recipe.inputs}
        (hidden,) = self._session.run(None, given)
        return hidden, given["attention_mask"]


def pooled(hidden: Vectors, mask: npt.NDArray[np.int64], recipe: Recipe) -> Vectors:
    """Return one vector for each text, float32 (texts, D), L2-normalised. As sentence-transformers' Pooling does."""
    parts = []
    weights = mask[:, :, None].astype(np.float32)
    for mode in recipe.pooling:
        if mode == "cls":
            parts.append(hidden[:, 0])
        elif mode == "max":
            parts.append(np.where(weights == 0, np.float32(-1e9), hidden).max(axis=1))
        else:
            parts.append((hidden * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-9))
    return _normalised(np.concatenate(parts, axis=1))


def _normalised(rows: Vectors) -> Vectors:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-12), dtype=np.float32)
