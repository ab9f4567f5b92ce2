"""Owns what of a long text a cross-encoder reads: its first sentence, and those that share most with the query. Pure.

A cross-encoder costs CPU time for every token that it reads, and cuts a text where its own limit is, whatever stands behind.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from .bm25 import words

_BETWEEN_SENTENCES = re.compile(r"(?<=[.!?;])\s+|\n+")


def excerpts(query: str, texts: Sequence[str], max_words: int) -> list[str]:
    """Return of each text its first sentence and its best ones in the order of the text, `max_words` words at most.

    A sentence is as good as the words of the query in it are rare among `texts`; the last that is taken is cut. A text that
    is short enough is returned as it is.
    """
    wanted = set(words(query))
    holding = Counter(word for text in texts for word in wanted.intersection(words(text)))
    rarity = {word: math.log(1 + (len(texts) - count + 0.5) / (count + 0.5)) for word, count in holding.items()}
    return [_excerpt(text, rarity, max_words) for text in texts]


def _excerpt(text: str, rarity: dict[str, float], max_words: int) -> str:
    if len(text.split()) <= max_words:
        return text
    sentences = [sentence.split() for sentence in _BETWEEN_SENTENCES.split(text.strip())]
    scores = [sum(rarity.get(word, 0.0) for word in set(words(" ".join(one)))) for one in sentences]
    best = sorted(range(1, len(sentences)), key=lambda one: (-scores[one], one))
    kept: dict[int, list[str]] = {}
    left = max_words
    for place in (0, *best):
        kept[place] = sentences[place][:left]
        left -= len(kept[place])
        if not left:
            break
    return " ".join(word for place in sorted(kept) for word in kept[place])
