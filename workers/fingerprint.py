"""Owns the fingerprint of a text and the stamp that a re-index leaves on a point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import xxhash

from .vectors import AS_KEY, COPIED_KEY, STAMP_KEY


def fingerprint(text: str) -> str:
    """Return xxh3-64 of the text as 16 hex characters."""
    return xxhash.xxh3_64_hexdigest(text.encode())


def of_payload(payload: Mapping[str, Any]) -> str:
    """Return xxh3-64 of a payload, without our stamp, as 16 hex characters."""
    own = {key: value for key, value in payload.items() if key != STAMP_KEY}
    return xxhash.xxh3_64_hexdigest(msgspec.json.encode(own, order="deterministic"))


def stamp(text_fingerprint: str, model: str, revision: str, chunking: str = "") -> dict[str, str]:
    """Return the value of STAMP_KEY: which text was embedded by which model, and how its document had been cut up."""
    mark = {"fp": text_fingerprint, "model": model, "rev": revision}
    return mark | {"chunking": chunking} if chunking else mark


def is_stale(payload: Mapping[str, Any], wanted: Mapping[str, str]) -> bool:
    """Say whether a point's vector is not, or not verifiably, that of its text under the configured model."""
    held = payload.get(STAMP_KEY)
    if not isinstance(held, Mapping):
        return True
    return {key: value for key, value in held.items() if key not in (COPIED_KEY, AS_KEY)} != wanted


def is_stamped(payload: Mapping[str, Any]) -> bool:
    return isinstance(payload.get(STAMP_KEY), Mapping)


def maker_of(payload: Mapping[str, Any]) -> tuple[str, str]:
    """Return the model and revision that a point's stamp names; empty texts where it names none."""
    mark = payload.get(STAMP_KEY)
    if not isinstance(mark, Mapping):
        return "", ""
    return str(mark.get("model", "")), str(mark.get("rev", ""))
