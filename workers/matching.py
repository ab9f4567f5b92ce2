"""Owns a cross-encoder that was an embedding model: it reads both texts together and compares their tokens. Imports torch.

    query and text, read together ─┬▶ token vectors ─▶ best cosine of each of the query's, their mean ─▶ x SCALE ─┐
                                   └▶ first token ─▶ classifier, new ─────────────────────────────────────────────┴▶ logit

A classifier that begins at random says nothing until it has seen many judgments. Late interaction (Khattab and Zaharia 2020)
says much at once; with both texts in one input every layer of it can learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from .task import Floats

KEY = "token_matching"
"""In a model's configuration: the scale of the matching that its logit has. Other loaders pass over it, and give the
classifier's part alone."""
SCALE = 20.0  # of a mean of cosines, to logits: relevant and other texts are some hundredths apart


def matched(hidden: torch.Tensor, ids: torch.Tensor, separator: int, special: torch.Tensor) -> torch.Tensor:
    """Return the mean over query tokens of the best cosine among the text's tokens, shape (pairs,).

    `hidden` has shape (pairs, tokens, size) and `ids` (pairs, tokens): the query, a `separator`, the text. Tokens whose id
    is `special` belong to neither. 0 where the query has no token, -1 at worst.
    """
    is_token = ~(ids[:, :, None] == special).any(dim=2)
    is_after = torch.cumsum((ids == separator).long(), dim=1) > 0
    is_query, is_text = is_token & ~is_after, is_token & is_after
    vectors = normalize(hidden, dim=-1)
    cosines = vectors @ vectors.transpose(1, 2)
    best = cosines.masked_fill(~is_text[:, None, :], -1.0).amax(dim=2)
    weights = is_query.to(best.dtype)
    return (best * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


class MatchingModel(torch.nn.Module):
    """A transformer with one score, to whose logit the matching is added. Called and exported as the transformer is."""

    def __init__(self, inner: Any, tokenizer: Any) -> None:
        super().__init__()
        self.inner, self._separator = inner, int(tokenizer.sep_token_id)
        self.register_buffer("_special", torch.tensor(sorted(set(tokenizer.all_special_ids))), persistent=False)
        if not hasattr(inner.config, KEY):
            setattr(inner.config, KEY, SCALE)

    @property
    def config(self) -> Any:
        return self.inner.config

    def set_attn_implementation(self, name: str) -> None:
        self.inner.set_attn_implementation(name)

    def forward(self, *, return_dict: bool = False, **inputs: torch.Tensor) -> tuple[torch.Tensor]:
        """Return logits, shape (pairs, 1), in a tuple: as a transformer does that is asked for no dict."""
        assert not return_dict
        made = self.inner(**inputs, output_hidden_states=True, return_dict=True)
        found = matched(made.hidden_states[-1], inputs["input_ids"], self._separator, self._special)  # type: ignore[arg-type]
        return (made.logits + getattr(self.config, KEY) * found[:, None],)


class MatchingCrossEncoder:
    """One that was loaded: what of a sentence-transformers CrossEncoder is used here."""

    num_labels = 1

    def __init__(self, inner: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = MatchingModel(inner, tokenizer).eval(), tokenizer
        self.max_length = int(tokenizer.model_max_length)
        self.activation_fn = torch.nn.Identity()

    def parameters(self) -> Any:
        return self.model.parameters()

    def predict(self, pairs: Sequence[tuple[str, str]], *, batch_size: int, show_progress_bar: bool = False) -> Floats:
        """Return logits, shape (len(pairs),)."""
        found = [self._logits(pairs[start : start + batch_size]) for start in range(0, len(pairs), batch_size)]
        return np.concatenate([np.empty(0, dtype=np.float32), *found])

    def _logits(self, pairs: Sequence[tuple[str, str]]) -> Floats:
        with torch.inference_mode():
            (logits,) = self.model(**encoded(self.tokenizer, pairs, self.max_length).to(self.model.inner.device))
        scores: Floats = logits[:, 0].float().cpu().numpy()
        return scores


def encoded(tokenizer: Any, pairs: Sequence[tuple[str, str]], max_tokens: int) -> Any:
    """Return a batch of pairs as a transformer takes them; of a pair that is too long, the longer text is cut."""
    queries, texts = zip(*pairs, strict=True)
    return tokenizer(
        list(queries),
        list(texts),
        truncation="longest_first",
        max_length=max_tokens,
        padding=True,
        return_tensors="pt",
    )
