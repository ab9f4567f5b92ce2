"""Owns the models that can be trained to rerank: a cross-encoder, begun from a cross-encoder or an embedding model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ipc.errors import ModelUnavailable
from .models import no_progress_bars, quietly_load

if TYPE_CHECKING:
    import torch

RAW_SCORES = "torch.nn.modules.linear.Identity"
"""How a CrossEncoder is told to give logits: a sigmoid's ends are flat, where its z-scores would tell nothing apart."""


class CrossEncoderModel:
    """A BERT-like encoder over query and text together with one score, by folder, packaged name or hub name.

    Of an embedding model the encoder is taken, and a head is put on it: matching of tokens (matching.py), and a classifier
    whose weights begin at random, from `seed`. Raises ModelUnavailable.
    """

    def __init__(self, name: str, seed: int = 0) -> None:
        def load(target: str, is_folder: bool) -> tuple[Any, Any]:
            import torch
            from transformers import AutoModelForSequenceClassification, AutoTokenizer

            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                made = AutoModelForSequenceClassification.from_pretrained(
                    target, num_labels=1, local_files_only=is_folder, output_loading_info=True
                )
            return made, AutoTokenizer.from_pretrained(target, local_files_only=is_folder)

        (self._inner, info), self._tokenizer = quietly_load(name, load)
        from .matching import KEY, MatchingModel, encoded  # after it: a missing torch is said in its words

        self._new = {key.rpartition(".")[0] for key in info["missing_keys"]}
        is_matching = self._tokenizer.sep_token_id is not None and (self._new or hasattr(self._inner.config, KEY))
        self._model = MatchingModel(self._inner, self._tokenizer) if is_matching else self._inner
        self._model.eval()
        self._encoded = encoded

    @property
    def module(self) -> torch.nn.Module:
        module: torch.nn.Module = self._model
        return module

    def scores(self, query: str, texts: Sequence[str], max_tokens: int) -> torch.Tensor:
        """Return logits, shape (len(texts),)."""
        inputs = self._encoded(self._tokenizer, [(query, text) for text in texts], max_tokens)
        logits: torch.Tensor = self._model(**inputs, return_dict=False)[0][:, 0]
        return logits

    def layers(self) -> tuple[torch.nn.Module, Sequence[torch.nn.Module]]:
        """Return embeddings and layers. Raises ModelUnavailable for a model that is not built like BERT."""
        body = self._inner.base_model
        encoder = getattr(body, "encoder", None) or getattr(body, "transformer", None)
        layers = getattr(encoder, "layer", None)
        if layers is None or not hasattr(body, "embeddings"):
            raise ModelUnavailable(
                f"a {type(self._inner).__name__} cannot be trained here: name a model that is built like BERT"
            )
        return body.embeddings, list(layers)

    def heads(self) -> Sequence[torch.nn.Module]:
        return [module for name, module in self._inner.named_modules() if name in self._new]

    def write(self, folder: Path, max_tokens: int) -> None:
        """Write it as a folder that CrossEncoderReranker loads, cut at `max_tokens`."""
        self._inner.config.sentence_transformers = {"activation_fn": RAW_SCORES, "version": "5.1.0"}
        self._tokenizer.model_max_length = max_tokens
        with no_progress_bars():
            self._inner.save_pretrained(folder)
            self._tokenizer.save_pretrained(folder)
