"""Owns made paraphrases of claims, and streams of requests that ask for claims in one wording or another.

They are made by rule, not by people: words are dropped, halves swapped, a question put in front. What a real user writes
differs more and less; whether two wordings find the same documents is for the real model and the real search to say.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .policies import synthetic

STOP_WORD = re.compile(
    "a|an|and|are|as|at|be|by|can|do|does|for|from|has|have|in|into|is|it|its|of|on|or|that|the|their|to|was|were|with",
    re.I,
)
SHARES = (0.45, 0.15, 0.1, 0.1, 0.1, 0.1)  # how often each wording of a claim is asked, the claim's own first


def wordings(claim: str, seed: int) -> list[str]:
    """Return a claim and five paraphrases: without stop words, a word less, halves swapped, as a question, backwards."""
    chance, words = random.Random(seed), claim.rstrip(". ").split()
    half = len(words) // 2
    dropped = chance.randrange(len(words))
    less = words[:dropped] + words[dropped + 1 :]
    bare = [word for word in words if not STOP_WORD.fullmatch(word)]
    return [
        claim,
        " ".join(bare),
        " ".join(less),
        " ".join([*words[half:], *words[:half]]),
        f"is it true that {' '.join(words)}?",
        f"evidence {' '.join(bare[::-1])}",
    ]


@dataclass(frozen=True, slots=True)
class Asked:
    wording: int  # row of all wordings: len(SHARES) a claim, in the order of the claims
    at_s: float


def stream(claims: int, seed: int, requests: int, one_per_s: float, exponent: float) -> list[Asked]:
    """Return a seeded stream over `claims` claims of Zipf popularity, 5 % of them new each day, each time in some wording."""
    made = synthetic("claims", seed, requests, one_per_s, exponent=exponent, drift=0.05, bursts=0.2)
    chance = np.random.default_rng(seed)
    which = chance.choice(len(SHARES), size=len(made.names), p=SHARES)
    rows = np.array(made.names) % claims * len(SHARES) + which
    return [Asked(row, at_s) for row, at_s in zip(rows.tolist(), made.times_s, strict=True)]


def all_wordings(claims: Sequence[str], seed: int) -> list[str]:
    return [text for number, claim in enumerate(claims) for text in wordings(claim, seed + number)]
