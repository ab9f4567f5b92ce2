"""Owns the fingerprint of a text and the stamp that a re-index leaves on a point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xxhash

from .vectors import STAMP_KEY


def fingerprint(text: str) -> str:
    """Return xxh3-64 of the text as 16 hex characters."""
    return xxhash.xxh3_64_hexdigest(text.encode())


def stamp(text_fingerprint: str, model: str, revision: str) -> dict[str, str]:
    """Return the value of STAMP_KEY: which text was embedded by which model."""
    return {"fp": text_fingerprint, "model": model, "rev": revision}


def is_stale(payload: Mapping[str, Any], wanted: Mapping[str, str]) -> bool:
    """Say whether a point's vector is not, or not verifiably, that of its text under the configured model."""
    return payload.get(STAMP_KEY) != wanted
